# SPDX-License-Identifier: BSD-3-Clause
"""What is seen at each address: a tree of regions, flattened."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pyvfio.emulator.memory.alias import AliasRegion
from pyvfio.emulator.memory.region import MAX_SIZE, MemoryRegion
from pyvfio.emulator.memory.terminal import TerminalRegion


@dataclass(frozen=True, slots=True)
class FlatRange:
    """Addresses at which one region is seen, in one piece.

    :ivar start: the first address.
    :ivar size: bytes.
    :ivar offset_in_region: the region's byte that is seen first.
    :ivar readonly: writes are dropped if it is RAM.
    """

    start: int
    size: int
    region: TerminalRegion
    offset_in_region: int
    readonly: bool

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.start + self.size

    def continues(self, other: FlatRange) -> bool:
        """Whether it and ``other``, which is in front of it, are one."""
        return (
            other.end == self.start
            and other.region is self.region
            and other.offset_in_region + other.size == self.offset_in_region
            and other.readonly == self.readonly
        )


class FlatView:
    """The ranges of an address space, in order; never changed, so that any thread may look.

    :param ranges: none overlaps another.
    """

    def __init__(self, ranges: tuple[FlatRange, ...] = ()) -> None:
        self.ranges = ranges
        self._starts = [found.start for found in ranges]

    def at(self, address: int) -> FlatRange | None:
        """The range that holds an address."""
        position = bisect_right(self._starts, address) - 1
        if position < 0 or self.ranges[position].end <= address:
            return None
        return self.ranges[position]

    def pieces(self, address: int, size: int) -> Iterator[tuple[FlatRange | None, int, int]]:
        """A stretch of addresses as (range or None, first address, bytes), in order."""
        end = address + size
        while address < end:
            found = self.at(address)
            stop = found.end if found is not None else self._next_start(address)
            length = min(end, stop) - address
            yield found, address, length
            address += length

    def _next_start(self, address: int) -> int:
        position = bisect_right(self._starts, address)
        return self._starts[position] if position < len(self._starts) else 2 * MAX_SIZE


def render(root: MemoryRegion) -> FlatView:
    """The view of a tree whose first byte is at address 0."""
    canvas = _Canvas()
    canvas.render(root, 0, 0, MAX_SIZE, False)
    return FlatView(canvas.merged())


class _Canvas:
    """Regions are painted from the front to the back, each where nothing is yet.

    QEMU's ``render_memory_region``.
    """

    def __init__(self) -> None:
        self._ranges: list[FlatRange] = []

    def render(self, region: MemoryRegion, base: int, first: int, end: int, readonly: bool) -> None:
        """Paint what a region that starts at ``base`` shows from ``first`` to before ``end``."""
        first, end = max(first, base), min(end, base + region.size)
        if not region.enabled or first >= end:
            return
        readonly = readonly or region.readonly
        if isinstance(region, AliasRegion):
            self.render(region.target, base - region.target_offset, first, end, readonly)
            return
        for held in region.regions:
            self.render(held, base + held.offset, first, end, readonly)
        if isinstance(region, TerminalRegion):
            self._paint(region, base, first, end, readonly)

    def _paint(
        self, region: TerminalRegion, base: int, first: int, end: int, readonly: bool
    ) -> None:
        position = bisect_right(self._ranges, first, key=_end_of)
        while first < end:
            behind = self._ranges[position] if position < len(self._ranges) else None
            stop = end if behind is None else min(end, behind.start)
            if stop > first:
                painted = FlatRange(first, stop - first, region, first - base, readonly)
                self._ranges.insert(position, painted)
                position += 1
            if behind is None:
                return
            first = behind.end
            position += 1

    def merged(self) -> tuple[FlatRange, ...]:
        """The ranges, neighbours that are one made one."""
        found: list[FlatRange] = []
        for entry in self._ranges:
            if found and entry.continues(found[-1]):
                found[-1] = replace(found[-1], size=found[-1].size + entry.size)
            else:
                found.append(entry)
        return tuple(found)


def _end_of(entry: FlatRange) -> int:
    return entry.end
