# SPDX-License-Identifier: BSD-3-Clause
"""Numbers in ascending order, each with a value, in blocks.

In one long list an insertion moves all that is behind it, and a search for something large looks at
everything: with 60,000 entries that costs more than a message.  Here both touch one block, which is
found by bisection, or by a look at a bound of each.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

MOST = 256
"""Entries of a block, which is parted when it has more, and joined with another when it has few."""

FEW = 8
"""Entries for one block that cost less one by one than together."""

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

    def merge(self, keys: Sequence[int], values: Sequence[_Value], weights: Sequence[int]) -> None:
        """Add many, by ascending keys, or change their values."""
        if self.keys and keys[0] <= self.keys[-1]:
            entries = dict(zip(self.keys, zip(self.values, self.weights, strict=True), strict=True))
            entries.update(zip(keys, zip(values, weights, strict=True), strict=True))
            self.keys = sorted(entries)
            self.values = [entries[key][0] for key in self.keys]
            self.weights = [entries[key][1] for key in self.keys]
        else:
            self.keys += keys
            self.values += values
            self.weights += weights

    def remove(self, keys: Sequence[int]) -> None:
        """Take out many, by ascending keys; raises :class:`KeyError` where one is not there."""
        first = bisect_left(self.keys, keys[0])
        end = first + len(keys)
        if self.keys[first:end] == keys:  # neighbours
            del self.keys[first:end], self.values[first:end], self.weights[first:end]
            return
        gone = set(keys)
        if not gone.issubset(self.keys):
            raise KeyError(*sorted(gone.difference(self.keys)))
        left = [at for at, key in enumerate(self.keys) if key not in gone]
        self.keys = [self.keys[at] for at in left]
        self.values = [self.values[at] for at in left]
        self.weights = [self.weights[at] for at in left]

    def parts(self) -> list[_Block[_Value]]:
        """The same entries in blocks that are not full."""
        found = []
        step = -(-len(self.keys) // -(-2 * len(self.keys) // MOST))
        for at in range(0, len(self.keys), step):
            part = _Block[_Value]()
            part.keys = self.keys[at : at + step]
            part.values = self.values[at : at + step]
            part.weights = self.weights[at : at + step]
            part.bound = max(part.weights)
            found.append(part)
        return found

    def get(self, key: int) -> _Value | None:
        """The value of a number; None where it is not there."""
        at = bisect_left(self.keys, key)
        return self.values[at] if at < len(self.keys) and self.keys[at] == key else None

    def get_all(self, keys: Sequence[int]) -> Iterable[_Value | None]:
        """The values of some numbers, which ascend."""
        first = bisect_left(self.keys, keys[0])
        end = first + len(keys)
        if self.keys[first:end] == keys:  # neighbours
            return self.values[first:end]
        if len(keys) < FEW:
            return map(self.get, keys)
        return map(dict(zip(self.keys, self.values, strict=True)).get, keys)

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

    # Many together; their keys ascend

    def _shares(self, keys: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Which block has the place of which keys: (position of the block, first key, end)."""
        first = 0
        while first < len(keys):
            at = max(0, bisect_right(self._firsts, keys[first]) - 1)
            last = at + 1 == len(self._firsts)
            end = len(keys) if last else bisect_left(keys, self._firsts[at + 1], first)
            yield at, first, end
            first = end

    def find_all(self, keys: Sequence[int]) -> list[_Value | None]:
        """The value of each number; None for those that are not there."""
        found: list[_Value | None] = []
        for at, first, end in self._shares(keys) if self._blocks else ():
            found += self._blocks[at].get_all(keys[first:end])
        return found or [None] * len(keys)

    def put_all(self, keys: Sequence[int], values: Sequence[_Value]) -> None:
        """Add entries, or change their values."""
        if keys and not self._blocks:
            self._blocks.append(_Block())
            self._firsts.append(keys[0])
        # From the last one, so that the places of the others stay what they are.
        for at, first, end in reversed(list(self._shares(keys))):
            if end - first < FEW and self._count:
                for position in range(first, end):
                    self.put(keys[position], values[position])
            else:
                self._merge(at, keys[first:end], values[first:end])

    def _merge(self, at: int, keys: Sequence[int], values: Sequence[_Value]) -> None:
        block, weigh = self._blocks[at], self._weigh
        before = len(block.keys)
        weights = [0] * len(keys)
        if weigh is not None:
            weights = [weigh(key, value) for key, value in zip(keys, values, strict=True)]
        block.merge(keys, values, weights)
        self._count += len(block.keys) - before
        parts = block.parts()
        self._blocks[at : at + 1] = parts
        self._firsts[at : at + 1] = [part.keys[0] for part in parts]

    def pop_all(self, keys: Sequence[int]) -> None:
        """Take entries out, all of which are there."""
        for at, first, end in reversed(list(self._shares(keys))):
            if end - first < FEW:
                for key in keys[first:end]:
                    self.pop(key)
            else:
                self._remove(at, keys[first:end])

    def _remove(self, at: int, keys: Sequence[int]) -> None:
        block = self._blocks[at]
        block.remove(keys)
        self._count -= len(keys)
        if not block.keys:
            del self._blocks[at], self._firsts[at]
            return
        self._firsts[at] = block.keys[0]
        if at + 1 < len(self._blocks):
            self._join(at)

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
