# SPDX-License-Identifier: BSD-3-Clause
"""Which BARs a device has, and what each is."""

from __future__ import annotations

import errno

import pytest

from pyvfio.errors import RegionError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.pci import BARType, Command
from tests.conformance.devices import MEMORY, MEMORY_SIZE, PORTS, REGISTERS, TABLE


def test_the_edu_device_has_one_bar(edu: PCIDevice) -> None:
    assert list(edu.bars) == [0]


def test_the_upper_half_of_a_64_bit_bar_is_no_bar(testdev: PCIDevice) -> None:
    assert list(testdev.bars) == [REGISTERS, TABLE, MEMORY, PORTS]


@pytest.mark.parametrize(
    ("number", "kind", "size", "prefetchable"),
    [
        (REGISTERS, BARType.MEM32, 4096, False),
        (TABLE, BARType.MEM32, 4096, False),
        (MEMORY, BARType.MEM64, MEMORY_SIZE, True),
        (PORTS, BARType.IO, 32, False),
    ],
)
def test_type_and_size_are_those_of_the_device(
    testdev: PCIDevice, number: int, kind: BARType, size: int, prefetchable: bool
) -> None:
    bar = testdev.bars[number]
    assert (bar.type, bar.size, bar.prefetchable) == (kind, size, prefetchable)


def test_memory_can_be_mapped(testdev: PCIDevice) -> None:
    assert testdev.bars[MEMORY].mapped


def test_ports_cannot_be_mapped(testdev: PCIDevice) -> None:
    assert not testdev.bars[PORTS].mapped


def test_a_missing_bar_names_those_that_exist(testdev: PCIDevice) -> None:
    with pytest.raises(RegionError, match="bar0, bar1, bar2, bar4") as caught:
        testdev.bars[3]
    assert caught.value.errno == errno.ENXIO


@pytest.mark.parametrize("number", [-1, 6, 7, 100])
def test_a_number_that_no_bar_can_have_is_missing(testdev: PCIDevice, number: int) -> None:
    with pytest.raises(RegionError, match=f"bar{number}"):
        testdev.bars[number]


def test_bars_are_a_mapping(testdev: PCIDevice) -> None:
    assert {number: bar.size for number, bar in testdev.bars.items()} == {
        REGISTERS: 4096,
        TABLE: 4096,
        MEMORY: MEMORY_SIZE,
        PORTS: 32,
    }


def test_length_counts_what_is_implemented(testdev: PCIDevice) -> None:
    assert len(testdev.bars) == 4


def test_membership_tells_what_is_implemented(testdev: PCIDevice) -> None:
    assert [number for number in range(-1, 8) if number in testdev.bars] == [0, 1, 2, 4]


def test_get_gives_the_bar(testdev: PCIDevice) -> None:
    assert testdev.bars.get(PORTS) is testdev.bars[PORTS]


def test_get_gives_the_default_where_there_is_no_bar(testdev: PCIDevice) -> None:
    assert (testdev.bars.get(3), testdev.bars.get(3, "none")) == (None, "none")


def test_a_bar_stays_the_same_object(edu: PCIDevice) -> None:
    assert edu.bars[0] is edu.bars[0]


def test_a_bar_says_what_it_is(testdev: PCIDevice) -> None:
    assert str(testdev.bars[MEMORY]) == "BAR2: 64-bit memory, 67108864 bytes, prefetchable"


def test_there_is_no_expansion_rom(testdev: PCIDevice) -> None:
    assert testdev.rom is None


def test_memory_and_port_decoding_are_on_after_open(testdev: PCIDevice) -> None:
    both = Command.MEMORY | Command.IO
    assert testdev.config.command & both == both


def test_ports_are_read_and_written_with_each_width(testdev: PCIDevice) -> None:
    ports = testdev.bars[PORTS]
    ports.write32(0, 0x44332211)
    ports.write16(4, 0x6655)
    ports.write8(6, 0x77)
    assert (ports.read8(0), ports.read16(2), ports.read32(4) & 0xFFFFFF) == (0x11, 0x4433, 0x776655)
