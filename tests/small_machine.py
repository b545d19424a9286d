# SPDX-License-Identifier: BSD-3-Clause
"""An emulator without a processor: memory, a bus, and the accesses that a guest would make."""

from __future__ import annotations

from collections.abc import Mapping

from pyvfio.closing import Closing
from pyvfio.emulator import GuestFunction, RAMRegion
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType, CapabilityID, Command, Register
from tests.emulated import ADDRESS, SOON, RecordingHost
from tests.unit.guest_map import GuestMap

RAM_SIZE = 1 << 20
WINDOW, PORTS = 0x4000_0000, 0x1000
"""Where the guest puts memory BARs, and I/O BARs."""


class SmallMachine(GuestMap, Closing):
    """RAM at address 0, a bus with all of memory and ports.

    :param takes_eventfds: whether interrupts are taken as eventfds.
    """

    def __init__(self, takes_eventfds: bool = False) -> None:
        self.host = RecordingHost(takes_eventfds)
        super().__init__(host=self.host)
        self.ram = RAMRegion("ram", RAM_SIZE)
        self.memory_root.add(self.ram, 0)

    def close(self) -> None:
        self.topology.close()
        self.ram.close()


class Guest:
    """What a guest does with one function."""

    def __init__(self, machine: SmallMachine, function: GuestFunction) -> None:
        self.machine = machine
        self.function = function

    def get(self, register: Register, base: int = 0) -> int:
        """Read a register of configuration space."""
        return self.function.config_read(base + register.offset, register.width)

    def set(self, register: Register, value: int, base: int = 0) -> None:
        """Write a register of configuration space."""
        self.function.config_write(base + register.offset, register.width, value)

    def capability(self, wanted: CapabilityID) -> int:
        """Where a capability is."""
        offset = self.get(pci.CAPABILITY_LIST)
        while offset and self.function.config_read(offset, 1) != wanted:
            offset = self.function.config_read(offset + 1, 1)
        assert offset, f"{wanted!r} is not there"
        return offset

    def size_bars(self) -> dict[int, tuple[BARType, int]]:
        """The BARs by number, each with its kind and bytes, found as firmware finds them."""
        found: dict[int, tuple[BARType, int]] = {}
        number = 0
        while number < pci.NUM_BARS:
            register = Register(pci.BASE_ADDRESS_0.offset + 4 * number, 4)
            value = self.get(register)
            self.set(register, 0xFFFF_FFFF)
            sized = self.get(register)
            if value & pci.BAR_IO:
                found[number] = (BARType.IO, -(sized & ~pci.BAR_IO_MASK) & 0xFFFF_FFFF)
            elif sized:
                wide = value & pci.BAR_MEM_TYPE_MASK == pci.BAR_MEM_TYPE_64
                found[number] = (
                    BARType.MEM64 if wide else BARType.MEM32,
                    -(sized & ~pci.BAR_MEM_MASK) & 0xFFFF_FFFF,
                )
            self.set(register, value)
            number += 2 if found.get(number, (None,))[0] is BARType.MEM64 else 1
        return found

    def place_bars(self) -> Mapping[int, int]:
        """Give every BAR an address, and have the function answer there and master the bus."""
        memory, ports, placed = WINDOW, PORTS, {}
        for number, (kind, size) in self.size_bars().items():
            start = -(-(ports if kind is BARType.IO else memory) // size) * size
            placed[number] = start
            if kind is BARType.IO:
                ports = start + size
            else:
                memory = start + size
            self.set(Register(pci.BASE_ADDRESS_0.offset + 4 * number, 4), start)
        wanted = Command.IO | Command.MEMORY | Command.MASTER
        self.set(pci.COMMAND, self.get(pci.COMMAND) | wanted)
        return placed

    def read32(self, address: int) -> int:
        """A load of the guest."""
        return self.machine.memory.read(address, 4)

    def write32(self, address: int, value: int) -> None:
        """A store of the guest."""
        self.machine.memory.write(address, 4, value)

    def write64(self, address: int, value: int) -> None:
        """A store of the guest, in two halves."""
        self.write32(address, value & 0xFFFF_FFFF)
        self.write32(address + 4, value >> 32)

    def enable_msi(self, data: int = 0x41) -> None:
        """Give MSI a message, and enable it."""
        at = self.capability(CapabilityID.MSI)
        self.set(pci.MSI_ADDRESS_LO, ADDRESS, at)
        self.set(pci.MSI_ADDRESS_HI, 0, at)
        self.set(pci.MSI_DATA_64, data, at)
        self.set(pci.MSI_CONTROL, pci.MSI_CONTROL_ENABLE, at)

    def unmask_msix(self, table: int, vector: int, data: int) -> None:
        """Give an MSI-X vector a message, and unmask it."""
        entry = table + vector * pci.MSIX_ENTRY_SIZE
        self.write64(entry, ADDRESS)
        self.write32(entry + pci.MSIX_ENTRY_DATA, data)
        self.write32(entry + pci.MSIX_ENTRY_CONTROL, 0)

    def enable_msix(self, table: int, vector: int, data: int) -> None:
        """Give an MSI-X vector a message, unmask it, and enable MSI-X."""
        self.unmask_msix(table, vector, data)
        at = self.capability(CapabilityID.MSIX)
        self.set(pci.MSIX_CONTROL, pci.MSIX_CONTROL_ENABLE, at)

    def interrupted(self) -> bool:
        """Whether an interrupt comes, which is handed over then."""
        return self.function.events.dispatch(SOON) > 0
