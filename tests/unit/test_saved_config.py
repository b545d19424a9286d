# SPDX-License-Identifier: BSD-3-Clause
"""Registers of configuration space that go along with a device."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from pyvfio.errors import MigrationError, StateError
from pyvfio.migration_file import DeviceIDs
from pyvfio.pci.saved_config import SavedConfig, ids_of
from pyvfio.uapi import pci
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.pci import Command, Register
from tests.unit.raw_config import RawConfig

BAR_5 = Register(pci.BASE_ADDRESS_0.offset + 20, 4)
SET = {
    pci.COMMAND: Command.MEMORY | Command.MASTER | Command.SERR,
    pci.BASE_ADDRESS_0: 0xFEB0_0000,
    BAR_5: 0xC001,
    pci.ROM_ADDRESS: 0xFEC0_0001,
    pci.CACHE_LINE_SIZE: 16,
    pci.LATENCY_TIMER: 64,
    pci.INTERRUPT_LINE: 11,
}
"""What software has written."""


class Write(NamedTuple):
    """A write to configuration space."""

    offset: int
    data: bytes


class Listed(RawConfig):
    """Keeps a list of what is written.

    :ivar stuck: bits of the command register that stay as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[Write] = []
        self.stuck = Command(0)

    def region_write(self, index: int, offset: int, data: Buffer, *, posted: bool = False) -> int:
        self.writes.append(Write(offset, bytes(data)))
        before = self.load(pci.COMMAND)
        done = super().region_write(index, offset, data, posted=posted)
        now = self.load(pci.COMMAND)
        self.store(pci.COMMAND, (before & self.stuck) | (now & ~self.stuck))
        return done


def configured() -> Listed:
    device = Listed()
    for register, value in SET.items():
        device.store(register, value)
    return device


def test_what_software_has_set_is_put_back() -> None:
    saved = SavedConfig.of(configured().region)
    device = Listed()
    SavedConfig.unpack(saved.pack(), "a file").put(device.region, "raw:y")
    assert {register: device.load(register) for register in SET} == SET


def test_the_command_register_is_put_back_last() -> None:
    device = Listed()
    SavedConfig.of(configured().region).put(device.region, "raw:y")
    assert device.writes[-1].offset == pci.COMMAND.offset


def test_what_is_there_already_is_not_written() -> None:
    device = configured()
    SavedConfig.of(device.region).put(device.region, "raw:y")
    assert device.writes == []


@pytest.mark.parametrize("bit", [Command.IO, Command.MEMORY, Command.MASTER])
def test_a_device_that_does_not_decode_or_master_as_before_is_no_success(bit: Command) -> None:
    here, there = Listed(), Listed()
    here.store(pci.COMMAND, bit)
    there.stuck = bit
    with pytest.raises(MigrationError, match=f"stays 0x0000, not {int(bit):#06x}"):
        SavedConfig.of(here.region).put(there.region, "raw:y")


def test_bits_that_only_some_devices_have_are_no_failure() -> None:
    here, there = Listed(), Listed()
    here.store(pci.COMMAND, Command.SERR)
    there.stuck = Command.SERR
    SavedConfig.of(here.region).put(there.region, "raw:y")
    assert there.load(pci.COMMAND) == 0


@pytest.mark.parametrize("size", [0, 32, 34])
def test_registers_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(StateError, match=f"of {size} bytes instead of 33"):
        SavedConfig.unpack(bytes(size), "a file")


def test_a_device_is_told_by_its_ids() -> None:
    device = Listed()
    device.store(pci.SUBSYSTEM_VENDOR_ID, 0x1AF4)
    device.store(pci.SUBSYSTEM_ID, 0x1100)
    device.store(pci.BASE_CLASS, 0x02)
    assert ids_of(device.region) == DeviceIDs(0x1234, 0x5678, 0x1AF4, 0x1100, 0x020000, 0x9A)
