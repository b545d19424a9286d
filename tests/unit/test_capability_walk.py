# SPDX-License-Identifier: BSD-3-Clause
"""Walking the capability lists of devices that make no sense: it ends, and says why."""

from __future__ import annotations

import pytest

from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID, Register, Status
from tests.unit.raw_config import RawConfig

HEAD = Register(0, 4)


def offsets(device: RawConfig) -> list[int]:
    """Where the walk finds capabilities."""
    return [capability.offset for capability in device.region.capabilities()]


@pytest.mark.parametrize(
    ("capabilities", "found", "reason"),
    [
        ([(0x40, 9), (0x50, 9)], [0x40, 0x50], ""),
        ([(0x50, 9), (0x40, 9), (0x60, 9)], [0x50, 0x40, 0x60], ""),
        ([(0x40, 9), (0x3C, 9)], [0x40], "leads to 0x3c"),
        ([(0x40, 0xFF)], [0x40], ""),
        ([(0x40, 0)], [0x40], ""),
    ],
)
def test_a_list_ends_where_it_makes_no_sense(
    capabilities: list[tuple[int, int]],
    found: list[int],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = RawConfig(256)
    device.put_list(*capabilities)
    assert offsets(device) == found
    assert reason in caplog.text
    assert bool(caplog.records) == bool(reason)


def test_a_loop_ends_where_it_closes(caplog: pytest.LogCaptureFixture) -> None:
    device = RawConfig(256)
    device.put_list((0x40, 9), (0x50, 9), (0x60, 9))
    device.memory[0x61] = 0x50
    assert offsets(device) == [0x40, 0x50, 0x60]
    assert "leads to 0x50" in caplog.text


def test_there_is_room_for_48_capabilities() -> None:
    device = RawConfig(256)
    device.put_list(*((offset, 9) for offset in range(0x40, 0x100, 4)))
    device.memory[0xFD] = 0x40
    assert len(offsets(device)) == 48


def test_the_two_low_bits_of_a_pointer_are_reserved() -> None:
    device = RawConfig(256)
    device.put_list((0x40, 9), (0x50, 9))
    device.memory[0x34], device.memory[0x41] = 0x43, 0x51
    assert offsets(device) == [0x40, 0x50]


def test_the_list_of_a_space_of_ones_is_its_last_dword() -> None:
    device = RawConfig()
    device.memory[:] = b"\xff" * len(device.memory)
    assert offsets(device) == [0xFC]


def test_a_device_without_the_status_bit_has_no_list() -> None:
    device = RawConfig(256)
    device.put_list((0x40, CapabilityID.PM))
    device.store(pci.STATUS, 0xFFFF & ~Status.CAP_LIST)
    assert offsets(device) == []


@pytest.mark.parametrize(
    ("next_offset", "found"),
    [(0x100, [0x100]), (0x0FC, [0x100]), (0xFFC, [0x100, 0xFFC]), (0x203, [0x100, 0x200])],
)
def test_an_extended_list_ends_where_it_makes_no_sense(next_offset: int, found: list[int]) -> None:
    device = RawConfig()
    device.store(HEAD, next_offset << 20 | 0x1_0003, 0x100)
    for offset in found[1:]:
        device.store(HEAD, 0x1_000B, offset)
    assert offsets(device) == found


@pytest.mark.parametrize("head", [0, 0xFFFF_FFFF])
def test_an_extended_list_ends_where_nothing_is(head: int) -> None:
    device = RawConfig()
    device.store(HEAD, 0x200 << 20 | 0x1_0003, 0x100)
    device.store(HEAD, head, 0x200)
    assert offsets(device) == [0x100]
