# SPDX-License-Identifier: BSD-3-Clause
"""Bulk access and views: any offset, any length, mapped or not, and always the same bytes."""

from __future__ import annotations

import array
import os

import numpy as np
import pytest

from pyvfio.errors import DeviceClosed, RegionError, UnsupportedError
from pyvfio.pci.device import PCIDevice
from tests.conformance.devices import (
    MEMORY,
    MEMORY_SIZE,
    MIB,
    PORTS,
    REGISTERS,
    TO_CLIENT,
    Dev,
    run_dma,
)

PLACES = {
    "mapped": 0,
    "second mapped area": 32 * MIB,
    "trapped": 4 * MIB,
    "mapped into trapped": MIB - 1000,
    "trapped into mapped": 32 * MIB - 1000,
    "end": MEMORY_SIZE - 4096,
}
"""Offsets in BAR 2, named after what they are where the device offers two mapped areas."""

PLACE = pytest.mark.parametrize("offset", PLACES.values(), ids=PLACES.keys())


@PLACE
@pytest.mark.parametrize("shift", [0, 1, 3, 7])
def test_what_was_written_is_read_back(testdev: PCIDevice, offset: int, shift: int) -> None:
    bar = testdev.bars[MEMORY]
    for size in (1, 2, 3, 5, 8, 13, 2047):
        data = os.urandom(size)
        bar.write_bytes(offset + shift, data)
        assert bar.read_bytes(offset + shift, size) == data, f"{size} bytes"


@PLACE
def test_bytes_around_a_write_stay(testdev: PCIDevice, offset: int) -> None:
    bar = testdev.bars[MEMORY]
    bar.write_bytes(offset, b"\xaa" * 64)
    bar.write_bytes(offset + 5, b"\x55" * 11)
    assert bar.read_bytes(offset, 64) == b"\xaa" * 5 + b"\x55" * 11 + b"\xaa" * 48


@pytest.mark.parametrize("offset", [1, MIB - 5, 8 * MIB + 3])
def test_more_than_a_message_takes(testdev: PCIDevice, offset: int) -> None:
    bar, data = testdev.bars[MEMORY], os.urandom(2 * MIB + 77)
    bar.write_bytes(offset, data)
    assert bar.read_bytes(offset, len(data)) == data


def test_the_whole_of_ports(testdev: PCIDevice) -> None:
    ports, data = testdev.bars[PORTS], os.urandom(32)
    ports.write_bytes(0, data)
    assert ports.read_bytes(0, 32) == data


def test_part_of_a_register(testdev: PCIDevice) -> None:
    bar = testdev.bars[REGISTERS]
    bar.write64(Dev.SCRATCH, 0x8877665544332211)
    bar.write_bytes(Dev.SCRATCH + 1, b"\xa1\xa2\xa3")
    assert bar.read_bytes(Dev.SCRATCH, 8) == bytes.fromhex("11a1a2a355667788")


@pytest.mark.parametrize("offset", [0, 4 * MIB])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_taken(
    testdev: PCIDevice, offset: int, kind: type[bytes | bytearray]
) -> None:
    bar = testdev.bars[MEMORY]
    bar.write_bytes(offset, kind(b"\x01\x02\x03\x04"))
    assert bar.read_bytes(offset, 4) == b"\x01\x02\x03\x04"


@pytest.mark.parametrize("offset", [0, 4 * MIB])
def test_a_buffer_of_wide_items_is_written_to_its_last_byte(
    testdev: PCIDevice, offset: int
) -> None:
    bar, items = testdev.bars[MEMORY], array.array("I", [1, 2, 3, 4])
    bar.write_bytes(offset, bytes(16))
    bar.write_bytes(offset, memoryview(items))
    assert bar.read_bytes(offset, 16) == items.tobytes()


@PLACE
def test_registers_and_bulk_see_the_same_memory(testdev: PCIDevice, offset: int) -> None:
    bar = testdev.bars[MEMORY]
    bar.write_bytes(offset, bytes(range(1, 9)))
    assert bar.read64(offset) == 0x0807060504030201


def test_nothing_can_be_read_at_the_end(testdev: PCIDevice) -> None:
    assert testdev.bars[MEMORY].read_bytes(MEMORY_SIZE, 0) == b""


def test_nothing_can_be_written_at_the_end(testdev: PCIDevice) -> None:
    bar = testdev.bars[MEMORY]
    bar.write8(MEMORY_SIZE - 1, 7)
    bar.write_bytes(MEMORY_SIZE, b"")
    assert bar.read8(MEMORY_SIZE - 1) == 7


@pytest.mark.parametrize(
    ("offset", "size"),
    [(MEMORY_SIZE - 1, 2), (MEMORY_SIZE + 1, 0), (-1, 1), (0, -1), (0, MEMORY_SIZE + 1)],
)
def test_a_range_that_leaves_the_bar_is_refused(testdev: PCIDevice, offset: int, size: int) -> None:
    with pytest.raises(RegionError, match="outside"):
        testdev.bars[MEMORY].read_bytes(offset, size)


def test_a_write_that_leaves_the_bar_changes_nothing(testdev: PCIDevice) -> None:
    bar = testdev.bars[MEMORY]
    bar.write_bytes(MEMORY_SIZE - 4, bytes(4))
    with pytest.raises(RegionError, match="outside"):
        bar.write_bytes(MEMORY_SIZE - 4, b"\xff" * 5)
    assert bar.read_bytes(MEMORY_SIZE - 4, 4) == bytes(4)


def test_bulk_access_after_close_is_refused(testdev: PCIDevice) -> None:
    bar = testdev.bars[MEMORY]
    testdev.close()
    with pytest.raises(DeviceClosed):
        bar.read_bytes(0, 16)


