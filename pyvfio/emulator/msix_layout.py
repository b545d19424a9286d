# SPDX-License-Identifier: BSD-3-Clause
"""Where MSI-X table and pending bits of a device are, and where its guest is to see them.

Decided before the BARs are set up: the table must not be mapped, and relocation makes a BAR larger
or adds one (QEMU's ``vfio_msix_early_setup``, ``vfio_pci_fixup_msix_region`` and
``vfio_pci_relocate_msix``).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

from pyvfio.errors import UnsupportedError
from pyvfio.memory import PAGE_SIZE
from pyvfio.pci.bars import BAR
from pyvfio.pci.device import PCIDevice
from pyvfio.pci.msix import Location
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType, CapabilityID
from pyvfio.vectors import MmapArea

log = logging.getLogger(__name__)

_PBA_WORD_BITS = 64
_MAX_DOUBLED_32BIT = 1 << 30
"""A 32-bit BAR above this size cannot be doubled: 2 GiB is the most that one may have."""


class _KnownPBA(NamedTuple):
    """A device whose capability names a wrong place for the pending bits."""

    vendor_id: int
    device_id: int
    device_mask: int
    offset: int


_KNOWN_PBAS = (
    _KnownPBA(0x1425, 0x5800, 0xFF00, 0x1000),  # virtual functions of Chelsio's T5
    _KnownPBA(0x1D22, 0x3685, 0xFFFF, 0xB400),  # virtual function of Baidu's Kunlun
)


class BARSpec(NamedTuple):
    """A BAR that only the guest sees."""

    type: BARType
    prefetchable: bool
    size: int


@dataclass(frozen=True, slots=True)
class MSIXLayout:
    """MSI-X of a device as its guest sees it.

    :ivar entries: vectors in the table.
    :ivar table: where the guest sees the table: 16 bytes a vector.
    :ivar pba: where it sees the pending bits: 64-bit words, one bit a vector.
    :ivar resizable: whether vectors can be enabled one by one, without disabling those in use.
    :ivar hardware_table: where the device has its table, which is never mapped.
    :ivar relocated: what the BAR of a relocated table looks like; None: table and pending bits are
        where the device has them.
    """

    entries: int
    table: Location
    pba: Location
    resizable: bool
    hardware_table: Location
    relocated: BARSpec | None
    _dev: PCIDevice

    @classmethod
    def probe(cls, dev: PCIDevice, relocation: int | None = None) -> MSIXLayout | None:
        """What a device has; None where it has no MSI-X.

        :param relocation: the BAR that gets table and pending bits instead of their own.
        :raises UnsupportedError: the device names places that it does not have, or the BAR cannot
            take the table.
        :raises VFIOError: configuration space cannot be read.
        """
        if dev.config.find(CapabilityID.MSIX) is None:
            return None
        entries, own_table = dev.msix.table_size, dev.msix.table
        table, pba, spec = own_table, _pba(dev), None
        if relocation is not None:
            spec = _relocated(dev, relocation, entries)
            table = Location(relocation, spec.size // 2 if relocation in dev.bars else 0)
            pba = Location(relocation, table.offset + table_size(entries))
        layout = cls(entries, table, pba, dev.msix.resizable, own_table, spec, dev)
        layout._check()
        return layout

    def _check(self) -> None:
        """Raise where table or pending bits are in no BAR, or in each other's place."""
        table_end = self.table.offset + table_size(self.entries)
        pba_end = self.pba.offset + pba_size(self.entries)
        for name, place, end in (("table", self.table, table_end), ("PBA", self.pba, pba_end)):
            if end > self._size_of(place.bar):
                raise _refused(
                    self._dev,
                    f"the device says that its {name} is at {place.offset:#x} of BAR {place.bar},"
                    f" which has {self._size_of(place.bar):#x} bytes of memory",
                    hint="FunctionOptions.msix_relocation gives it another place",
                )
        same_bar = self.table.bar == self.pba.bar
        if same_bar and self.table.offset < pba_end and self.pba.offset < table_end:
            raise _refused(self._dev, "the device says that table and PBA overlap")

    def _size_of(self, number: int) -> int:
        bar = _bar(self._dev, number)
        if bar is not None and bar.type is BARType.IO:
            return 0
        return self.bar_size(number, 0 if bar is None else bar.size)

    def bar_size(self, number: int, size: int) -> int:
        """The bytes that a guest sees of BAR ``number``, of which the device has ``size``."""
        if self.relocated is not None and number == self.table.bar:
            return self.relocated.size
        return size

    def new_bar(self, number: int) -> BARSpec | None:
        """What BAR ``number`` is where it exists only for the relocated table; None elsewhere."""
        is_new = self.table.bar == number and number not in self._dev.bars
        return self.relocated if is_new else None

    def areas(self, number: int) -> tuple[MmapArea, ...]:
        """What a guest may reach of BAR ``number`` without a trap: not the device's own table.

        A kernel or server that has cut the table out itself, or lets it be mapped (capability
        ``MSIX_MAPPABLE``), is left its way.
        """
        bar = _bar(self._dev, number)
        if bar is None:
            return ()
        whole = (MmapArea(0, bar.size),)
        if number != self.hardware_table.bar or bar.info.msix_mappable or bar.mappable != whole:
            return bar.mappable
        start = self.hardware_table.offset & -PAGE_SIZE
        end = _page_end(self.hardware_table.offset + table_size(self.entries))
        pieces = ((0, min(start, bar.size)), (end, bar.size))
        return tuple(MmapArea(first, last - first) for first, last in pieces if first < last)


