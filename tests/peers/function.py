# SPDX-License-Identifier: BSD-3-Clause
"""A PCI function of a machine, driven as its firmware and its driver would."""

from __future__ import annotations

from collections.abc import Iterator

from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID, Command
from tests.peers.qmp import Qtest

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
"""The two ports by which a PC reaches configuration space."""
ENABLE = 1 << 31
MESSAGE_ADDRESS_HIGH, MESSAGE_DATA = 8, 12
"""Registers of an MSI capability with 64-bit addresses."""


class Function:
    """Function 0 of a slot of the root bus."""

    def __init__(self, bus: Qtest, slot: int) -> None:
        self._bus = bus
        self._slot = slot

    # Configuration space

    def read(self, offset: int, width: int) -> int:
        """One read of configuration space."""
        self._select(offset)
        return self._bus.port_in(CONFIG_DATA + offset % 4, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """One write to configuration space."""
        self._select(offset)
        self._bus.port_out(CONFIG_DATA + offset % 4, width, value)

    def _select(self, offset: int) -> None:
        self._bus.port_out(CONFIG_ADDRESS, 4, ENABLE | self._slot << 11 | offset & 0xFC)

    @property
    def ids(self) -> tuple[int, int]:
        """Vendor and device."""
        value = self.read(0, 4)
        return value & 0xFFFF, value >> 16

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """(id, offset) of each capability."""
        offset = self.read(*pci.CAPABILITY_LIST)
        while offset:
            yield self.read(offset, 1), offset
            offset = self.read(offset + 1, 1)

    def offset_of(self, capability: CapabilityID) -> int:
        """Where a capability is."""
        return dict(self.capabilities())[capability]

    # BARs

    def size_of(self, bar: int) -> int:
        """The size of a BAR, found out as firmware does it; the BAR is 0 after it."""
        kind = self.read(*_bar(bar))
        wide = not kind & pci.BAR_IO and kind & pci.BAR_MEM_TYPE_MASK == pci.BAR_MEM_TYPE_64
        mask = self._probe(bar) & ~(pci.BAR_IO_MASK if kind & pci.BAR_IO else pci.BAR_MEM_MASK)
        mask |= (self._probe(bar + 1) if wide else 0xFFFF_FFFF) << 32
        return (1 << 64) - mask

    def _probe(self, bar: int) -> int:
        self.write(*_bar(bar), 0xFFFF_FFFF)
        found = self.read(*_bar(bar))
        self.write(*_bar(bar), 0)
        return found

    def place(self, bar: int, address: int) -> None:
        """Give a BAR an address."""
        self.write(*_bar(bar), address)

    def enable(self, flags: Command = Command.IO | Command.MEMORY | Command.MASTER) -> None:
        """Have the function answer on the bus, or use it."""
        self.write(*pci.COMMAND, int(flags))

    # Interrupts

    def set_message(self, address: int, data: int) -> None:
        """What MSI vector 0 writes, and to where: that may be memory."""
        at = self.offset_of(CapabilityID.MSI)
        self.write(at + pci.MSI_ADDRESS_LO.offset, 4, address)
        self.write(at + MESSAGE_ADDRESS_HIGH, 4, 0)
        self.write(at + MESSAGE_DATA, 2, data)

    def control_msi(self, on: bool) -> None:
        """Turn MSI on or off."""
        self._control(CapabilityID.MSI, pci.MSI_CONTROL_ENABLE, on)

    def control_msix(self, on: bool) -> None:
        """Turn MSI-X on or off."""
        self._control(CapabilityID.MSIX, pci.MSIX_CONTROL_ENABLE, on)

    def _control(self, capability: CapabilityID, bit: int, on: bool) -> None:
        at = self.offset_of(capability) + pci.MSI_CONTROL.offset
        value = self.read(at, 2)
        self.write(at, 2, value | bit if on else value & ~bit)


def _bar(number: int) -> tuple[int, int]:
    return pci.BASE_ADDRESS_0.offset + 4 * number, 4
