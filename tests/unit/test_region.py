# SPDX-License-Identifier: BSD-3-Clause
"""Regions where the device fails: short transfers, errors, areas without memory behind them."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from pyvfio.errors import (
    ConnectionLost,
    DeviceClosed,
    RegionError,
    RemoteError,
    RemoteProtocolError,
    UnsupportedError,
    VFIOTimeout,
)
from pyvfio.pci.bars import BAR
from pyvfio.pci.config import ConfigSpace
from pyvfio.posting import Posting
from pyvfio.region import Region
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import IRQSetFlags, PCIRegion, RegionFlags
from pyvfio.vectors import DeviceInfo, DeviceIO, IRQInfo, MmapArea, RegionInfo
from tests.support import ROOT

SOON = 5.0
PAGE = 4096
SIZE = 4 * PAGE
READ_WRITE = RegionFlags.READ | RegionFlags.WRITE


class FakeIO(DeviceIO):
    """A device of one region: keeps what it is asked, and fails or falls short where told to."""

    def __init__(self) -> None:
        self.memory = bytearray(SIZE)
        self.calls: list[tuple[str, int, int]] = []
        self.posted: list[bool] = []
        self.flushes = 0
        self.flush_error: Exception | None = None
        self.error: Exception | None = None
        self.most = SIZE

    def flush(self) -> None:
        self.flushes += 1
        if self.flush_error is not None:
            raise self.flush_error

    def region_read(self, index: int, offset: int, size: int) -> Buffer:
        self._note("read", offset, size)
        return self.memory[offset : offset + min(size, self.most)]

    def region_write(self, index: int, offset: int, data: Buffer, *, posted: bool = False) -> int:
        self._note("write", offset, len(data))
        self.posted.append(posted)
        taken = min(len(data), self.most)
        self.memory[offset : offset + taken] = data[:taken]
        return taken

    def _note(self, verb: str, offset: int, size: int) -> None:
        self.calls.append((verb, offset, size))
        if self.error is not None:
            raise self.error

    def get_info(self) -> DeviceInfo:
        raise NotImplementedError

    def get_region_info(self, index: int) -> RegionInfo:
        raise NotImplementedError

    def get_irq_info(self, index: int) -> IRQInfo:
        raise NotImplementedError

    def set_irqs(
        self,
        index: int,
        action: IRQSetFlags,
        start: int,
        count: int,
        *,
        eventfds: Sequence[int] | None = None,
        bools: Sequence[bool] | None = None,
    ) -> None:
        raise NotImplementedError

    def reset(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is owned."""


@pytest.fixture
def device() -> FakeIO:
    """The device."""
    return FakeIO()


@pytest.fixture
def region(device: FakeIO) -> Region:
    """Its region, of which nothing can be mapped."""
    return Region(device, RegionInfo(0, READ_WRITE, SIZE), "fake:x")


@pytest.fixture
def fd() -> Iterator[int]:
    """A file as large as the region."""
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        yield file.fileno()


def mapped(device: FakeIO, fd: int | None, *areas: tuple[int, int], offset: int = 0) -> BAR:
    """A BAR with mapped areas."""
    found = tuple(MmapArea(start, size) for start, size in areas)
    info = RegionInfo(2, READ_WRITE | RegionFlags.MMAP, SIZE, fd, offset, found)
    return BAR(device, info, "fake:x")


# One access, one call


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_read_is_one_call_of_the_vector(device: FakeIO, region: Region, width: int) -> None:
    region.read(16, width)
    assert device.calls == [("read", 16, width)]


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_write_is_one_call_of_the_vector(device: FakeIO, region: Region, width: int) -> None:
    region.write(16, width, 1)
    assert device.calls == [("write", 16, width)]


def test_a_mapped_access_is_no_call_of_the_vector(device: FakeIO, fd: int) -> None:
    bar = mapped(device, fd, (0, SIZE))
    bar.write32(0, 5)
    bar.read_bytes(0, 16)
    bar.close()
    assert device.calls == []


