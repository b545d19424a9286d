# SPDX-License-Identifier: BSD-3-Clause
"""DMA of a hosted model to memory that its client has passed: copies, and views of it."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from pyvfio.errors import DMAError
from pyvfio.memory import MemoryKind, SharedMemory
from pyvfio.server import dma_maps, native_paths
from pyvfio.server.deferred import DeferredAnswers
from pyvfio.server.dma_maps import DMAMaps
from pyvfio.server.function import PCIFunction
from pyvfio.server.guest_memory import GuestMemory
from pyvfio.server.model import DeviceModel, Identity
from pyvfio.server.quotas import Quotas
from pyvfio.uapi import pci
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.pci import Command
from pyvfio.uapi.vfio import DMAMapFlags, PCIRegion
from pyvfio.wire import header, messages

IOVA, PAGE, SIZE = 0x10000, 4096, 16 * 4096
READ, WRITE = DMAMapFlags.READ, DMAMapFlags.WRITE
DEFERRED = DeferredAnswers()
LARGE = 40000
"""Bytes that are copied without a second copy."""


class Bare(DeviceModel):
    """Nothing but its DMA."""

    identity = Identity(0x1234, 1, 0xFF0000)


class NoKicks:
    """A client without eventfds."""

    def pause(self) -> None:
        """Nothing kicks."""

    def resume(self) -> None:
        """Nothing kicks."""


def never(command: header.Command, _: object) -> object:
    raise AssertionError(f"the client is asked: {command.name}")


class Hosted:
    """A model, and the memory of a client that lets it be bus master."""

    def __init__(self) -> None:
        self.model = Bare()
        self.function = PCIFunction(self.model)
        self.maps = DMAMaps(Quotas(), self.function, self.function.direct_dma)
        self.guest = GuestMemory(self.maps, never, 1 << 20)
        self.function.attach_client(self.guest, NoKicks())
        enable = (Command.MEMORY | Command.MASTER).to_bytes(2, "little")
        self.function.regions.write(PCIRegion.CONFIG, pci.COMMAND.offset, enable, DEFERRED)

    def map(self, fd: int | None, iova: int = IOVA, size: int = SIZE, flags: int = 3) -> None:
        self.maps.map(messages.DMAMap(flags=flags, offset=0, iova=iova, size=size), fd)

    def unmap(self, iova: int = IOVA, size: int = SIZE) -> None:
        self.maps.unmap(messages.DMAUnmap(flags=0, iova=iova, size=size))


@pytest.fixture(params=["direct", "general"])
def hosted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosted]:
    monkeypatch.setenv(native_paths.VARIABLE, "0" if request.param == "general" else "1")
    hosted = Hosted()
    yield hosted
    hosted.function.detach_client()
    hosted.function.close()


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    """A client's memory, sealed."""
    with SharedMemory(SIZE, MemoryKind.MEMFD) as memory:
        memory.array[:] = np.arange(SIZE) % 251
        yield memory


def refused(hosted: Hosted, address: int, size: int, writable: bool = False) -> int | None:
    """The errno that a view is refused with."""
    with pytest.raises(DMAError) as caught, hosted.model.dma_view(address, size, writable):
        pass
    return caught.value.errno


# Copies


@pytest.mark.parametrize("size", [1, 2, 8, 4096, LARGE, SIZE])
def test_copies_are_of_what_is_there(hosted: Hosted, memory: SharedMemory, size: int) -> None:
    hosted.map(memory.fd)
    assert hosted.model.dma_read(IOVA + SIZE - size, size) == memory.array[SIZE - size :].tobytes()
    hosted.model.dma_write(IOVA, b"\xab" * size)
    assert (memory.array[:size] == 0xAB).all()
    assert size == SIZE or memory.array[size] == size % 251


