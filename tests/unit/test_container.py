# SPDX-License-Identifier: BSD-3-Clause
"""The container where its backend refuses, and what a server may do with our memory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from pyvfio.container import Container
from pyvfio.errors import (
    ConnectionLost,
    DeviceClosed,
    DMAError,
    RemoteError,
    UnsupportedError,
    VFIOTimeout,
)
from pyvfio.memory import MemoryKind, SharedMemory
from pyvfio.native.mmio import MappedMemory
from pyvfio.uapi.vfio import DMAMapFlags
from pyvfio.vectors import BatchFailure, ContainerIO, DMASource
from tests.support import ROOT, open_fds

PAGE = 4096
BASE = 0x10_0000


class FakeIO(ContainerIO):
    """A backend that does what it is told to: its error, if it has one, is raised."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.calls: list[tuple[object, ...]] = []
        self.ranges: Sequence[tuple[int, int]] = [(0, (1 << 64) - 1)]
        self.pages = PAGE
        self.most = 65535

    @property
    def iova_ranges(self) -> Sequence[tuple[int, int]]:
        return self.ranges

    @property
    def page_sizes(self) -> int:
        return self.pages

    @property
    def max_maps(self) -> int:
        return self.most

    def dma_map(
        self, iova: int, size: int, memory: DMASource, offset: int, flags: DMAMapFlags
    ) -> None:
        self._do("map", iova, size, memory, offset, flags)

    def dma_unmap(self, iova: int, size: int) -> None:
        self._do("unmap", iova, size)

    def dma_unmap_all(self) -> None:
        self._do("unmap all")

    def begin(self) -> None:
        self._do("begin")

    def commit(self) -> Sequence[BatchFailure]:
        self._do("commit")
        return ()

    def _do(self, *call: object) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Nothing is owned."""


@pytest.fixture
def backend() -> FakeIO:
    """A backend that refuses nothing yet."""
    return FakeIO()


@pytest.fixture
def container(backend: FakeIO) -> Iterator[Container]:
    """A container on the backend."""
    found = Container(backend, "fake:x")
    yield found
    found.close()


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    """Four pages, each filled with its own number."""
    with SharedMemory(4 * PAGE) as found:
        for page in range(4):
            found.array[page * PAGE : (page + 1) * PAGE] = page + 1
        yield found


def ranges(container: Container) -> list[tuple[int, int]]:
    """What is mapped, as address and size."""
    return [(entry.iova, entry.size) for entry in container.mappings]


# What the backend is asked


def test_a_map_says_where_and_what(
    backend: FakeIO, container: Container, memory: SharedMemory
) -> None:
    container.map(memory, iova=BASE, offset=PAGE, size=2 * PAGE, flags=DMAMapFlags.READ)
    assert backend.calls == [("map", BASE, 2 * PAGE, memory, PAGE, DMAMapFlags.READ)]


def test_an_unmap_says_exactly_what_was_mapped(
    backend: FakeIO, container: Container, memory: SharedMemory
) -> None:
    container.map(memory, iova=BASE)
    container.unmap(BASE, 4 * PAGE)
    assert backend.calls[1:] == [("unmap", BASE, 4 * PAGE)]


def test_what_is_wrong_is_not_even_asked(
    backend: FakeIO, container: Container, memory: SharedMemory
) -> None:
    with pytest.raises(DMAError):
        container.map(memory, iova=BASE + 1)
    assert backend.calls == []


def test_the_page_size_is_the_smallest_of_the_backend(backend: FakeIO) -> None:
    backend.pages = 1 << 16 | 1 << 21
    assert Container(backend, "fake:x").page_size == 1 << 16


def test_buffers_are_whole_pages_of_the_backend(backend: FakeIO) -> None:
    backend.pages = 1 << 16
    container = Container(backend, "fake:x")
    with container.alloc(1) as buffer:
        assert (buffer.size, buffer.iova % (1 << 16)) == (1 << 16, 0)


def test_a_map_of_small_pages_is_refused_where_the_backend_has_large_ones(
    backend: FakeIO, memory: SharedMemory
) -> None:
    backend.pages = 1 << 16
    with pytest.raises(DMAError, match="multiples of 65536"):
        Container(backend, "fake:x").map(memory, iova=1 << 16)


def test_an_address_outside_of_the_ranges_is_refused(backend: FakeIO, memory: SharedMemory) -> None:
    backend.ranges = [(0, 0xFEDF_FFFF), (0xFEF0_0000, 0x7F_FFFF_FFFF)]
    with pytest.raises(DMAError, match="0x0-0xfedfffff, 0xfef00000-0x7fffffffff"):
        Container(backend, "fake:x").map(memory, iova=0xFEE0_0000)


def test_an_address_across_a_hole_is_refused(backend: FakeIO, memory: SharedMemory) -> None:
    backend.ranges = [(0, 0xFEDF_FFFF), (0xFEE0_1000, 0x7F_FFFF_FFFF)]
    with pytest.raises(DMAError, match="outside of the addresses"):
        Container(backend, "fake:x").map(memory, iova=0xFEDF_F000)


def test_the_last_page_of_the_address_space_can_be_mapped(
    container: Container, memory: SharedMemory
) -> None:
    top = (1 << 64) - PAGE
    container.map(memory, iova=top, size=PAGE)
    assert ranges(container) == [(top, PAGE)]


# What the backend refuses


def test_a_refused_map_is_an_error_with_its_range(
    backend: FakeIO, container: Container, memory: SharedMemory
) -> None:
    backend.error = OSError(errno.ENOMEM, "?")
    with pytest.raises(DMAError) as caught:
        container.map(memory, iova=BASE)
    error = caught.value
    assert (error.iova, error.size, error.errno) == (BASE, 4 * PAGE, errno.ENOMEM)


def test_a_refused_map_is_not_in_the_table(
    backend: FakeIO, container: Container, memory: SharedMemory
) -> None:
    backend.error = RemoteError("?", errno=errno.EINVAL)
    with pytest.raises(DMAError):
        container.map(memory, iova=BASE)
    assert ranges(container) == []


def test_the_address_of_a_refused_map_is_free(
    backend: FakeIO, container: Container, memory: SharedMemory
) -> None:
    backend.error = OSError(errno.EINVAL, "?")
    with pytest.raises(DMAError):
        container.map(memory, iova=BASE)
    backend.error = None
    assert container.map(memory, iova=BASE) == BASE


@pytest.mark.parametrize(
    "error", [OSError(errno.EINVAL, "?"), ConnectionLost("gone"), KeyboardInterrupt()], ids=repr
)
def test_a_refused_buffer_leaves_no_memory(
    backend: FakeIO, container: Container, error: BaseException
) -> None:
    before = open_fds()
    backend.error = error
    with pytest.raises((DMAError, ConnectionLost, KeyboardInterrupt)):
        container.alloc(PAGE)
    assert (open_fds(), ranges(container)) == (before, [])


@pytest.mark.parametrize("error", [ConnectionLost("gone"), UnsupportedError("no maps here")])
def test_an_error_that_says_what_happened_passes_unchanged(
    backend: FakeIO, container: Container, memory: SharedMemory, error: Exception
) -> None:
    backend.error = error
    with pytest.raises(type(error)) as caught:
        container.map(memory)
    assert caught.value is error


def test_a_refused_unmap_leaves_the_map(
    backend: FakeIO, container: Container, memory: SharedMemory
) -> None:
    container.map(memory, iova=BASE)
    backend.error = OSError(errno.EBUSY, "?")
    with pytest.raises(DMAError, match="dma unmap of 16384 bytes at iova 0x100000"):
        container.unmap(BASE, 4 * PAGE)
    assert ranges(container) == [(BASE, 4 * PAGE)]


def test_the_address_of_a_refused_unmap_is_not_given_away(
    backend: FakeIO, container: Container, memory: SharedMemory
) -> None:
    backend.ranges = [(BASE, BASE + 4 * PAGE - 1)]
    container = Container(backend, "fake:x")
    container.map(memory)
    backend.error = OSError(errno.EBUSY, "?")
    with suppress(DMAError):
        container.unmap(BASE, 4 * PAGE)
    backend.error = None
    with pytest.raises(DMAError, match="free below"):
        container.alloc(PAGE)


def test_a_buffer_whose_unmap_is_refused_stays_usable(
    backend: FakeIO, container: Container
) -> None:
    buffer = container.alloc(PAGE)
    backend.error = OSError(errno.EBUSY, "?")
    with pytest.raises(DMAError):
        buffer.close()
    buffer.array[0] = 5
    assert container.device_read(buffer.iova, 1) == b"\x05"


def test_a_buffer_can_be_closed_when_its_backend_is_willing_again(
    backend: FakeIO, container: Container
) -> None:
    buffer = container.alloc(PAGE)
    backend.error = OSError(errno.EBUSY, "?")
    with suppress(DMAError):
        buffer.close()
    backend.error = None
    buffer.close()
    assert ranges(container) == []


def test_a_refused_unmap_of_everything_leaves_every_map(
    backend: FakeIO, container: Container, memory: SharedMemory
) -> None:
    buffer = container.alloc(PAGE, address_bits=20)
    container.map(memory, iova=BASE)
    backend.error = OSError(errno.EBUSY, "?")
    with pytest.raises(DMAError, match="EBUSY"):
        container.unmap_all()
    assert ranges(container) == [(buffer.iova, PAGE), (BASE, 4 * PAGE)]


def test_everything_is_unmapped_with_one_request(backend: FakeIO, container: Container) -> None:
    for _ in range(3):
        container.alloc(PAGE)
    container.unmap_all()
    assert backend.calls[3:] == [("unmap all",)]


def test_an_unmap_of_everything_is_quiet_where_the_device_is_gone(
    backend: FakeIO, container: Container
) -> None:
    container.alloc(PAGE)
    backend.error = ConnectionLost("gone")
    container.unmap_all()
    assert ranges(container) == []


def test_an_unmap_is_quiet_where_the_device_is_gone(
    backend: FakeIO, container: Container, memory: SharedMemory
) -> None:
    container.map(memory, iova=BASE)
    backend.error = ConnectionLost("gone")
    container.unmap(BASE, 4 * PAGE)
    assert ranges(container) == []


def test_no_more_maps_than_the_backend_takes(
    backend: FakeIO, container: Container, memory: SharedMemory
) -> None:
    backend.most = 2
    for page in range(2):
        container.map(memory, iova=BASE + page * PAGE, size=PAGE)
    with pytest.raises(DMAError, match="all 2 maps are in use") as caught:
        container.map(memory, iova=BASE + 2 * PAGE, size=PAGE)
    assert caught.value.errno == errno.ENOSPC


def test_a_map_that_was_taken_back_makes_room(
    backend: FakeIO, container: Container, memory: SharedMemory
) -> None:
    backend.most = 1
    container.map(memory, iova=BASE)
    container.unmap(BASE, 4 * PAGE)
    assert container.map(memory) in [entry.iova for entry in container.mappings]


def test_more_than_the_memory_has_is_not_mapped(
    backend: FakeIO, container: Container, memory: SharedMemory
) -> None:
    for offset, size in ((0, 5 * PAGE), (PAGE, 4 * PAGE), (5 * PAGE, PAGE)):
        with pytest.raises(DMAError, match="the memory has 16384 bytes"):
            container.map(memory, offset=offset, size=size)
    assert backend.calls == []


def test_more_than_the_file_has_is_not_mapped(container: Container) -> None:
    class File:
        """Memory that tells no size."""

        def __init__(self, fd: int) -> None:
            self.fd, self.address = fd, 0

    with tempfile.TemporaryFile() as file:
        file.truncate(PAGE)
        with pytest.raises(DMAError, match="the memory has 4096 bytes"):
            container.map(File(file.fileno()), size=2 * PAGE)
        container.map(File(file.fileno()), size=PAGE)


def test_an_unmap_of_everything_that_was_not_answered_may_be_carried_out_later(
    backend: FakeIO, container: Container
) -> None:
    buffer = container.alloc(PAGE)
    backend.error = VFIOTimeout("no reply")
    with pytest.raises(VFIOTimeout):
        container.unmap_all()
    backend.error = RemoteError("gone", errno=errno.ENOENT)
    buffer.close()
    assert ranges(container) == []


# What a server may ask of our memory


def test_a_read_gives_what_is_mapped(container: Container, memory: SharedMemory) -> None:
    container.map(memory, iova=BASE)
    assert container.device_read(BASE + PAGE - 2, 4) == b"\x01\x01\x02\x02"


def test_a_read_starts_at_the_offset_of_the_map(container: Container, memory: SharedMemory) -> None:
    container.map(memory, iova=BASE, offset=2 * PAGE, size=PAGE)
    assert container.device_read(BASE, 2) == b"\x03\x03"


def test_a_write_changes_what_is_mapped(container: Container, memory: SharedMemory) -> None:
    container.map(memory, iova=BASE)
    container.device_write(BASE + PAGE - 1, b"\xaa\xbb")
    assert bytes(memory.array[PAGE - 2 : PAGE + 2]) == b"\x01\xaa\xbb\x02"


@pytest.fixture
def scattered(container: Container, memory: SharedMemory) -> Container:
    """Pages 3, 1 and 0 of the memory side by side, a hole, and page 2."""
    for place, page in ((0, 3), (1, 1), (2, 0), (4, 2)):
        container.map(memory, iova=BASE + place * PAGE, offset=page * PAGE, size=PAGE)
    return container


def test_a_read_goes_across_maps(scattered: Container) -> None:
    data = scattered.device_read(BASE + PAGE - 1, PAGE + 2)
    assert data == b"\x04" + b"\x02" * PAGE + b"\x01"


def test_a_write_goes_across_maps(scattered: Container, memory: SharedMemory) -> None:
    scattered.device_write(BASE + PAGE - 1, b"\xa1" + bytes(PAGE) + b"\xa2")
    assert (memory.array[4 * PAGE - 1], memory.array[0]) == (0xA1, 0xA2)


@pytest.mark.parametrize(
    ("iova", "size"),
    [
        (BASE - 1, 2),
        (BASE + 3 * PAGE - 1, 2),
        (BASE + 3 * PAGE, 1),
        (BASE + 2 * PAGE, 3 * PAGE),
        (BASE + 5 * PAGE, 1),
        (0, 1 << 40),
        ((1 << 64) - 1, 1),
    ],
)
def test_a_range_with_a_hole_cannot_be_read(scattered: Container, iova: int, size: int) -> None:
    with pytest.raises(DMAError) as caught:
        scattered.device_read(iova, size)
    assert caught.value.errno == errno.EFAULT


def test_a_range_with_a_hole_is_not_written_in_part(
    scattered: Container, memory: SharedMemory
) -> None:
    before = bytes(memory.array)
    with pytest.raises(DMAError):
        scattered.device_write(BASE + 2 * PAGE, bytes(PAGE + 1))
    assert bytes(memory.array) == before


def test_nothing_can_be_read_anywhere(container: Container) -> None:
    assert container.device_read(BASE, 0) == b""


def test_a_read_needs_permission(container: Container, memory: SharedMemory) -> None:
    container.map(memory, iova=BASE, flags=DMAMapFlags.WRITE)
    with pytest.raises(DMAError, match="permission to READ") as caught:
        container.device_read(BASE, 1)
    assert caught.value.errno == errno.EPERM


def test_a_write_needs_permission(container: Container, memory: SharedMemory) -> None:
    container.map(memory, iova=BASE, flags=DMAMapFlags.READ)
    with pytest.raises(DMAError, match="permission to WRITE") as caught:
        container.device_write(BASE, b"\xff")
    assert (caught.value.errno, memory.array[0]) == (errno.EPERM, 1)


def test_a_write_across_maps_needs_the_permission_of_each(
    container: Container, memory: SharedMemory
) -> None:
    container.map(memory, iova=BASE, size=PAGE)
    container.map(memory, iova=BASE + PAGE, offset=PAGE, size=PAGE, flags=DMAMapFlags.READ)
    with pytest.raises(DMAError):
        container.device_write(BASE, bytes(2 * PAGE))
    assert memory.array[0] == 1


class FileMemory:
    """Memory of a file that somebody can truncate."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
        self.file.truncate(4 * PAGE)
        self.mapped = MappedMemory(self.fd, 0, 4 * PAGE)
        self.size = 4 * PAGE

    @property
    def address(self) -> int:
        return self.mapped.address

    @property
    def fd(self) -> int:
        return self.file.fileno()


