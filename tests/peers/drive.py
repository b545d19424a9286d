# SPDX-License-Identifier: BSD-3-Clause
"""The package's models in a machine of QEMU's: where their BARs are, and how they are driven."""

from __future__ import annotations

import errno

from pyvfio.models import edu, testdev
from pyvfio.uapi import pci
from tests.peers.function import Function
from tests.peers.machine import Machine
from tests.peers.qmp import Qtest
from tests.support import eventually

SLOT = 4
BAR = 0xE000_0000
TABLE, PORTS = BAR + 0x10_0000, 0xC000
MEMORY = 0xD000_0000
"""Where the tests put BARs: register, MSI-X table, ports and memory."""
DATA, RESULT, MAILBOX = 0x100_0000, 0x200_0000, 0x300_0000
"""Guest memory: what a DMA takes, what it brings, where interrupts are written."""
MESSAGE = 0x4321


def driven_edu(machine: Machine, slot: int = SLOT, bar: int = BAR) -> Function:
    """An edu device whose registers are at ``bar``."""
    function = Function(machine.bus, slot)
    function.place(0, bar)
    function.enable()
    return function


def driven_testdev(machine: Machine, slot: int = SLOT) -> Function:
    """A test device whose BARs have addresses."""
    function = Function(machine.bus, slot)
    for bar, address in ((0, BAR), (1, TABLE), (2, MEMORY), (4, PORTS)):
        function.place(bar, address)
    function.enable()
    return function


def run_edu_dma(bus: Qtest, source: int, destination: int, count: int, command: int) -> None:
    """One DMA of an edu device, to its end."""
    for register, value in (
        (edu.DMA_SOURCE, source),
        (edu.DMA_DESTINATION, destination),
        (edu.DMA_COUNT, count),
        (edu.DMA_COMMAND, command | edu.DMA_RUN),
    ):
        bus.store(BAR + register, 8, value)
    assert eventually(lambda: not bus.load(BAR + edu.DMA_COMMAND, 8) & edu.DMA_RUN)


def run_testdev_dma(bus: Qtest, address: int, offset: int, count: int, direction: int) -> int:
    """One DMA of a test device; returns its errno."""
    bus.store(BAR + testdev.DMA_ADDRESS, 8, address)
    bus.store(BAR + testdev.DMA_OFFSET, 8, offset)
    bus.store(BAR + testdev.DMA_COUNT, 4, count)
    bus.store(BAR + testdev.DMA_RUN, 4, direction)
    assert eventually(lambda: bus.load(BAR + testdev.DMA_RUN, 4) != errno.EINPROGRESS)
    return bus.load(BAR + testdev.DMA_RUN, 4)


def arm(bus: Qtest, vector: int) -> None:
    """Unmask an MSI-X vector; its message goes to a mailbox of its own."""
    entry = TABLE + pci.MSIX_ENTRY_SIZE * vector
    bus.store(entry, 8, MAILBOX + 4 * vector)
    bus.store(entry + 8, 4, MESSAGE + vector)
    bus.store(entry + pci.MSIX_ENTRY_CONTROL, 4, 0)


def arrived(bus: Qtest, vector: int) -> bool:
    """Whether the message of an armed vector comes."""
    return eventually(lambda: bus.load(MAILBOX + 4 * vector, 4) == MESSAGE + vector)