def test_mapped_memory_is_that_of_the_file(device: FakeIO, fd: int) -> None:
    bar = mapped(device, fd, (PAGE, PAGE))
    bar.write16(PAGE + 2, 0x2211)
    bar.close()
    assert os.pread(fd, 4, PAGE) == b"\0\0\x11\x22"


def test_the_region_starts_where_the_descriptor_says(device: FakeIO, fd: int) -> None:
    bar = mapped(device, fd, (0, PAGE), offset=2 * PAGE)
    bar.write8(1, 0x77)
    bar.close()
    assert os.pread(fd, 2, 2 * PAGE) == b"\0\x77"


def test_what_lies_between_mapped_areas_is_read_from_the_device(device: FakeIO, fd: int) -> None:
    device.memory[PAGE : PAGE + 4] = b"\x04\x03\x02\x01"
    bar = mapped(device, fd, (0, PAGE), (2 * PAGE, PAGE))
    value = bar.read32(PAGE)
    bar.close()
    assert value == 0x01020304


@pytest.mark.parametrize("offset", [PAGE - 4, 2 * PAGE - 4])
def test_what_crosses_the_border_of_an_area_is_one_transfer(
    device: FakeIO, fd: int, offset: int
) -> None:
    bar = mapped(device, fd, (0, PAGE), (2 * PAGE, PAGE))
    bar.read_bytes(offset, 8)
    bar.close()
    assert device.calls == [("read", offset, 8)]


# Views of areas


@pytest.mark.parametrize(
    ("offset", "size"),
    [(PAGE, 1), (PAGE, None), (0, PAGE + 1), (PAGE - 1, 2), (2 * PAGE - 1, 2), (3 * PAGE, 1)],
)
def test_a_view_outside_of_the_areas_is_refused(
    device: FakeIO, fd: int, offset: int, size: int | None
) -> None:
    bar = mapped(device, fd, (0, PAGE), (2 * PAGE, PAGE))
    with pytest.raises(UnsupportedError, match="no mapped area"):
        bar.view(offset, size)
    bar.close()


@pytest.mark.parametrize(
    ("offset", "size", "found"),
    [(0, None, PAGE), (1, None, PAGE - 1), (2 * PAGE, None, PAGE), (PAGE - 1, 1, 1), (8, 0, 0)],
)
def test_a_view_within_an_area_is_given(
    device: FakeIO, fd: int, offset: int, size: int | None, found: int
) -> None:
    bar = mapped(device, fd, (0, PAGE), (2 * PAGE, PAGE))
    seen = bar.view(offset, size).size
    bar.close()
    assert seen == found


def test_a_view_of_what_may_only_be_read_is_read_only(device: FakeIO, fd: int) -> None:
    info = RegionInfo(2, RegionFlags.READ | RegionFlags.MMAP, SIZE, fd, areas=(MmapArea(0, SIZE),))
    region = Region(device, info, "fake:x")
    writable = region.view().flags.writeable
    region.close()
    assert not writable


@pytest.mark.parametrize("size", [16, 256, PAGE + 256])
def test_the_last_page_of_a_region_may_be_a_part_of_one(device: FakeIO, fd: int, size: int) -> None:
    flags = READ_WRITE | RegionFlags.MMAP
    region = Region(device, RegionInfo(2, flags, size, fd, areas=(MmapArea(0, size),)), "fake:x")
    region.write32(size - 4, 0x12345678)
    assert region.read32(size - 4) == 0x12345678
    with pytest.raises(RegionError, match="outside"):
        region.read8(size)
    shape = region.view().shape
    region.close()
    assert (shape, device.calls) == ((size,), [])
    assert os.pread(fd, 4, size - 4) == b"\x78\x56\x34\x12"


# Areas that cannot be mapped