# Views


def test_a_view_shows_what_registers_write(testdev: PCIDevice) -> None:
    bar = testdev.bars[MEMORY]
    view = bar.view(0x100, 8).view("<u4")
    bar.write32(0x104, 0xCAFE0000)
    assert view[1] == 0xCAFE0000


def test_registers_show_what_a_view_writes(testdev: PCIDevice) -> None:
    bar = testdev.bars[MEMORY]
    bar.view(0x200, 8)[:] = range(1, 9)
    assert bar.read64(0x200) == 0x0807060504030201


def test_a_view_and_a_transfer_beyond_it_see_the_same_memory(testdev: PCIDevice) -> None:
    bar = testdev.bars[MEMORY]
    area = bar.mappable[0]
    end = area.offset + area.size
    size = min(200, MEMORY_SIZE - end + 100)
    bar.view(end - 100, 100)[:] = 0
    bar.write_bytes(end - 100, b"\x77" * size)
    assert bytes(bar.view(end - 100, 100)) == b"\x77" * 100


def test_the_device_sees_what_a_view_writes(testdev: PCIDevice) -> None:
    testdev.bus_master = True
    testdev.bars[MEMORY].view(0x300, 64)[:] = range(64)
    with testdev.dma.alloc(4096) as buffer:
        run_dma(testdev, TO_CLIENT, buffer.iova, 0x300, 64)
        assert buffer.array[:64].tolist() == list(range(64))


def test_a_view_without_a_size_goes_to_the_end_of_the_area(testdev: PCIDevice) -> None:
    bar = testdev.bars[MEMORY]
    area = bar.mappable[0]
    assert bar.view(area.offset + 0x1000).size == area.size - 0x1000


def test_every_mapped_area_can_be_viewed(testdev: PCIDevice) -> None:
    bar = testdev.bars[MEMORY]
    for number, area in enumerate(bar.mappable, 1):
        bar.view(area.offset, 1)[0] = number
    assert [bar.read8(area.offset) for area in bar.mappable] == list(
        range(1, len(bar.mappable) + 1)
    )


def test_a_view_that_leaves_its_area_is_refused(testdev: PCIDevice) -> None:
    bar = testdev.bars[MEMORY]
    area = bar.mappable[0]
    with pytest.raises(UnsupportedError, match="no mapped area"):
        bar.view(area.offset, area.size + 1)


@pytest.mark.parametrize(("offset", "size"), [(-1, 2), (MEMORY_SIZE, 1), (0, -1)])
def test_a_view_of_what_is_not_there_is_refused(testdev: PCIDevice, offset: int, size: int) -> None:
    with pytest.raises(UnsupportedError, match="no mapped area"):
        testdev.bars[MEMORY].view(offset, size)


def test_a_view_of_ports_is_refused(testdev: PCIDevice) -> None:
    with pytest.raises(UnsupportedError, match="read_bytes"):
        testdev.bars[PORTS].view()


def test_a_view_of_configuration_space_is_refused(testdev: PCIDevice) -> None:
    with pytest.raises(UnsupportedError, match="config"):
        testdev.config.view()


def test_a_view_after_close_is_refused(testdev: PCIDevice) -> None:
    bar = testdev.bars[MEMORY]
    testdev.close()
    with pytest.raises(DeviceClosed):
        bar.view()


def test_a_view_that_is_alive_at_close_is_warned_of(testdev: PCIDevice) -> None:
    view = testdev.bars[MEMORY].view(0, 16)
    with pytest.warns(ResourceWarning, match="a numpy view of bar2 is alive"):
        testdev.close()
    assert view.size == 16


def test_a_view_outlives_the_device(testdev: PCIDevice) -> None:
    view = testdev.bars[MEMORY].view(0, 16)
    view[:] = 3
    with pytest.warns(ResourceWarning):
        testdev.close()
    view[0] = 4
    assert view.tolist() == [4] + [3] * 15


# Reads into a buffer of the caller's


@PLACE
def test_a_buffer_of_the_callers_is_filled(testdev: PCIDevice, offset: int) -> None:
    bar, data = testdev.bars[MEMORY], os.urandom(4096)
    bar.write_bytes(offset, data)
    for target in (bytearray(4096), np.zeros(4096, np.uint8), np.zeros((32, 32), "<u4")):
        bar.read_into(offset, target)
        assert bytes(target) == data


def test_a_buffer_longer_than_a_message_is_filled(testdev: PCIDevice) -> None:
    bar, data = testdev.bars[MEMORY], os.urandom(2 * MIB + 77)
    bar.write_bytes(8 * MIB, data)
    target = bytearray(len(data))
    bar.read_into(8 * MIB, target)
    assert target == data


def test_part_of_a_buffer_is_filled(testdev: PCIDevice) -> None:
    bar, target = testdev.bars[MEMORY], bytearray(b"." * 20)
    bar.write_bytes(4 * MIB, b"0123456789")
    bar.read_into(4 * MIB, memoryview(target)[5:15])
    assert target == b".....0123456789....."


def test_a_buffer_that_cannot_be_written_is_refused(testdev: PCIDevice) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        testdev.bars[MEMORY].read_into(0, b"1234")


def test_a_buffer_that_reaches_behind_the_region_is_refused(testdev: PCIDevice) -> None:
    with pytest.raises(RegionError):
        testdev.bars[MEMORY].read_into(MEMORY_SIZE - 4, bytearray(5))


def test_an_empty_buffer_is_filled_at_once(testdev: PCIDevice) -> None:
    testdev.bars[MEMORY].read_into(0, bytearray())
