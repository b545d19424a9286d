# SPDX-License-Identifier: BSD-3-Clause
"""A guest that reads and writes configuration space at random, and the model that it must match."""

from __future__ import annotations

from pyvfio.emulator.bar_registers import BARRegisters
from pyvfio.emulator.bus import BusKind
from pyvfio.emulator.capabilities import add_capabilities
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.header import set_up_header
from pyvfio.emulator.memory import MemoryRegion
from pyvfio.emulator.options import FunctionOptions
from pyvfio.pci.config import ConfigSpace
from pyvfio.region import Region
from pyvfio.server.config_space import ModelConfigSpace
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import PCIRegion, RegionFlags
from pyvfio.vectors import RegionInfo
from tests.unit.config_device import ConfigDevice
from tests.unit.guest_map import GuestMap
from tests.unit.guest_model import (
    CLASS_CODE,
    NUMBERS,
    ROM_SIZE,
    VENDOR_ID,
    Access,
    GuestModel,
    accesses,
)
from tests.unit.test_region import FakeIO


class Unserved(FakeIO):
    """The configuration space that a server gives to a model, without the server."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ModelConfigSpace(ConfigDevice())

    def region_read(self, index: int, offset: int, size: int) -> Buffer:
        return self.config.read(offset, size)

    def region_write(self, index: int, offset: int, data: Buffer, *, posted: bool = False) -> int:
        self.config.write(offset, bytes(data))
        return len(data)


def unserved() -> ConfigSpace:
    """The configuration region of a model that no server hosts."""
    info = RegionInfo(PCIRegion.CONFIG, RegionFlags.READ | RegionFlags.WRITE, 4096)
    return ConfigSpace(Unserved(), info, "unserved:x")


class RandomGuest:
    """A guest of a :class:`ConfigDevice`.

    :param device: the configuration region of one, as after power-on.
    """

    def __init__(self, device: Region) -> None:
        self.bus = GuestMap().bus
        self.device = device
        self.twin = ModelConfigSpace(ConfigDevice())
        self.twin.write(4, device.read_bytes(4, 2))
        self.model = GuestModel(self.twin)
        self.config = EmulatedConfig(device, 4096, "guest")
        options = FunctionOptions(vendor_id=VENDOR_ID, class_code=CLASS_CODE, multifunction=True)
        set_up_header(self.config, options)
        self.registers = BARRegisters(self.config, self.bus)
        for number, bar in ConfigDevice.bars.items():
            region = MemoryRegion(f"bar{number}", bar.size)
            self.registers.register(number, bar.type, bar.prefetchable, region)
        self.registers.register_rom(MemoryRegion("rom", ROM_SIZE))
        add_capabilities(self.config, BusKind.ROOT_COMPLEX, {})

    def run(self, seed: int, count: int) -> None:
        """Make accesses; the first that goes wrong fails, naming them all up to it."""
        self.check()
        for position, access in enumerate(accesses(seed, count)):
            self._make(access, f"access {position} of seed {seed}: {access}")
        self.check()

    def _make(self, access: Access, where: str) -> None:
        offset, width = access.offset, access.width
        if access.value is None:
            assert self.config.read(offset, width) == self.model.read(offset, width), where
            return
        self.config.write(offset, width, access.value)
        self.model.write(offset, width, access.value)
        addresses = {number: self.registers.address(number) for number in NUMBERS}
        assert addresses == self.model.addresses(), where

    def check(self) -> None:
        """Every byte of the guest's view and of the device is as the model has it."""
        wrong = {
            hex(offset): (hex(seen), hex(expected))
            for offset in range(0, 4096, 4)
            if (seen := self.config.read(offset, 4)) != (expected := self.model.read(offset, 4))
        }
        assert not wrong
        assert self.device.read_bytes(0, 4096) == self.twin.read(0, 4096)

    def close(self) -> None:
        """Take the function off the bus."""
        self.registers.close()
        self.bus.topology.close()
