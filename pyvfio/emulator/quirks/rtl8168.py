# SPDX-License-Identifier: BSD-3-Clause
"""RTL8168: a window in BAR 2 through which drivers reach the MSI-X table of the device.

The table that the guest sees is the emulator's, and the device's own must be left to the host, so
accesses through the window are led to the guest's.  Two dwords, as QEMU's pci-quirks.c and Linux'
r8169 describe them:

======  =============================================================================
0x70    data
0x74    address: bits 2 to 11 the offset, 12 to 15 which bytes, 16 to 30 what is
        addressed (1: the MSI-X table); bit 31 is written 1 to write the data there,
        and read: 1 once the data of a read are there, 0 once a write is done
======  =============================================================================
"""

from __future__ import annotations

import logging

from pyvfio.emulator.memory import MMIORegion
from pyvfio.emulator.quirks.quirk import Quirk, QuirkTarget
from pyvfio.emulator.trapped import TrappedRegion
from pyvfio.native import mmio

log = logging.getLogger(__name__)

_BAR = 2
_WINDOW, _WINDOW_SIZE = 0x70, 8
_DATA, _ADDRESS = 0, 4
"""Registers, from the start of the window."""
_PRIORITY = 1
"""In front of the BAR."""

_OFFSET = 0x0000_0FFC
_TYPE, _MSIX_TABLE = 0x7FFF_0000, 0x0001_0000
_WRITE = 0x8000_0000
_WIDTH = 4


class RTL8168MSIXWindow(Quirk):
    """Leads the window to the guest's MSI-X table; what else it addresses stays the device's."""

    def __init__(self, target: QuirkTarget) -> None:
        super().__init__(target)
        self._region: MMIORegion | None = None
        self._device: TrappedRegion | None = None
        self.reset()

    def set_up_bars(self) -> None:
        bar = self.target.bars.get(_BAR)
        if bar is None or bar.trapped is None or bar.size < _WINDOW + _WINDOW_SIZE:
            log.warning("%s: an RTL8168 without its window in BAR 2", self.target.name)
            return
        self._device = bar.trapped
        region = MMIORegion(f"{self.target.name} RTL8168 MSI-X window", _WINDOW_SIZE, self)
        bar.base.add(region, _WINDOW, _PRIORITY)
        self._region = region

    def reset(self) -> None:
        self._selected: int | None = None
        """What was written to the address last, if it is in the MSI-X table."""
        self._data = 0

    def close(self) -> None:
        if self._region is not None and self._region.parent is not None:
            self._region.parent.remove(self._region)
        self._region = self._device = None

    # The guest's accesses

    def read(self, offset: int, width: int) -> int:
        """A read of the window; there are registers of 4 bytes only."""
        if width == 2 * _WIDTH:
            low, high = (self._read(register) for register in (_DATA, _ADDRESS))
            return low | high << 8 * _WIDTH
        return self._read(offset) if width == _WIDTH else mmio.ALL_ONES[width]

    def _read(self, register: int) -> int:
        assert self._device is not None
        if self._selected is None:
            return self._device.read(_WINDOW + register, _WIDTH)
        if register == _ADDRESS:
            return self._selected ^ _WRITE  # it is done at once
        return self._read_table(self._selected & _OFFSET)

    def write(self, offset: int, width: int, value: int) -> None:
        """A write to the window; what is narrower than a register is dropped."""
        if width == 2 * _WIDTH:
            self._write(_DATA, value & mmio.ALL_ONES[_WIDTH])
            self._write(_ADDRESS, value >> 8 * _WIDTH)
        elif width == _WIDTH:
            self._write(offset, value)

    def _write(self, register: int, value: int) -> None:
        assert self._device is not None
        if register == _DATA:
            self._data = value
        else:
            self._selected = value if value & _TYPE == _MSIX_TABLE else None
            if self._selected is not None and value & _WRITE:
                self._write_table(value & _OFFSET)
                return
        self._device.write(_WINDOW + register, _WIDTH, value)

    def _read_table(self, offset: int) -> int:
        table = self.target.msix_table
        if table is None or offset + _WIDTH > table.size:
            return 0
        return table.read(offset, _WIDTH)

    def _write_table(self, offset: int) -> None:
        table = self.target.msix_table
        if table is not None and offset + _WIDTH <= table.size:
            table.write(offset, _WIDTH, self._data)
