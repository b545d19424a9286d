# SPDX-License-Identifier: BSD-3-Clause
"""Guest memory for the tests of DMA maps that follow it, and what a device finds there."""

from __future__ import annotations

from pyvfio.emulator.memory import MemoryRegion, RAMRegion, Topology
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DMAMapFlags
from pyvfio.vectors import DMASource
from tests.conformance.devices import SOON, Edu
from tests.conformance.test_dma_batch import Unmappable
from tests.support import eventually

PAGE = 4096
BASE = 0x10_0000
READ, WRITE = DMAMapFlags.READ, DMAMapFlags.WRITE
BUFFER = 0x40000
"""Where the edu device has its own memory."""


class Guest:
    """A memory map with one address space, empty."""

    def __init__(self) -> None:
        self.topology = Topology()
        self.root = MemoryRegion("system", 1 << 64)
        self.space = self.topology.space("memory", self.root)


class Registers:
    """Registers that read as nothing."""

    def read(self, offset: int, width: int) -> int:
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """Dropped."""


class BadRAM(RAMRegion):
    """RAM that no backend maps, one page."""

    def __init__(self, memory: Unmappable) -> None:
        super().__init__("bad", PAGE)
        self._bad = memory

    @property
    def dma_source(self) -> DMASource:  # type: ignore[override]
        return self._bad


def maps(edu: PCIDevice) -> list[tuple[int, int, int]]:
    """What is mapped, as address, size and offset in its memory."""
    return [(entry.iova, entry.size, entry.offset) for entry in edu.dma.mappings]


def read_by_dma(edu: PCIDevice, address: int) -> int:
    """The byte that the device finds at an address."""
    edu.bus_master = True
    bar = edu.bars[0]
    with edu.dma.alloc(PAGE, address_bits=28) as target:
        for source, end, command in ((address, BUFFER, 1), (BUFFER, target.iova, 3)):
            bar.write64(Edu.DMA_SOURCE, source)
            bar.write64(Edu.DMA_DESTINATION, end)
            bar.write64(Edu.DMA_COUNT, 1)
            bar.write64(Edu.DMA_COMMAND, command)
            assert eventually(lambda: not bar.read64(Edu.DMA_COMMAND) & 1, SOON)
        return int(target.array[0])
