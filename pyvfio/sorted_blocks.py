# SPDX-License-Identifier: BSD-3-Clause
"""Numbers in ascending order, each with a value, in blocks.

In one long list an insertion moves all that is behind it, and a search for something large looks at
everything: with 60,000 entries that costs more than a message.  Here both touch one block, which is
found by bisection, or by a look at a bound of each.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

MOST = 256
"""Entries of a block, which is parted when it has more, and joined with another when it has few."""

_Value = TypeVar("_Value")


class _Block(Generic[_Value]):
    """Neighbours.

    :ivar bound: none of them weighs more; maybe less, after one was taken out.
    """

    __slots__ = ("bound", "keys", "values", "weights")

    def __init__(self) -> None:
        self.keys: list[int] = []
        self.values: list[_Value] = []
        self.weights: list[int] = []
        self.bound = 0

    def add(self, position: int, key: int, value: _Value, weight: int) -> None:
        self.keys.insert(position, key)
        self.values.insert(position, value)
        self.weights.insert(position, weight)

    def change(self, position: int, value: _Value, weight: int) -> None:
        self.values[position] = value
        self.weights[position] = weight

    def take(self, position: int) -> _Value:
        del self.keys[position], self.weights[position]
        return self.values.pop(position)

    def part(self) -> _Block[_Value]:
        """Take half of them out."""
        rest, half = _Block[_Value](), MOST // 2
        self.keys, rest.keys = self.keys[:half], self.keys[half:]
        self.values, rest.values = self.values[:half], self.values[half:]
        self.weights, rest.weights = self.weights[:half], self.weights[half:]
        rest.bound = self.bound
        return rest

    def join(self, rest: _Block[_Value]) -> None:
        """Add those of another, which come behind."""
        self.keys += rest.keys
        self.values += rest.values
        self.weights += rest.weights
        self.bound = max(self.bound, rest.bound)


class SortedBlocks(Generic[_Value]):
    """Values by number; not locked.

    :param weigh: what an entry (number, value) weighs, for :meth:`heavy`; 0 by default.
    """

    def __init__(self, weigh: Callable[[int, _Value], int] | None = None) -> None:
        self._weigh = weigh
        self._blocks: list[_Block[_Value]] = []
        self._firsts: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[_Value]:
        """The values, by ascending number."""
        for block in self._blocks:
            yield from block.values

    def floor(self, key: int) -> tuple[int, _Value] | None:
        """The entry with the greatest number that is not greater than ``key``."""
        at = bisect_right(self._firsts, key) - 1
        if at < 0:
            return None
        block = self._blocks[at]
        position = bisect_right(block.keys, key) - 1
        return block.keys[position], block.values[position]

    def put(self, key: int, value: _Value) -> None:
        """Add an entry, or change its value."""
        if not self._blocks:
            self._blocks.append(_Block())
            self._firsts.append(key)
        weight = 0 if self._weigh is None else self._weigh(key, value)
        at = max(0, bisect_right(self._firsts, key) - 1)
        block = self._blocks[at]
        block.bound = max(block.bound, weight)
        position = bisect_left(block.keys, key)
        if position < len(block.keys) and block.keys[position] == key:
            block.change(position, value, weight)
            return
        block.add(position, key, value, weight)
        self._firsts[at] = block.keys[0]
        self._count += 1
        if len(block.keys) > MOST:
            self._blocks.insert(at + 1, block.part())
            self._firsts.insert(at + 1, self._blocks[at + 1].keys[0])

    def pop(self, key: int) -> _Value:
        """Take an entry out; raises :class:`KeyError` where there is none."""
        at = bisect_right(self._firsts, key) - 1
        block = self._blocks[at] if at >= 0 else None
        position = bisect_left(block.keys, key) if block is not None else 0
        if block is None or position == len(block.keys) or block.keys[position] != key:
            raise KeyError(key)
        value = block.take(position)
        self._count -= 1
        if not block.keys:
            del self._blocks[at], self._firsts[at]
            return value
        self._firsts[at] = block.keys[0]
        if at + 1 < len(self._blocks):
            self._join(at)
        return value

    def heavy(self, weight: int, key: int) -> Iterator[tuple[int, _Value]]:
        """The entries that weigh as much or more, from the floor of ``key`` on.

        Nothing may be changed meanwhile.
        """
        start = max(0, bisect_right(self._firsts, key) - 1)
        for at in range(start, len(self._blocks)):
            block = self._blocks[at]
            if block.bound < weight:
                continue
            first = max(0, bisect_right(block.keys, key) - 1)
            for position in range(first, len(block.keys)):
                if block.weights[position] >= weight:
                    yield block.keys[position], block.values[position]
            block.bound = max(block.weights)

    def _join(self, at: int) -> None:
        """Have two neighbours be one where that is far from full."""
        block, rest = self._blocks[at], self._blocks[at + 1]
        if len(block.keys) + len(rest.keys) < MOST // 2:
            block.join(rest)
            del self._blocks[at + 1], self._firsts[at + 1]
