# SPDX-License-Identifier: BSD-3-Clause
"""The guest's configuration space: what it reads, what its writes change, who is told."""

from __future__ import annotations

import errno
import logging

import pytest

from pyvfio.emulator.config import EmulatedConfig
from pyvfio.errors import ConnectionLost, RegionError, RemoteError
from pyvfio.uapi import pci
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.pci import Command, Register, Status
from tests.unit.raw_config import RawConfig

FREE = 0x80
"""Where nothing is but bytes of the device."""
FREE_DWORD = Register(FREE, 4)


@pytest.fixture
def device() -> RawConfig:
    """A device of bytes."""
    return RawConfig()


@pytest.fixture
def config(device: RawConfig) -> EmulatedConfig:
    """Its configuration space as a guest sees it."""
    made = EmulatedConfig(device.region, pci.EXTENDED_CONFIG_SIZE, "guest")
    device.calls.clear()
    return made


# The local copy


@pytest.mark.parametrize(
    ("device_size", "wanted", "size"),
    [(256, 256, 256), (256, 4096, 256), (4096, 256, 256), (4096, 4096, 4096), (300, 4096, 300)],
)
def test_it_has_the_bytes_that_device_and_bus_have(
    device_size: int, wanted: int, size: int
) -> None:
    device = RawConfig(device_size)
    config = EmulatedConfig(device.region, wanted, "guest")
    assert (config.size, bytes(config.local)) == (size, bytes(device.memory[:size]))
    masks = (config.emulated, config.writable, config.write_1_clear, config.compared)
    assert {len(mask) for mask in masks} == {size}


def test_a_device_without_a_header_is_refused() -> None:
    with pytest.raises(RegionError, match="255 bytes only"):
        EmulatedConfig(RawConfig(255).region, 256, "guest")


def test_a_device_that_cannot_be_read_is_refused(device: RawConfig) -> None:
    device.error = RemoteError("no", errno=errno.EIO)
    with pytest.raises(RegionError, match="EIO"):
        EmulatedConfig(device.region, 256, "guest")


def test_a_device_that_falls_short_is_refused(device: RawConfig) -> None:
    device.most = 255
    with pytest.raises(RegionError, match="255 of 256"):
        EmulatedConfig(device.region, 256, "guest")


@pytest.mark.parametrize("size", [0, 64, 255, 4097])
def test_configuration_space_has_one_of_two_sizes(device: RawConfig, size: int) -> None:
    with pytest.raises(ValueError, match=f"cannot have {size} bytes"):
        EmulatedConfig(device.region, size, "guest")


# Reads


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_read_is_one_access_of_that_width_to_the_device(
    device: RawConfig, config: EmulatedConfig, width: int
) -> None:
    device.memory[FREE : FREE + 4] = b"\x78\x56\x34\x12"
    assert config.read(FREE, width) == 0x12345678 & (1 << 8 * width) - 1
    assert device.calls == [("read", FREE, width)]


@pytest.mark.parametrize(
    ("offset", "width", "pieces"),
    [
        (1, 2, [(1, 1), (2, 1)]),
        (3, 2, [(3, 1), (4, 1)]),
        (1, 4, [(1, 1), (2, 2), (4, 1)]),
        (2, 4, [(2, 2), (4, 2)]),
    ],
)
def test_an_access_that_is_not_aligned_reaches_the_device_in_aligned_pieces(
    device: RawConfig,
    config: EmulatedConfig,
    offset: int,
    width: int,
    pieces: list[tuple[int, int]],
) -> None:
    device.memory[FREE : FREE + 8] = bytes(range(0x10, 0x18))
    expected = bytes(range(0x10 + offset, 0x10 + offset + width))
    assert config.read(FREE + offset, width).to_bytes(width, "little") == expected
    assert device.calls == [("read", FREE + at, size) for at, size in pieces]
    device.calls.clear()
    config.write(FREE + offset, width, int.from_bytes(bytes(range(0x21, 0x21 + width)), "little"))
    assert device.calls == [("write", FREE + at, size) for at, size in pieces]
    start = FREE + offset
    assert device.memory[start : start + width] == bytes(range(0x21, 0x21 + width))


def test_emulated_bits_come_from_the_local_copy_the_others_from_the_device(
    device: RawConfig, config: EmulatedConfig
) -> None:
    config.emulate(FREE_DWORD, 0x0A0B0C0D, 0x00FF000F)
    device.memory[FREE : FREE + 4] = b"\x11\x22\x33\x44"
    assert config.read(FREE, 4) == 0x440B221D