UNMAPPABLE: dict[str, Callable[[FakeIO, int], BAR]] = {
    "no descriptor": lambda device, _: mapped(device, None, (0, SIZE)),
    "area not at a page": lambda device, fd: mapped(device, fd, (16, PAGE)),
    "area of no whole pages": lambda device, fd: mapped(device, fd, (0, 100)),
    "region not at a page": lambda device, fd: mapped(device, fd, (0, PAGE), offset=8),
    "no file": lambda device, _: mapped(device, 1_000_000, (0, PAGE)),
}
CANNOT_BE_MAPPED = pytest.mark.parametrize("make", UNMAPPABLE.values(), ids=UNMAPPABLE.keys())


@CANNOT_BE_MAPPED
def test_what_cannot_be_mapped_is_read_and_written_instead(
    device: FakeIO, fd: int, make: Callable[[FakeIO, int], BAR]
) -> None:
    bar = make(device, fd)
    bar.write32(16, 7)
    assert (bar.read32(16), len(device.calls)) == (7, 2)


@CANNOT_BE_MAPPED
def test_what_cannot_be_mapped_is_logged(
    device: FakeIO,
    fd: int,
    make: Callable[[FakeIO, int], BAR],
    caplog: pytest.LogCaptureFixture,
) -> None:
    make(device, fd).read32(16)
    assert "cannot map bar2" in caplog.text


@CANNOT_BE_MAPPED
def test_what_cannot_be_mapped_is_not_called_mapped(
    device: FakeIO, fd: int, make: Callable[[FakeIO, int], BAR]
) -> None:
    assert not make(device, fd).mapped


# Transfers that fail


@pytest.mark.parametrize("width", [2, 4, 8])
def test_a_read_that_falls_short_is_an_error(device: FakeIO, region: Region, width: int) -> None:
    device.most = width - 1
    with pytest.raises(RegionError, match=f"{width - 1} of {width} bytes") as caught:
        region.read(8, width)
    assert caught.value.errno == errno.EIO


def test_a_bulk_read_that_falls_short_is_an_error(device: FakeIO, region: Region) -> None:
    device.most = 100
    with pytest.raises(RegionError, match="100 of 101 bytes"):
        region.read_bytes(0, 101)


def test_a_write_that_falls_short_is_an_error(device: FakeIO, region: Region) -> None:
    device.most = 3
    with pytest.raises(RegionError, match="3 of 4 bytes"):
        region.write32(0, 0)


def test_a_bulk_write_that_falls_short_is_an_error(device: FakeIO, region: Region) -> None:
    device.most = 100
    with pytest.raises(RegionError, match="100 of 101 bytes"):
        region.write_bytes(0, bytes(101))


ACCESS: dict[str, Callable[[Region], object]] = {
    "read": lambda region: region.read32(8),
    "write": lambda region: region.write32(8, 0),
    "bulk read": lambda region: region.read_bytes(8, 5),
    "bulk write": lambda region: region.write_bytes(8, bytes(5)),
}
EACH_ACCESS = pytest.mark.parametrize("access", ACCESS.values(), ids=ACCESS.keys())


@EACH_ACCESS
@pytest.mark.parametrize("kind", [OSError, RemoteError])
def test_a_refused_access_keeps_its_number(
    device: FakeIO, region: Region, access: Callable[[Region], object], kind: type[OSError]
) -> None:
    device.error = (
        RemoteError("?", errno=errno.ENXIO) if kind is RemoteError else OSError(errno.ENXIO, "?")
    )
    with pytest.raises(RegionError, match=r"^(read|write) region 0\+0x8 on fake:x") as caught:
        access(region)
    assert caught.value.errno == errno.ENXIO


@EACH_ACCESS
@pytest.mark.parametrize("error", [ConnectionLost("gone"), RemoteProtocolError("nonsense")])
def test_an_error_that_says_what_happened_passes_unchanged(
    device: FakeIO, region: Region, access: Callable[[Region], object], error: Exception
) -> None:
    device.error = error
    with pytest.raises(type(error)) as caught:
        access(region)
    assert caught.value is error