def test_a_read_of_one_byte_does_not_change_what_others_share(
    hosted: Hosted, memory: SharedMemory
) -> None:
    hosted.map(memory.fd)
    memory.array[0] = 65
    found = hosted.model.dma_read(IOVA, 1)
    memory.array[0] = 66
    assert (found, hosted.model.dma_read(IOVA, 1), bytes([65])) == (b"A", b"B", b"A")


def test_elements_of_any_size_are_written_as_bytes(hosted: Hosted, memory: SharedMemory) -> None:
    hosted.map(memory.fd)
    hosted.model.dma_write(IOVA, np.array([1, 2], np.uint32).data)
    assert memory.array[:9].tolist() == [1, 0, 0, 0, 2, 0, 0, 0, 8]


def test_a_copy_over_the_border_of_two_maps_is_of_both(
    hosted: Hosted, memory: SharedMemory
) -> None:
    hosted.map(memory.fd, IOVA, PAGE)
    hosted.map(memory.fd, IOVA + PAGE, PAGE)
    both = hosted.model.dma_read(IOVA + PAGE - 4, 8)
    assert both == memory.array[PAGE - 4 : PAGE].tobytes() + memory.array[:4].tobytes()


@pytest.mark.parametrize(
    ("address", "size"),
    [(IOVA - 1, 8), (IOVA + SIZE - 4, 8), (0, 8), (1 << 63, 8), (IOVA, SIZE + 1)],
)
def test_a_read_of_what_is_not_mapped_is_refused(
    hosted: Hosted, memory: SharedMemory, address: int, size: int
) -> None:
    hosted.map(memory.fd)
    with pytest.raises(DMAError) as caught:
        hosted.model.dma_read(address, size)
    assert caught.value.errno == errno.EFAULT