def test_a_read_of_emulated_bits_only_does_not_ask_the_device(
    device: RawConfig, config: EmulatedConfig
) -> None:
    config.emulate(FREE_DWORD, 0x01020304, 0xFFFF_FFFF)
    device.error = ConnectionLost("gone")
    assert config.read(FREE, 4) == 0x01020304
    assert config.read(FREE + 1, 2) == 0x0203
    assert device.calls == []


def test_of_a_read_in_pieces_those_that_are_emulated_do_not_reach_the_device(
    device: RawConfig, config: EmulatedConfig
) -> None:
    config.mark_emulated(FREE, 2)
    device.memory[FREE + 2] = 0x77
    assert config.read(FREE + 1, 2) == 0x7700
    assert device.calls == [("read", FREE + 2, 1)]


@pytest.mark.parametrize(("offset", "width"), [(4096, 1), (4095, 2), (4094, 4), (-1, 1), (9999, 4)])
def test_beyond_the_end_reads_are_all_ones_and_writes_are_dropped(
    device: RawConfig, config: EmulatedConfig, offset: int, width: int
) -> None:
    assert config.read(offset, width) == (1 << 8 * width) - 1
    config.write(offset, width, 0)
    assert device.calls == []


@pytest.mark.parametrize("width", [0, 3, 8, -1])
def test_no_access_has_another_width(config: EmulatedConfig, width: int) -> None:
    with pytest.raises(ValueError, match=f"has {width} bytes"):
        config.read(FREE, width)
    with pytest.raises(ValueError, match=f"has {width} bytes"):
        config.write(FREE, width, 0)


@pytest.mark.parametrize(("width", "value"), [(1, 0x100), (2, 0x10000), (4, 1 << 32), (1, -1)])
def test_a_write_of_a_value_that_does_not_fit_is_refused(
    device: RawConfig, config: EmulatedConfig, width: int, value: int
) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        config.write(FREE, width, value)
    assert device.calls == []


# A device that fails