def table_size(entries: int) -> int:
    """Bytes of a table."""
    return entries * pci.MSIX_ENTRY_SIZE


def pba_size(entries: int) -> int:
    """Bytes of the pending bits: whole 64-bit words."""
    return -(-entries // _PBA_WORD_BITS) * _PBA_WORD_BITS // 8


def _pba(dev: PCIDevice) -> Location:
    """Where the pending bits are; corrected for devices that are known to say it wrong."""
    pba = dev.msix.pba
    bar = _bar(dev, pba.bar)
    if bar is not None and pba.offset >= bar.size:
        vendor_id, device_id = dev.config.vendor_id, dev.config.device_id
        for known in _KNOWN_PBAS:
            if (vendor_id, device_id & known.device_mask) == (known.vendor_id, known.device_id):
                log.info("%s: the PBA is taken to be at %#x", dev.uri, known.offset)
                return Location(pba.bar, known.offset)
    return pba


def _relocated(dev: PCIDevice, number: int, entries: int) -> BARSpec:
    """The BAR that table and pending bits move to; raises where it cannot take them."""
    if not 0 <= number < pci.NUM_BARS:
        raise ValueError(f"there is no BAR {number} for the MSI-X table")
    # Whole pages: what else is in the BAR can be mapped.
    needed = _power_of_two(_page_end(table_size(entries) + pba_size(entries)))
    bar = _bar(dev, number)
    if bar is None:
        below = _bar(dev, number - 1)
        if below is not None and below.type is BARType.MEM64:
            raise _not_there(dev, number, f"it is the upper half of BAR {number - 1}")
        wide = number + 1 < pci.NUM_BARS and number + 1 not in dev.bars
        return BARSpec(BARType.MEM64 if wide else BARType.MEM32, True, needed)
    if bar.type is BARType.IO:
        raise _not_there(dev, number, "it is for I/O ports")
    size = _power_of_two(bar.size)
    if bar.type is BARType.MEM32 and size > _MAX_DOUBLED_32BIT:
        raise _not_there(dev, number, f"its {size:#x} bytes cannot grow in 32 bits")
    return BARSpec(bar.type, bar.prefetchable, max(2 * size, 2 * needed))


def _bar(dev: PCIDevice, number: int) -> BAR | None:
    return dev.bars[number] if number in dev.bars else None  # noqa: SIM401 - get() is not typed


def _page_end(offset: int) -> int:
    return -(-offset // PAGE_SIZE) * PAGE_SIZE


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _not_there(dev: PCIDevice, number: int, reason: str) -> UnsupportedError:
    return _refused(dev, f"BAR {number} cannot take the table: {reason}")


def _refused(dev: PCIDevice, reason: str, hint: str = "") -> UnsupportedError:
    return UnsupportedError(reason, op="set up MSI-X", uri=dev.uri, hint=hint)
