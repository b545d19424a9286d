# SPDX-License-Identifier: BSD-3-Clause
"""Dirty pages: nothing that a device has written is missing from a report, however it is known.

Some backends tell more than that: each page that is pinned, or all of it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import numpy as np
import pytest

import pyvfio
from pyvfio.drivers.edu import EduDriver
from pyvfio.memory import SharedMemory
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DMAMapFlags
from tests.conformance.devices import Edu
from tests.support import eventually

PAGE = 4096
PAGES = 8
DEVICE_BUFFER, RUN, FROM_DEVICE = 0x40000, 1, 2
EXACT = (pyvfio.DirtyKind.WRITES, pyvfio.DirtyKind.DEVICE)


@pytest.fixture
def driver(edu: PCIDevice) -> Iterator[EduDriver]:
    """An edu device whose writes are tracked from now on."""
    found = EduDriver(edu)
    yield found
    edu.dma.dirty.stop()


def written(driver: EduDriver, iova: int, count: int = 8) -> None:
    """Have the device write to an address: what is in its buffer, which is not zero."""
    edu = driver.dev
    with edu.dma.alloc(PAGE, address_bits=28) as source:
        source.array[:count] = np.frombuffer(os.urandom(count), np.uint8) | 1
        driver.to_device(source, count)
    registers = edu.bars[0]
    registers.write64(Edu.DMA_SOURCE, DEVICE_BUFFER)
    registers.write64(Edu.DMA_DESTINATION, iova)
    registers.write64(Edu.DMA_COUNT, count)
    registers.write64(Edu.DMA_COMMAND, RUN | FROM_DEVICE)
    assert eventually(lambda: not registers.read64(Edu.DMA_COMMAND) & RUN)


def test_what_a_device_has_written_is_told(edu: PCIDevice, driver: EduDriver) -> None:
    with edu.dma.alloc(PAGES * PAGE, address_bits=28) as buffer:
        kind = edu.dma.dirty.start()
        assert edu.dma.dirty.kind is kind
        written(driver, buffer.iova + 2 * PAGE + 8)
        bitmap = edu.dma.dirty.report(buffer.iova, buffer.size)
        assert buffer.iova + 2 * PAGE in bitmap
        assert (bitmap.iova, bitmap.size) == (buffer.iova, buffer.size)
        assert bitmap.page_size == edu.dma.dirty.page_size == PAGE
        if kind in EXACT:
            assert bitmap.page_numbers().tolist() == [2]
            assert edu.dma.dirty.report(buffer.iova, buffer.size).count == 0
        written(driver, buffer.iova + 2 * PAGE)
        assert buffer.iova + 2 * PAGE in edu.dma.dirty.report(buffer.iova, buffer.size)


def test_a_report_of_a_part_keeps_the_rest(edu: PCIDevice, driver: EduDriver) -> None:
    with edu.dma.alloc(PAGES * PAGE, address_bits=28) as buffer:
        edu.dma.dirty.start()
        written(driver, buffer.iova + PAGE)
        written(driver, buffer.iova + 5 * PAGE)
        assert buffer.iova + PAGE in edu.dma.dirty.report(buffer.iova, 2 * PAGE)
        assert buffer.iova + 5 * PAGE in edu.dma.dirty.report(buffer.iova + 4 * PAGE, 2 * PAGE)


def test_a_report_may_span_maps_and_holes(edu: PCIDevice, driver: EduDriver) -> None:
    with SharedMemory(2 * PAGE) as memory:
        for iova in (0x10_0000, 0x10_4000):
            edu.dma.map(memory, iova=iova)
        edu.dma.dirty.start()
        written(driver, 0x10_1000)
        written(driver, 0x10_4000)
        bitmap = edu.dma.dirty.report(0x0F_0000, 0x2_0000)
        assert {0x10_1000, 0x10_4000} <= set(bitmap.addresses().tolist())
        assert 0x10_2000 not in bitmap
        for iova in (0x10_0000, 0x10_4000):
            edu.dma.unmap(iova, 2 * PAGE)


def test_where_nothing_is_mapped_nothing_is_written(edu: PCIDevice, driver: EduDriver) -> None:
    assert driver.identification
    edu.dma.dirty.start()
    assert edu.dma.dirty.report(0, 1 << 32).count == 0


def test_memory_that_may_not_be_written_is_never_told(edu: PCIDevice, driver: EduDriver) -> None:
    assert driver.identification
    with edu.dma.alloc(PAGE, flags=DMAMapFlags.READ) as buffer:
        edu.dma.dirty.start()
        assert edu.dma.dirty.report(buffer.iova, buffer.size).count == 0


def test_memory_that_is_mapped_later_is_tracked_as_well(edu: PCIDevice, driver: EduDriver) -> None:
    edu.dma.dirty.start()
    with edu.dma.alloc(2 * PAGE, address_bits=28) as buffer:
        written(driver, buffer.iova + PAGE)
        assert buffer.iova + PAGE in edu.dma.dirty.report(buffer.iova, buffer.size)


def test_an_unmap_tells_what_was_written(edu: PCIDevice, driver: EduDriver) -> None:
    with SharedMemory(2 * PAGE) as memory:
        iova = edu.dma.map(memory, address_bits=28)
        edu.dma.dirty.start()
        written(driver, iova + PAGE)
        bitmap = edu.dma.unmap(iova, memory.size, dirty=True)
        assert iova + PAGE in bitmap
        assert (bitmap.iova, bitmap.size) == (iova, memory.size)
    assert edu.dma.mappings == ()


def test_an_unmap_without_tracking_has_nothing_to_tell(edu: PCIDevice) -> None:
    with SharedMemory(PAGE) as memory:
        iova = edu.dma.map(memory)
        with pytest.raises(pyvfio.DMAError, match="tracking is off"):
            edu.dma.unmap(iova, PAGE, dirty=True)
        with pytest.raises(ValueError, match="within a batch"), edu.dma.batch():
            edu.dma.unmap(iova, PAGE, dirty=True)
        edu.dma.unmap(iova, PAGE)


def test_larger_pages_are_told_where_they_are_asked_for(edu: PCIDevice, driver: EduDriver) -> None:
    with edu.dma.alloc(PAGES * PAGE, address_bits=28) as buffer:
        edu.dma.dirty.start(4 * PAGE)
        written(driver, buffer.iova + 5 * PAGE)
        bitmap = edu.dma.dirty.report(buffer.iova, buffer.size)
        assert bitmap.page_size == edu.dma.dirty.page_size >= 4 * PAGE
        assert buffer.iova + 5 * PAGE in bitmap
        assert bitmap.pages <= 2


@pytest.mark.parametrize("page_size", [0, 1, 2048, 3 * PAGE, PAGE + 1, -PAGE, 1 << 31])
def test_pages_that_make_no_sense_are_refused(edu: PCIDevice, page_size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        edu.dma.dirty.start(page_size)
    assert edu.dma.dirty.kind is None


@pytest.mark.parametrize(("iova", "size"), [(0, 0), (0, -1), (-1, PAGE), (0, 1 << 64), (PAGE, -1)])
def test_a_range_that_makes_no_sense_is_refused(
    edu: PCIDevice, driver: EduDriver, iova: int, size: int
) -> None:
    assert driver.identification
    edu.dma.dirty.start()
    with pytest.raises(ValueError, match="bytes"):
        edu.dma.dirty.report(iova, size)


def test_tracking_is_started_once_and_stopped_as_often_as_one_likes(
    edu: PCIDevice, driver: EduDriver
) -> None:
    assert driver.identification
    with pytest.raises(pyvfio.DMAError, match="off") as caught:
        edu.dma.dirty.report(0, PAGE)
    assert caught.value.errno == errno.EINVAL
    for _ in range(2):
        edu.dma.dirty.start()
        with pytest.raises(pyvfio.DMAError, match="on already") as caught:
            edu.dma.dirty.start()
        assert caught.value.errno == errno.EBUSY
        edu.dma.dirty.stop()
        edu.dma.dirty.stop()
        assert (edu.dma.dirty.kind, edu.dma.dirty.page_size) == (None, 0)


def test_tracking_goes_not_with_a_batch(edu: PCIDevice) -> None:
    with edu.dma.batch():
        with pytest.raises(ValueError, match="within a batch"):
            edu.dma.dirty.start()
        with pytest.raises(ValueError, match="within a batch"):
            edu.dma.dirty.report(0, PAGE)


def test_a_device_may_be_closed_while_it_is_tracked(edu: PCIDevice) -> None:
    edu.dma.dirty.start()
    edu.close()
    with pytest.raises(pyvfio.DeviceClosed):
        edu.dma.dirty.report(0, PAGE)
    assert edu.dma.dirty.kind is None
