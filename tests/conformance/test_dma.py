# SPDX-License-Identifier: BSD-3-Clause
"""DMA: what the device moves is what the program sees, and it reaches nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

import pyvfio
from pyvfio.drivers.edu import TRANSFER, EduDriver
from pyvfio.memory import DMABuffer, MemoryKind, SharedMemory
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DMAMapFlags
from tests.conformance.devices import MEMORY, MIB, TO_CLIENT, TO_DEVICE, Edu, run_dma
from tests.support import eventually

PAGE = 4096
HALF = MIB // 2
BASE = 0x1_0000_0000
"""An address for maps whose place matters; every container can map it."""


def fill(buffer: DMABuffer, data: bytes) -> None:
    """Write the start of a buffer."""
    buffer.array[: len(data)] = np.frombuffer(data, np.uint8)


# The edu device: a buffer of 4 KiB, addresses of 28 bits


@pytest.mark.parametrize("kind", MemoryKind)
@pytest.mark.parametrize("count", [1, 7, 8, 1000, 2048])
def test_random_data_goes_to_edu_and_comes_back(
    edu: PCIDevice, kind: MemoryKind, count: int
) -> None:
    driver, data = EduDriver(edu), os.urandom(count)
    with (
        edu.dma.alloc(PAGE, address_bits=28, kind=kind) as source,
        edu.dma.alloc(PAGE, address_bits=28, kind=kind) as destination,
    ):
        fill(source, data)
        driver.to_device(source, count)
        driver.from_device(destination, count)
        assert bytes(destination.array[:count]) == data


def test_bytes_behind_a_transfer_stay(edu: PCIDevice) -> None:
    driver = EduDriver(edu)
    with driver.alloc() as buffer:
        buffer.array[:] = 0x11
        driver.to_device(buffer)
        buffer.array[:] = 0x22
        driver.from_device(buffer, 100)
        assert bytes(buffer.array[98:102]) == b"\x11\x11\x22\x22"


def test_edu_says_with_an_msi_that_it_is_done(edu: PCIDevice) -> None:
    driver, data = EduDriver(edu), os.urandom(TRANSFER)
    with edu.msi.enable() as irqs, driver.alloc() as buffer:
        buffer.array[:TRANSFER] = list(data)
        driver.to_device(buffer, TRANSFER, irqs)
        buffer.array[:] = 0
        driver.from_device(buffer, TRANSFER, irqs)
        assert (bytes(buffer.array[:TRANSFER]), irqs[0].total) == (data, 2)


def test_edu_reaches_nothing_without_bus_mastering(edu: PCIDevice) -> None:
    driver = EduDriver(edu)
    with driver.alloc() as buffer:
        buffer.array[:] = 0x33
        driver.to_device(buffer)
        buffer.array[:] = 0x44
        edu.bus_master = False
        bar = edu.bars[0]
        bar.write64(Edu.DMA_SOURCE, 0x40000)
        bar.write64(Edu.DMA_DESTINATION, buffer.iova)
        bar.write64(Edu.DMA_COUNT, TRANSFER)
        bar.write32(Edu.DMA_COMMAND, 0x3)
        assert eventually(lambda: not bar.read32(Edu.DMA_COMMAND) & 0x1)
        assert set(buffer.array.tolist()) == {0x44}


# The test device: memory of 64 MiB, addresses of 64 bits


class Spanned(NamedTuple):
    """1 MiB at one address for the device, in two pieces of memory that are mapped side by side."""

    iova: int
    memories: tuple[SharedMemory, SharedMemory]

    def fill(self, data: bytes) -> None:
        """Write all of it."""
        for memory, part in zip(self.memories, (data[:HALF], data[HALF:]), strict=True):
            memory.array[:] = np.frombuffer(part, np.uint8)

    def contents(self) -> bytes:
        """Read all of it."""
        return b"".join(bytes(memory.array) for memory in self.memories)


@pytest.fixture
def spanned(testdev: PCIDevice) -> Iterator[Spanned]:
    """Two maps that lie side by side, with bus mastering on."""
    testdev.bus_master = True
    with SharedMemory(HALF) as first, SharedMemory(HALF, MemoryKind.MEMFD) as second:
        for number, memory in enumerate((first, second)):
            testdev.dma.map(memory, iova=BASE + number * HALF)
        yield Spanned(BASE, (first, second))
        for number in range(2):
            testdev.dma.unmap(BASE + number * HALF, HALF)


@pytest.mark.parametrize("offset", [0, HALF, 5 * MIB, 1])
def test_the_device_reads_across_two_maps(
    testdev: PCIDevice, spanned: Spanned, offset: int
) -> None:
    data = os.urandom(MIB)
    spanned.fill(data)
    assert run_dma(testdev, TO_DEVICE, spanned.iova, offset, MIB) == 0
    assert testdev.bars[MEMORY].read_bytes(offset, MIB) == data


@pytest.mark.parametrize("offset", [0, HALF, 5 * MIB, 1])
def test_the_device_writes_across_two_maps(
    testdev: PCIDevice, spanned: Spanned, offset: int
) -> None:
    data = os.urandom(MIB)
    testdev.bars[MEMORY].write_bytes(offset, data)
    assert run_dma(testdev, TO_CLIENT, spanned.iova, offset, MIB) == 0
    assert spanned.contents() == data


def test_a_transfer_of_any_offset_and_length(testdev: PCIDevice, spanned: Spanned) -> None:
    spanned.fill(bytes(MIB))
    testdev.bars[MEMORY].write_bytes(3, b"\xee" * 11)
    run_dma(testdev, TO_CLIENT, spanned.iova + HALF - 5, 3, 11)
    assert spanned.contents()[HALF - 6 : HALF + 7] == b"\0" + b"\xee" * 11 + b"\0"


def test_a_part_of_memory_can_be_mapped(testdev: PCIDevice) -> None:
    testdev.bus_master = True
    with SharedMemory(4 * PAGE) as memory:
        iova = testdev.dma.map(memory, offset=2 * PAGE, size=PAGE)
        testdev.bars[MEMORY].write_bytes(0, b"\x99" * PAGE)
        run_dma(testdev, TO_CLIENT, iova, 0, PAGE)
        testdev.dma.unmap(iova, PAGE)
        written = [bool(memory.array[page * PAGE]) for page in range(4)]
    assert written == [False, False, True, False]


def test_without_a_size_memory_is_mapped_to_its_end(testdev: PCIDevice) -> None:
    with SharedMemory(4 * PAGE) as memory:
        iova = testdev.dma.map(memory, offset=PAGE)
        sizes = [entry.size for entry in testdev.dma.mappings]
        testdev.dma.unmap(iova, 3 * PAGE)
    assert sizes == [3 * PAGE]


def test_one_memory_can_be_mapped_twice(testdev: PCIDevice) -> None:
    testdev.bus_master = True
    with SharedMemory(PAGE) as memory:
        iovas = [testdev.dma.map(memory) for _ in range(2)]
        memory.array[:] = 0x5C
        run_dma(testdev, TO_DEVICE, iovas[1], 0, PAGE)
        for iova in iovas:
            testdev.dma.unmap(iova, PAGE)
    assert testdev.bars[MEMORY].read8(PAGE - 1) == 0x5C


# What the device must not reach


@pytest.fixture
def bus_master(testdev: PCIDevice) -> PCIDevice:
    """The test device with bus mastering on."""
    testdev.bus_master = True
    return testdev


def test_memory_mapped_for_reading_is_read(bus_master: PCIDevice) -> None:
    with bus_master.dma.alloc(PAGE, flags=DMAMapFlags.READ) as buffer:
        assert run_dma(bus_master, TO_DEVICE, buffer.iova, 0, PAGE) == 0


def test_memory_mapped_for_reading_cannot_be_written(bus_master: PCIDevice) -> None:
    with bus_master.dma.alloc(PAGE, flags=DMAMapFlags.READ) as buffer:
        assert run_dma(bus_master, TO_CLIENT, buffer.iova, 0, PAGE) == errno.EPERM


def test_a_refused_write_changes_nothing(bus_master: PCIDevice) -> None:
    bus_master.bars[MEMORY].write_bytes(0, b"\xff" * PAGE)
    with bus_master.dma.alloc(PAGE, flags=DMAMapFlags.READ) as buffer:
        run_dma(bus_master, TO_CLIENT, buffer.iova, 0, PAGE)
        assert not buffer.array.any()


def test_memory_mapped_for_writing_cannot_be_read(bus_master: PCIDevice) -> None:
    with bus_master.dma.alloc(PAGE, flags=DMAMapFlags.WRITE) as buffer:
        assert run_dma(bus_master, TO_DEVICE, buffer.iova, 0, PAGE) == errno.EPERM


def test_memory_mapped_for_neither_is_refused(testdev: PCIDevice) -> None:
    with pytest.raises(OSError, match="EINVAL"):
        testdev.dma.alloc(PAGE, flags=DMAMapFlags(0))


@pytest.mark.parametrize("direction", [TO_DEVICE, TO_CLIENT])
def test_an_address_that_was_never_mapped_faults(bus_master: PCIDevice, direction: int) -> None:
    assert run_dma(bus_master, direction, BASE, 0, PAGE) == errno.EFAULT


@pytest.mark.parametrize("direction", [TO_DEVICE, TO_CLIENT])
def test_an_address_that_was_unmapped_faults(bus_master: PCIDevice, direction: int) -> None:
    with bus_master.dma.alloc(PAGE) as buffer:
        iova = buffer.iova
    assert run_dma(bus_master, direction, iova, 0, PAGE) == errno.EFAULT


@pytest.mark.parametrize("direction", [TO_DEVICE, TO_CLIENT])
@pytest.mark.parametrize("start", [-1, 1])
def test_a_transfer_that_leaves_its_map_faults(
    bus_master: PCIDevice, direction: int, start: int
) -> None:
    with bus_master.dma.alloc(PAGE) as buffer:
        assert run_dma(bus_master, direction, buffer.iova + start, 0, PAGE) == errno.EFAULT


@pytest.mark.parametrize("direction", [TO_DEVICE, TO_CLIENT])
def test_the_end_of_the_address_space_faults(bus_master: PCIDevice, direction: int) -> None:
    assert run_dma(bus_master, direction, (1 << 64) - 8, 0, PAGE) == errno.EFAULT


@pytest.mark.parametrize("direction", [TO_DEVICE, TO_CLIENT])
def test_nothing_is_reached_without_bus_mastering(testdev: PCIDevice, direction: int) -> None:
    with testdev.dma.alloc(PAGE) as buffer:
        testdev.bus_master = False
        assert run_dma(testdev, direction, buffer.iova, 0, PAGE) == errno.EPERM


def test_a_new_client_does_not_inherit_the_maps(bus_master: PCIDevice) -> None:
    buffer = bus_master.dma.alloc(PAGE)
    bus_master.close()
    with pyvfio.open(bus_master.uri) as again:
        again.bus_master = True
        assert run_dma(again, TO_DEVICE, buffer.iova, 0, PAGE) == errno.EFAULT
