# SPDX-License-Identifier: BSD-3-Clause
"""Several threads and C on one socket: who may use it when, and who is woken."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

import pyvfio
from pyvfio.errors import DeviceClosed
from pyvfio.native._native import lib
from pyvfio.native.channel import Stream
from pyvfio.native.claims import Claims
from pyvfio.native.status import Status
from pyvfio.pci.device import PCIDevice
from pyvfio.transport.channel import MAX_IN_FLIGHT
from pyvfio.transport.exchange import FIRST_ID, FIRST_POSTED_ID, PATIENCE
from pyvfio.transport.sockets import limit_waits
from tests.fault import raw
from tests.fault.raw import Message, RawServer
from tests.support import in_threads, run_program

SOON = 5.0


@pytest.fixture
def server(socket_folder: Path) -> Iterator[RawServer]:
    with RawServer(socket_folder / "raw.sock") as server:
        yield server


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("time_before", range(10))
def test_close_wakes_all_who_wait_for_the_socket(server: RawServer, time_before: int) -> None:
    """The caller who reads, and the channel's own thread, which has waited before it came."""

    def read() -> None:
        with pytest.raises(DeviceClosed):
            opened.bars[0].read32(0)

    opened = pyvfio.open(server.uri, posted_writes=False)
    opened.bars[0].read32(0)
    time.sleep(PATIENCE + time_before * 1e-4)
    asked = threading.Event()
    server.handlers[raw.REGION_READ] = lambda _: asked.set()
    (reader,) = in_threads([read])
    assert asked.wait(SOON)
    closing = threading.Thread(target=opened.close, daemon=True)
    closing.start()
    closing.join(SOON)
    assert not closing.is_alive()
    reader.join()


# C in several threads


def test_the_end_of_an_exchange_leaves_a_post_that_is_under_way_its_claim() -> None:
    """Otherwise somebody could send in the middle of the message that has been posted in part."""
    ours, theirs = socket.socketpair()
    claims = Claims()
    exchanges = Stream(ours.fileno(), claims, FIRST_ID)
    posts = Stream(ours.fileno(), claims, FIRST_POSTED_ID)
    target = bytearray(8)
    with ours, theirs:
        limit_waits(ours, SOON)
        claims.unblock(sending=True, reading=True)
        (reader,) = in_threads([lambda: exchanges.read_region(0, 0, memoryview(target))])
        asked = Message(theirs.recv(4096))
        while exchanges.state.claimed & lib.PYVFIO_C_SENDS:
            time.sleep(0)
        assert posts.post(bytes(8 << 20)) == Status.UNSENT
        theirs.send(raw.answer(asked, raw.region_range(0, 0, 8, b"12345678")))
        reader.join()
        assert (bytes(target), claims.of_c, posts.left_by_me) == (b"12345678", True, True)
        claims.block()
        exchanges.leave()
        assert claims.block()
        posts.leave()
        assert not claims.of_c


# What was posted, and who waits for it


@pytest.fixture
def device(server: RawServer) -> Iterator[PCIDevice]:
    with pyvfio.open(server.uri) as device:
        yield device


@contextmanager
def unanswered(server: RawServer, command: int) -> Iterator[threading.Event]:
    """The server reads nothing behind a command; told when it comes."""
    came, go_on = threading.Event(), threading.Event()

    def stall(message: Message) -> None:
        del server.handlers[command]
        came.set()
        go_on.wait(raw.SECONDS)
        server.serve(message)

    server.handlers[command] = stall
    try:
        yield came
    finally:
        go_on.set()


