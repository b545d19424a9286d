# SPDX-License-Identifier: BSD-3-Clause
"""What a guest sees of any device's configuration space, on any backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import pyvfio
from pyvfio.emulator.bar_registers import BARRegisters
from pyvfio.emulator.bus import Bus, BusKind
from pyvfio.emulator.capabilities import add_capabilities
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.header import set_up_header
from pyvfio.emulator.memory import MemoryRegion
from pyvfio.emulator.options import FunctionOptions
from pyvfio.pci import capabilities
from pyvfio.pci.bars import BAR
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType, CapabilityID, Command, ExtendedCapabilityID
from tests.unit.guest_map import GuestMap

BARS = range(0x10, 0x28, 4)
ALL = 0xFFFF_FFFF
HIDDEN = {
    (CapabilityID.MSI, False),
    (CapabilityID.MSIX, False),
    (ExtendedCapabilityID.SRIOV, True),
    (ExtendedCapabilityID.ARI, True),
}
"""What a guest is not shown here: interrupts belong to another part."""


class View:
    """A guest's configuration space; to a guest, it is what a device's is to a driver."""

    def __init__(self, config: EmulatedConfig) -> None:
        self.size = config.size
        self.config = config

    def read8(self, offset: int) -> int:
        return self.config.read(offset, 1)

    def read16(self, offset: int) -> int:
        return self.config.read(offset, 2)

    def read32(self, offset: int) -> int:
        return self.config.read(offset, 4)


@pytest.fixture
def device(any_uri: str) -> Iterator[PCIDevice]:
    """One device after the other; what a guest wrote to its header is undone."""
    with pyvfio.open(any_uri) as dev:
        before = {offset: dev.config.read32(offset) for offset in (*BARS, 0x30)}
        command = dev.config.command
        yield dev
        for offset, value in before.items():
            dev.config.write32(offset, value)
        dev.config.command = command


@pytest.fixture
def bus() -> Iterator[Bus]:
    """A bus without anything on it."""
    made = GuestMap().bus
    yield made
    made.topology.close()


@pytest.fixture
def config(device: PCIDevice) -> EmulatedConfig:
    """The guest's view, below a port."""
    made = EmulatedConfig(device.config, pci.EXTENDED_CONFIG_SIZE, "guest")
    set_up_header(made, FunctionOptions())
    return made


@pytest.fixture
def registers(device: PCIDevice, config: EmulatedConfig, bus: Bus) -> Iterator[BARRegisters]:
    """The guest's BARs, as many and as large as the device's."""
    with BARRegisters(config, bus) as made:
        for number, bar in device.bars.items():
            region = MemoryRegion(f"bar{number}", bar.size)
            made.register(number, bar.type, bar.prefetchable, region)
        yield made


def size_bar(config: EmulatedConfig, number: int, bar: BAR) -> int:
    """Size a BAR as firmware does."""
    register = 0x10 + 4 * number
    config.write(register, 4, ALL)
    low = config.read(register, 4) & ~(0x3 if bar.type is BARType.IO else 0xF)
    if bar.type is not BARType.MEM64:
        return (ALL & ~low) + 1
    config.write(register + 4, 4, ALL)
    return ((1 << 64) - 1 & ~(config.read(register + 4, 4) << 32 | low)) + 1


def test_a_guest_sees_the_devices_ids(device: PCIDevice, config: EmulatedConfig) -> None:
    assert config.read(0x00, 4) == device.config.read32(0x00)
    assert config.read(0x08, 4) == device.config.read32(0x08)
    assert config.read(0x2C, 4) == device.config.read32(0x2C)
    assert config.read(0x3D, 1) == device.config.interrupt_pin


def test_a_guest_finds_the_devices_capabilities_in_their_order(
    device: PCIDevice, config: EmulatedConfig
) -> None:
    add_capabilities(config, BusKind.PORT, {})
    view = View(config)
    found = [*capabilities.conventional(view), *capabilities.extended(view)]
    expected = [c for c in device.config.capabilities() if (c.id, c.extended) not in HIDDEN]
    assert [capability for capability in found if capability.id] == expected


@pytest.mark.usefixtures("registers")
def test_a_guest_learns_the_sizes_of_the_devices_bars(
    device: PCIDevice, config: EmulatedConfig
) -> None:
    sizes = {number: size_bar(config, number, bar) for number, bar in device.bars.items()}
    assert sizes == {number: max(bar.size, 16) for number, bar in device.bars.items()}


def test_a_guest_puts_bars_where_it_likes(
    device: PCIDevice, config: EmulatedConfig, registers: BARRegisters
) -> None:
    addresses = {}
    for number, bar in device.bars.items():
        addresses[number] = bar.size * 4 if bar.type is BARType.IO else 1 << 31
        config.write(0x10 + 4 * number, 4, addresses[number])
    config.write(0x04, 2, Command.IO | Command.MEMORY)
    assert {number: registers.address(number) for number in device.bars} == addresses
    config.write(0x04, 2, 0)
    assert {registers.address(number) for number in device.bars} == {None}


def test_a_guest_can_read_all_that_there_is(
    config: EmulatedConfig, caplog: pytest.LogCaptureFixture
) -> None:
    add_capabilities(config, BusKind.PORT, {})
    for width, end in ((1, 64), (2, pci.CONFIG_SIZE), (4, config.size)):
        for offset in range(0, end, width):
            config.read(offset, width)
    assert caplog.records == []