@pytest.fixture
def truncated(container: Container) -> Iterator[int]:
    """The address of a map with a file behind it that lost its second half."""
    memory = FileMemory()
    iova = container.map(memory)
    os.ftruncate(memory.fd, 2 * PAGE)
    yield iova
    memory.file.close()


def test_memory_that_is_left_of_a_truncated_file_is_read(
    container: Container, truncated: int
) -> None:
    assert container.device_read(truncated, 2 * PAGE) == bytes(2 * PAGE)


def test_memory_that_is_gone_cannot_be_read(container: Container, truncated: int) -> None:
    with pytest.raises(DMAError) as caught:
        container.device_read(truncated + PAGE, 2 * PAGE)
    assert caught.value.errno == errno.EFAULT


def test_memory_that_is_gone_cannot_be_written(container: Container, truncated: int) -> None:
    with pytest.raises(DMAError) as caught:
        container.device_write(truncated + 3 * PAGE, b"1")
    assert caught.value.errno == errno.EFAULT


def test_memory_that_its_owner_closed_too_early_cannot_be_read(container: Container) -> None:
    memory = SharedMemory(PAGE)
    container.map(memory, iova=BASE)
    memory.close()
    with pytest.raises(DMAError) as caught:
        container.device_read(BASE, 1)
    assert caught.value.errno == errno.EFAULT


