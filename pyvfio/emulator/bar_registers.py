# SPDX-License-Identifier: BSD-3-Clause
"""Base address registers of a guest's function: sized by the guest, shown where it puts them.

Facts: QEMU's ``pci_register_bar``, ``pci_bar_address``, ``pci_update_mappings``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyvfio.closing import Closing
from pyvfio.emulator.bus import Bus
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.header import base_address
from pyvfio.emulator.memory import MemoryRegion
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType, Command, Register
from pyvfio.uapi.vfio import PCIRegion

Moved = Callable[[int | None], None]
"""Called with a BAR's new address, or None where it is not seen any more."""

_PRIORITY = 1
"""Of BARs over what else is on the bus."""
_SMALLEST_MEMORY, _SMALLEST_PORTS, _SMALLEST_ROM = 16, 4, 2048


@dataclass(slots=True)
class _BAR:
    """A BAR that is implemented.

    :ivar flags: the low bits of its register, which say what it is.
    :ivar size: bytes that it claims, a power of two; its region may have fewer.
    :ivar enable: the bit of its own that has it answer, of a ROM.
    :ivar decoding: the bit of the command register that has it answer.
    """

    register: Register
    flags: int
    size: int
    region: MemoryRegion
    space: MemoryRegion
    decoding: Command
    enable: int = 0
    moved: Moved | None = None
    address: int | None = None


class BARRegisters(Closing):
    """The BARs and the ROM of a function, and where its bus shows them.

    A region is in the bus's memory or I/O space while the command register, the power state and
    the address that the guest has written let it answer.  All that one write changes is seen at
    once.

    :param config: the function's configuration space, with its header set up.
    :param bus: the bus that the function is on.
    """

    def __init__(self, config: EmulatedConfig, bus: Bus) -> None:
        self._config = config
        self._bus = bus
        self._bars: dict[int, _BAR] = {}
        for register in (pci.COMMAND, pci.ROM_ADDRESS):
            config.watch(register.offset, register.width, self._written)
        config.watch(pci.BASE_ADDRESS_0.offset, 4 * pci.NUM_BARS, self._written)
        config.power.follow(self.update)

    def register(
        self,
        number: int,
        type: BARType,  # noqa: A002 - as a BAR's own
        prefetchable: bool,
        region: MemoryRegion,
        moved: Moved | None = None,
    ) -> None:
        """Implement a BAR, of the size of its region, at no address yet.

        :param moved: called within the transaction that has put the region somewhere else.
        :raises ValueError: there is no such BAR, it is there already, or its size is none.
        """
        wide = type is BARType.MEM64
        ports = type is BARType.IO
        if not 0 <= number < pci.NUM_BARS - wide:
            raise ValueError(f"there is no room for BAR {number}")
        self._check_free(number, wide)
        size = max(region.size, _SMALLEST_PORTS if ports else _SMALLEST_MEMORY)
        _check_size(size, wide)
        register = Register(base_address(number).offset, 8 if wide else 4)
        flags = pci.BAR_IO if ports else pci.BAR_MEM_TYPE_64 if wide else 0
        flags |= pci.BAR_PREFETCH if prefetchable and not ports else 0
        space, decoding = self._bus.memory, Command.MEMORY
        if ports:
            space, decoding = self._bus.io, Command.IO
        self._add(number, _BAR(register, flags, size, region, space, decoding, moved=moved))

    def register_rom(self, region: MemoryRegion) -> None:
        """Implement the ROM's BAR, of the size of its region.

        :raises ValueError: it is there already, or its size is none.
        """
        self._check_free(PCIRegion.ROM, False)
        size = max(region.size, _SMALLEST_ROM)
        _check_size(size, False)
        enable = pci.ROM_ADDRESS_ENABLE
        memory = self._bus.memory
        self._add(
            PCIRegion.ROM, _BAR(pci.ROM_ADDRESS, 0, size, region, memory, Command.MEMORY, enable)
        )

    def _add(self, number: int, bar: _BAR) -> None:
        register, config = bar.register, self._config
        ones = (1 << 8 * register.width) - 1
        config.emulate(register, bar.flags, ones)
        config.allow(register, ones & ~(bar.size - 1) | bar.enable)
        config.compared[register.offset : register.offset + register.width] = ones.to_bytes(
            register.width, "little"
        )
        self._bars[number] = bar

    def address(self, number: int) -> int | None:
        """Where a BAR is seen, or the ROM (6); None where it is not."""
        bar = self._bars.get(number)
        return None if bar is None else bar.address

    def update(self) -> None:
        """Show each BAR where the local copy of configuration space says, all at once.

        :raises VFIOError: a listener of the memory map failed; the map is as it should be.
        """
        self._place_all({number: self._wanted(bar) for number, bar in self._bars.items()})

    def reset(self) -> None:
        """No addresses, as after power-on.

        :raises VFIOError: as :meth:`update`.
        """
        for bar in self._bars.values():
            self._config.set(bar.register, bar.flags)
        self.update()

    def close(self) -> None:
        """Take every region off the bus and follow the guest no longer.  May be repeated.

        :raises VFIOError: as :meth:`update`.
        """
        self._config.unwatch(self._written)
        self._config.power.unfollow(self.update)
        self._place_all(dict.fromkeys(self._bars))

    def _written(self, _before: bytes, _after: bytes) -> None:
        self.update()

    def _place_all(self, addresses: dict[int, int | None]) -> None:
        changed = [number for number, bar in self._bars.items() if bar.address != addresses[number]]
        if not changed:
            return
        with self._bus.topology.transaction():
            for number in changed:
                _place(self._bars[number], addresses[number])

    def _wanted(self, bar: _BAR) -> int | None:
        """Where a BAR should be seen.

        Not at address 0, nor at the end of what can be addressed: there it is while the guest
        sizes it.
        """
        if not self._config.get(pci.COMMAND) & bar.decoding or self._config.power.state:
            return None
        value = self._config.get(bar.register)
        if bar.enable & ~value:
            return None
        address = value & ~(bar.size - 1)
        last = address + bar.size - 1
        highest = (1 << 8 * bar.register.width) - 1
        if address == 0 or last >= highest or last >= bar.space.size:
            return None
        return address

    def _check_free(self, number: int, wide: bool) -> None:
        below = self._bars.get(number - 1)
        if (
            number in self._bars
            or (wide and number + 1 in self._bars)
            or (below is not None and below.register.width == 8)
        ):
            raise ValueError(f"BAR {number} is there already, or half of one that is")


def _place(bar: _BAR, address: int | None) -> None:
    if bar.address is not None:
        bar.space.remove(bar.region)
    bar.address = address
    if address is not None:
        bar.space.add(bar.region, address, _PRIORITY)
    if bar.moved is not None:
        bar.moved(address)


def _check_size(size: int, wide: bool) -> None:
    largest = 1 << (63 if wide else 31)
    if size & (size - 1) or size > largest:
        raise ValueError(f"a {'64' if wide else '32'}-bit BAR cannot have {size:#x} bytes")
