# SPDX-License-Identifier: BSD-3-Clause
"""The legacy VGA ranges in a guest's memory map."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvfio
from pyvfio.emulator import FunctionOptions, GuestFunction
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.vga import GuestVGA
from pyvfio.errors import UnsupportedError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Command
from pyvfio.uapi.vfio import PCIRegion
from tests.fault import raw
from tests.fault.raw import RawServer
from tests.unit.guest_map import GuestMap, Seen

WHOLE = 0xC0000
MEMORY = [Seen(0xA0000, 0x20000, "i/o")]
PORTS = [Seen(0x3B0, 0x0C, "i/o"), Seen(0x3C0, 0x20, "i/o")]
BOTH = Command.MEMORY | Command.IO


class VGAServer(RawServer):
    """A device with a VGA region; the raw server keeps what is written to it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.show(WHOLE)
        self.memory[PCIRegion.VGA] = bytearray(WHOLE)

    def show(self, size: int, flags: int = raw.READABLE | raw.WRITABLE) -> None:
        """Have the region be another one."""
        self.regions[PCIRegion.VGA] = (flags, size)

    def asked(self, command: int) -> list[tuple[int, int]]:
        """(offset, width) of the accesses to the region."""
        found = [message.words("QII") for message in self.seen if message.command == command]
        return [(offset, count) for offset, region, count in found if region == PCIRegion.VGA]


@pytest.fixture
def server(socket_folder: Path) -> Iterator[VGAServer]:
    with VGAServer(socket_folder / "vga.sock") as found:
        yield found


@pytest.fixture
def dev(server: VGAServer) -> Iterator[PCIDevice]:
    with pyvfio.open(server.uri) as found:
        yield found


@pytest.fixture
def config(dev: PCIDevice) -> EmulatedConfig:
    """The guest's configuration space, nothing decoded yet."""
    found = EmulatedConfig(dev.config, pci.CONFIG_SIZE, "guest")
    found.set(pci.COMMAND, 0)
    return found


@pytest.fixture
def map_() -> GuestMap:
    return GuestMap()


def test_the_ranges_are_there_where_the_guest_has_them_decoded(
    dev: PCIDevice, config: EmulatedConfig, map_: GuestMap
) -> None:
    with GuestVGA(dev, config, map_.bus):
        assert (map_.seen(), map_.seen(map_.io)) == ([], [])
        config.write(pci.COMMAND.offset, 2, Command.MEMORY)
        assert (map_.seen(), map_.seen(map_.io)) == (MEMORY, [])
        config.write(pci.COMMAND.offset, 2, Command.IO)
        assert (map_.seen(), map_.seen(map_.io)) == ([], PORTS)


def test_what_is_decoded_already_is_there_at_once(
    dev: PCIDevice, config: EmulatedConfig, map_: GuestMap
) -> None:
    config.write(pci.COMMAND.offset, 2, BOTH)
    with GuestVGA(dev, config, map_.bus):
        assert (map_.seen(), map_.seen(map_.io)) == (MEMORY, PORTS)


def test_a_command_register_that_nobody_wrote_is_followed_when_asked(
    dev: PCIDevice, config: EmulatedConfig, map_: GuestMap
) -> None:
    with GuestVGA(dev, config, map_.bus) as vga:
        config.write(pci.COMMAND.offset, 2, BOTH)
        config.reset()
        vga.update()
        assert (map_.seen(), map_.seen(map_.io)) == ([], [])
        config.set(pci.COMMAND, BOTH)
        vga.update()
        assert (map_.seen(), map_.seen(map_.io)) == (MEMORY, PORTS)


