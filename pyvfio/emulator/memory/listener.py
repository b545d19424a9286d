# SPDX-License-Identifier: BSD-3-Clause
"""Who hears how the flat view of an address space changes, QEMU's MemoryListener."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvfio.emulator.memory.terminal import TerminalRegion

if TYPE_CHECKING:
    from pyvfio.emulator.memory.address_space import AddressSpace


@dataclass(frozen=True, slots=True)
class Section:
    """Part of a region, and where an address space shows it.

    :ivar offset_in_region: its first byte in the region.
    :ivar address: its first byte in the address space.
    :ivar size: bytes, up to 2^64.
    :ivar readonly: writes of the guest are dropped if it is RAM.
    """

    space: AddressSpace
    region: TerminalRegion
    offset_in_region: int
    address: int
    size: int
    readonly: bool

    def part(self, first: int, end: int) -> Section | None:
        """What it has of the region's bytes from ``first`` to before ``end``; None for nothing."""
        first = max(first, self.offset_in_region)
        end = min(end, self.offset_in_region + self.size)
        if first >= end:
            return None
        address = self.address + first - self.offset_in_region
        return Section(self.space, self.region, first, address, end - first, self.readonly)


class MemoryListener:
    """Hooks that do nothing; a listener overrides those that it needs.

    They are called with the lock of all maps, and must not change a map.  What one raises is
    raised from the end of the transaction, after all others were called.
    """

    def begin(self) -> None:
        """The view has changed; what has follows, until :meth:`commit`."""

    def commit(self) -> None:
        """All that has changed was told."""

    def region_add(self, section: Section) -> None:
        """A section is seen from now on."""

    def region_del(self, section: Section) -> None:
        """A section that was added is not seen any more."""

    def log_start(self) -> None:
        """Note from now on what is written."""

    def log_stop(self) -> None:
        """Note it no longer."""

    def log_sync(self, section: Section) -> None:
        """Bring what was written to a section to where the emulator looks for it."""
