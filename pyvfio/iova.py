# SPDX-License-Identifier: BSD-3-Clause
"""Which IO addresses are free: first fit over the ranges that a container can map."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice

from pyvfio.sorted_blocks import SortedBlocks

FOUR_GIB = 1 << 32
LOWEST = 0x10000
"""Lowest address handed out unasked: 0 and its neighbours are what a forgotten register holds."""


class IOVAAllocator:
    """The free addresses of an IO address space.

    Not locked; its container is.

    :param ranges: (first, last) of what can be mapped, ascending, not overlapping.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._ranges = _Ranges(ranges)
        self._free = _Ranges(ranges)

    def allowed(self, first: int, last: int) -> bool:
        """Whether the addresses lie in a range that can be mapped, free or not."""
        return self._ranges.holder(first, last) is not None

    def is_free(self, first: int, last: int) -> bool:
        """Whether none of the addresses is in use."""
        return self._free.holder(first, last) is not None

    def find(
        self, size: int, alignment: int, address_bits: int, tries: int | None = None
    ) -> int | None:
        """A free address for ``size`` bytes below 2^``address_bits``; None where there is none.

        :param tries: how many ranges that are large enough to look at, where a size may be free
            but not aligned; all by default.

        Addresses that need more than 32 bits are preferred where the device takes them, so that
        the low ones are left for devices that do not.
        """
        limit = (1 << address_bits) - 1
        if address_bits > 32:
            found = self._first_fit(size, alignment, FOUR_GIB, limit, tries)
            if found is not None:
                return found
        return self._first_fit(size, alignment, LOWEST, limit, tries)

    def _first_fit(
        self, size: int, alignment: int, lowest: int, limit: int, tries: int | None
    ) -> int | None:
        for low, high in islice(self._free.heavy(size, lowest), tries):
            first = -(-max(low, lowest) // alignment) * alignment
            if first + size - 1 <= min(high, limit):
                return first
            if low > limit:
                return None
        return None

    def take(self, first: int, last: int) -> None:
        """Mark free addresses as used."""
        free = self._free.holder(first, last)
        assert free is not None, "the caller checked that the addresses are free"
        low, high = free
        if low < first:
            self._free.put(low, first - 1)
        else:
            self._free.pop(low)
        if last < high:
            self._free.put(last + 1, high)

    def give(self, first: int, last: int) -> None:
        """Mark used addresses as free, joined with their free neighbours of the same range."""
        whole = self._ranges.holder(first, last)
        assert whole is not None, "the caller has taken the addresses"
        behind = self._free.floor(last + 1)
        if behind is not None and behind[0] == last + 1 <= whole[1]:
            self._free.pop(last + 1)
            last = behind[1]
        before = self._free.floor(first)
        if before is not None and whole[0] <= before[1] == first - 1:
            first = before[0]
        self._free.put(first, last)

    # Many together: first and last addresses, ascending and not overlapping

    def are_free(self, firsts: Sequence[int], lasts: Sequence[int]) -> bool:
        """Whether none of the addresses is in use."""
        return all(
            free is not None and lasts[end - 1] <= free[1]
            for free, _, end in self._shares(firsts, lasts)
        )

    def take_all(self, firsts: Sequence[int], lasts: Sequence[int]) -> None:
        """Mark free addresses as used."""
        firsts, lasts = self._parted(firsts, lasts)
        for free, begin, end in self._shares(firsts, lasts):
            assert free is not None, "the caller checked that the addresses are free"
            low, high = free
            starts = [low, *(last + 1 for last in lasts[begin:end])]
            ends = [*(first - 1 for first in firsts[begin:end]), high]
            left = [at for at, start in enumerate(starts) if start <= ends[at]]
            self._free.pop(low)
            self._free.put_all([starts[at] for at in left], [ends[at] for at in left])

    def give_all(self, firsts: Sequence[int], lasts: Sequence[int]) -> None:
        """Mark used addresses as free; see :meth:`give`."""
        for first, last in zip(*self._parted(firsts, lasts), strict=True):
            self.give(first, last)

    def _shares(
        self, firsts: Sequence[int], lasts: Sequence[int]
    ) -> Iterator[tuple[tuple[int, int] | None, int, int]]:
        """In which free range some of them begin: (range or None, first of them, end)."""
        begin = 0
        while begin < len(firsts):
            free = self._free.holder(firsts[begin], lasts[begin])
            end = begin + 1 if free is None else bisect_right(firsts, free[1], begin)
            yield free, begin, end
            begin = end

    def _parted(
        self, firsts: Sequence[int], lasts: Sequence[int]
    ) -> tuple[Sequence[int], Sequence[int]]:
        """The same addresses, with none in one piece that lie in two of the ranges."""
        if len(self._ranges) < 2:
            return firsts, lasts
        starts, ends = [], []
        for first, last in zip(firsts, lasts, strict=True):
            at = first
            while (whole := self._ranges.floor(at)) is not None and whole[1] < last:
                starts.append(at)
                ends.append(whole[1])
                at = whole[1] + 1
            starts.append(at)
            ends.append(last)
        return starts, ends


class _Ranges(SortedBlocks[int]):
    """First address -> last address, both included, so that 2^64 - 1 can be held."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        super().__init__(lambda first, last: last - first + 1)
        for first, last in ranges:
            self.put(first, last)

    def holder(self, first: int, last: int) -> tuple[int, int] | None:
        """The range that all of some addresses are in."""
        found = self.floor(first)
        return found if found is not None and last <= found[1] else None
