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
def guest() -> Iterator[Guest]:
    """A guest without memory."""
    found = Guest()
    yield found
    found.topology.close()


@pytest.fixture
def topology(guest: Guest) -> Topology:
    """Its transactions."""
    return guest.topology


@pytest.fixture
def root(guest: Guest) -> MemoryRegion:
    """Where its memory goes."""
    return guest.root


@pytest.fixture
def space(guest: Guest) -> AddressSpace:
    """What its devices see."""
    return guest.space


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
def bad() -> Iterator[BadRAM]:
    memory = Unmappable()
    with BadRAM(memory) as found:
        yield found
    memory.close()
