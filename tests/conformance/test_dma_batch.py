# SPDX-License-Identifier: BSD-3-Clause
"""Batches of maps and unmaps: the same on every backend, whenever it tells of a refusal."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Iterator

import numpy as np
import pytest

from pyvfio.errors import DeviceClosed, DMABatchError, DMAError
from pyvfio.memory import SharedMemory
from pyvfio.native import mmio
from pyvfio.pci.device import PCIDevice
from tests.conformance.devices import MEMORY, TO_DEVICE, run_dma

PAGE = 4096
MANY = 200
BASE = 0x1_0000_0000


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


# Many in a call


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    with SharedMemory(MANY * PAGE) as found:
        yield found


def ranges(dev: PCIDevice) -> list[tuple[int, int, int]]:
    """What is mapped: address, size, and where in its memory."""
    return [(entry.iova, entry.size, entry.offset) for entry in dev.dma.mappings]


@pytest.mark.parametrize("step", [PAGE, 3 * PAGE])
def test_many_maps_come_and_go_in_two_calls(
    testdev: PCIDevice, memory: SharedMemory, step: int
) -> None:
    pages = np.random.default_rng(0).permutation(MANY)
    iovas = BASE + step * pages
    testdev.dma.map_many(memory, iovas, PAGE * pages, PAGE)
    assert ranges(testdev) == [(BASE + step * n, PAGE, PAGE * n) for n in range(MANY)]
    testdev.dma.unmap_many(iovas[::-1], PAGE)
    assert ranges(testdev) == []
    testdev.dma.map_many(memory, iovas, PAGE * pages, PAGE)
    testdev.dma.unmap_many(iovas, PAGE)


def test_each_of_many_maps_has_a_size_of_its_own(testdev: PCIDevice, memory: SharedMemory) -> None:
    testdev.dma.map_many(memory, [BASE + 8 * PAGE, BASE], [0, 4 * PAGE], [PAGE, 3 * PAGE])
    assert ranges(testdev) == [(BASE, 3 * PAGE, 4 * PAGE), (BASE + 8 * PAGE, PAGE, 0)]
    testdev.dma.unmap_many([BASE, BASE + 8 * PAGE], [3 * PAGE, PAGE])
    assert ranges(testdev) == []


def test_the_device_finds_each_of_many_maps(testdev: PCIDevice, memory: SharedMemory) -> None:
    testdev.bus_master = True
    memory.array.reshape(MANY, PAGE)[:] = np.arange(MANY, dtype=np.uint8)[:, np.newaxis]
    pages = random.Random(0).sample(range(MANY), MANY)
    iovas = [BASE + PAGE * number for number in range(MANY)]
    testdev.dma.map_many(memory, iovas, [PAGE * page for page in pages], PAGE)
    for number in random.Random(1).sample(range(MANY), 5):
        assert run_dma(testdev, TO_DEVICE, iovas[number], 0, PAGE) == 0
        assert set(testdev.bars[MEMORY].read_bytes(0, PAGE)) == {pages[number]}
    testdev.dma.unmap_many(iovas, PAGE)
    assert run_dma(testdev, TO_DEVICE, iovas[0], 0, PAGE) == errno.EFAULT


def test_many_maps_are_a_part_of_the_batch_around_them(
    testdev: PCIDevice, memory: SharedMemory, unmappable: Unmappable
) -> None:
    bad = [BASE + PAGE, BASE + 3 * PAGE]
    with pytest.raises(DMABatchError) as caught, testdev.dma.batch():
        testdev.dma.map(memory, iova=BASE, size=PAGE)
        testdev.dma.map_many(unmappable, bad, 0, PAGE)
        testdev.dma.map_many(memory, [BASE + 2 * PAGE, BASE + 4 * PAGE], 0, PAGE)
        testdev.dma.unmap_many([BASE, BASE + 4 * PAGE], PAGE)
    failures = [found for found in caught.value.failures if isinstance(found, DMAError)]
    assert [(found.iova, found.size) for found in failures] == [(iova, PAGE) for iova in bad]
    assert ranges(testdev) == [(BASE + 2 * PAGE, PAGE, 0)]
    testdev.dma.unmap_many(BASE + 2 * PAGE, PAGE)


def test_refusals_among_many_maps_are_told_at_the_end_of_the_call(
    testdev: PCIDevice, unmappable: Unmappable
) -> None:
    with pytest.raises(DMABatchError) as caught:
        testdev.dma.map_many(unmappable, [BASE, BASE + PAGE], 0, PAGE)
    assert len(caught.value.failures) == 2
    assert ranges(testdev) == []


@pytest.mark.parametrize(
    ("iova", "offset", "size", "number"),
    [
        (BASE + 8 * PAGE, 0, PAGE, errno.EEXIST),
        (BASE - 2 * PAGE, 0, 4 * PAGE, errno.EEXIST),
        (BASE + 1, 0, PAGE, errno.EINVAL),
        (BASE + PAGE, 2048, PAGE, errno.EINVAL),
        (BASE + PAGE, 0, 0, errno.EINVAL),
        (BASE + PAGE, 0, 100, errno.EINVAL),
        (BASE + PAGE, MANY * PAGE, PAGE, errno.EINVAL),
        (BASE + PAGE, 0, (1 << 64) - PAGE, errno.EINVAL),
        (BASE + PAGE, (1 << 64) - PAGE, PAGE, errno.EINVAL),
        (1 << 40, 0, PAGE, errno.EINVAL),
    ],
    ids=[
        "mapped already",
        "overlaps another of them",
        "address not aligned",
        "offset not aligned",
        "nothing",
        "part of a page",
        "behind the memory",
        "beyond all addresses",
        "offset beyond all",
        "beyond the device's bits",
    ],
)
def test_where_one_of_many_cannot_be_mapped_none_is(
    testdev: PCIDevice, memory: SharedMemory, *, iova: int, offset: int, size: int, number: int
) -> None:
    taken = testdev.dma.map(memory, iova=BASE + 8 * PAGE, size=PAGE)
    iovas, offsets, sizes = [BASE, iova, BASE + 16 * PAGE], [0, offset, PAGE], [PAGE, size, PAGE]
    with pytest.raises(DMAError) as caught:
        testdev.dma.map_many(memory, iovas, offsets, sizes, address_bits=39)
    assert (caught.value.iova, caught.value.size, caught.value.errno) == (iova, size, number)
    assert ranges(testdev) == [(taken, PAGE, 0)]
    testdev.dma.unmap(taken, PAGE)


@pytest.mark.parametrize("other", [(BASE + PAGE, PAGE), (BASE, 2 * PAGE), (BASE, PAGE)])
def test_where_one_of_many_is_not_mapped_none_is_unmapped(
    testdev: PCIDevice, memory: SharedMemory, other: tuple[int, int]
) -> None:
    testdev.dma.map_many(memory, [BASE, BASE + 2 * PAGE], 0, PAGE)
    with pytest.raises(DMAError) as caught:
        testdev.dma.unmap_many([BASE + 2 * PAGE, BASE, other[0]], [PAGE, PAGE, other[1]])
    assert (caught.value.iova, caught.value.size, caught.value.errno) == (*other, errno.ENOENT)
    assert len(ranges(testdev)) == 2
    testdev.dma.unmap_many([BASE, BASE + 2 * PAGE], PAGE)


@pytest.mark.parametrize(
    ("iovas", "offsets", "sizes", "reason"),
    [
        ([1.0], 0, PAGE, "integers are wanted"),
        ([BASE], -1, PAGE, "negative"),
        ([BASE, 1 << 64], 0, PAGE, "from 0 to"),
        ([BASE, BASE + PAGE], [0, 0, 0], PAGE, "broadcast"),
        ([[BASE]], 0, PAGE, "2 dimensions"),
    ],
)
def test_what_is_no_list_of_ranges_is_a_value_error(
    testdev: PCIDevice,
    memory: SharedMemory,
    *,
    iovas: object,
    offsets: object,
    sizes: int,
    reason: str,
) -> None:
    with pytest.raises(ValueError, match=reason):
        testdev.dma.map_many(memory, iovas, offsets, sizes)  # type: ignore[arg-type]


def test_none_at_all_are_mapped_and_unmapped(testdev: PCIDevice, memory: SharedMemory) -> None:
    testdev.dma.map_many(memory, [], [], PAGE)
    testdev.dma.unmap_many([], PAGE)
    assert ranges(testdev) == []


def test_nothing_is_mapped_by_a_closed_device(testdev: PCIDevice, memory: SharedMemory) -> None:
    testdev.close()
    with pytest.raises(DeviceClosed):
        testdev.dma.map_many(memory, [BASE], 0, PAGE)
    with pytest.raises(DeviceClosed):
        testdev.dma.unmap_many([BASE], PAGE)