@EACH_ACCESS
def test_an_access_after_close_does_not_reach_the_device(
    device: FakeIO, region: Region, access: Callable[[Region], object]
) -> None:
    region.close()
    with pytest.raises(DeviceClosed):
        access(region)
    assert device.calls == []


# Memory behind a map that is gone


@pytest.fixture
def truncated(device: FakeIO, fd: int) -> Iterator[BAR]:
    """A BAR whose file lost everything but its first page after it was mapped."""
    bar = mapped(device, fd, (0, SIZE))
    bar.write32(8, 0)
    os.ftruncate(fd, PAGE)
    yield bar
    bar.close()


GONE: dict[str, Callable[[Region], object]] = {
    "read8": lambda bar: bar.read8(PAGE),
    "read16": lambda bar: bar.read16(PAGE),
    "read32": lambda bar: bar.read32(PAGE),
    "read64": lambda bar: bar.read64(PAGE),
    "write8": lambda bar: bar.write8(PAGE, 0),
    "write16": lambda bar: bar.write16(PAGE, 0),
    "write32": lambda bar: bar.write32(PAGE, 0),
    "write64": lambda bar: bar.write64(PAGE, 0),
    "bulk read": lambda bar: bar.read_bytes(PAGE - 8, 16),
    "bulk write": lambda bar: bar.write_bytes(PAGE - 8, bytes(16)),
}


@pytest.mark.parametrize("access", GONE.values(), ids=GONE.keys())
def test_memory_that_is_gone_is_an_error(
    truncated: BAR, access: Callable[[Region], object]
) -> None:
    with pytest.raises(RegionError, match="no memory answers") as caught:
        access(truncated)
    assert caught.value.errno == errno.EFAULT


def test_memory_that_is_left_still_answers(truncated: BAR) -> None:
    with suppress(RegionError):
        truncated.read32(PAGE)
    truncated.write32(8, 0xFFFF_FFFF)
    assert truncated.read32(8) == 0xFFFF_FFFF


def test_all_ones_are_a_value_like_any_other(device: FakeIO, fd: int) -> None:
    bar = mapped(device, fd, (0, SIZE))
    bar.write64(0, (1 << 64) - 1)
    found = bar.read8(0), bar.read16(0), bar.read32(0), bar.read64(0)
    bar.close()
    assert found == tuple((1 << bits) - 1 for bits in (8, 16, 32, 64))


READ_ONLY = """
import tempfile
from pyvfio.errors import RegionError
from pyvfio.region import Region
from pyvfio.uapi.vfio import RegionFlags
from pyvfio.vectors import MmapArea, RegionInfo
from tests.unit.test_region import SIZE, FakeIO

with tempfile.TemporaryFile() as file:
    file.truncate(SIZE)
    flags = RegionFlags.READ | RegionFlags.MMAP
    info = RegionInfo(0, flags, SIZE, file.fileno(), areas=(MmapArea(0, SIZE),))
    region = Region(FakeIO(), info, "fake:x")
    try:
        {access}
    except RegionError:
        print("refused")
"""


@pytest.mark.parametrize("access", ["region.write32(0, 1)", "region.write_bytes(0, b'123')"])
def test_a_mapped_region_that_may_only_be_read_refuses_writes(access: str) -> None:
    done = run_python(READ_ONLY.format(access=access))
    assert (done.returncode, done.stdout) == (0, b"refused\n")


def test_a_short_read_into_a_buffer_is_an_error(device: FakeIO, region: Region) -> None:
    device.most = 3
    with pytest.raises(RegionError, match="3 of 8 bytes"):
        region.read_into(0, bytearray(8))


# Posted writes


@pytest.fixture
def posting(device: FakeIO) -> Posting:
    """Of a device that posts where it may."""
    return Posting(device.flush, default=True)


@pytest.fixture
def bar(device: FakeIO, posting: Posting) -> BAR:
    """A memory BAR of it, of which nothing can be mapped."""
    bar = BAR(device, RegionInfo(0, READ_WRITE, SIZE), "fake:x", posting)
    bar.decode(0x0)
    return bar