@pytest.mark.usefixtures("way")
def test_each_of_several_flushes_waits_for_what_was_posted(
    server: RawServer, device: PCIDevice
) -> None:
    with unanswered(server, raw.GET_INFO) as asked:
        device.bars[0].write32(0, 1)
        threads = in_threads([device.flush])
        assert asked.wait(SOON)
        threads += in_threads([device.flush])
        threads[1].join(0.1)
        assert all(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join()
    server.seen.clear()
    device.flush()
    assert server.seen == []


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("several", [True, False], ids=["REGION_WRITE_MULTI", "REGION_WRITE"])
def test_a_flush_waits_for_many_writes_that_were_posted_behind_others(
    server: RawServer, several: bool
) -> None:
    if several:
        server.capabilities = b'{"capabilities":{"write_multiple":true}}\0'
    with pyvfio.open(server.uri) as device, ExitStack() as stalled:
        bar, io = device.bars[0], device.base.device_io
        bar.read32(0)
        read = stalled.enter_context(unanswered(server, raw.REGION_READ))
        threads = in_threads([lambda: bar.read32(0)])
        assert read.wait(SOON)
        # Answered ones, so that the socket is full and nothing is posted yet.
        answered = partial(io.region_write, 0, 0, bytes(4096))
        threads += in_threads([answered] * (MAX_IN_FLIGHT - 1))
        time.sleep(0.1)
        assert not io.unflushed
        bar.write_many([8] * 3, range(3))
        assert io.unflushed
        stalled.close()
        for thread in threads:
            thread.join()
        device.flush()
        assert (bar.read32(8), io.unflushed) == (2, False)


# Signal handlers that raise, wherever they can


RAISED = """
import sys, threading, time
from contextlib import suppress
from pathlib import Path
import numpy as np
import pyvfio
from pyvfio.errors import ConnectionLost
from tests.fault import raw
from tests.fault.raising import Places
from tests.fault.raw import RawServer
from tests.support import in_threads, run_program

def late(message):
    time.sleep(0.02)
    server.serve(message)

def stalled(message):
    server.handlers.clear()
    time.sleep(0.012)

def read_once():
    with suppress(ConnectionLost):
        bar.read32(0x10)

def read():
    server.handlers[raw.REGION_READ] = late
    return lambda: bar.read32(0x10)

def write_many():
    server.handlers[raw.REGION_WRITE] = late
    return lambda: bar.write_many([0x20] * 3, range(3))

def post():
    many = np.arange(8000, dtype=np.uint64)
    server.handlers[raw.REGION_WRITE] = stalled
    return lambda: device.base.device_io.registers_write(0, 0 * many + 0x20, 4, many, True)

prepare = {"read": read, "write_many": write_many, "post": post}[sys.argv[2]]
places = Places("exchange.py", "turn.py", "claims.py", "call.py", "registers.py", "flight.py")
count = idle = 0
while idle < 3:  # not each way is gone each time
    with RawServer(Path(sys.argv[1])) as server:
        server.memory[0][0x10] = 77
        device = pyvfio.open(server.uri, posted_writes=False, timeout=10)
        bar = device.bars[0]
        for _ in range(20):
            bar.read32(0)
        places.interrupt(prepare())
        count, idle = (count + 1, 0) if places.raised else (count, idle + 1)
        server.handlers.clear()
        try:
            (reader,) = in_threads([read_once])
            reader.join(5)
            assert not reader.is_alive(), places.raised
            assert bar.read32(0x10) == 77, places.raised
            assert all(message.command < 20 for message in server.seen), places.raised
        except ConnectionLost:
            pass
        closing = threading.Thread(target=device.close, daemon=True)
        closing.start()
        closing.join(5)
        assert not closing.is_alive(), places.raised
print(count)
"""


@pytest.mark.parametrize("use", ["read", "write_many", "post"])
def test_a_handler_that_raises_anywhere_hangs_nobody(socket_folder: Path, use: str) -> None:
    assert int(run_program(RAISED, str(socket_folder / "raised.sock"), use)) > 10


OWN_TIME_OUT = """
import signal, sys
import pyvfio

def handle(*_):
    raise TimeoutError

def map_some():
    with device.dma.batch():
        for _ in range(3):
            device.dma.map(memory)

signal.signal(signal.SIGALRM, handle)
with pyvfio.open(sys.argv[1], posted_writes=False, timeout=600) as device:
    memory = pyvfio.SharedMemory(4096)
    many = {"writes": lambda: device.bars[0].write_many([8] * 100, 7), "maps": map_some}
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        many[sys.argv[2]]()
    except TimeoutError as error:
        print(type(error).__name__)
memory.close()
"""


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("many", ["writes", "maps"])
def test_a_time_out_of_the_programs_own_ends_the_wait_for_all_of_many(
    server: RawServer, many: str
) -> None:
    def swallow(message: Message) -> None:
        if message.command == raw.DMA_MAP or message.words("QI") == (8, 0):
            return
        server.serve(message)

    server.handlers[raw.REGION_WRITE] = server.handlers[raw.DMA_MAP] = swallow
    assert run_program(OWN_TIME_OUT, server.uri, many) == "TimeoutError\n"


CLOSED = """
import os, sys, threading
from contextlib import suppress
from pathlib import Path
import pyvfio
from tests.fault import raw
from tests.fault.raising import Places
from tests.fault.raw import RawServer
from tests.support import in_threads

def read():
    with suppress(pyvfio.DeviceClosed):
        device.bars[0].read32(0)

places = Places("turn.py", "exchange.py", "claims.py")
before = len(os.listdir("/proc/self/fd"))
count = 0
while places.raised or not count:
    with RawServer(Path(sys.argv[1])) as server:
        asked = threading.Event()
        device = pyvfio.open(server.uri, posted_writes=False, timeout=50)
        device.bars[0].read32(0)
        server.handlers[raw.REGION_READ] = lambda _: asked.set()
        (reader,) = in_threads([read])
        assert asked.wait(5)
        places.interrupt(device.close)
        reader.join(5)
        assert not reader.is_alive(), places.raised
    assert len(os.listdir("/proc/self/fd")) == before, places.raised
    assert threading.active_count() == 1, places.raised
    count += 1
print(count)
"""


@pytest.mark.usefixtures("way")
def test_a_handler_that_raises_in_close_leaves_nothing_behind(socket_folder: Path) -> None:
    assert int(run_program(CLOSED, str(socket_folder / "raised.sock"))) > 10
