# SPDX-License-Identifier: BSD-3-Clause
"""A function whose guest, device and emulator act at random, and the model that it must match."""

from __future__ import annotations

from pathlib import Path

from pyvfio.closing import Closing
from pyvfio.container import Container
from pyvfio.emulator import GuestFunction
from pyvfio.emulator.options import FunctionOptions
from pyvfio.pci.device import PCIDevice
from pyvfio.server.config_space import ModelConfigSpace
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.pci import BARType, Register
from pyvfio.uapi.vfio import PCIIRQ, IRQSetFlags, PCIRegion, RegionFlags
from pyvfio.vectors import ContainerIO, RegionInfo
from tests.emulated import RecordingHost
from tests.unit.config_device import ConfigDevice
from tests.unit.declared import IO, MEM32, MEM64, DeclaredBase, DeclaredIO
from tests.unit.guest_history import Access, Emulator, Fire, Step, TableAccess, steps
from tests.unit.guest_interrupt_model import Mode
from tests.unit.guest_map import GuestMap
from tests.unit.guest_model import CLASS_CODE, NUMBERS, ROM_SIZE, VENDOR_ID, GuestModel
from tests.unit.option_rom import option_rom
from tests.unit.test_container import FakeIO

_KINDS = {BARType.IO: IO, BARType.MEM32: MEM32, BARType.MEM64: MEM64}
_INDEXES: dict[Mode, PCIIRQ] = {
    "pin": PCIIRQ.INTX,
    "MSI": PCIIRQ.MSI,
    "MSI-X": PCIIRQ.MSIX,
}
_SERVERS_OWN = {0x96: 0x01, 0xA7: 0x80}
"""What a server changes when vectors are set up: whether MSI and MSI-X are enabled."""


def config_space(maskable: bool) -> ModelConfigSpace:
    """The configuration space of a :class:`ConfigDevice`.

    :param maskable: whether it has, instead of the MSI that servers know, one with mask bits.
    """
    space = ModelConfigSpace(ConfigDevice())
    if maskable:
        space.set(Register(0x59, 1), 0xB0)
        space.set(Register(0xB0, 4), 0x0184_A405)  # 4 vectors, 64 bits
        space.set(Register(0xB4, 8), 0x1111_2222_3333_4444)  # no message of the guest's
    return space


class Unserved(DeclaredIO):
    """A :class:`ConfigDevice` without the server that would host it; its MSI has mask bits."""

    def __init__(self) -> None:
        bars = {n: (bar.size, _KINDS[bar.type], ()) for n, bar in ConfigDevice.bars.items()}
        super().__init__(bars)
        self.space = config_space(maskable=True)

    def get_region_info(self, index: int) -> RegionInfo:
        if index == PCIRegion.CONFIG:
            return RegionInfo(index, RegionFlags.READ | RegionFlags.WRITE, self.space.size)
        return super().get_region_info(index)

    def region_read(self, index: int, offset: int, size: int) -> Buffer:
        if index != PCIRegion.CONFIG:
            return super().region_read(index, offset, size)
        return self.space.read(offset, size)

    def region_write(self, index: int, offset: int, data: Buffer, *, posted: bool = False) -> int:
        if index == PCIRegion.CONFIG:
            self.space.write(offset, bytes(data))
        return len(data)


class UnservedBase(DeclaredBase):
    """It, in an IO address space that takes everything."""

    def __init__(self, io: Unserved) -> None:
        super().__init__(io)
        self._container_io = FakeIO()
        self._attach(Container(self._container_io, self.uri))

    @property
    def container_io(self) -> ContainerIO:
        return self._container_io