def test_writes_are_waited_for(device: FakeIO, region: Region) -> None:
    region.write32(0, 0)
    assert device.posted == [False]


def test_writes_to_a_memory_bar_are_posted(device: FakeIO, bar: BAR) -> None:
    bar.write32(0, 0)
    bar.write_bytes(0, b"123")
    assert device.posted == [True, True]


def test_writes_are_waited_for_where_it_was_asked_for(device: FakeIO, bar: BAR) -> None:
    bar.posted = False
    bar.write32(0, 0)
    assert device.posted == [False]


def test_writes_are_posted_where_it_was_asked_for(device: FakeIO) -> None:
    bar = BAR(device, RegionInfo(0, READ_WRITE, SIZE), "fake:x", Posting(device.flush))
    bar.decode(0x0)
    bar.write32(0, 0)
    bar.posted = True
    bar.write32(0, 0)
    assert device.posted == [False, True]


def test_writes_to_configuration_space_are_never_posted(device: FakeIO, posting: Posting) -> None:
    config = ConfigSpace(device, RegionInfo(PCIRegion.CONFIG, READ_WRITE, SIZE), "fake:x", posting)
    config.posted = True
    config.write32(0, 0)
    assert device.posted == [False]


def test_writes_to_ports_are_never_posted(device: FakeIO, posting: Posting) -> None:
    bar = BAR(device, RegionInfo(4, READ_WRITE, SIZE), "fake:x", posting)
    bar.decode(0x1)
    bar.posted = True
    bar.write32(0, 0)
    assert device.posted == [False]


def test_writes_to_other_regions_are_never_posted(device: FakeIO, posting: Posting) -> None:
    region = Region(device, RegionInfo(9, READ_WRITE, SIZE), "fake:x", posting)
    region.posted = True
    region.write32(0, 0)
    assert device.posted == [False]


def test_nothing_is_posted_once_a_region_of_the_device_is_mapped(
    device: FakeIO, posting: Posting, bar: BAR, fd: int
) -> None:
    areas = (MmapArea(0, PAGE),)
    other = Region(
        device, RegionInfo(2, READ_WRITE | RegionFlags.MMAP, SIZE, fd, 0, areas), "fake:x", posting
    )
    bar.write32(0, 0)
    assert device.flushes == 0
    other.write32(0, 0)
    assert device.flushes == 1
    bar.posted = True
    bar.write32(0, 0)
    assert (device.posted, device.flushes) == ([True, False], 1)
    other.close()


