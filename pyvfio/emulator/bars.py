# SPDX-License-Identifier: BSD-3-Clause
"""BARs as a guest sees them: memory regions with what is trapped, and what is mapped in front.

Facts: QEMU's ``vfio_bar_prepare``, ``vfio_bar_register``, ``vfio_region_setup``,
``vfio_region_mmap``, ``vfio_region_mmaps_set_enabled``, ``vfio_sub_page_bar_update_mapping``.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from pyvfio.closing import Closing
from pyvfio.emulator.memory import MemoryRegion, MMIORegion, RAMDeviceRegion, Topology
from pyvfio.emulator.msix_layout import BARSpec, MSIXLayout
from pyvfio.emulator.trapped import TrappedRegion
from pyvfio.errors import RegionError, UnsupportedError
from pyvfio.memory import PAGE_SIZE
from pyvfio.native import mmio
from pyvfio.pci.bars import BAR
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType
from pyvfio.vectors import MmapArea

log = logging.getLogger(__name__)

_BEHIND = 0
"""Priority of a BAR that fills a page which others share with it (BARs have 1 in QEMU)."""
_LARGEST = {BARType.IO: 1 << 16, BARType.MEM32: 1 << 31, BARType.MEM64: 1 << 63}
"""Bytes that the address bits of a BAR's register can express, ports as far as a PC has them."""


class _SubPage(RAMDeviceRegion):
    """All of a mapped BAR that is smaller than a page, and alone in its page.

    It can be grown to the page, so that what maps memory in pages can map it.  No register is
    behind the BAR's end.
    """

    def __init__(self, name: str, bar: BAR, area: MmapArea) -> None:
        super().__init__(name, bar, area)
        self._used = area.size

    def _check_size(self, size: int) -> None:
        if size not in (self._used, PAGE_SIZE):
            raise ValueError(f"a BAR of {self._used} bytes in a page, not of {size}")

    def _load(self, offset: int, width: int) -> int:
        within = offset + width <= self._used
        return super()._load(offset, width) if within else mmio.ALL_ONES[width]

    def _store(self, offset: int, width: int, value: int) -> None:
        if offset + width <= self._used:
            super()._store(offset, width, value)


class GuestBAR(Closing):
    """A BAR of the guest's.

    :param bar: the device's; None for one that only the guest sees.
    :param spec: what the guest sees of it: at least the device's bytes, made a power of two.
    :param areas: what of the device's the guest may reach without a trap.
    :param name: how messages call the function.
    :param on_access: called after each trapped access.
    :param mmap: whether the guest may reach anything without a trap.
    :ivar base: the BAR's memory, for the BAR's register.  What is the device's in it has priority
        0; others may put regions in front.
    :ivar trapped: makes accesses on the device; None where the device has no such BAR.
    :raises RegionError: its register cannot express the size.
    """

    def __init__(
        self,
        bar: BAR | None,
        number: int,
        spec: BARSpec,
        areas: Sequence[MmapArea] = (),
        *,
        name: str,
        on_access: Callable[[], None],
        mmap: bool = True,
    ) -> None:
        self.number = number
        self.type = spec.type
        self.prefetchable = spec.prefetchable
        self.size = _guest_size(number, spec)
        self._name = f"{name} bar{number}"
        self.base = MemoryRegion(self._name, self.size)
        # One region for all that is mapped, so that a single change traps it.
        self._mapped = MemoryRegion(f"{self._name} mapped", self.size)
        self._sub_page: _SubPage | None = None
        self._usual_priority: int | None = None
        self.trapped: TrappedRegion | None = None
        if bar is not None:
            self.trapped = TrappedRegion(bar, name, on_access=on_access)
            self.base.add(MMIORegion(f"{self._name} trapped", bar.size, self.trapped), 0)
            if mmap and spec.type is not BARType.IO:
                self._map(bar, areas)
        self.base.add(self._mapped, 0)
        self._own = self.base.regions

    def _map(self, bar: BAR, areas: Sequence[MmapArea]) -> None:
        """Put in front what can be mapped; the rest stays trapped."""
        for area in areas:
            if not area.size:
                continue
            try:
                self._mapped.add(self._map_area(bar, area), area.offset)
            except UnsupportedError as error:  # the region has warned of the reason
                log.info("%s: %#x stays trapped: %s", self._name, area.offset, error)

    def _map_area(self, bar: BAR, area: MmapArea) -> RAMDeviceRegion:
        if self.size < PAGE_SIZE and area == MmapArea(0, self.size):
            self._sub_page = _SubPage(f"{self._name} mapped", bar, area)
            return self._sub_page
        return RAMDeviceRegion(f"{self._name} mapped {area.offset:#x}", bar, area)

    def maps(self, offset: int, size: int) -> bool:
        """Whether the guest may reach any of these bytes without a trap."""
        return any(
            area.offset < offset + size and offset < area.offset + area.size
            for area in self._mapped.regions
        )

    def set_mmaps(self, enabled: bool) -> None:
        """Let the guest reach what is mapped without a trap, or trap all accesses for a while."""
        self._mapped.enabled = enabled

    def moved(self, address: int | None) -> None:
        """The guest has given the BAR another address in its parent, or none.

        A mapped BAR smaller than a page gets the whole page where it is at the start of one, behind
        everything else that the guest has there.  Called within a transaction.
        """
        if self._sub_page is None:
            return
        grown = address is not None and address % PAGE_SIZE == 0
        for region in (self.base, self._mapped, self._sub_page):
            region.resize(PAGE_SIZE if grown else self.size)
        self._step_back(grown)

    def _step_back(self, back: bool) -> None:
        """Go behind what shares the page, or where it was before."""
        parent, offset, priority = self.base.parent, self.base.offset, self.base.priority
        if parent is None:
            return
        if back and priority != _BEHIND:
            self._usual_priority = priority
        wanted = _BEHIND if back else self._usual_priority
        if wanted is not None and wanted != priority:
            parent.remove(self.base)
            parent.add(self.base, offset, wanted)

    def close(self) -> None:
        """Take what is the device's out of :attr:`base`, wherever that is.  May be repeated."""
        for region in self._own:
            self.base.remove(region)
        for region in self._mapped.regions:
            self._mapped.remove(region)
            if isinstance(region, RAMDeviceRegion):
                region.release()
        self._own, self._sub_page = (), None


