# SPDX-License-Identifier: BSD-3-Clause
"""Configuration space: registers, capabilities, writes that must and must not stick."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvfio import program
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID, Command, ExtendedCapabilityID


def test_header_names_the_edu_device(edu: PCIDevice) -> None:
    config = edu.config
    assert (config.vendor_id, config.device_id) == (0x1234, 0x11E8)
    assert (config.class_code, config.revision_id) == (0x00FF00, 0x10)
    assert config.interrupt_pin == 1


def test_edu_has_msi_and_nothing_extended(edu: PCIDevice) -> None:
    assert [(c.id, c.extended) for c in edu.config.capabilities()] == [(CapabilityID.MSI, False)]


def test_capabilities_of_both_lists_in_order(testdev: PCIDevice) -> None:
    assert [c.name for c in testdev.config.capabilities()] == [
        "Power Management",
        "Vendor Specific",
        "PCI Express",
        "MSI-X",
        "Advanced Error Reporting",
        "Device Serial Number",
        "Vendor Specific Information",
    ]


def test_find_tells_conventional_from_extended_ids(testdev: PCIDevice) -> None:
    conventional = testdev.config.find(CapabilityID.PM)
    extended = testdev.config.find(ExtendedCapabilityID.ERR)
    assert conventional is not None
    assert extended is not None
    assert conventional.id == extended.id == 1
    assert conventional.offset < 0x100 <= extended.offset


def test_serial_number_is_read_from_the_extended_space(testdev: PCIDevice) -> None:
    capability = testdev.config.find(ExtendedCapabilityID.DSN)
    assert capability is not None
    assert testdev.config.read32(capability.offset + 4) == 0x89ABCDEF
    assert testdev.config.read32(capability.offset + 8) == 0x01234567


def test_read_only_registers_ignore_writes(edu: PCIDevice) -> None:
    edu.config.write32(0x00, 0)
    assert edu.config.vendor_id == 0x1234


def test_command_register_keeps_what_is_written(edu: PCIDevice) -> None:
    edu.bus_master = True
    assert edu.config.command & Command.MASTER
    edu.bus_master = False
    assert not edu.bus_master


def test_memory_decoding_is_on_after_open(edu: PCIDevice) -> None:
    assert edu.config.command & Command.MEMORY


def test_bytes_words_and_dwords_of_one_register_agree(edu: PCIDevice) -> None:
    config = edu.config
    assert config.read8(0) | config.read8(1) << 8 == config.read16(0)
    assert config.read16(0) | config.read16(2) << 16 == config.read32(0)
    assert config.read_bytes(0, 4) == config.read32(0).to_bytes(4, "little")


@pytest.mark.parametrize("way", ["register", "byte", "bytes", "many", "program"])
def test_each_way_to_write_the_command_is_known_when_the_device_has_lost_it(
    edu: PCIDevice, way: str
) -> None:
    config, value = edu.config, int(Command.MEMORY | Command.MASTER)
    config.command = Command.MEMORY
    assert config.known_command == Command.MEMORY
    ways: dict[str, Callable[[], None]] = {
        "register": lambda: config.write16(pci.COMMAND.offset, value),
        "byte": lambda: config.write8(pci.COMMAND.offset, value),
        "bytes": lambda: config.write_bytes(pci.COMMAND.offset, value.to_bytes(2, "little")),
        "many": lambda: config.write_many([pci.COMMAND.offset], [value], 2),
        "program": lambda: config.run(program.program(program.write(4, value, 2))),
    }
    ways[way]()
    assert config.known_command == Command.MEMORY | Command.MASTER
