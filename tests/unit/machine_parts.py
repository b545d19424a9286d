# SPDX-License-Identifier: BSD-3-Clause
"""Functions of the tests' own for the machine: registers that note how they are accessed."""

from __future__ import annotations

from collections.abc import Callable

from pyvfio import eventfd
from pyvfio.emulator.bus import Bus
from pyvfio.emulator.events import Events
from pyvfio.emulator.memory import MMIORegion
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Command

BAR_SIZE = 4096


class Registers:
    """A handler of a region that answers by a rule and notes each access."""

    def __init__(self) -> None:
        self.accesses: list[tuple[str, int, int, int]] = []
        self.on_read: Callable[[int], int] = lambda offset: 0x1111_1111 * (offset // 4 % 15 + 1)
        self.on_write: Callable[[int, int], None] = lambda *_: None

    def read(self, offset: int, width: int) -> int:
        value = self.on_read(offset)
        self.accesses.append(("read", offset, width, value))
        return value

    def write(self, offset: int, width: int, value: int) -> None:
        self.accesses.append(("write", offset, width, value))
        self.on_write(offset, value)


class Function:
    """A function with one 32-bit memory BAR of registers, and an interrupt to signal."""

    name = "function"
    multifunction = False

    def __init__(self) -> None:
        self.registers = Registers()
        self.region = MMIORegion("bar", BAR_SIZE, self.registers)
        self.events = Events()
        self.config = bytearray(pci.EXTENDED_CONFIG_SIZE)
        self.config[:4] = (0x5678_1234).to_bytes(4, "little")
        self.bus: Bus | None = None
        self.interrupt = self.events.eventfd(self._signalled)
        self.send: Callable[[], None] = lambda: None

    def signal(self) -> None:
        """What a device does: signal the eventfd, from any thread."""
        eventfd.signal(self.interrupt.fd)

    def _signalled(self) -> None:
        self.send()

    def realize(self, bus: Bus, slot: int, number: int = 0) -> None:
        bus.add(self, slot, number)
        self.bus = bus

    def unrealize(self) -> None:
        if self.bus is not None:
            self._hide()
            self.bus.remove(self)
        self.events.close()

    def config_read(self, offset: int, width: int) -> int:
        return int.from_bytes(self.config[offset : offset + width], "little")

    def config_write(self, offset: int, width: int, value: int) -> None:
        self.config[offset : offset + width] = value.to_bytes(width, "little")
        self.config[0x10:0x12] = bytes((0, self.config[0x11] & 0xF0))
        self.place()

    @property
    def address(self) -> int | None:
        """Where the BAR is, if it is decoded."""
        command = self.config_read(*pci.COMMAND)
        return self.config_read(0x10, 4) if command & Command.MEMORY else None

    def place(self) -> None:
        """Show the BAR where the registers say."""
        assert self.bus is not None
        if self.address != (self.region.offset if self.region.parent else None):
            with self.bus.topology.transaction():
                self._hide()
                if self.address is not None:
                    self.bus.memory.add(self.region, self.address, 1)

    def _hide(self) -> None:
        if self.region.parent is not None:
            self.region.parent.remove(self.region)

    def reset(self) -> None:
        self.config[4:0x40] = bytes(0x3C)
        self._hide()
