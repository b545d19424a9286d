# SPDX-License-Identifier: BSD-3-Clause
"""Which IO addresses are free: first fit over the ranges that a container can map."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from typing import NamedTuple

FOUR_GIB = 1 << 32
LOWEST = 0x10000
"""Lowest address handed out unasked: 0 and its neighbours are what a forgotten register holds."""


class Range(NamedTuple):
    """Addresses from ``first`` to ``last``, both included, so that 2^64 - 1 can be held."""

    first: int
    last: int


class IOVAAllocator:
    """The free addresses of an IO address space.

    Not locked; its container is.

    :param ranges: (first, last) of what can be mapped, ascending, not overlapping.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._ranges = [Range(*pair) for pair in ranges]
        self._free = list(self._ranges)

    def allowed(self, first: int, last: int) -> bool:
        """Whether the addresses lie in a range that can be mapped, free or not."""
        return _holder(self._ranges, first, last) is not None

    def is_free(self, first: int, last: int) -> bool:
        """Whether none of the addresses is in use."""
        return _holder(self._free, first, last) is not None

    def find(self, size: int, alignment: int, address_bits: int) -> int | None:
        """A free address for ``size`` bytes below 2^``address_bits``; None where there is none.

        Addresses that need more than 32 bits are preferred where the device takes them, so that
        the low ones are left for devices that do not.
        """
        limit = (1 << address_bits) - 1
        if address_bits > 32:
            found = self._first_fit(size, alignment, FOUR_GIB, limit)
            if found is not None:
                return found
        return self._first_fit(size, alignment, LOWEST, limit)

    def _first_fit(self, size: int, alignment: int, lowest: int, limit: int) -> int | None:
        for free in self._free:
            first = -(-max(free.first, lowest) // alignment) * alignment
            if first + size - 1 <= min(free.last, limit):
                return first
        return None

    def take(self, first: int, last: int) -> None:
        """Mark free addresses as used."""
        position = _holder(self._free, first, last)
        assert position is not None, "the caller checked that the addresses are free"
        free = self._free[position]
        rest = (Range(free.first, first - 1), Range(last + 1, free.last))
        self._free[position : position + 1] = [part for part in rest if part.first <= part.last]

    def give(self, first: int, last: int) -> None:
        """Mark used addresses as free, joined with their free neighbours of the same range."""
        whole = self._ranges[_position(self._ranges, first)]
        position = bisect_right(self._free, Range(first, last))
        if position < len(self._free) and self._free[position].first == last + 1 <= whole.last:
            last = self._free.pop(position).last
        if position and whole.first <= self._free[position - 1].last == first - 1:
            first = self._free.pop(position - 1).first
        insort(self._free, Range(first, last))


def _position(ranges: Sequence[Range], first: int) -> int:
    return bisect_right(ranges, first, key=lambda held: held.first) - 1


def _holder(ranges: Sequence[Range], first: int, last: int) -> int | None:
    position = _position(ranges, first)
    if position < 0 or ranges[position].last < last:
        return None
    return position