def test_a_map_that_there_is_no_memory_for_is_as_if_it_had_not_been(
    hosted: Hosted, memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    before = dma_maps._mappings._used
    with monkeypatch.context() as patch:
        patch.setattr(hosted.maps.direct, "add", fail)
        with pytest.raises(MemoryError):
            hosted.map(memory.fd)
    assert dma_maps._mappings._used == before
    with pytest.raises(DMAError):
        hosted.model.dma_read(IOVA, 8)
    hosted.map(memory.fd)
    assert hosted.model.dma_read(IOVA, 8) == memory.array[:8].tobytes()


@pytest.mark.parametrize("address", [-1, 1 << 64, 1 << 70])
def test_an_address_that_there_cannot_be_is_refused(
    hosted: Hosted, memory: SharedMemory, address: int
) -> None:
    hosted.map(memory.fd)
    with pytest.raises(DMAError, match="not all mapped"):
        hosted.model.dma_read(address, 8)
    with pytest.raises(DMAError, match="not all mapped"):
        hosted.model.dma_read_into(address, bytearray(8))
    with pytest.raises(DMAError, match="not all mapped"):
        hosted.model.dma_write(address, bytes(8))


def test_a_read_of_nothing_gives_nothing(hosted: Hosted) -> None:
    assert hosted.model.dma_read(IOVA, 0) == b""


def test_a_read_of_what_may_only_be_written_is_refused(
    hosted: Hosted, memory: SharedMemory
) -> None:
    hosted.map(memory.fd, flags=int(WRITE))
    with pytest.raises(DMAError) as caught:
        hosted.model.dma_read(IOVA, 8)
    assert caught.value.errno == errno.EPERM


def test_a_write_to_what_may_only_be_read_is_refused(hosted: Hosted, memory: SharedMemory) -> None:
    hosted.map(memory.fd, flags=int(READ))
    with pytest.raises(DMAError) as caught:
        hosted.model.dma_write(IOVA, b"12345678")
    assert caught.value.errno == errno.EPERM


@pytest.mark.parametrize("size", [8, LARGE])
def test_a_copy_of_a_file_that_was_made_shorter_is_an_error(hosted: Hosted, size: int) -> None:
    with open(os.memfd_create("short"), "r+b", buffering=0) as file:
        file.truncate(SIZE)
        hosted.map(file.fileno())
        file.truncate(0)
        with pytest.raises(DMAError) as caught:
            hosted.model.dma_read(IOVA, size)
        assert caught.value.errno == errno.EFAULT
        with pytest.raises(DMAError):
            hosted.model.dma_write(IOVA, bytes(size))
        with pytest.raises(DMAError):
            hosted.model.dma_read_into(IOVA, bytearray(size))


@pytest.mark.parametrize(
    "target",
    [bytearray(40), np.zeros(40, np.uint8), memoryview(bytearray(40)), np.zeros((2, 5), np.uint32)],
    ids=["bytearray", "array", "memoryview", "elements of 4 bytes"],
)
def test_a_read_fills_a_buffer_of_the_model(
    hosted: Hosted, memory: SharedMemory, target: Buffer
) -> None:
    hosted.map(memory.fd)
    hosted.model.dma_read_into(IOVA + 8, target)
    assert bytes(target) == memory.array[8:48].tobytes()


def test_a_read_fills_a_buffer_over_the_border_of_two_maps(
    hosted: Hosted, memory: SharedMemory
) -> None:
    hosted.map(memory.fd, IOVA, PAGE)
    hosted.map(memory.fd, IOVA + PAGE, PAGE)
    target = np.zeros(2, np.uint32)
    hosted.model.dma_read_into(IOVA + PAGE - 4, target.data)
    assert target.tobytes() == memory.array[PAGE - 4 : PAGE].tobytes() + memory.array[:4].tobytes()


def test_a_read_into_nothing_does_nothing(hosted: Hosted) -> None:
    hosted.model.dma_read_into(IOVA, bytearray())


@pytest.mark.parametrize(
    "target",
    [
        bytes(8),
        memoryview(bytes(8)),
        memoryview(bytearray(8))[::2],
        np.zeros(16, np.uint8)[::2],
        np.zeros((4, 4), np.uint8).T,
    ],
    ids=["bytes", "read-only", "every other byte", "every other of an array", "transposed"],
)
def test_a_buffer_that_cannot_be_filled_is_refused(
    hosted: Hosted, memory: SharedMemory, target: Buffer
) -> None:
    hosted.map(memory.fd)
    with pytest.raises(ValueError, match=r"writable|read-only|contiguous"):
        hosted.model.dma_read_into(IOVA, target)
    assert not np.asarray(target).any()


@pytest.mark.parametrize(("flags", "error"), [(0, errno.EFAULT), (WRITE, errno.EPERM)])
def test_a_buffer_is_not_filled_from_what_cannot_be_read(
    hosted: Hosted, memory: SharedMemory, flags: int, error: int
) -> None:
    if flags:
        hosted.map(memory.fd, flags=int(flags))
    target = bytearray(b"before")
    with pytest.raises(DMAError) as caught:
        hosted.model.dma_read_into(IOVA, target)
    assert (caught.value.errno, bytes(target)) == (error, b"before")


def test_copies_while_maps_come_and_go_are_of_the_map_or_refused(
    hosted: Hosted, memory: SharedMemory
) -> None:
    hosted.map(memory.fd, IOVA + 8 * PAGE, PAGE)
    over, found = threading.Event(), set[bytes]()

    def copy(page: int) -> None:
        while not over.is_set():
            with contextlib.suppress(DMAError):
                found.add(hosted.model.dma_read(IOVA + page * PAGE, 16))

    copiers = [threading.Thread(target=copy, args=(page,)) for page in (0, 2, 8)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for copier in copiers:
            copier.start()
        for _ in range(500):
            for page in (4, 0, 2):
                hosted.map(memory.fd, IOVA + page * PAGE, PAGE)
            hosted.unmap(IOVA, 8 * PAGE)
    finally:
        sys.setswitchinterval(before)
        over.set()
        for copier in copiers:
            copier.join()
    assert found == {memory.array[:16].tobytes()}


# Views


def test_a_view_is_the_memory_itself(hosted: Hosted, memory: SharedMemory) -> None:
    hosted.map(memory.fd)
    with hosted.model.dma_view(IOVA + 8, 100, writable=True) as array:
        assert array.tolist() == memory.array[8:108].tolist()
        array[:] = 7
        memory.array[10] = 9
        assert array[2] == 9
    assert memory.array[7:12].tolist() == [7, 7, 7, 9, 7]


def test_a_view_to_read_cannot_be_written(hosted: Hosted, memory: SharedMemory) -> None:
    hosted.map(memory.fd, flags=int(READ))
    with hosted.model.dma_view(IOVA, PAGE) as array, pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.parametrize(
    ("address", "size"),
    [(IOVA - 1, 2), (IOVA, SIZE + 1), (IOVA + SIZE, 1), (IOVA, 0), (IOVA, -1), (0, 1 << 64)],
)
def test_there_is_no_view_of_what_is_not_within_a_map(
    hosted: Hosted, memory: SharedMemory, address: int, size: int
) -> None:
    hosted.map(memory.fd)
    assert refused(hosted, address, size) == errno.ENOTSUP


@pytest.mark.parametrize(("flags", "writable"), [(READ, True), (WRITE, True), (WRITE, False)])
def test_there_is_no_view_beyond_the_permission(
    hosted: Hosted, memory: SharedMemory, flags: DMAMapFlags, writable: bool
) -> None:
    hosted.map(memory.fd, flags=int(flags))
    assert refused(hosted, IOVA, 8, writable) == errno.ENOTSUP


def test_there_is_no_view_of_memory_that_messages_reach(hosted: Hosted) -> None:
    hosted.map(None)
    assert refused(hosted, IOVA, 8) == errno.ENOTSUP


def test_there_is_no_view_of_a_file_that_could_be_made_shorter(hosted: Hosted) -> None:
    with SharedMemory(SIZE, MemoryKind.POSIX) as memory:
        hosted.map(memory.fd)
        assert refused(hosted, IOVA, 8) == errno.ENOTSUP
        assert hosted.model.dma_read(IOVA, 8) == bytes(8)


def test_there_is_no_view_while_bus_mastering_is_off(hosted: Hosted, memory: SharedMemory) -> None:
    hosted.map(memory.fd)
    hosted.function.reset(DEFERRED)
    assert refused(hosted, IOVA, 8) == errno.EPERM


def test_what_was_written_through_a_view_is_logged(hosted: Hosted, memory: SharedMemory) -> None:
    hosted.map(memory.fd)
    hosted.guest.log.start(PAGE, [])
    with hosted.model.dma_view(IOVA, PAGE):
        pass
    with hosted.model.dma_view(IOVA + 2 * PAGE, 2 * PAGE, writable=True):
        pass
    report = hosted.guest.log.report(IOVA, SIZE, PAGE)
    assert int.from_bytes(report, "little") == 0b1100


def test_an_unmap_waits_for_a_view(hosted: Hosted, memory: SharedMemory) -> None:
    hosted.map(memory.fd)
    unmapping = threading.Thread(target=hosted.unmap)
    with hosted.model.dma_view(IOVA, PAGE):
        unmapping.start()
        unmapping.join(0.1)
        assert unmapping.is_alive()
    unmapping.join()
    assert refused(hosted, IOVA, 8) == errno.ENOTSUP


def test_maps_of_any_number_are_found(hosted: Hosted, memory: SharedMemory) -> None:
    order = np.random.default_rng(1).permutation(500)
    for number in order:
        hosted.map(memory.fd, IOVA + 2 * PAGE * int(number), PAGE)
    for number in order[:250]:
        hosted.unmap(IOVA + 2 * PAGE * int(number), PAGE)
    gone = {int(number) for number in order[:250]}
    for number in range(500):
        address = IOVA + 2 * PAGE * number
        if number in gone:
            assert refused(hosted, address, PAGE) == errno.ENOTSUP
        else:
            assert hosted.model.dma_read(address, 4) == memory.array[:4].tobytes()
