# SPDX-License-Identifier: BSD-3-Clause
"""Dirty tracking: what servers write by messages, exactly; which ranges a kernel's device logs.

No device of a kernel that logs is at hand: a made-up vector stands in for one.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyvfio
from pyvfio.container import Container
from pyvfio.dirty import DirtyKind
from pyvfio.dirty_bitmap import bitmap_size
from pyvfio.errors import DMAError, UnsupportedError
from pyvfio.features import Features
from pyvfio.memory import DMABuffer, SharedMemory
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.layout import Buffer
from pyvfio.vectors import DeviceInfo, DeviceIO, IRQInfo, RegionInfo
from tests.conformance.devices import MEMORY, TO_CLIENT, run_dma
from tests.support import ServerProcess
from tests.unit.test_container import FakeIO

PAGE = 4096
GIB = 1 << 30
FOUR_GIB = 4 * GIB
TOP = 1 << 64


# Writes that pass through this process


@pytest.fixture(scope="module")
def secure(testdev_server: ServerProcess) -> Iterator[PCIDevice]:
    """A test device that is given no descriptor of memory."""
    with pyvfio.open(testdev_server.uri, secure_dma=True) as dev:
        dev.reset()
        dev.bus_master = True
        yield dev


@pytest.fixture(scope="module")
def buffer(secure: PCIDevice) -> Iterator[DMABuffer]:
    """Memory of the device, whose pages are tracked."""
    with secure.dma.alloc(64 * PAGE) as found:
        assert secure.dma.dirty.start() is DirtyKind.WRITES
        yield found
        secure.dma.dirty.stop()


@settings(max_examples=25)
@given(
    writes=st.lists(st.tuples(st.integers(0, 64 * PAGE - 1), st.integers(1, 3 * PAGE)), max_size=4),
    part=st.tuples(st.integers(0, 63), st.integers(1, 64)),
)
def test_what_a_server_writes_by_messages_is_told_exactly(
    secure: PCIDevice,
    buffer: DMABuffer,
    writes: list[tuple[int, int]],
    part: tuple[int, int],
) -> None:
    expected: set[int] = set()
    for start, length in writes:
        count = min(length, 64 * PAGE - start)
        assert run_dma(secure, TO_CLIENT, buffer.iova + start, 0, count) == 0
        expected |= set(range(start // PAGE, (start + count - 1) // PAGE + 1))
    first, end = part[0], min(64, part[0] + part[1])
    size = (end - first) * PAGE
    told = secure.dma.dirty.report(buffer.iova + first * PAGE, size).page_numbers() + first
    rest = secure.dma.dirty.report(buffer.iova, buffer.size).page_numbers()
    assert set(told.tolist()) == {page for page in expected if first <= page < end}
    assert set(rest.tolist()) == expected - set(told.tolist())


def test_reads_and_refused_writes_are_not_told(secure: PCIDevice, buffer: DMABuffer) -> None:
    assert run_dma(secure, 1, buffer.iova, 0, PAGE) == 0
    assert run_dma(secure, TO_CLIENT, buffer.iova + 63 * PAGE, 0, 2 * PAGE) != 0
    assert secure.dma.dirty.report(buffer.iova, buffer.size).count == 0


def test_no_page_that_changes_while_reports_are_made_is_missed(
    secure: PCIDevice, buffer: DMABuffer
) -> None:
    memory = secure.bars[MEMORY].view()
    memory[:PAGE] = np.frombuffer(os.urandom(PAGE), np.uint8) | 1
    buffer.array[:] = 0
    done, told = threading.Event(), set()

    def write() -> None:
        for page in range(16):
            run_dma(secure, TO_CLIENT, buffer.iova + page * PAGE, 0, PAGE)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    copies: dict[int, bytes] = {}
    while True:
        last = done.is_set()
        for page in secure.dma.dirty.report(buffer.iova, buffer.size).page_numbers().tolist():
            told.add(page)
            copies[page] = bytes(buffer.array[page * PAGE : (page + 1) * PAGE])
        if last:
            break
    thread.join()
    assert told == set(range(16))
    assert b"".join(copies[page] for page in range(16)) == bytes(buffer.array[: 16 * PAGE])
    del memory


# Devices of a kernel


class SecureIO(FakeIO):
    """A backend that shares no memory."""

    shares_memory = False


class LoggingIO(DeviceIO):
    """A vector of a device that logs as the kernel has it: ranges, and a log that outlives maps."""

    def __init__(self) -> None:
        self.ranges: list[Sequence[tuple[int, int]]] = []
        self.dirty: set[int] = set()
        self.asked: list[tuple[object, ...]] = []
        self.error: OSError | None = None
        self.logging = False

    def feature(self, flags: int, data: Buffer = b"", size: int = 0) -> Buffer:
        return data

    def logging_start(self, page_size: int, ranges: Sequence[tuple[int, int]]) -> int:
        self.logging = True
        self.ranges.append(ranges)
        return page_size

    def logging_stop(self) -> None:
        self.logging = False

    def logging_report(self, iova: int, size: int, page_size: int) -> Buffer:
        self.asked.append((iova, size))
        if self.error is not None:
            raise self.error
        bitmap = bytearray(bitmap_size(size, page_size))
        for address in [found for found in self.dirty if iova <= found < iova + size]:
            page = (address - iova) // page_size
            bitmap[page // 8] |= 1 << page % 8
            self.dirty.remove(address)
        return bitmap

    def get_info(self) -> DeviceInfo:
        raise AssertionError

    def get_region_info(self, index: int) -> RegionInfo:
        raise AssertionError(index)

    def get_irq_info(self, index: int) -> IRQInfo:
        raise AssertionError(index)

    def set_irqs(self, *arguments: object, **options: object) -> None:
        raise AssertionError(arguments, options)

    def region_read(self, index: int, offset: int, size: int) -> Buffer:
        raise AssertionError(index, offset, size)

    def region_write(self, index: int, offset: int, data: Buffer, *, posted: bool = False) -> int:
        raise AssertionError(index, offset, data, posted)

    def flush(self) -> None:
        raise AssertionError

    def reset(self) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


@dataclass
class Device:
    """A device of a container."""

    device_io: LoggingIO = field(default_factory=LoggingIO)

    @property
    def features(self) -> Features:
        return Features(lambda: self.device_io, lambda _: None, "test:")


@contextmanager
def mapped(*maps: tuple[int, int], devices: Sequence[Device] = ()) -> Iterator[Container]:
    """A container of devices, with maps at (address, pages), all of the same memory."""
    with SharedMemory(16 * PAGE) as memory:
        container = Container(FakeIO(), "test:")
        for device in devices:
            container.dirty.join(device)
        for iova, pages in maps:
            container.map(memory, iova=iova, size=pages * PAGE)
        yield container
        container.close()


def pages(container: Container, iova: int, size: int) -> list[int]:
    numbers: list[int] = container.dirty.report(iova, size).page_numbers().tolist()
    return numbers


@pytest.mark.parametrize(
    ("maps", "ranges"),
    [
        ([], [(0, PAGE)]),
        ([(0x1000, 1)], [(0x1000, PAGE)]),
        ([(0x1000, 1), (0x9000, 2)], [(0x1000, 0xA000)]),
        ([(0x1000, 1), (FOUR_GIB, 1), (5 * GIB, 1)], [(0x1000, PAGE), (FOUR_GIB, GIB + PAGE)]),
        ([(FOUR_GIB - PAGE, 2)], [(FOUR_GIB - PAGE, 2 * PAGE)]),
        ([(5 * GIB, 1), (TOP - 2 * PAGE, 1)], [(5 * GIB, TOP - PAGE - 5 * GIB)]),
    ],
    ids=["nothing", "one", "two", "above 4 GiB", "across 4 GiB", "at the top"],
)
def test_a_device_logs_from_the_first_to_the_last_map_on_either_side_of_4_gib(
    maps: list[tuple[int, int]], ranges: list[tuple[int, int]]
) -> None:
    device = Device()
    with mapped(*maps, devices=[device]) as container:
        assert container.dirty.start() is DirtyKind.DEVICE
        for iova, count in maps:
            assert pages(container, iova, count * PAGE) == []
    assert device.device_io.ranges == [tuple(ranges)]


def test_ranges_are_whole_pages() -> None:
    device = Device()
    with mapped((0x3000, 1), (0x9000, 1), devices=[device]) as container:
        container.dirty.start(4 * PAGE)
    assert device.device_io.ranges == [((0x0, 0xC000),)]


def test_what_is_mapped_outside_of_a_log_counts_as_written() -> None:
    device = Device()
    with (
        mapped((0x10_0000, 4), (0x20_0000, 4), devices=[device]) as container,
        SharedMemory(2 * PAGE) as memory,
    ):
        container.dirty.start()
        container.map(memory, iova=0x18_0000)
        container.map(memory, iova=0x30_0000)
        assert pages(container, 0x18_0000, 2 * PAGE) == []
        assert pages(container, 0x30_0000, 2 * PAGE) == [0, 1]
        assert pages(container, 0x30_0000, 2 * PAGE) == [0, 1]
        assert (0x30_0000, 2 * PAGE) not in device.device_io.asked


def test_the_last_page_of_all_cannot_be_logged_and_counts_as_written() -> None:
    device = Device()
    with mapped((TOP - 2 * PAGE, 2), devices=[device]) as container:
        container.dirty.start()
        assert pages(container, TOP - 2 * PAGE, 2 * PAGE) == [0, 1]


def test_the_logs_of_all_devices_are_merged() -> None:
    first, second = Device(), Device()
    with mapped((0, 8), devices=(first, second)) as container:
        container.dirty.start()
        first.device_io.dirty = {0, 3 * PAGE}
        second.device_io.dirty = {3 * PAGE, 5 * PAGE}
        assert pages(container, 0, 8 * PAGE) == [0, 3, 5]
        container.dirty.stop()
        assert not first.device_io.logging
        assert not second.device_io.logging


def test_one_device_that_does_not_log_spoils_the_log_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = Device(), Device()
    with mapped((0, 8), devices=(first, second)) as container:

        def refuse(*_: object) -> Buffer:
            raise OSError(errno.ENOTTY, "no such feature")

        monkeypatch.setattr(second.device_io, "feature", refuse)
        assert container.dirty.start() is DirtyKind.EVERYTHING
        assert first.device_io.ranges == []
        assert pages(container, 0, 8 * PAGE) == list(range(8))


def test_where_one_device_does_not_start_the_others_are_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = Device(), Device()
    with mapped((0, 8), devices=(first, second)) as container:

        def refuse(*_: object) -> int:
            assert first.device_io.logging
            raise OSError(errno.ENOMEM, "too much")

        monkeypatch.setattr(second.device_io, "logging_start", refuse)
        with pytest.raises(DMAError, match="start of dma logging"):
            container.dirty.start()
        assert not first.device_io.logging
        assert container.dirty.kind is None


def test_a_device_that_joins_is_not_trusted_to_have_logged() -> None:
    first, second = Device(), Device()
    with mapped((0, 8), devices=[first]) as container:
        container.dirty.start()
        container.dirty.join(second)
        assert container.dirty.kind is DirtyKind.EVERYTHING
        assert pages(container, 0, 8 * PAGE) == list(range(8))
        container.dirty.stop()
        assert not first.device_io.logging


def test_what_a_device_wrote_before_it_left_is_not_known() -> None:
    first, second = Device(), Device()
    with mapped((0, 8), devices=(first, second)) as container:
        container.dirty.start()
        container.dirty.leave(second)
        assert container.dirty.kind is DirtyKind.DEVICE
        assert pages(container, 0, 8 * PAGE) == list(range(8))
        first.device_io.dirty = {PAGE}
        assert pages(container, 0, 8 * PAGE) == [1]


def test_a_log_that_outlives_its_map_is_asked_for_after_the_unmap() -> None:
    device = Device()
    with mapped((0, 8), devices=[device]) as container:
        container.dirty.start()
        device.device_io.dirty = {PAGE}
        io = container._io
        assert isinstance(io, FakeIO)
        order: list[tuple[object, ...]] = []
        device.device_io.asked = order
        io.calls = order
        assert container.unmap(0, 8 * PAGE, dirty=True).page_numbers().tolist() == [1]
        assert order == [("unmap", 0, 8 * PAGE), (0, 8 * PAGE)]


def test_a_log_that_is_lost_after_the_unmap_counts_as_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = Device()
    with mapped((0, 8), devices=[device]) as container:
        container.dirty.start()
        device.device_io.error = OSError(errno.EIO, "lost")
        assert container.unmap(0, 8 * PAGE, dirty=True).count == 8
        assert "all of it counts as written" in caplog.text
        assert container.mappings == ()


# What has nothing to tell


def test_vectors_have_no_log_where_they_do_not_say_so() -> None:
    io = FakeIO()
    assert (io.dirty_page_sizes, io.shares_memory) == (0, True)
    for operation in (
        io.dirty_start,
        io.dirty_stop,
        lambda: io.dirty_report(0, PAGE, PAGE),
        lambda: io.dma_unmap_dirty(0, PAGE, PAGE),
    ):
        with pytest.raises(UnsupportedError):
            operation()


def test_a_map_with_too_many_pages_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with mapped((0, 8)) as container:
        monkeypatch.setattr("pyvfio.dirty.MAX_PAGES", 7)
        with pytest.raises(ValueError, match="too many"):
            container.dirty.start()
        container.dirty.start(2 * PAGE)
        assert pages(container, 0, 8 * PAGE) == [0, 1, 2, 3]


def test_a_map_with_too_many_pages_that_comes_later_is_told_in_larger_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with SharedMemory(8 * PAGE) as memory:
        container = Container(SecureIO(), "test:")
        assert container.dirty.start() is DirtyKind.WRITES
        monkeypatch.setattr("pyvfio.dirty.MAX_PAGES", 7)
        container.map(memory, iova=0)
        container.device_write(5 * PAGE, b"x")
        assert pages(container, 0, 8 * PAGE) == [4, 5]
        container.close()
