# SPDX-License-Identifier: BSD-3-Clause
"""DMA that is done in C: only what is usual, and never behind the back of who changes something."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from pyvfio.memory import MemoryKind, SharedMemory
from pyvfio.native._native import ffi
from pyvfio.native.dma import DirectDMA
from pyvfio.server.dirty_log import DirtyLog
from pyvfio.server.dma_gate import DMAGate
from tests.unit.test_server_dma_view import IOVA, PAGE, SIZE, Hosted

READ, WRITE, BOTH = 1, 2, 3
END = 1 << 64
MASTER = 4
COMMAND = 1
"""Where the command register is in what these tests have for configuration space."""


@pytest.fixture
def config() -> bytearray:
    return bytearray([0xFF, MASTER, 0xFF])


@pytest.fixture
def direct(config: bytearray) -> DirectDMA:
    """Nothing is mapped."""
    return DirectDMA(config, COMMAND)


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    with SharedMemory(SIZE, MemoryKind.MEMFD) as memory:
        memory.array[:] = np.arange(SIZE) % 251
        yield memory


def read(direct: DirectDMA, address: int, size: int) -> bytes | None:
    """What is there; None where the general way is to be gone."""
    target = bytearray(size)
    return None if direct.read(address, ffi.from_buffer(target), size) else bytes(target)


def writes(direct: DirectDMA, address: int, data: bytes) -> bool:
    """Whether it was written."""
    return not direct.write(address, ffi.from_buffer(data), len(data))


# What is found


def test_nothing_is_found_where_nothing_is_mapped(direct: DirectDMA) -> None:
    assert [read(direct, address, 1) for address in (0, IOVA, END - 1)] == [None, None, None]


@pytest.mark.parametrize("iova", [0, IOVA, END - SIZE])
def test_what_is_within_a_map_is_found(direct: DirectDMA, memory: SharedMemory, iova: int) -> None:
    direct.add(iova, SIZE, memory.address, BOTH)
    everything = memory.array.tobytes()
    assert read(direct, iova, SIZE) == everything
    assert read(direct, iova + SIZE - 1, 1) == everything[-1:]
    assert writes(direct, iova + 8, b"abc")
    assert memory.array[7:12].tobytes() == everything[7:8] + b"abc" + everything[11:12]


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (IOVA - 1, 1),
        (IOVA - 1, 2),
        (IOVA + SIZE, 1),
        (IOVA + SIZE - 1, 2),
        (IOVA, SIZE + 1),
        (IOVA, 0),
        (END - 1, 1),
    ],
)
def test_what_is_not_within_a_map_is_left_to_the_general_way(
    direct: DirectDMA, memory: SharedMemory, address: int, size: int
) -> None:
    direct.add(IOVA, SIZE, memory.address, BOTH)
    assert read(direct, address, size) is None
    assert not writes(direct, address, bytes(size))


@pytest.mark.parametrize("size", [1, 1 << 31, END - 1])
def test_a_size_that_goes_beyond_the_end_is_found_nowhere(
    direct: DirectDMA, memory: SharedMemory, size: int
) -> None:
    direct.add(END - PAGE, PAGE, memory.address, BOTH)
    target = ffi.new("char[]", 1)
    assert bool(direct.read(END - 1, target, size)) == (size > 1)


@pytest.mark.parametrize("flags", [READ, WRITE, BOTH])
def test_a_map_allows_what_its_flags_say(
    direct: DirectDMA, memory: SharedMemory, flags: int
) -> None:
    direct.add(IOVA, SIZE, memory.address, flags)
    assert (read(direct, IOVA, 1) is not None) == bool(flags & READ)
    assert writes(direct, IOVA, b"a") == bool(flags & WRITE)


def test_maps_come_and_go_in_any_order(direct: DirectDMA, memory: SharedMemory) -> None:
    rng, there = random.Random(3), set[int]()
    for _ in range(3000):
        slot = rng.randrange(300)
        if slot not in there:
            direct.add(IOVA + 2 * PAGE * slot, PAGE, memory.address + slot, READ)
            there.add(slot)
        else:
            slots = range(slot, min(300, slot + rng.randrange(1, 4)))
            direct.remove(IOVA + 2 * PAGE * slot, 2 * PAGE * len(slots))
            there.difference_update(slots)
    for slot in range(300):
        address = IOVA + 2 * PAGE * slot
        expected = bytes([slot % 251]) if slot in there else None
        assert (read(direct, address, 1), read(direct, address + PAGE, 1)) == (expected, None)


def test_everything_can_be_forgotten_at_once(direct: DirectDMA, memory: SharedMemory) -> None:
    for iova in (0, IOVA, END - PAGE):
        direct.add(iova, PAGE, memory.address, BOTH)
    direct.remove(0, END)
    assert [read(direct, iova, 1) for iova in (0, IOVA, END - PAGE)] == [None] * 3


# What hinders it


def test_a_device_that_is_no_bus_master_goes_the_general_way(
    direct: DirectDMA, config: bytearray, memory: SharedMemory
) -> None:
    direct.add(IOVA, SIZE, memory.address, BOTH)
    config[COMMAND] = 0xFF & ~MASTER
    assert read(direct, IOVA, 1) is None
    assert not writes(direct, IOVA, b"a")
    config[:] = bytes([0, MASTER, 0])
    assert read(direct, IOVA, 1) == b"\0"


def test_a_shut_gate_is_not_gone_round(direct: DirectDMA, memory: SharedMemory) -> None:
    direct.add(IOVA, SIZE, memory.address, BOTH)
    gate = DMAGate(direct)
    gate.shut()
    assert (read(direct, IOVA, 1), writes(direct, IOVA, b"a")) == (None, False)
    gate.open()
    assert (read(direct, IOVA, 1), writes(direct, IOVA, b"a")) == (b"\0", True)


def test_writes_that_are_logged_go_the_general_way(direct: DirectDMA, memory: SharedMemory) -> None:
    direct.add(IOVA, SIZE, memory.address, BOTH)
    log = DirtyLog(direct)
    log.start(PAGE, [])
    assert (read(direct, IOVA, 1), writes(direct, IOVA, b"a")) == (b"\0", False)
    log.stop()
    assert writes(direct, IOVA, b"a")


def test_what_is_switched_off_finds_nothing(config: bytearray, memory: SharedMemory) -> None:
    direct = DirectDMA(config, COMMAND, on=False)
    direct.add(IOVA, SIZE, memory.address, BOTH)
    assert read(direct, IOVA, 1) is None


# At the same time


@contextmanager
def writing(hosted: Hosted) -> Iterator[list[int]]:
    """A thread of the model's that writes all over the client's memory; counts what it wrote."""
    over, written, rng = threading.Event(), [0], random.Random(5)

    def write() -> None:
        while not over.is_set():
            written[0] += 1
            value = written[0].to_bytes(8, "little")
            hosted.model.dma_write(IOVA + PAGE * rng.randrange(SIZE // PAGE), value)

    thread = threading.Thread(target=write)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        yield written
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(interval)


@pytest.fixture
def hosted(memory: SharedMemory) -> Iterator[Hosted]:
    """A model whose client has mapped all of the memory."""
    hosted = Hosted()
    hosted.map(memory.fd)
    yield hosted
    hosted.function.detach_client()
    hosted.function.close()


def test_the_log_of_a_client_that_has_left_keeps_no_write_from_c(
    hosted: Hosted, memory: SharedMemory
) -> None:
    direct = hosted.function.direct_dma
    hosted.guest.log.start(PAGE, [])
    assert not writes(direct, IOVA, b"a")
    hosted.function.detach_client()
    assert read(direct, IOVA, 1) is None
    direct.add(IOVA, SIZE, memory.address, BOTH)
    assert writes(direct, IOVA, b"a")


def test_each_page_that_was_written_while_it_was_logged_is_reported(
    hosted: Hosted, memory: SharedMemory
) -> None:
    gate, reported = hosted.function._control.gate, 0
    with writing(hosted):
        for _ in range(100):
            hosted.guest.log.start(PAGE, [])
            before = memory.array.copy()
            time.sleep(1e-4)
            gate.shut()
            gate.drain()
            after = memory.array.copy()
            report = hosted.guest.log.report(IOVA, SIZE, PAGE)
            hosted.guest.log.stop()
            gate.open()
            changed = (before != after).reshape(-1, PAGE).any(axis=1)
            dirty = np.unpackbits(np.frombuffer(report, np.uint8), bitorder="little")
            assert not (changed & ~dirty[: len(changed)].astype(bool)).any()
            reported += int(dirty.sum())
    assert reported


def test_nothing_is_written_while_the_gate_is_shut(hosted: Hosted, memory: SharedMemory) -> None:
    gate = hosted.function._control.gate
    with writing(hosted) as written:
        for _ in range(100):
            time.sleep(1e-5)
            gate.shut()
            gate.drain()
            before = memory.array.copy()
            time.sleep(1e-4)
            assert (memory.array == before).all()
            gate.open()
    assert written[0] > 100


def test_nothing_is_written_to_memory_behind_its_unmap(
    hosted: Hosted, memory: SharedMemory
) -> None:
    hosted.unmap()
    written = 0

    def write() -> None:
        nonlocal written
        while not over.is_set():
            try:
                hosted.model.dma_write(IOVA, written.to_bytes(8, "little"))
                written += 1
            except OSError:
                time.sleep(0)

    over = threading.Event()
    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(200):
            hosted.map(memory.fd)
            time.sleep(1e-5)
            hosted.unmap()
            after = memory.array[:8].copy()
            time.sleep(1e-5)
            assert (memory.array[:8] == after).all()
    finally:
        over.set()
        for writer in writers:
            writer.join()
    assert written