def test_a_failing_read_is_all_ones_and_is_logged_once(
    device: RawConfig, config: EmulatedConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config.emulate(FREE_DWORD, 0, 0xFF)
    device.error = RemoteError("no", errno=errno.EIO)
    with caplog.at_level(logging.INFO):
        assert [config.read(offset, 4) for offset in (FREE, 0, FREE)] == [0xFFFF_FFFF] * 3
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "guest: the guest's read failed: read config+0x80" in caplog.text


def test_a_short_read_is_all_ones(device: RawConfig, config: EmulatedConfig) -> None:
    device.most = 1
    assert config.read(FREE, 2) == 0xFFFF


def test_each_kind_of_failure_is_logged(
    device: RawConfig, config: EmulatedConfig, caplog: pytest.LogCaptureFixture
) -> None:
    device.error = RemoteError("no", errno=errno.EIO)
    config.read(FREE, 4)
    config.write(FREE, 4, 0)
    device.error = ConnectionLost("gone")
    config.read(FREE, 4)
    config.write(FREE, 4, 0)
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 4


def test_a_failing_write_changes_the_local_copy_all_the_same(
    device: RawConfig, config: EmulatedConfig
) -> None:
    told: list[bytes] = []
    config.watch(FREE, 1, lambda _, after: told.append(after))
    device.error = ConnectionLost("gone")
    config.write(FREE, 1, 0x5A)
    assert (config.local[FREE], told) == (0x5A, [b"\x5a"])


# Writes


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_write_is_one_access_of_that_width_to_the_device_never_posted(
    device: RawConfig, config: EmulatedConfig, width: int
) -> None:
    device.region.posted = True
    config.write(FREE, width, 0x41)
    assert device.calls == [("write", FREE, width)]
    assert device.posted == [False]


def test_a_write_reaches_the_device_whole_even_where_all_bits_are_emulated(
    device: RawConfig, config: EmulatedConfig
) -> None:
    config.emulate(FREE_DWORD, 0, 0xFFFF_FFFF)
    config.write(FREE, 4, 0x11223344)
    assert device.load(FREE_DWORD) == 0x11223344
    assert config.get(FREE_DWORD) == 0


class Witness(RawConfig):
    """Notes what the local copy holds while a write reaches the device."""

    def __init__(self) -> None:
        super().__init__()
        self.config = EmulatedConfig(self.region, 256, "guest")
        self.local: list[int] = []

    def region_write(self, index: int, offset: int, data: Buffer, *, posted: bool = False) -> int:
        self.local.append(self.config.local[offset])
        return super().region_write(index, offset, data, posted=posted)


def test_the_device_has_a_write_before_the_local_copy_and_that_before_the_watchers() -> None:
    device = Witness()
    seen: list[tuple[int, int]] = []
    config = device.config
    config.watch(FREE, 4, lambda *_: seen.append((device.memory[FREE], config.local[FREE])))
    config.write(FREE, 1, 0x42)
    assert (device.local, seen) == ([0], [(0x42, 0x42)])


def test_a_write_changes_what_is_writable_and_clears_what_a_one_clears(
    config: EmulatedConfig,
) -> None:
    config.local[FREE : FREE + 2] = b"\xff\xff"
    config.writable[FREE : FREE + 2] = b"\x0f\x00"
    config.write_1_clear[FREE : FREE + 2] = b"\x30\xc0"
    config.write(FREE, 2, 0x8110)
    assert config.local[FREE : FREE + 2] == b"\xe0\x7f"


def test_the_header_has_the_masks_of_every_function(config: EmulatedConfig) -> None:
    command = (
        Command.IO | Command.MEMORY | Command.MASTER | Command.SERR | Command.INTX_DISABLE
    ).to_bytes(2, "little")
    writable = {4: command[0], 5: command[1], 0x0C: 0xFF, 0x3C: 0xFF}
    assert {at: mask for at, mask in enumerate(config.writable[:64]) if mask} == writable
    assert set(config.writable[64:]) == {0xFF}
    # Data parity, target and master aborts, system error, parity: bits 8, 11 to 15.
    clear = {at: mask for at, mask in enumerate(config.write_1_clear) if mask}
    assert clear == {7: 0xF9}


def test_state_of_another_device_is_told_by_ids_class_header_type_and_list(
    config: EmulatedConfig,
) -> None:
    compared = {at: mask for at, mask in enumerate(config.compared) if mask}
    assert compared == dict.fromkeys([0, 1, 2, 3, 8, 9, 10, 11, 14, 0x34], 0xFF) | {6: 0x10}


# Set-up


def test_emulating_a_register_takes_it_from_the_guest(config: EmulatedConfig) -> None:
    config.local[FREE : FREE + 2] = b"\x12\x34"
    config.emulate(Register(2, 2), 0xABCD, 0x0FF0, FREE - 2)
    assert config.local[FREE : FREE + 2] == b"\xc2\x3b"
    assert config.emulated[FREE : FREE + 2] == b"\xf0\x0f"
    assert config.writable[FREE : FREE + 2] == b"\x0f\xf0"


def test_marking_bytes_emulated_leaves_them_writable(config: EmulatedConfig) -> None:
    config.mark_emulated(FREE, 3)
    assert config.emulated[FREE - 1 : FREE + 4] == b"\x00\xff\xff\xff\x00"
    config.write(FREE, 4, 0x44332211)
    assert config.read(FREE, 2) == 0x2211


def test_bits_can_be_left_to_the_guest_again(config: EmulatedConfig) -> None:
    config.emulate(FREE_DWORD, 0, 0xFFFF_FFFF)
    config.allow(FREE_DWORD, 0x0000_FF00)
    config.write(FREE, 4, 0xFFFF_FFFF)
    assert config.read(FREE, 4) == 0x0000_FF00


def test_the_local_copy_is_read_and_changed_past_the_masks(
    device: RawConfig, config: EmulatedConfig
) -> None:
    config.set(Register(4, 2), 0xBEEF, FREE)
    assert config.get(Register(4, 2), FREE) == 0xBEEF
    assert device.calls == []


def test_the_device_is_read_and_written_past_the_local_copy(
    device: RawConfig, config: EmulatedConfig
) -> None:
    config.device_set(Register(4, 2), 0xBEEF, FREE)
    assert config.device_get(Register(4, 2), FREE) == 0xBEEF
    assert config.get(Register(4, 2), FREE) == 0
    device.error = RemoteError("no", errno=errno.EIO)
    with pytest.raises(RegionError):
        config.device_get(Register(4, 2), FREE)
    with pytest.raises(RegionError):
        config.device_set(Register(4, 2), 1, FREE)


@pytest.mark.parametrize("offset", [-4, 4093, 4096])
def test_a_register_that_is_not_there_is_refused(config: EmulatedConfig, offset: int) -> None:
    register = Register(offset, 4)
    with pytest.raises(ValueError, match="has no 4 bytes"):
        config.emulate(register, 0, 0)
    with pytest.raises(ValueError, match="has no 4 bytes"):
        config.mark_emulated(offset, 4)
    with pytest.raises(ValueError, match="has no 4 bytes"):
        config.get(register)
    with pytest.raises(ValueError, match="has no 4 bytes"):
        config.set(register, 0)
    with pytest.raises(ValueError, match="has no 4 bytes"):
        config.allow(register, 0)
    with pytest.raises(ValueError, match="has no 4 bytes"):
        config.watch(offset, 4, lambda *_: None)


@pytest.mark.parametrize("value", [-1, 1 << 16])
def test_a_local_register_takes_what_fits(config: EmulatedConfig, value: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        config.set(pci.COMMAND, value)


# Watchers


@pytest.mark.parametrize(
    ("offset", "width", "told"),
    [(-1, 1, False), (-1, 2, True), (-4, 4, False), (0, 1, True), (3, 1, True), (4, 4, False)],
)
def test_a_watcher_is_told_of_the_writes_that_overlap(
    config: EmulatedConfig, offset: int, width: int, told: bool
) -> None:
    calls: list[bytes] = []
    config.watch(FREE, 4, lambda before, _: calls.append(before))
    config.write(FREE + offset, width, 0)
    assert len(calls) == told


def test_a_watcher_is_told_of_its_bytes_before_and_after(config: EmulatedConfig) -> None:
    config.local[FREE : FREE + 4] = b"\x01\x02\x03\x04"
    calls: list[tuple[bytes, bytes]] = []
    config.watch(FREE + 1, 2, lambda before, after: calls.append((before, after)))
    config.write(FREE, 4, 0x44332211)
    config.write(FREE + 2, 1, 0x33)
    assert calls == [(b"\x02\x03", b"\x22\x33"), (b"\x22\x33", b"\x22\x33")]


def test_watchers_are_told_in_the_order_in_which_they_came(config: EmulatedConfig) -> None:
    calls: list[str] = []
    for name in "cab":
        config.watch(FREE, 1, lambda *_, name=name: calls.append(name))
    config.write(FREE, 1, 0)
    assert calls == ["c", "a", "b"]


def test_a_watcher_that_is_taken_away_is_told_no_more_even_in_the_middle(
    config: EmulatedConfig,
) -> None:
    calls: list[str] = []

    def last(*_: bytes) -> None:
        calls.append("last")

    def first(*_: bytes) -> None:
        calls.append("first")
        config.unwatch(last)
        config.unwatch(last)

    config.watch(FREE, 1, first)
    config.watch(FREE, 1, last)
    config.write(FREE, 1, 0)
    assert calls == ["first"]


def test_a_watcher_whose_device_fails_it_does_not_keep_the_others_from_being_told(
    config: EmulatedConfig, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def failing(*_: bytes) -> None:
        raise ConnectionLost("the server is gone")

    config.watch(FREE, 1, failing)
    config.watch(FREE, 1, lambda *_: calls.append("second"))
    config.write(FREE, 1, 0)
    config.write(FREE, 1, 0)
    assert calls == ["second"] * 2
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "guest: what follows the guest's write failed: the server is gone"
    ]


def test_a_watcher_may_write_itself(config: EmulatedConfig) -> None:
    calls: list[bytes] = []

    def fix(_: bytes, after: bytes) -> None:
        calls.append(after)
        if after == b"\x01":
            config.write(FREE, 1, 2)

    config.watch(FREE, 1, fix)
    config.write(FREE, 1, 1)
    assert calls == [b"\x01", b"\x02"]


# Reset


def test_a_reset_clears_what_a_guest_can_set_in_the_header(config: EmulatedConfig) -> None:
    config.set(pci.COMMAND, 0xFFFF)
    config.set(pci.STATUS, Status.CAP_LIST | Status.DETECTED_PARITY)
    config.set(pci.INTERRUPT_LINE, 11)
    config.set(pci.CACHE_LINE_SIZE, 16)
    config.reset()
    cleared = Command.IO | Command.MEMORY | Command.MASTER | Command.SERR | Command.INTX_DISABLE
    assert config.get(pci.COMMAND) == 0xFFFF - cleared
    assert config.get(pci.STATUS) == Status.CAP_LIST
    assert (config.get(pci.INTERRUPT_LINE), config.get(pci.CACHE_LINE_SIZE)) == (0, 0)