RACE = """
import threading, time
from pyvfio.container import Container
from pyvfio.errors import DMAError
from pyvfio.memory import SharedMemory
from tests.unit.test_container import BASE, FakeIO

SIZE = 1 << 20
container, done = Container(FakeIO(), "fake:x"), threading.Event()

def serve():
    while not done.is_set():
        try:
            {access}
        except DMAError:
            pass

server = threading.Thread(target=serve)
server.start()
for _ in range(100):
    with SharedMemory(SIZE) as memory:
        container.map(memory, iova=BASE)
        time.sleep(0.0002)
        container.unmap(BASE, SIZE)
done.set()
server.join()
"""


@pytest.mark.parametrize(
    "access",
    ["container.device_read(BASE, SIZE)", "container.device_write(BASE, bytes(SIZE))"],
    ids=["read", "write"],
)
def test_memory_may_go_while_a_server_reaches_for_it(access: str) -> None:
    code = RACE.format(access=access)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


# The end


def test_buffers_are_released_at_close(container: Container) -> None:
    before = len(open_fds())
    for kind in MemoryKind:
        container.alloc(PAGE, kind=kind)
    container.close()
    assert len(open_fds()) == before


def test_a_closed_container_maps_nothing(
    backend: FakeIO, container: Container, memory: SharedMemory
) -> None:
    container.close()
    with pytest.raises(DeviceClosed):
        container.map(memory)
    assert backend.calls == []


def test_nothing_is_unmapped_one_by_one_at_close(backend: FakeIO, container: Container) -> None:
    container.alloc(PAGE)
    container.close()
    assert [call[0] for call in backend.calls] == ["map"]


def test_every_buffer_is_released_where_a_warning_is_an_error(container: Container) -> None:
    before = len(open_fds())
    views = [container.alloc(PAGE).array for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with suppress(ResourceWarning):
            container.close()
    left = len(open_fds()) - before
    views.clear()
    assert left == 0
