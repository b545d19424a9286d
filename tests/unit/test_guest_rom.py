# SPDX-License-Identifier: BSD-3-Clause
"""The expansion ROM that a guest sees: how large, from where, and when it is read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyvfio
from pyvfio.emulator import rom as rom_module
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.options import FunctionOptions
from pyvfio.emulator.rom import GuestROM
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.vfio import PCIRegion
from tests.fault import raw
from tests.fault.raw import Message, RawServer
from tests.support import ServerProcess
from tests.unit.emulator_models import ROM
from tests.unit.option_rom import ids, option_rom

DEFAULTS = FunctionOptions()
BCM57810 = (0x14E4, 0x168E)


def guest_rom(
    dev: PCIDevice,
    options: FunctionOptions = DEFAULTS,
    shown: tuple[int, int] | None = None,
) -> GuestROM:
    """The ROM of a device that shows its guest other ids, or its own."""
    config = EmulatedConfig(dev.config, pci.CONFIG_SIZE, "guest")
    if shown is not None:
        config.emulate(pci.VENDOR_ID, shown[0], 0xFFFF)
        config.emulate(pci.DEVICE_ID, shown[1], 0xFFFF)
    return GuestROM(dev, config, options)


def contents(rom: GuestROM) -> bytes:
    """What the guest reads of all of it, as dwords."""
    assert rom.region is not None
    return rom.region.read_bytes(0, rom.region.size)


# A device with a ROM


@pytest.fixture(scope="module")
def server(socket_folder: Path) -> Iterator[ServerProcess]:
    """A device with a ROM of 2.5 KiB."""
    path = socket_folder / "guest-rom.sock"
    with ServerProcess("tests.unit.emulator_models:WithROM", path) as found:
        yield found


@pytest.fixture
def dev(server: ServerProcess) -> Iterator[PCIDevice]:
    with pyvfio.open(server.uri) as found:
        yield found


def test_the_guest_reads_the_devices_rom(dev: PCIDevice) -> None:
    assert contents(guest_rom(dev)) == ROM.ljust(4096, b"\xff")


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_every_width_is_read(dev: PCIDevice, width: int) -> None:
    region = guest_rom(dev).region
    assert region is not None
    assert region.read(0x40, width) == int.from_bytes(ROM[0x40 : 0x40 + width], "little")
    assert region.read(0x41, width) == int.from_bytes(ROM[0x41 : 0x41 + width], "little")


def test_the_guest_cannot_write_it(dev: PCIDevice) -> None:
    rom = guest_rom(dev)
    assert rom.region is not None
    rom.region.write(0, 4, 0)
    assert rom.region.read(0, 2) == 0xAA55


def test_finding_its_size_leaves_the_register_as_it_was(dev: PCIDevice) -> None:
    dev.config.set(pci.ROM_ADDRESS, 0xFEB4_0000)
    try:
        rom = guest_rom(dev)
        assert rom.region is not None
        assert (rom.region.size, dev.config.get(pci.ROM_ADDRESS)) == (4096, 0xFEB4_0000)
    finally:
        dev.config.set(pci.ROM_ADDRESS, 0)


def test_a_rom_that_is_not_wanted_is_none(dev: PCIDevice, tmp_path: Path) -> None:
    file = tmp_path / "rom"
    file.write_bytes(ROM)
    assert guest_rom(dev, FunctionOptions(rom=False)).region is None
    assert guest_rom(dev, FunctionOptions(rom=False, rom_file=file)).region is None


def test_a_device_without_one_shows_none(testdev: PCIDevice) -> None:
    assert guest_rom(testdev).region is None


def test_a_rom_that_could_not_be_read_is_read_again_after_a_reset(
    dev: PCIDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    rom = guest_rom(dev)

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "it fails as it is meant to")

    with monkeypatch.context() as patch:
        patch.setattr(dev.base.device_io, "region_read", refuse)
        assert contents(rom) == b"\xff" * 4096
    assert contents(rom) == b"\xff" * 4096
    rom.forget()
    assert contents(rom) == ROM.ljust(4096, b"\xff")


# Ids that are overridden


def test_a_rom_says_that_it_is_for_the_device_that_the_guest_sees(dev: PCIDevice) -> None:
    found = contents(guest_rom(dev, shown=(0x1234, 0xBEEF)))
    assert ids(found) == (0x1234, 0xBEEF)
    assert sum(found[:2560]) & 0xFF == 0
    changed = [at for at, byte in enumerate(ROM) if found[at] != byte]
    assert changed == [6, 0x22, 0x23]


def test_a_rom_of_another_vendors_is_left_alone(dev: PCIDevice) -> None:
    assert contents(guest_rom(dev, shown=(0x1AF4, 0xBEEF)))[:2560] == ROM


# Devices whose ROM is known to be bad


@pytest.mark.parametrize(("wanted", "shown"), [(None, False), (True, True), (False, False)])
def test_a_bad_rom_is_shown_only_where_that_is_asked_for(
    dev: PCIDevice, caplog: pytest.LogCaptureFixture, wanted: bool | None, shown: bool
) -> None:
    rom = guest_rom(dev, FunctionOptions(rom=wanted), BCM57810)
    assert (rom.region is not None) == shown
    told = [line for line in caplog.messages if "BCM57810 are known to hang guests" in line]
    assert len(told) == (wanted is not False)


def test_a_file_instead_of_a_bad_rom_is_shown(
    dev: PCIDevice, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    file = tmp_path / "rom"
    file.write_bytes(ROM)
    assert guest_rom(dev, FunctionOptions(rom_file=file), BCM57810).region is not None
    assert "known to hang" in caplog.text


# A file


@pytest.mark.parametrize(("length", "size"), [(1, 2048), (2560, 4096), (1 << 16, 1 << 16)])
def test_a_file_is_shown_in_a_power_of_two(
    testdev: PCIDevice, tmp_path: Path, length: int, size: int
) -> None:
    file, data = tmp_path / "rom", os.urandom(length)
    file.write_bytes(data)
    found = contents(guest_rom(testdev, FunctionOptions(rom_file=file)))
    assert found == data + bytes(size - length)


@pytest.mark.parametrize("length", [0, (16 << 20) + 1])
def test_a_file_that_is_no_rom_is_refused(testdev: PCIDevice, tmp_path: Path, length: int) -> None:
    file = tmp_path / "rom"
    with file.open("wb") as opened:
        opened.truncate(length)
    with pytest.raises(ValueError, match=f"{file}: an expansion ROM of {length} bytes"):
        guest_rom(testdev, FunctionOptions(rom_file=file))


def test_a_file_that_is_not_there_is_an_error(testdev: PCIDevice, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        guest_rom(testdev, FunctionOptions(rom_file=tmp_path / "rom"))


# Devices with a will of their own


class ROMServer(RawServer):
    """A device whose ROM register claims some bytes, and which gives them as a test says."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.claimed = 4096
        self.rom = option_rom(0, 0, length=4096)
        self.give: Callable[[Message], bytes | int] | None = None
        self.asked: list[tuple[int, int]] = []
        self.handlers = {raw.REGION_WRITE: self._write_register, raw.REGION_READ: self._read_rom}

    def show(self, size: int) -> None:
        """Have the ROM region be of some size."""
        self.regions[PCIRegion.ROM] = (raw.READABLE, size)

    def _write_register(self, message: Message) -> None:
        self.serve(message)
        offset, region, _ = message.words("QII")
        if (region, offset) == (raw.CONFIG, 0x30):
            register = self.memory[raw.CONFIG][0x30:0x34]
            mask = -self.claimed & 0xFFFF_F801 if self.claimed else 0
            value = int.from_bytes(register, "little") & mask
            self.memory[raw.CONFIG][0x30:0x34] = value.to_bytes(4, "little")

    def _read_rom(self, message: Message) -> None:
        offset, region, count = message.words("QII")
        if region != PCIRegion.ROM:
            self.serve(message)
            return
        self.asked.append((offset, count))
        given = self.give(message) if self.give else self.rom[offset : offset + count]
        if isinstance(given, int):
            self.peer.send(raw.refusal(message, given))
        else:
            payload = raw.region_range(region, offset, len(given), given)
            self.peer.send(raw.answer(message, payload))


