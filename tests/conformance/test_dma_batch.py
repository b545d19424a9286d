# SPDX-License-Identifier: BSD-3-Clause
"""Batches of maps and unmaps: the same on every backend, whenever it tells of a refusal."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

from pyvfio.errors import DeviceClosed, DMABatchError, DMAError
from pyvfio.memory import SharedMemory
from pyvfio.native import mmio
from pyvfio.pci.device import PCIDevice

PAGE = 4096
MANY = 200


class Unmappable:
    """A page that no backend maps: the kernel may not touch it, and its descriptor is a pipe's."""

    def __init__(self) -> None:
        self.fd, self._other_end = os.pipe()
        with SharedMemory(PAGE) as memory:
            self._page = mmio.MappedMemory(memory.fd, 0, PAGE, readable=False, writable=False)
        self.address = self._page.address

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._other_end)


@pytest.fixture
def unmappable() -> Iterator[Unmappable]:
    found = Unmappable()
    yield found
    found.close()


def test_a_batch_of_buffers_comes_and_goes(edu: PCIDevice) -> None:
    with edu.dma.batch():
        buffers = [edu.dma.alloc(PAGE) for _ in range(MANY)]
    assert [entry.iova for entry in edu.dma.mappings] == sorted(b.iova for b in buffers)
    with edu.dma.batch():
        for buffer in buffers:
            buffer.close()
    assert edu.dma.mappings == ()


def test_what_a_batch_mapped_the_device_reaches(edu: PCIDevice) -> None:
    edu.bus_master = True
    bar = edu.bars[0]
    with edu.dma.batch():
        source, target = (edu.dma.alloc(PAGE, address_bits=28) for _ in range(2))
    data = np.frombuffer(os.urandom(1024), np.uint8)
    source.array[:1024] = data
    for start, end, command in ((source.iova, 0x40000, 1), (0x40000, target.iova, 3)):
        bar.write64(0x80, start)
        bar.write64(0x88, end)
        bar.write64(0x90, 1024)
        bar.write64(0x98, command)
        while bar.read64(0x98) & 1:
            pass
    assert bytes(target.array[:1024]) == bytes(data)


def test_a_refusal_is_told_at_the_end_with_its_range(
    edu: PCIDevice, unmappable: Unmappable
) -> None:
    with pytest.raises(DMABatchError) as caught, edu.dma.batch():
        good = edu.dma.alloc(PAGE)
        bad = edu.dma.map(unmappable, size=PAGE)
        also_good = edu.dma.alloc(PAGE)
    (failure,) = caught.value.failures
    assert isinstance(failure, DMAError)
    assert (failure.iova, failure.size) == (bad, PAGE)
    assert [entry.iova for entry in edu.dma.mappings] == sorted([good.iova, also_good.iova])


def test_the_addresses_of_a_refusal_are_free_again(edu: PCIDevice, unmappable: Unmappable) -> None:
    with pytest.raises(DMABatchError), edu.dma.batch():
        iova = edu.dma.map(unmappable, size=PAGE)
    with SharedMemory(PAGE) as memory:
        assert edu.dma.map(memory, iova=iova) == iova
        edu.dma.unmap(iova, PAGE)


def test_a_buffer_closed_in_a_batch_cannot_be_used(edu: PCIDevice) -> None:
    buffer = edu.dma.alloc(PAGE)
    with edu.dma.batch():
        buffer.close()
        with pytest.raises(DeviceClosed):
            buffer.array  # noqa: B018


def test_addresses_are_used_again_within_a_batch(edu: PCIDevice) -> None:
    with SharedMemory(mmap.PAGESIZE) as memory:
        iova = edu.dma.map(memory)
        with edu.dma.batch():
            for _ in range(MANY):
                edu.dma.unmap(iova, memory.size)
                edu.dma.map(memory, iova=iova)
        edu.dma.unmap(iova, memory.size)
    assert edu.dma.mappings == ()