def test_the_ranges_follow_a_reset_and_a_load_of_their_function(
    dev: PCIDevice, map_: GuestMap
) -> None:
    with GuestFunction(dev, FunctionOptions(vga=True)) as function:
        function.realize(map_.bus, 0)
        function.config_write(pci.COMMAND.offset, 2, BOTH)
        state = function.save()
        function.reset()
        assert (map_.seen(), map_.seen(map_.io)) == ([], [])
        function.load(state)
        assert (map_.seen(), map_.seen(map_.io)) == (MEMORY, PORTS)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("address", [0xA0000, 0xB8000, 0xBFFFC, 0x3B4, 0x3B8, 0x3C0, 0x3DC])
def test_an_access_is_one_at_that_address_of_the_region(
    server: VGAServer, dev: PCIDevice, map_: GuestMap, address: int, width: int
) -> None:
    config = EmulatedConfig(dev.config, pci.CONFIG_SIZE, "guest")
    config.write(pci.COMMAND.offset, 2, BOTH)
    value = 0x44332211 & (1 << 8 * width) - 1
    space = map_.io if address < 0x1000 else map_.memory
    with GuestVGA(dev, config, map_.bus):
        space.write(address, width, value)
        assert space.read(address, width) == value
    assert server.asked(raw.REGION_READ) == [(address, width)]
    assert server.asked(raw.REGION_WRITE) == [(address, width)]


def test_it_is_in_front_of_ram(dev: PCIDevice, config: EmulatedConfig, map_: GuestMap) -> None:
    config.write(pci.COMMAND.offset, 2, BOTH)
    with GuestVGA(dev, config, map_.bus) as vga:
        other = GuestMap()
        map_.memory_root.add(other.memory_root, 0)
        assert map_.seen() == MEMORY
        vga.close()
        assert map_.seen() == []


def test_an_access_that_fails_reads_as_ones(
    server: VGAServer, dev: PCIDevice, config: EmulatedConfig, map_: GuestMap
) -> None:
    config.write(pci.COMMAND.offset, 2, BOTH)
    server.handlers[raw.REGION_READ] = lambda message: server.peer.send(
        raw.refusal(message, errno.EIO)
    )
    with GuestVGA(dev, config, map_.bus):
        assert map_.io.read(0x3C0, 1) == 0xFF


def test_closing_leaves_nothing_and_may_be_repeated(
    dev: PCIDevice, config: EmulatedConfig, map_: GuestMap
) -> None:
    vga = GuestVGA(dev, config, map_.bus)
    config.write(pci.COMMAND.offset, 2, BOTH)
    vga.close()
    vga.close()
    config.write(pci.COMMAND.offset, 2, 0)
    config.write(pci.COMMAND.offset, 2, BOTH)
    assert (map_.seen(), map_.seen(map_.io)) == ([], [])
    assert map_.memory_root.regions + map_.io_root.regions == ()


@pytest.mark.parametrize(
    ("size", "flags"),
    [
        (0, 0),
        (WHOLE - 1, raw.READABLE | raw.WRITABLE),
        (WHOLE, raw.READABLE),
        (WHOLE, raw.WRITABLE),
    ],
    ids=["none", "too short", "cannot be written", "cannot be read"],
)
def test_a_region_that_cannot_be_used_is_refused(
    server: VGAServer, map_: GuestMap, size: int, flags: int
) -> None:
    server.show(size, flags)
    with pyvfio.open(server.uri) as dev:
        config = EmulatedConfig(dev.config, pci.CONFIG_SIZE, "guest")
        with pytest.raises(UnsupportedError, match="VGA"):
            GuestVGA(dev, config, map_.bus)
    assert map_.memory_root.regions + map_.io_root.regions == ()


def test_so_is_a_device_that_has_no_such_region(server: VGAServer, map_: GuestMap) -> None:
    server.handlers[raw.GET_INFO] = lambda message: server.peer.send(
        raw.answer(message, raw.device_info(regions=8))
    )
    with pyvfio.open(server.uri) as dev:
        config = EmulatedConfig(dev.config, pci.CONFIG_SIZE, "guest")
        with pytest.raises(UnsupportedError, match="no VGA region"):
            GuestVGA(dev, config, map_.bus)
