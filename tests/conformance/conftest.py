# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of the tests of DMA maps that follow a guest's memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from pyvfio.emulator.dma_listener import DMAListener
from pyvfio.emulator.memory import AddressSpace, MemoryRegion, RAMRegion, Topology
from pyvfio.pci.device import PCIDevice
from tests.conformance.guest_memory import PAGE, BadRAM, Guest
from tests.conformance.test_dma_batch import Unmappable


@pytest.fixture
def topology() -> Iterator[Topology]:
    with Topology() as found:
        yield found


@pytest.fixture
def root() -> MemoryRegion:
    return MemoryRegion("system", 1 << 64)


@pytest.fixture
def space(topology: Topology, root: MemoryRegion) -> AddressSpace:
    return topology.space("memory", root)


@pytest.fixture
def ram() -> Iterator[RAMRegion]:
    """Eight pages, each filled with its number."""
    with RAMRegion("ram", 8 * PAGE) as found:
        found.array[:] = np.repeat(np.arange(8, dtype=np.uint8), PAGE)
        yield found


@pytest.fixture
def listener(edu: PCIDevice, space: AddressSpace) -> Iterator[DMAListener]:
    """Follows the space from the start."""
    found = DMAListener(edu.dma, edu.uri)
    found.attach(space)
    yield found
    found.detach()


@pytest.fixture
def guest(topology: Topology, space: AddressSpace, root: MemoryRegion) -> Guest:
    """All of it."""
    return Guest(topology, space, root)


@pytest.fixture
def bad() -> Iterator[BadRAM]:
    memory = Unmappable()
    with BadRAM(memory) as found:
        yield found
    memory.close()
