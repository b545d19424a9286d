# SPDX-License-Identifier: BSD-3-Clause
"""The PCI Express host bridge: function 00.0 of the root bus, and the ways to its functions.

Of Intel's Q35 (82Q35 datasheet) it has what a firmware needs to find functions: its ids and the
register PCIEXBAR, which says where the window of configuration space (ECAM) is in memory.
"""

from __future__ import annotations

from pyvfio.emulator.bus import FUNCTIONS, SLOTS, Bus
from pyvfio.emulator.memory import MemoryRegion, MMIORegion
from pyvfio.emulator.memory.terminal import all_ones
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Register

VENDOR_ID, DEVICE_ID = 0x8086, 0x29C0
CLASS_HOST_BRIDGE = 0x060000

PCIEXBAR = Register(0x60, 8)
PCIEXBAR_ENABLE = 0x1
PCIEXBAR_LENGTH = 0x6
PCIEXBAR_BASE = 0xFF_FC00_0000
PCIEXBAR_BUSES = (256, 128, 64)
"""How many buses the window has, by the length field; the fourth value is reserved."""

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
CONFIG_PORTS = 8
CONFIG_ENABLE = 0x8000_0000
_CONFIG_ADDRESS_MASK = 0x80FF_FFFC
"""The other bits are reserved, and zero (PCI Local Bus 3.0, 3.2.2.3.2)."""

BUS_SHIFT = 20
"""Bits of an ECAM address below the bus number (PCI Express Base, 7.2.2)."""


class ConfigPorts:
    """Ports 0xcf8 to 0xcff: configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2).

    :param bus: the root bus, number 0; no other answers.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.address = 0

    def read(self, offset: int, width: int) -> int:
        """A port is read; the address register takes 32-bit accesses only."""
        if offset < 4:
            return self.address if width == 4 and offset == 0 else all_ones(width)
        where = self._where(offset)
        return all_ones(width) if where is None else self._bus.config_read(*where, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """A port is written."""
        if offset < 4:
            if width == 4 and offset == 0:
                self.address = value & _CONFIG_ADDRESS_MASK
            return
        where = self._where(offset)
        if where is not None:
            self._bus.config_write(*where, width, value)

    def _where(self, offset: int) -> tuple[int, int, int] | None:
        """Slot, function number and register, where the address is one of bus 0."""
        if not self.address & CONFIG_ENABLE or self.address >> 16 & 0xFF:
            return None
        register = self.address & 0xFC | offset & 3
        return self.address >> 11 & SLOTS - 1, self.address >> 8 & FUNCTIONS - 1, register


class ConfigWindow:
    """The window of configuration space in memory (ECAM): 4 KiB a function.

    :param bus: the root bus, number 0; no other answers.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def read(self, offset: int, width: int) -> int:
        """A read of 1, 2 or 4 bytes; wider ones are made of those."""
        if offset >> BUS_SHIFT:
            return all_ones(width)
        if width > 4:
            return self.read(offset, 4) | self.read(offset + 4, 4) << 32
        return self._bus.config_read(*_place(offset), width)

    def write(self, offset: int, width: int, value: int) -> None:
        """A write of 1, 2 or 4 bytes; wider ones are made of those."""
        if offset >> BUS_SHIFT:
            return
        if width > 4:
            self.write(offset, 4, value & all_ones(4))
            self.write(offset + 4, 4, value >> 32)
        else:
            self._bus.config_write(*_place(offset), width, value)


def _place(offset: int) -> tuple[int, int, int]:
    return offset >> 15 & SLOTS - 1, offset >> 12 & FUNCTIONS - 1, offset & 0xFFF


class HostBridge:
    """The function at 00.0, and what it puts into the memory map and among the ports.

    :param memory: where the guest wants its window of configuration space.
    :param ports: the I/O ports.
    """

    name = "host bridge"
    multifunction = False

    def __init__(self, bus: Bus, memory: MemoryRegion, ports: MemoryRegion) -> None:
        self._memory = memory
        self._config = bytearray(pci.CONFIG_SIZE)
        self._writable = bytearray(pci.CONFIG_SIZE)
        self._set(pci.VENDOR_ID, VENDOR_ID)
        self._set(pci.DEVICE_ID, DEVICE_ID)
        self._set(Register(pci.PROG_IF.offset, 3), CLASS_HOST_BRIDGE)
        buses = PCIEXBAR_BUSES[0]
        self._window = MMIORegion("ECAM", buses << BUS_SHIFT, ConfigWindow(bus))
        writable = PCIEXBAR_BASE | PCIEXBAR_LENGTH | PCIEXBAR_ENABLE
        self._set(PCIEXBAR, writable, self._writable)
        self._power_on = bytes(self._config)
        self.ports = ConfigPorts(bus)
        ports.add(MMIORegion("PCI configuration", CONFIG_PORTS, self.ports), CONFIG_ADDRESS)
        bus.add(self, 0, 0)

    def _set(self, register: Register, value: int, target: bytearray | None = None) -> None:
        data = value.to_bytes(register.width, "little")
        target = self._config if target is None else target
        target[register.offset : register.offset + register.width] = data

    def config_read(self, offset: int, width: int) -> int:
        """A read of the guest; it has no extended configuration space."""
        if offset + width > pci.CONFIG_SIZE:
            return all_ones(width)
        return int.from_bytes(self._config[offset : offset + width], "little")

    def config_write(self, offset: int, width: int, value: int) -> None:
        """A write of the guest, of which only PCIEXBAR takes notice."""
        if offset + width > pci.CONFIG_SIZE:
            return
        for place, byte in enumerate(value.to_bytes(width, "little"), offset):
            mask = self._writable[place]
            self._config[place] = self._config[place] & ~mask | byte & mask
        self._place_window()

    def _place_window(self) -> None:
        found = self.config_read(*PCIEXBAR)
        length = (found & PCIEXBAR_LENGTH) >> 1
        buses = PCIEXBAR_BUSES[length] if length < len(PCIEXBAR_BUSES) else 0
        if not found & PCIEXBAR_ENABLE or not buses:
            self._remove_window()
            return
        size = buses << BUS_SHIFT
        base = found & PCIEXBAR_BASE & -size
        if self._window.parent is None or (base, size) != (self._window.offset, self._window.size):
            self._remove_window()
            self._window.resize(size)
            self._memory.add(self._window, base)

    def _remove_window(self) -> None:
        if self._window.parent is not None:
            self._memory.remove(self._window)

    def reset(self) -> None:
        """The window is gone until the guest places it again."""
        self._config[:] = self._power_on
        self.ports.address = 0
        self._remove_window()
