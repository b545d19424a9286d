# SPDX-License-Identifier: BSD-3-Clause
"""The map table: which addresses are given, refused, taken back, and when a buffer can go."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from pyvfio.errors import BufferInUse, DeviceClosed, DMAError
from pyvfio.memory import DMABuffer, SharedMemory
from pyvfio.pci.device import PCIDevice
from tests.conformance.devices import MEMORY, TO_CLIENT, run_dma

PAGE = 4096
BASE = 0x1_0000_0000


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    """Four pages of the caller's own."""
    with SharedMemory(4 * PAGE) as found:
        yield found


@pytest.fixture
def mapped(testdev: PCIDevice, memory: SharedMemory) -> Iterator[int]:
    """The address of four pages that are mapped."""
    yield testdev.dma.map(memory, iova=BASE)
    if not testdev.closed:
        testdev.dma.unmap(BASE, 4 * PAGE)


def ranges(dev: PCIDevice) -> list[tuple[int, int]]:
    """What is mapped, as address and size."""
    return [(entry.iova, entry.size) for entry in dev.dma.mappings]


# Allocation


def test_memory_is_zeroed(testdev: PCIDevice) -> None:
    with testdev.dma.alloc(8 * PAGE) as buffer:
        assert not buffer.array.any()


@pytest.mark.parametrize("size", [1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
def test_sizes_are_rounded_up_to_whole_pages(testdev: PCIDevice, size: int) -> None:
    page = testdev.dma.page_size
    with testdev.dma.alloc(size) as buffer:
        assert buffer.size == buffer.array.size == -(-size // page) * page


def test_a_buffer_can_be_viewed_as_what_it_holds(testdev: PCIDevice) -> None:
    with testdev.dma.alloc(PAGE) as buffer:
        buffer.array.view("<u4")[3] = 0x01020304
        assert bytes(buffer.array[12:16]) == b"\x04\x03\x02\x01"


@pytest.mark.parametrize("size", [0, -1])
def test_a_buffer_of_nothing_is_refused(testdev: PCIDevice, size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes"):
        testdev.dma.alloc(size)


@pytest.mark.parametrize("bits", [20, 28, 32, 33, 40])
def test_addresses_stay_below_the_bits_of_the_device(testdev: PCIDevice, bits: int) -> None:
    buffers = [testdev.dma.alloc(16 * PAGE, address_bits=bits) for _ in range(8)]
    last = max(buffer.iova + buffer.size - 1 for buffer in buffers)
    for buffer in buffers:
        buffer.close()
    assert last < 1 << bits


def test_address_0_is_not_given_away(testdev: PCIDevice) -> None:
    with testdev.dma.alloc(PAGE, address_bits=17) as buffer:
        assert buffer.iova > 0


def test_a_device_that_takes_few_bits_finds_room_beside_one_that_takes_many(
    testdev: PCIDevice,
) -> None:
    with testdev.dma.alloc(PAGE) as wide, testdev.dma.alloc(PAGE, address_bits=28) as narrow:
        assert narrow.iova < 1 << 28 <= wide.iova


def test_no_room_below_the_bits_is_an_error(testdev: PCIDevice) -> None:
    with pytest.raises(DMAError, match=r"free below 2\^12") as caught:
        testdev.dma.alloc(PAGE, address_bits=12)
    assert caught.value.errno == errno.ENOSPC


def test_large_buffers_are_aligned_for_large_pages(testdev: PCIDevice) -> None:
    with testdev.dma.alloc(PAGE), testdev.dma.alloc(2 << 20) as large:
        assert large.iova % (2 << 20) == 0


def test_every_address_lies_in_a_range_that_can_be_mapped(testdev: PCIDevice) -> None:
    with testdev.dma.alloc(16 * PAGE) as buffer:
        last = buffer.iova + buffer.size - 1
        assert any(low <= buffer.iova and last <= high for low, high in testdev.dma.iova_ranges)


# The table


def test_the_table_shows_what_is_mapped(testdev: PCIDevice, mapped: int) -> None:
    with testdev.dma.alloc(PAGE, address_bits=28) as buffer:
        assert ranges(testdev) == [(buffer.iova, PAGE), (mapped, 4 * PAGE)]


@pytest.mark.parametrize(
    ("iova", "pages"),
    [(BASE, 4), (BASE, 1), (BASE + PAGE, 1), (BASE + 3 * PAGE, 4), (BASE - PAGE, 2)],
)
def test_a_map_that_overlaps_another_is_refused(
    testdev: PCIDevice, memory: SharedMemory, mapped: int, iova: int, pages: int
) -> None:
    with pytest.raises(DMAError, match=f"overlaps the map at {mapped:#x}") as caught:
        testdev.dma.map(memory, iova=iova, size=pages * PAGE)
    assert caught.value.errno == errno.EEXIST


def test_a_map_that_holds_another_is_refused(testdev: PCIDevice, memory: SharedMemory) -> None:
    testdev.dma.map(memory, iova=BASE + PAGE, size=PAGE)
    with pytest.raises(DMAError, match="overlaps"):
        testdev.dma.map(memory, iova=BASE, size=4 * PAGE)
    testdev.dma.unmap(BASE + PAGE, PAGE)


@pytest.mark.parametrize("iova", [BASE - PAGE, BASE + 4 * PAGE])
def test_maps_may_lie_side_by_side(
    testdev: PCIDevice, memory: SharedMemory, mapped: int, iova: int
) -> None:
    testdev.dma.map(memory, iova=iova, size=PAGE)
    found = ranges(testdev)
    testdev.dma.unmap(iova, PAGE)
    assert found == sorted([(iova, PAGE), (mapped, 4 * PAGE)])


@pytest.mark.parametrize(
    ("iova", "offset", "size"),
    [
        (BASE + 1, 0, PAGE),
        (BASE + PAGE // 2, 0, PAGE),
        (BASE, 1, PAGE),
        (BASE, 0, PAGE - 1),
        (BASE, 0, 0),
        (BASE, 0, -PAGE),
        (BASE, -PAGE, PAGE),
    ],
)
def test_what_is_not_whole_pages_is_refused(
    testdev: PCIDevice, memory: SharedMemory, iova: int, offset: int, size: int
) -> None:
    with pytest.raises(DMAError, match="multiples of") as caught:
        testdev.dma.map(memory, iova=iova, offset=offset, size=size)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("iova", [-PAGE, 1 << 64, (1 << 64) - PAGE])
def test_an_address_outside_of_the_address_space_is_refused(
    testdev: PCIDevice, memory: SharedMemory, iova: int
) -> None:
    with pytest.raises(DMAError) as caught:
        testdev.dma.map(memory, iova=iova)
    assert caught.value.errno == errno.EINVAL


def test_an_address_beyond_the_bits_of_the_device_is_refused(
    testdev: PCIDevice, memory: SharedMemory
) -> None:
    with pytest.raises(DMAError, match="28 address bits"):
        testdev.dma.map(memory, iova=(1 << 28) - PAGE, address_bits=28)


def test_more_than_the_memory_holds_is_refused(testdev: PCIDevice, memory: SharedMemory) -> None:
    with pytest.raises(DMAError):
        testdev.dma.map(memory, size=8 * PAGE)


def test_a_refused_map_leaves_no_trace(
    testdev: PCIDevice, memory: SharedMemory, mapped: int
) -> None:
    with pytest.raises(DMAError):
        testdev.dma.map(memory, iova=mapped)
    assert ranges(testdev) == [(mapped, 4 * PAGE)]


def test_an_error_says_what_was_asked(testdev: PCIDevice, memory: SharedMemory) -> None:
    with pytest.raises(DMAError) as caught:
        testdev.dma.map(memory, iova=BASE + 1)
    error = caught.value
    assert (error.iova, error.size, error.op, error.uri) == (
        BASE + 1,
        4 * PAGE,
        f"dma map of {4 * PAGE} bytes at iova {BASE + 1:#x}",
        testdev.uri,
    )


# Unmapping


@pytest.mark.parametrize(
    ("iova", "size"),
    [
        (BASE, PAGE),
        (BASE, 5 * PAGE),
        (BASE + PAGE, 3 * PAGE),
        (BASE - PAGE, 5 * PAGE),
        (BASE + 4 * PAGE, PAGE),
        (0, PAGE),
    ],
)
@pytest.mark.usefixtures("mapped")
def test_only_what_was_mapped_can_be_unmapped(testdev: PCIDevice, iova: int, size: int) -> None:
    with pytest.raises(DMAError, match="not mapped as such") as caught:
        testdev.dma.unmap(iova, size)
    assert caught.value.errno == errno.ENOENT


def test_a_refused_unmap_leaves_the_map(testdev: PCIDevice, mapped: int) -> None:
    with pytest.raises(DMAError):
        testdev.dma.unmap(mapped, PAGE)
    assert ranges(testdev) == [(mapped, 4 * PAGE)]


def test_a_map_can_be_unmapped_once(testdev: PCIDevice, memory: SharedMemory) -> None:
    iova = testdev.dma.map(memory)
    testdev.dma.unmap(iova, memory.size)
    with pytest.raises(DMAError):
        testdev.dma.unmap(iova, memory.size)


def test_an_address_can_be_used_again(testdev: PCIDevice, memory: SharedMemory) -> None:
    for _ in range(3):
        testdev.dma.map(memory, iova=BASE)
        testdev.dma.unmap(BASE, memory.size)
    assert ranges(testdev) == []


def test_everything_can_be_unmapped_at_once(testdev: PCIDevice, memory: SharedMemory) -> None:
    testdev.dma.map(memory)
    for _ in range(3):
        testdev.dma.alloc(PAGE)
    testdev.dma.unmap_all()
    assert ranges(testdev) == []


def test_buffers_are_closed_when_everything_is_unmapped(testdev: PCIDevice) -> None:
    buffer = testdev.dma.alloc(PAGE)
    testdev.dma.unmap_all()
    with pytest.raises(DeviceClosed):
        _ = buffer.array


def test_the_device_reaches_nothing_after_everything_was_unmapped(testdev: PCIDevice) -> None:
    testdev.bus_master = True
    iova = testdev.dma.alloc(PAGE).iova
    testdev.dma.unmap_all()
    assert run_dma(testdev, TO_CLIENT, iova, 0, PAGE) == errno.EFAULT


def test_addresses_can_be_used_again_after_everything_was_unmapped(
    testdev: PCIDevice, memory: SharedMemory
) -> None:
    testdev.dma.map(memory, iova=BASE)
    testdev.dma.unmap_all()
    testdev.dma.map(memory, iova=BASE)
    testdev.dma.unmap_all()
    assert ranges(testdev) == []


def test_nothing_is_unmapped_while_a_view_of_one_buffer_lives(testdev: PCIDevice) -> None:
    buffers = [testdev.dma.alloc(PAGE) for _ in range(2)]
    view = buffers[1].array
    with pytest.raises(BufferInUse):
        testdev.dma.unmap_all()
    del view
    assert len(ranges(testdev)) == 2


def test_many_buffers_never_overlap(testdev: PCIDevice) -> None:
    buffers = [testdev.dma.alloc(random.randint(1, 4) * PAGE) for _ in range(500)]
    taken = sorted((buffer.iova, buffer.iova + buffer.size) for buffer in buffers)
    for buffer in buffers:
        buffer.close()
    assert all(end <= start for (_, end), (start, _) in pairwise(taken))


def test_many_buffers_can_be_closed_in_any_order(testdev: PCIDevice) -> None:
    with testdev.dma.alloc(500 * PAGE) as whole:
        before = whole.iova
    buffers = [testdev.dma.alloc(PAGE) for _ in range(500)]
    random.shuffle(buffers)
    for buffer in buffers:
        buffer.close()
    with testdev.dma.alloc(500 * PAGE) as whole:
        assert whole.iova == before


# Buffers


def test_closing_a_buffer_unmaps_it(testdev: PCIDevice) -> None:
    testdev.dma.alloc(PAGE).close()
    assert ranges(testdev) == []


def test_leaving_the_with_statement_closes_a_buffer(testdev: PCIDevice) -> None:
    with testdev.dma.alloc(PAGE) as buffer:
        pass
    with pytest.raises(DeviceClosed, match="dma buffer"):
        _ = buffer.array


def test_a_buffer_can_be_closed_twice(testdev: PCIDevice) -> None:
    buffer = testdev.dma.alloc(PAGE)
    buffer.close()
    with testdev.dma.alloc(PAGE):
        buffer.close()
        assert len(ranges(testdev)) == 1


def derived(buffer: DMABuffer) -> dict[str, object]:
    """Everything that numpy makes of a buffer without a copy."""
    return {
        "all": buffer.array,
        "slice": buffer.array[10:20],
        "wider": buffer.array.view("<u8"),
        "shape": buffer.array.reshape(64, -1),
        "memoryview": buffer.array.data,
    }


@pytest.mark.parametrize("kind", ["all", "slice", "wider", "shape", "memoryview"])
def test_a_buffer_with_a_view_is_not_closed(testdev: PCIDevice, kind: str) -> None:
    buffer = testdev.dma.alloc(PAGE)
    view = derived(buffer)[kind]
    with pytest.raises(BufferInUse, match="numpy view"):
        buffer.close()
    del view
    buffer.close()


def test_a_buffer_that_was_not_closed_stays_mapped(testdev: PCIDevice) -> None:
    testdev.bus_master = True
    testdev.bars[MEMORY].write_bytes(0, b"\xab" * PAGE)
    buffer = testdev.dma.alloc(PAGE)
    view = buffer.array
    with pytest.raises(BufferInUse):
        buffer.close()
    assert run_dma(testdev, TO_CLIENT, buffer.iova, 0, PAGE) == 0
    assert set(view.tolist()) == {0xAB}


def test_a_buffer_can_be_closed_when_its_view_is_gone(testdev: PCIDevice) -> None:
    buffer = testdev.dma.alloc(PAGE)
    view = buffer.array
    with pytest.raises(BufferError):
        buffer.close()
    del view
    buffer.close()
    assert ranges(testdev) == []


def test_in_use_tells_whether_a_view_is_alive(testdev: PCIDevice) -> None:
    with testdev.dma.alloc(PAGE) as buffer:
        seen = [buffer.in_use]
        view = buffer.array[:1]
        seen.append(buffer.in_use)
        del view
        seen.append(buffer.in_use)
    assert seen == [False, True, False]


def test_closing_the_device_closes_its_buffers(testdev: PCIDevice) -> None:
    buffer = testdev.dma.alloc(PAGE)
    testdev.close()
    with pytest.raises(DeviceClosed):
        _ = buffer.array


def test_a_buffer_can_be_closed_after_its_device(testdev: PCIDevice) -> None:
    buffer = testdev.dma.alloc(PAGE)
    testdev.close()
    buffer.close()
    assert ranges(testdev) == []


def test_a_view_that_is_alive_when_the_device_is_closed_is_warned_of(testdev: PCIDevice) -> None:
    buffer = testdev.dma.alloc(PAGE)
    view = buffer.array
    with pytest.warns(ResourceWarning, match=f"{buffer.iova:#x}"):
        testdev.close()
    assert view.size == PAGE


def test_a_view_of_a_buffer_outlives_the_device(testdev: PCIDevice) -> None:
    view = testdev.dma.alloc(PAGE).array
    view[:] = 7
    with pytest.warns(ResourceWarning):
        testdev.close()
    view[0] = 8
    assert view[:3].tolist() == [8, 7, 7]


@pytest.mark.usefixtures("mapped")
def test_memory_of_the_caller_stays_the_callers(testdev: PCIDevice, memory: SharedMemory) -> None:
    memory.array[:] = 5
    testdev.close()
    assert memory.array[0] == 5