@pytest.fixture
def rom_server(socket_folder: Path) -> Iterator[ROMServer]:
    with ROMServer(socket_folder / "raw-rom.sock") as found:
        found.show(4096)
        yield found


@pytest.fixture
def raw_dev(rom_server: ROMServer) -> Iterator[PCIDevice]:
    with pyvfio.open(rom_server.uri) as found:
        yield found


def test_it_is_read_when_the_guest_looks_for_the_first_time_and_once(
    rom_server: ROMServer, raw_dev: PCIDevice
) -> None:
    rom = guest_rom(raw_dev)
    assert rom_server.asked == []
    assert (contents(rom), contents(rom)) == (rom_server.rom, rom_server.rom)
    assert rom_server.asked == [(0, 4096)]


def test_it_is_read_in_pieces_as_large_as_the_device_gives(
    rom_server: ROMServer, raw_dev: PCIDevice
) -> None:
    rom_server.give = lambda message: rom_server.rom[message.words("Q")[0] :][:1000]
    assert contents(guest_rom(raw_dev)) == rom_server.rom
    assert [offset for offset, _ in rom_server.asked] == [0, 1000, 2000, 3000, 4000]


def test_where_the_device_has_no_more_the_rest_is_ones(
    rom_server: ROMServer, raw_dev: PCIDevice
) -> None:
    rom_server.rom = rom_server.rom[:1000]
    assert contents(guest_rom(raw_dev)) == rom_server.rom[:1000] + b"\xff" * 3096


