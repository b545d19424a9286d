# SPDX-License-Identifier: BSD-3-Clause
"""DMA maps of the kernel: what is refused and how it is said, limits, many of them."""

from __future__ import annotations

import errno
import os
import resource

import numpy as np
import pytest

import pyvfio
from pyvfio.backends.ioctl.container import KernelContainer
from pyvfio.drivers.edu import EduDriver
from pyvfio.memory import SharedMemory
from pyvfio.pci.device import PCIDevice
from tests.guest.suite.conftest import in_a_child

PAGE = 4096
MSI_WINDOW = 0xFEE00000


def test_the_ranges_leave_the_msi_window_out(edu: PCIDevice) -> None:
    assert len(edu.dma.iova_ranges) > 1
    assert not any(first <= MSI_WINDOW <= last for first, last in edu.dma.iova_ranges)


def test_the_container_can_tell_what_was_written_by_the_page(edu: PCIDevice) -> None:
    io = edu.base.container_io
    assert isinstance(io, KernelContainer)
    assert io.dirty_page_sizes == PAGE


def test_an_address_outside_of_the_ranges_is_refused_with_them(edu: PCIDevice) -> None:
    with SharedMemory(PAGE) as memory, pytest.raises(pyvfio.DMAError) as caught:
        edu.dma.map(memory, iova=MSI_WINDOW)
    assert caught.value.errno == errno.EINVAL
    assert "0x" in str(caught.value)


def test_an_overlap_is_refused_with_the_map_in_the_way(edu: PCIDevice) -> None:
    with SharedMemory(PAGE) as memory:
        edu.dma.map(memory, iova=0x100000)
        with pytest.raises(pyvfio.DMAError) as caught:
            edu.dma.map(memory, iova=0x100000)
        assert caught.value.errno == errno.EEXIST
        edu.dma.unmap(0x100000, PAGE)


def test_everything_is_unmapped_at_once(edu: PCIDevice) -> None:
    with SharedMemory(PAGE) as memory:
        for number in range(10):
            edu.dma.map(memory, iova=(1 + number) * 0x100000)
        edu.dma.unmap_all()
        assert edu.dma.mappings == ()
        edu.dma.map(memory, iova=0x100000)
        edu.dma.unmap(0x100000, PAGE)


def test_maps_and_unmaps_by_the_thousand(edu: PCIDevice) -> None:
    with SharedMemory(PAGE) as memory:
        for _ in range(10_000):
            edu.dma.unmap(edu.dma.map(memory), PAGE)
        assert edu.dma.mappings == ()


def test_the_limit_of_locked_memory_is_told(edu: PCIDevice) -> None:
    def allocate() -> bool:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (PAGE, PAGE))
        os.setuid(65534)
        with pytest.raises(pyvfio.DMAError, match="RLIMIT_MEMLOCK is 4096 bytes") as caught:
            edu.dma.alloc(64 * PAGE)
        return caught.value.errno == errno.ENOMEM

    assert in_a_child(allocate)


def test_device_memory_can_be_huge_and_is_one_address_range(edu: PCIDevice) -> None:
    with edu.dma.alloc(16 << 20, address_bits=28) as buffer:
        assert buffer.iova + buffer.size <= 1 << 28


def test_a_storm_of_msi_is_counted_exactly(edu: PCIDevice) -> None:
    driver = EduDriver(edu)
    with edu.msi.enable() as irqs:
        for number in range(100_000):
            driver.raise_irq(1 + number % 16)
        while irqs[0].total < 100_000:
            irqs[0].wait(5)
        with pytest.raises(pyvfio.VFIOTimeout):
            irqs[0].wait(0.05)
        assert irqs[0].total == 100_000
        driver.acknowledge(0xFFFF_FFFF)


def test_data_goes_through_the_iommu_both_ways(edu: PCIDevice) -> None:
    driver, data = EduDriver(edu), os.urandom(2048)
    with driver.alloc() as source, driver.alloc() as destination:
        source.array[:2048] = np.frombuffer(data, np.uint8)
        driver.to_device(source, 2048)
        driver.from_device(destination, 2048)
        assert bytes(destination.array[:2048]) == data


def test_the_limit_of_maps_is_reached_and_told(edu: PCIDevice) -> None:
    limit = edu.base.container_io.max_maps
    with SharedMemory(PAGE) as memory:
        for number in range(limit):
            edu.dma.map(memory, iova=0x1000_0000 + number * PAGE)
        with pytest.raises(pyvfio.DMAError, match=f"all {limit} maps are in use") as caught:
            edu.dma.map(memory, iova=0x8000)
        assert (limit, caught.value.errno) == (65535, errno.ENOSPC)
        edu.dma.unmap_all()
        edu.dma.unmap(edu.dma.map(memory), PAGE)