class RandomGuest(Closing):
    """A guest of a :class:`ConfigDevice`.

    :param dev: one, as after power-on.
    :param folder: for the file with its ROM.
    :param io: of a device that no server hosts, which can be made to signal what it was told.
    """

    def __init__(self, dev: PCIDevice, folder: Path, io: DeclaredIO | None = None) -> None:
        self.dev = dev
        self.io = io
        self.host = RecordingHost()
        self.map = GuestMap(host=self.host)
        rom = folder / "rom"
        rom.write_bytes(option_rom(0, 0, length=ROM_SIZE))
        options = FunctionOptions(
            vendor_id=VENDOR_ID, class_code=CLASS_CODE, multifunction=True, rom_file=rom
        )
        self.function = GuestFunction(dev, options, "guest")
        self.function.realize(self.map.bus, 0)
        self.parts = self.function.realized
        maskable = io is not None
        self.twin = config_space(maskable)
        self.model = GuestModel(self.twin, maskable)
        self._saved = self.function.save(), self.model.save()

    def run(self, seed: int, count: int) -> None:
        """Take steps; the first that goes wrong fails, with its number."""
        self.check()
        for position, step in enumerate(steps(seed, count)):
            self._take(step, f"step {position} of seed {seed}: {step}")
        self.check()

    def _take(self, step: Step, where: str) -> None:
        if isinstance(step, Access):
            self._access(step, where)
        elif isinstance(step, TableAccess):
            self._access_table(step, where)
        elif isinstance(step, Fire):
            self._fire(step, where)
        else:
            self._emulate(step)
        addresses = {number: self.parts.registers.address(number) for number in NUMBERS}
        assert addresses == self.model.addresses(), where
        assert self.host.messages == self.model.interrupts.sent, where
        self.host.messages.clear()
        self.model.interrupts.sent.clear()

    def _access(self, access: Access, where: str) -> None:
        offset, width = access.offset, access.width
        if access.value is None:
            seen = self.function.config_read(offset, width)
            assert seen == self.model.read(offset, width), where
        else:
            self.function.config_write(offset, width, access.value)
            self.model.write(offset, width, access.value)

    def _access_table(self, access: TableAccess, where: str) -> None:
        table = self.parts.interrupts.msix_table
        assert table is not None
        model, offset, width = self.model.interrupts, access.offset, access.width
        if access.value is None:
            assert table.read(offset, width) == model.read_table(offset, width), where
        else:
            table.write(offset, width, access.value)
            model.write_table(offset, width, access.value, self.model.masters)

    def _fire(self, fire: Fire, where: str) -> None:
        if self.io is None:
            return
        index, model = _INDEXES[fire.mode], self.model.interrupts
        signals = self.io.eventfds.get((index, IRQSetFlags.TRIGGER, fire.vector), -1) >= 0
        assert signals or not model.deliverable(fire.mode, fire.vector), where
        if signals:
            self.io.fire(index, fire.vector)
            assert self.function.events.dispatch(0) == 1, where
            model.fire(fire.mode, fire.vector, self.model.masters)

    def _emulate(self, what: Emulator) -> None:
        if what is Emulator.RESET:
            self.function.reset()
            self.model.reset()
        elif what is Emulator.SAVE:
            self._saved = self.function.save(), self.model.save()
        else:
            state, snapshot = self._saved
            self.function.load(state)
            self.model.load(snapshot)

    def check(self) -> None:
        """Every byte of the guest's view and of the device is as the model has it."""
        read = self.function.config_read
        wrong = {
            hex(offset): (hex(seen), hex(expected))
            for offset in range(0, 4096, 4)
            if (seen := read(offset, 4)) != (expected := self.model.read(offset, 4))
        }
        assert not wrong
        device, twin = bytearray(self.dev.config.read_bytes(0, 4096)), self.twin.read(0, 4096)
        for at, bits in _SERVERS_OWN.items():
            device[at] = device[at] & ~bits | twin[at] & bits
        assert device == twin
        if self.io is not None:
            assert self.parts.interrupts.mode is _INDEXES[self.model.interrupts.mode]

    def close(self) -> None:
        """Take the function off the bus."""
        self.function.close()
        self.map.topology.close()


def unserved(folder: Path) -> RandomGuest:
    """A guest of a device that no server hosts."""
    io = Unserved()
    return RandomGuest(PCIDevice(UnservedBase(io)), folder, io)