class GuestBARs(Mapping[int, GuestBAR], Closing):
    """The BARs of a function by number.

    :param layout: where MSI-X table and pending bits are; they may make a BAR larger or new.
    :param topology: the memory map that the BARs appear in.
    :param name: how messages call the function.
    :param on_access: called after each trapped access.
    :param mmap: whether the guest may reach anything without a trap.
    :raises RegionError: the device says of a BAR what cannot be, or nothing.
    """

    def __init__(
        self,
        dev: PCIDevice,
        layout: MSIXLayout | None,
        topology: Topology,
        *,
        name: str,
        on_access: Callable[[], None],
        mmap: bool = True,
    ) -> None:
        self._topology = topology
        self._found: dict[int, GuestBAR] = {}
        for number in range(pci.NUM_BARS):
            bar: BAR | None = dev.bars.get(number)
            spec = _spec(number, bar, layout)
            if spec is None:
                continue
            self._check_halves(number, spec.type)
            areas = _areas(number, bar, layout)
            self._found[number] = GuestBAR(
                bar, number, spec, areas, name=name, on_access=on_access, mmap=mmap
            )

    def _check_halves(self, number: int, kind: BARType) -> None:
        below = self._found.get(number - 1)
        upper_half = below is not None and below.type is BARType.MEM64
        if upper_half or (kind is BARType.MEM64 and number == pci.NUM_BARS - 1):
            raise RegionError(
                "two BARs share a register" if upper_half else "64 bits in the last register",
                op=f"bar{number}",
                errno=errno.EINVAL,
            )

    def __getitem__(self, number: int) -> GuestBAR:
        return self._found[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def set_mmaps(self, enabled: bool) -> None:
        """As :meth:`GuestBAR.set_mmaps` for all, at once."""
        with self._topology.transaction():
            for bar in self.values():
                bar.set_mmaps(enabled)

    def close(self) -> None:
        """As :meth:`GuestBAR.close` for all, at once.  May be repeated."""
        with self._topology.transaction():
            for bar in self.values():
                bar.close()


def _spec(number: int, bar: BAR | None, layout: MSIXLayout | None) -> BARSpec | None:
    """What the guest sees of a BAR; None where it sees none."""
    if bar is None:
        return None if layout is None else layout.new_bar(number)
    size = bar.size if layout is None else layout.bar_size(number, bar.size)
    return BARSpec(bar.type, bar.prefetchable, size)


def _areas(number: int, bar: BAR | None, layout: MSIXLayout | None) -> Sequence[MmapArea]:
    if bar is None:
        return ()
    return bar.mappable if layout is None else layout.areas(number)


def _guest_size(number: int, spec: BARSpec) -> int:
    """The power of two that a register expresses for a BAR; raises RegionError."""
    flags = pci.BAR_IO_MASK if spec.type is BARType.IO else pci.BAR_MEM_MASK
    size = 1 << (max(spec.size, flags + 1) - 1).bit_length()
    if size > _LARGEST[spec.type]:
        raise RegionError(
            f"{spec.type.value} cannot have {spec.size:#x} bytes",
            op=f"bar{number}",
            errno=errno.EINVAL,
        )
    return size
