# SPDX-License-Identifier: BSD-3-Clause
"""The two devices of this suite: their registers, and what several tests do with them."""

from __future__ import annotations

import errno
import select
from enum import IntEnum

from pyvfio.irq import IRQ
from pyvfio.pci.device import PCIDevice
from tests.support import eventually

SOON = 2.0
"""Seconds that something which must happen may take."""
QUIET = 0.03
"""Seconds that an interrupt which must not fire is given to do so."""


class Edu(IntEnum):
    """Registers in BAR 0 of the edu device."""

    ID = 0x00
    LIVENESS = 0x04
    FACTORIAL = 0x08
    STATUS = 0x20
    IRQ_STATUS = 0x24
    IRQ_RAISE = 0x60
    IRQ_ACK = 0x64
    DMA_SOURCE = 0x80
    DMA_DESTINATION = 0x88
    DMA_COUNT = 0x90
    DMA_COMMAND = 0x98


class Dev(IntEnum):
    """Registers in BAR 0 of the test device."""

    ID = 0x000
    SCRATCH = 0x010
    ACCESSES = 0x020
    WIDTH = 0x024
    FIRE = 0x028
    PIN = 0x02C
    DMA_ADDRESS = 0x030
    DMA_OFFSET = 0x038
    DMA_COUNT = 0x040
    DMA_RUN = 0x044
    DOORBELL = 0x050
    MATCHED_DOORBELL = 0x054
    KICKS = 0x058
    MATCHED_KICKS = 0x05C
    KICKED = 0x060


REGISTERS, TABLE, MEMORY, PORTS = 0, 1, 2, 4
"""BARs of the test device."""
MEMORY_SIZE = 64 << 20
MIB = 1 << 20
VECTORS = 32

TO_DEVICE, TO_CLIENT = 1, 2


def run_dma(testdev: PCIDevice, direction: int, iova: int, offset: int, count: int) -> int:
    """Have the test device copy between ``iova`` and BAR 2; returns its errno, 0 for done."""
    registers = testdev.bars[REGISTERS]
    registers.write64(Dev.DMA_ADDRESS, iova)
    registers.write64(Dev.DMA_OFFSET, offset)
    registers.write32(Dev.DMA_COUNT, count)
    registers.write32(Dev.DMA_RUN, direction)
    assert eventually(lambda: registers.read32(Dev.DMA_RUN) != errno.EINPROGRESS)
    return registers.read32(Dev.DMA_RUN)


def fire(testdev: PCIDevice, vector: int) -> None:
    """Have the test device send an MSI-X message."""
    testdev.bars[REGISTERS].write32(Dev.FIRE, vector)


def set_pin(testdev: PCIDevice, level: bool) -> None:
    """Have the test device assert or lower its interrupt pin."""
    testdev.bars[REGISTERS].write32(Dev.PIN, level)


def is_quiet(irq: IRQ) -> bool:
    """Whether an interrupt does not fire, for a moment."""
    readable, _, _ = select.select([irq], [], [], QUIET)
    return not readable