def test_who_posts_while_another_thread_ends_posting_waits_for_it(
    device: FakeIO, posting: Posting, bar: BAR, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored to mapped memory behind it would overtake it."""
    bar.posted = True

    def write(index: int, offset: int, data: Buffer, *, posted: bool = False) -> int:
        posting.end()
        return FakeIO.region_write(device, index, offset, data, posted=posted)

    monkeypatch.setattr(device, "region_write", write)
    bar.write32(0, 0)
    assert (device.posted, device.flushes) == ([True], 2)
    bar.write32(0, 0)
    assert (device.posted, device.flushes) == ([True, False], 2)


def test_nothing_is_mapped_until_what_was_posted_is_done(
    device: FakeIO, posting: Posting, fd: int
) -> None:
    areas = (MmapArea(0, PAGE),)
    other = Region(
        device, RegionInfo(2, READ_WRITE | RegionFlags.MMAP, SIZE, fd, 0, areas), "fake:x", posting
    )
    device.flush_error = VFIOTimeout("no reply")
    for _ in range(2):
        with pytest.raises(VFIOTimeout):
            other.write32(0, 0xFFFFFFFF)
    assert os.pread(fd, 4, 0) == bytes(4)
    device.flush_error = None
    other.write32(0, 0xFFFFFFFF)
    assert os.pread(fd, 4, 0) == b"\xff" * 4
    other.close()


def test_what_cannot_be_mapped_leaves_writes_posted(
    device: FakeIO, posting: Posting, bar: BAR
) -> None:
    other = Region(device, RegionInfo(2, READ_WRITE, SIZE), "fake:x", posting)
    other.read32(0)
    bar.write32(0, 0)
    assert device.posted == [True]


# The end


def run_python(code: str) -> subprocess.CompletedProcess[bytes]:
    """Run a program that may crash."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)


RACE = """
import tempfile, threading
from pyvfio.errors import DeviceClosed
from tests.unit.test_region import SIZE, FakeIO, mapped

def use(bar, started):
    try:
        while True:
            {access}
            started.set()
    except DeviceClosed:
        pass

with tempfile.TemporaryFile() as file:
    file.truncate(SIZE)
    for _ in range(100):
        bar, started = mapped(FakeIO(), file.fileno(), (0, SIZE)), threading.Event()
        user = threading.Thread(target=use, args=(bar, started))
        user.start()
        started.wait()
        bar.close()
        user.join()
"""


@pytest.mark.parametrize(
    "access", ["bar.read32(0)", "bar.write32(0, 1)", "bar.read_bytes(0, SIZE)"]
)
def test_a_region_may_be_closed_while_a_thread_uses_it(access: str) -> None:
    done = run_python(RACE.format(access=access))
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_region_that_is_closed_in_the_middle_of_an_access_is_not_mapped_again(
    device: FakeIO, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = mapped(device, fd, (0, SIZE))
    check = bar._check_range

    def check_and_close(verb: str, offset: int, size: int) -> None:
        check(verb, offset, size)
        bar.close()

    monkeypatch.setattr(bar, "_check_range", check_and_close)
    with pytest.raises(DeviceClosed):
        bar.read32(0)


def test_every_area_is_released_where_a_warning_is_an_error(device: FakeIO, fd: int) -> None:
    bar = mapped(device, fd, (0, PAGE), (2 * PAGE, PAGE))
    first, address = bar.view(0, PAGE), bar.view(2 * PAGE, PAGE).ctypes.data
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with suppress(ResourceWarning):
            bar.close()
    with open("/proc/self/maps") as maps:
        still = f"{address:x}-" in maps.read()
    assert (still, first.size) == (False, PAGE)


def test_close_can_be_repeated(device: FakeIO, fd: int) -> None:
    bar = mapped(device, fd, (0, SIZE))
    bar.read8(0)
    bar.close()
    bar.close()
    with pytest.raises(DeviceClosed):
        bar.read8(0)


# Threads


def test_a_region_is_closed_while_others_use_it(device: FakeIO, fd: int) -> None:
    def use(bar: BAR, started: threading.Barrier) -> None:
        started.wait()
        with suppress(DeviceClosed):
            while True:
                bar.write32(8, 5)
                assert bar.read32(8) == 5
                assert bar.read64(8) == 5
                assert bar.read_bytes(8, 4) == b"\5\0\0\0"

    with ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            bar, started = mapped(device, fd, (0, SIZE)), threading.Barrier(5)
            users = [pool.submit(use, bar, started) for _ in range(4)]
            started.wait()
            bar.close()
            assert [user.result(SOON) for user in users] == [None] * 4
    assert device.calls == []


@pytest.mark.parametrize(
    "access",
    [
        lambda region: region.read32(SIZE),
        lambda region: region.read32(-4),
        lambda region: region.read64(SIZE),
        lambda region: region.write32(2, 0),
        lambda region: region.write32(0, 1 << 32),
    ],
    ids=["read", "below 0", "wide read", "write", "value"],
)
def test_an_error_keeps_nothing_of_a_region_alive(
    device: FakeIO, access: Callable[[Region], object]
) -> None:
    region = Region(device, RegionInfo(PCIRegion.BAR0, READ_WRITE, SIZE), "fake:")
    alive = weakref.ref(region)
    gc.disable()
    try:
        with suppress(RegionError, ValueError):
            access(region)
        del region
        assert alive() is None
    finally:
        gc.enable()
