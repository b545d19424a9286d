# SPDX-License-Identifier: BSD-3-Clause
"""Registers that are kicked through an eventfd instead of written by a message."""

from __future__ import annotations

from pyvfio.pci.device import PCIDevice
from tests.conformance.devices import MEMORY, REGISTERS, Dev
from tests.support import eventually


def kicks(testdev: PCIDevice) -> tuple[int, int]:
    """Kicks and writes that the two doorbells have seen."""
    registers = testdev.bars[REGISTERS]
    return registers.read32(Dev.KICKS), registers.read32(Dev.MATCHED_KICKS)


def test_the_test_device_lists_its_doorbells(testdev: PCIDevice) -> None:
    found = testdev.bars[REGISTERS].io_eventfds
    assert [(entry.offset, entry.size, entry.datamatch) for entry in found] == [
        (Dev.DOORBELL, 0, None),
        (Dev.MATCHED_DOORBELL, 4, 0xC0FFEE),
    ]


def test_a_bar_without_doorbells_lists_none(testdev: PCIDevice) -> None:
    assert testdev.bars[MEMORY].io_eventfds == ()


def test_a_device_without_doorbells_lists_none(edu: PCIDevice) -> None:
    assert edu.bars[0].io_eventfds == ()


def test_a_kick_is_the_write_that_it_stands_for(testdev: PCIDevice) -> None:
    plain, matched = testdev.bars[REGISTERS].io_eventfds
    plain.kick()
    assert eventually(lambda: kicks(testdev) == (1, 0))
    assert testdev.bars[REGISTERS].read64(Dev.KICKED) == 0
    matched.kick()
    assert eventually(lambda: kicks(testdev) == (1, 1))
    assert testdev.bars[REGISTERS].read64(Dev.KICKED) == 0xC0FFEE


def test_every_kick_arrives(testdev: PCIDevice) -> None:
    plain, matched = testdev.bars[REGISTERS].io_eventfds
    for _ in range(100):
        plain.kick()
        matched.kick()
    assert eventually(lambda: kicks(testdev) == (100, 100))
