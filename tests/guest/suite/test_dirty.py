# SPDX-License-Identifier: BSD-3-Clause
"""Dirty pages of the kernel's type1 container, and a device that has no migration."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

import pyvfio
from pyvfio.backends.ioctl.container import KernelContainer
from pyvfio.drivers.edu import EduDriver
from pyvfio.memory import SharedMemory
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DeviceState, Feature, FeatureFlags

PAGE = 4096


def container_of(device: PCIDevice) -> KernelContainer:
    io = device.base.container_io
    assert isinstance(io, KernelContainer)
    return io


def test_the_container_tells_of_every_page_that_it_has_pinned(edu: PCIDevice) -> None:
    driver, data = EduDriver(edu), os.urandom(1024)
    with driver.alloc() as source, edu.dma.alloc(16 * PAGE, address_bits=28) as destination:
        assert edu.dma.dirty.start() is pyvfio.DirtyKind.PINNED
        assert edu.dma.dirty.page_size == PAGE
        source.array[:1024] = np.frombuffer(data, np.uint8)
        driver.to_device(source, 1024)
        driver.from_device(destination, 1024)
        for _ in range(2):  # without hardware that tells it is all of them, each time
            bitmap = edu.dma.dirty.report(destination.iova, destination.size)
            assert bitmap.page_numbers().tolist() == list(range(16))
        assert bytes(destination.array[:1024]) == data
        edu.dma.dirty.stop()


def test_a_bitmap_comes_with_the_unmap(edu: PCIDevice) -> None:
    with SharedMemory(8 * PAGE) as memory:
        iova = edu.dma.map(memory)
        edu.dma.dirty.start()
        bitmap = edu.dma.unmap(iova, memory.size, dirty=True)
        assert (bitmap.iova, bitmap.size, bitmap.count) == (iova, memory.size, 8)
        assert edu.dma.mappings == ()
        edu.dma.unmap(edu.dma.map(memory, iova=iova), memory.size)
        edu.dma.dirty.stop()


def test_larger_pages_are_made_of_the_kernels(edu: PCIDevice) -> None:
    with edu.dma.alloc(8 * PAGE) as buffer:
        edu.dma.dirty.start(4 * PAGE)
        assert edu.dma.dirty.report(buffer.iova, buffer.size).page_numbers().tolist() == [0, 1]
        edu.dma.dirty.stop()


def test_memory_that_is_mapped_later_is_told_as_well(edu: PCIDevice) -> None:
    edu.dma.dirty.start()
    with edu.dma.alloc(3 * PAGE) as buffer:
        assert edu.dma.dirty.report(buffer.iova, buffer.size).count == 3
    edu.dma.dirty.stop()


def test_the_kernel_refuses_what_the_tracker_never_asks(edu: PCIDevice) -> None:
    io = container_of(edu)
    with edu.dma.alloc(4 * PAGE) as buffer:
        with pytest.raises(OSError, match="Invalid argument"):  # tracking is off
            io.dirty_report(buffer.iova, buffer.size, PAGE)
        io.dirty_start()
        with pytest.raises(OSError, match="Invalid argument"):  # part of a map
            io.dirty_report(buffer.iova + PAGE, PAGE, PAGE)
        with pytest.raises(OSError, match="Invalid argument"):  # another page size
            io.dirty_report(buffer.iova, buffer.size, 2 * PAGE)
        with pytest.raises(OSError, match="of a bitmap at most") as caught:
            io.dirty_report(0, 1 << 60, PAGE)
        assert caught.value.errno == errno.E2BIG
        io.dirty_stop()


def test_an_unmap_that_is_refused_leaves_the_map(edu: PCIDevice) -> None:
    io = container_of(edu)
    with edu.dma.alloc(4 * PAGE) as buffer:
        with pytest.raises(OSError, match="Invalid argument"):  # tracking is off
            io.dma_unmap_dirty(buffer.iova, buffer.size, PAGE)
        edu.dma.dirty.start()
        assert edu.dma.dirty.report(buffer.iova, buffer.size).count == 4
        edu.dma.dirty.stop()


def test_edu_has_no_migration(edu: PCIDevice) -> None:
    assert not edu.migration.supported
    for feature in (Feature.MIGRATION, Feature.MIG_DEVICE_STATE, Feature.DMA_LOGGING_START):
        assert not edu.features.probe(feature, FeatureFlags.GET)
    with pytest.raises(pyvfio.UnsupportedError) as caught:
        _ = edu.migration.flags
    assert caught.value.errno == errno.ENOTTY
    for operation in (
        edu.migration.save,
        edu.migration.load,
        edu.migration.stop,
        edu.migration.data_size,
        lambda: edu.migration.set_state(DeviceState.RUNNING),
    ):
        with pytest.raises(pyvfio.UnsupportedError):
            operation()


def test_a_token_cannot_be_probed_where_there_are_no_virtual_functions(edu: PCIDevice) -> None:
    assert not edu.features.probe(Feature.PCI_VF_TOKEN, FeatureFlags.SET)