@pytest.mark.parametrize("number", [errno.EINTR, errno.EAGAIN])
def test_a_read_that_was_interrupted_is_made_again(
    rom_server: ROMServer, raw_dev: PCIDevice, number: int
) -> None:
    def give(_: Message) -> bytes | int:
        return number if len(rom_server.asked) < 3 else rom_server.rom

    rom_server.give = give
    assert contents(guest_rom(raw_dev)) == rom_server.rom
    assert rom_server.asked == [(0, 4096)] * 3


def test_an_error_ends_the_reading(
    rom_server: ROMServer, raw_dev: PCIDevice, caplog: pytest.LogCaptureFixture
) -> None:
    def give(_: Message) -> bytes | int:
        return rom_server.rom[:1024] if len(rom_server.asked) == 1 else errno.EIO

    rom_server.give = give
    assert contents(guest_rom(raw_dev)) == rom_server.rom[:1024] + b"\xff" * 3072
    assert "read ROM+0x400" in caplog.text
    assert "[EIO]" in caplog.text
    assert len(rom_server.asked) == 2


def test_a_device_that_gives_it_for_ever_is_given_up(
    rom_server: ROMServer,
    raw_dev: PCIDevice,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rom_module, "_LOAD_SECONDS", 0.05)
    rom_server.give = lambda _: errno.EAGAIN
    assert contents(guest_rom(raw_dev)) == b"\xff" * 4096
    assert "gave 0 bytes of its ROM" in caplog.text


def test_a_device_that_shows_no_contents_is_said_once(
    rom_server: ROMServer, raw_dev: PCIDevice, caplog: pytest.LogCaptureFixture
) -> None:
    rom_server.show(0)
    rom = guest_rom(raw_dev)
    assert (contents(rom), contents(rom)) == (bytes(4096), bytes(4096))
    assert caplog.text.count("shows no contents") == 1


def test_behind_the_contents_the_guest_reads_zeros(
    rom_server: ROMServer, raw_dev: PCIDevice
) -> None:
    rom_server.show(1022)
    rom = guest_rom(raw_dev)
    assert rom.region is not None
    assert rom.region.read(1020, 4) == int.from_bytes(rom_server.rom[1020:1022], "little")
    assert rom.region.read(1024, 4) == 0


def test_no_more_is_read_than_the_guest_can_see(rom_server: ROMServer, raw_dev: PCIDevice) -> None:
    rom_server.show(2 << 30)
    assert contents(guest_rom(raw_dev)) == rom_server.rom
    assert rom_server.asked == [(0, 4096)]


@pytest.mark.parametrize("claimed", [32 << 20, 2 << 30])
def test_a_rom_larger_than_there_are_is_left_out(
    rom_server: ROMServer, raw_dev: PCIDevice, caplog: pytest.LogCaptureFixture, claimed: int
) -> None:
    rom_server.claimed = claimed
    assert guest_rom(raw_dev).region is None
    assert f"no ROM has {claimed:#x} bytes" in caplog.text


def test_so_is_one_of_no_power_of_two(
    rom_server: ROMServer, raw_dev: PCIDevice, caplog: pytest.LogCaptureFixture
) -> None:
    rom_server.claimed = 0x3000
    assert guest_rom(raw_dev).region is None
    assert "no ROM has 0x3000 bytes" in caplog.text


def test_a_device_without_a_register_for_it_has_none(
    rom_server: ROMServer, raw_dev: PCIDevice
) -> None:
    rom_server.claimed = 0
    assert guest_rom(raw_dev).region is None


def test_a_register_that_cannot_be_accessed_is_no_rom(
    rom_server: ROMServer, raw_dev: PCIDevice, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse_once(message: Message) -> None:
        rom_server.handlers[raw.REGION_WRITE] = rom_server.serve
        rom_server.peer.send(raw.refusal(message, errno.EPERM))

    rom_server.handlers[raw.REGION_WRITE] = refuse_once
    assert guest_rom(raw_dev).region is None
    assert "size of the ROM cannot be found" in caplog.text


def test_a_device_that_is_gone_has_a_rom_of_ones(
    rom_server: ROMServer, raw_dev: PCIDevice, caplog: pytest.LogCaptureFixture
) -> None:
    rom = guest_rom(raw_dev)
    assert raw_dev.rom is not None
    rom_server.hang_up()
    assert contents(rom) == b"\xff" * 4096
    assert len(caplog.messages) == 1


def test_a_device_that_does_not_say_how_much_there_is_has_nothing(
    rom_server: ROMServer, raw_dev: PCIDevice, caplog: pytest.LogCaptureFixture
) -> None:
    rom = guest_rom(raw_dev)
    rom_server.handlers[raw.GET_REGION_INFO] = lambda message: rom_server.peer.send(
        raw.refusal(message, errno.EIO)
    )
    assert contents(rom) == bytes(4096)
    assert caplog.text.count("the ROM cannot be read") == 1
