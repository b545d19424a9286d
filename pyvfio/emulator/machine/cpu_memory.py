# SPDX-License-Identifier: BSD-3-Clause
"""What of the memory map a processor reaches without a call: whole pages of RAM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pyvfio.emulator.memory import MemoryListener, RAMRegion, Section

PAGE_SIZE = 4096
ADDRESSES = 1 << 32


class Range(NamedTuple):
    """Addresses that the processor reaches in one way.

    :ivar pointer: this process's address of the RAM that is there; None where accesses are calls.
    :ivar readonly: writes to that RAM are refused.
    """

    start: int
    size: int
    pointer: int | None
    readonly: bool


class CPUMemory(MemoryListener):
    """Follows the memory map and tells what the processor should see of it, up to 4 GiB.

    :param changed: called when that is no longer what it was.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._sections: dict[int, Section] = {}
        self.ranges: tuple[Range, ...] = (Range(0, ADDRESSES, None, False),)

    def region_add(self, section: Section) -> None:
        self._sections[section.address] = section

    def region_del(self, section: Section) -> None:
        del self._sections[section.address]

    def commit(self) -> None:
        ranges = tuple(self._cover())
        if ranges != self.ranges:
            self.ranges = ranges
            self._changed()

    def _cover(self) -> Iterator[Range]:
        """All addresses: RAM, and what is between."""
        place = 0
        for found in sorted(filter(None, map(_ram, self._sections.values()))):
            if found.start > place:
                yield Range(place, found.start - place, None, False)
            yield found
            place = found.start + found.size
        if place < ADDRESSES:
            yield Range(place, ADDRESSES - place, None, False)


def _ram(section: Section) -> Range | None:
    """The whole pages of a section of RAM.

    The accesses to a device's mapped areas are calls as well: they need the width that the guest
    chose, and a fault must not end the process.
    """
    if not isinstance(section.region, RAMRegion):
        return None
    start = -(-section.address // PAGE_SIZE) * PAGE_SIZE
    end = min(section.address + section.size, ADDRESSES) // PAGE_SIZE * PAGE_SIZE
    pointer = section.region.address + section.offset_in_region + start - section.address
    if start >= end or pointer % PAGE_SIZE:
        return None
    return Range(start, end - start, pointer, section.readonly)
