# SPDX-License-Identifier: BSD-3-Clause
"""A region's mapped bytes as memory for another device's DMA."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pyvfio.emulator.memory import RAMDeviceRegion
from pyvfio.errors import DeviceClosed, UnsupportedError
from pyvfio.memory import SharedMemory
from pyvfio.native import mmio
from pyvfio.region import Region
from pyvfio.uapi.vfio import RegionFlags
from pyvfio.vectors import MmapArea, RegionInfo
from tests.unit.test_region import PAGE, FakeIO

FLAGS = RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP
SIZE = 4 * PAGE


@pytest.fixture
def file() -> Iterator[SharedMemory]:
    """What the device lets be mapped: its region is all but the first page."""
    with SharedMemory(PAGE + SIZE) as found:
        yield found


def info(file: SharedMemory) -> RegionInfo:
    """The region; its second and third page can be mapped."""
    return RegionInfo(2, FLAGS, SIZE, file.fd, PAGE, (MmapArea(PAGE, 2 * PAGE),))


@pytest.fixture
def region(file: SharedMemory) -> Iterator[Region]:
    found = Region(FakeIO(), info(file), "fake:x")
    yield found
    found.close()


def test_address_and_descriptor_reach_the_same_bytes(region: Region) -> None:
    memory = region.device_memory(2 * PAGE, PAGE)
    os.pwrite(memory.fd, b"here", memory.start)
    assert mmio.copy_out(memory.address + memory.start, 4) == bytearray(b"here")
    assert region.read_bytes(2 * PAGE, 4) == b"here"


@pytest.mark.parametrize(("offset", "size"), [(0, PAGE), (PAGE, 3 * PAGE), (3 * PAGE, PAGE)])
def test_what_is_not_mapped_cannot_be_given_away(region: Region, offset: int, size: int) -> None:
    with pytest.raises(UnsupportedError, match="no mapped area"):
        region.device_memory(offset, size)


def test_the_bytes_stay_mapped_where_the_region_is_closed(
    file: SharedMemory, region: Region
) -> None:
    memory = region.device_memory(PAGE, PAGE)
    region.close()
    file.array[2 * PAGE] = 7
    assert mmio.copy_out(memory.address + memory.start, 1) == bytearray([7])


def test_the_descriptor_of_a_closed_region_is_not_given_away(region: Region) -> None:
    memory = region.device_memory(PAGE, PAGE)
    region.close()
    with pytest.raises(DeviceClosed):
        _ = memory.fd
    with pytest.raises(DeviceClosed):
        region.device_memory(PAGE, PAGE)


def test_nor_is_that_of_a_device_that_was_reached_again(file: SharedMemory, region: Region) -> None:
    memory = region.device_memory(PAGE, PAGE)
    region.move_to(FakeIO(), info(file))
    with pytest.raises(DeviceClosed, match="reached again"):
        _ = memory.fd
    assert region.device_memory(PAGE, PAGE).fd == file.fd


# As guest memory


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_the_guest_reads_and_writes_it_with_its_own_width(region: Region, width: int) -> None:
    guest = RAMDeviceRegion("bar", region, MmapArea(2 * PAGE, PAGE))
    guest.write(16, width, 0x81)
    assert guest.read(16, width) == region.read(2 * PAGE + 16, width) == 0x81
    guest.write_bytes(1, b"abc")
    assert guest.read_bytes(0, 5) == b"\0abc\0"


def test_where_the_device_does_not_answer_the_guest_finds_ones(
    file: SharedMemory, region: Region, caplog: pytest.LogCaptureFixture
) -> None:
    guest = RAMDeviceRegion("bar", region, MmapArea(PAGE, PAGE))
    os.ftruncate(file.fd, 0)
    guest.write(0, 4, 5)
    assert guest.read(0, 4) == 0xFFFF_FFFF
    assert [record.getMessage()[:26] for record in caplog.records] == [
        "a write of the guest: writ",
        "a read of the guest: read ",
    ]
    region.close()
    with pytest.raises(DeviceClosed):
        guest.read(0, 4)


def test_what_may_only_be_read_is_read_only_for_the_guest(file: SharedMemory) -> None:
    flags = RegionFlags.READ | RegionFlags.MMAP
    region = Region(FakeIO(), replace(info(file), flags=flags), "fake:x")
    guest = RAMDeviceRegion("bar", region, MmapArea(PAGE, PAGE))
    assert guest.readonly
    region.close()


def test_what_cannot_be_mapped_is_no_guest_memory(region: Region) -> None:
    with pytest.raises(UnsupportedError):
        RAMDeviceRegion("bar", region, MmapArea(0, PAGE))
    with pytest.raises(ValueError, match="as large as its memory"):
        RAMDeviceRegion("bar", region, MmapArea(PAGE, PAGE)).resize(2 * PAGE)
