# SPDX-License-Identifier: BSD-3-Clause
"""Exchanges that are not usual, where C has begun them and where it has not: nothing may differ.

More of them are in test_raw_server.py, which is run both ways as well.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

import pyvfio
from pyvfio.errors import (
    ConnectionLost,
    DeviceClosed,
    DMABatchError,
    RegionError,
    RemoteProtocolError,
    VFIOError,
    VFIOTimeout,
)
from pyvfio.pci.bars import BAR
from pyvfio.pci.device import PCIDevice
from pyvfio.transport.exchange import FIRST_ID, PATIENCE, WINDOW
from tests.fault import raw
from tests.fault.raw import Message, RawServer, answer
from tests.support import eventually, in_threads, run_program

pytestmark = pytest.mark.usefixtures("way")

VALUE = 0x1234_5678
PAGE = 4096
MANY = 200
IOVAS = [0x10000 + PAGE * number for number in range(MANY)]
OFFSETS = [PAGE * number for number in range(MANY)]
TIMEOUT = 0.5
SLOW = 3 * PATIENCE
Use: TypeAlias = Callable[[BAR], object]


@pytest.fixture
def server(socket_folder: Path) -> Iterator[RawServer]:
    with RawServer(socket_folder / "raw.sock") as server:
        server.memory[0][0x10:0x18] = VALUE.to_bytes(8, "little")
        yield server


@pytest.fixture
def device(server: RawServer) -> Iterator[PCIDevice]:
    with pyvfio.open(server.uri, posted_writes=False) as dev:
        yield dev


@pytest.fixture
def bar(device: PCIDevice) -> BAR:
    """A BAR in the middle of a burst: C has the turn if it may."""
    found = device.bars[0]
    for _ in range(20):
        found.read32(0)
        time.sleep(0.0002)
    return found


def read_register(bar: BAR) -> None:
    assert bar.read32(0x10) == VALUE


def read_wide_register(bar: BAR) -> None:
    assert bar.read64(0x10) == VALUE


def read_bytes(bar: BAR) -> None:
    target = bytearray(3000)
    bar.read_into(0, target)
    assert target[0x10:0x14] == VALUE.to_bytes(4, "little")


def write_register(bar: BAR) -> None:
    bar.write32(0x20, VALUE)


def write_many(bar: BAR) -> None:
    bar.write_many(np.arange(0x100, 0x300, 4), 7)


USES = [read_register, read_wide_register, read_bytes, write_register, write_many]
every_use = pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)


def usual(server: RawServer, message: Message) -> bytes:
    return answer(message, server.payload_for(message))


def handle(server: RawServer, handler: raw.Handler) -> None:
    """Have every read and write handled so."""
    server.handlers[raw.REGION_READ] = server.handlers[raw.REGION_WRITE] = handler


def first_only(server: RawServer, handler: raw.Handler) -> None:
    """The next read or write is handled so; those behind it as ever."""

    def take(message: Message) -> None:
        server.handlers.clear()
        handler(message)

    handle(server, take)


def in_step(server: RawServer, bar: BAR) -> bool:
    server.handlers.clear()
    server.memory[0][0x10:0x18] = VALUE.to_bytes(8, "little")
    for use in USES:
        use(bar)
    return True


@every_use
def test_c_is_used_in_a_burst_unless_it_is_switched_off(
    server: RawServer, bar: BAR, use: Use, way: str
) -> None:
    def used() -> bool:
        for _ in range(20):
            use(bar)
        return any(message.number >= FIRST_ID for message in server.seen)

    if way == "C":  # not where the channel's own thread has just had the time to take the turn
        assert eventually(used)
    else:
        assert not used()


# What comes before the reply, or in its place


@every_use
def test_the_servers_own_requests_are_answered_in_between(
    server: RawServer, bar: BAR, use: Use
) -> None:
    """A server with one socket reads nothing before its own question is answered."""
    question = raw.frame(raw.DMA_READ, raw.dma_range(0, 4), number=3)
    handle(server, lambda message: server.peer.send(question + usual(server, message)))
    use(bar)
    assert server.replies.get(timeout=raw.SECONDS).error == errno.EFAULT
    assert in_step(server, bar)


@pytest.mark.parametrize("use", USES[:-1], ids=lambda use: use.__name__)
def test_a_request_in_place_of_the_reply_is_answered_at_once(
    server: RawServer, bar: BAR, use: Use
) -> None:
    def ask_first(message: Message) -> None:
        server.peer.send(raw.frame(raw.DMA_READ, raw.dma_range(0, 4), number=3))
        answered.append(server.peer.receive())
        server.peer.send(usual(server, message))

    answered: list[Message] = []
    first_only(server, ask_first)
    use(bar)
    assert [reply.error for reply in answered] == [errno.EFAULT]
    assert in_step(server, bar)


@every_use
@pytest.mark.parametrize("sizes", [(16,), (1, 14, 1), (8, 16), (20,), (35,)], ids=str)
def test_a_reply_may_come_in_pieces(
    server: RawServer, bar: BAR, use: Use, sizes: tuple[int, ...]
) -> None:
    def send(message: Message) -> None:
        reply, at = usual(server, message), 0
        for size in sizes:
            server.peer.send(reply[at : at + size])
            at += size
            time.sleep(0.002)
        if reply[at:]:
            server.peer.send(reply[at:])

    first_only(server, send)
    use(bar)
    assert in_step(server, bar)


@every_use
def test_a_reply_may_take_longer_than_c_waits(server: RawServer, bar: BAR, use: Use) -> None:
    def send(message: Message) -> None:
        time.sleep(SLOW)
        server.peer.send(usual(server, message))

    first_only(server, send)
    use(bar)
    assert in_step(server, bar)


@pytest.mark.parametrize("number", [np.uint32, np.int64])
def test_a_number_that_c_has_taken_is_that_one_to_the_end(
    server: RawServer, bar: BAR, number: Callable[[int], int]
) -> None:
    def send(message: Message) -> None:
        time.sleep(SLOW)
        server.serve(message)

    handle(server, send)
    bar.write32(number(0x10), number(7))
    assert bar.read32(number(0x10)) == 7
    assert in_step(server, bar)


@every_use
def test_a_reply_may_stop_half_way_for_longer_than_c_waits(
    server: RawServer, bar: BAR, use: Use
) -> None:
    def send(message: Message) -> None:
        reply = usual(server, message)
        server.peer.send(reply[:21])
        time.sleep(SLOW)
        server.peer.send(reply[21:])

    first_only(server, send)
    use(bar)
    assert in_step(server, bar)


@every_use
def test_a_refusal_is_told_with_its_errno(server: RawServer, bar: BAR, use: Use) -> None:
    first_only(server, lambda message: server.peer.send(raw.refusal(message, errno.EPERM)))
    with pytest.raises(RegionError) as caught:
        use(bar)
    assert caught.value.errno == errno.EPERM
    assert in_step(server, bar)


def one_byte_less(message: Message) -> bytes:
    offset, region, count = message.words("QII")
    data = bytes(count - 1) if message.command == raw.REGION_READ else b""
    return answer(message, raw.region_range(region, offset, count - 1, data))


@every_use
def test_a_short_transfer_is_an_error(server: RawServer, bar: BAR, use: Use) -> None:
    first_only(server, lambda message: server.peer.send(one_byte_less(message)))
    with pytest.raises(RegionError, match=r"\d of \d+ bytes were transferred") as caught:
        use(bar)
    assert caught.value.errno == errno.EIO
    assert in_step(server, bar)


@every_use
def test_a_reply_for_another_place_is_an_error_in_step(
    server: RawServer, bar: BAR, use: Use
) -> None:
    def elsewhere(message: Message) -> None:
        reply = bytearray(usual(server, message))
        reply[16] ^= 1
        server.peer.send(bytes(reply))

    first_only(server, elsewhere)
    with pytest.raises(RemoteProtocolError, match="answer for region 0 offset"):
        use(bar)
    assert in_step(server, bar)


@every_use
def test_descriptors_with_a_reply_are_an_error_and_closed(
    server: RawServer, bar: BAR, use: Use
) -> None:
    def send(message: Message) -> None:
        server.peer.send(usual(server, message), [0, 1])

    first_only(server, send)
    with pytest.raises(RemoteProtocolError, match="2 descriptors, at most 0 belong there"):
        use(bar)
    assert in_step(server, bar)


@every_use
def test_descriptors_with_the_second_half_of_a_reply_are_an_error_and_closed(
    server: RawServer, bar: BAR, use: Use
) -> None:
    def send(message: Message) -> None:
        reply = usual(server, message)
        server.peer.send(reply[:24])
        server.peer.send(reply[24:], [0])

    first_only(server, send)
    with pytest.raises(RemoteProtocolError, match="1 descriptors, at most 0 belong there"):
        use(bar)
    assert in_step(server, bar)


def with_field(at: int, layout: str, value: int) -> Callable[[bytes], bytes]:
    """A reply with another value in its header."""

    def change(reply: bytes) -> bytes:
        changed = bytearray(reply)
        struct.pack_into(layout, changed, at, value)
        return bytes(changed)

    return change


NONSENSE = {
    "another id": (with_field(0, "<H", 0x7FFF), "never asked"),
    "another command": (with_field(2, "<H", raw.RESET), "answers request"),
    "no reply": (with_field(8, "<I", 2), "message type 2"),
    "less than a header": (with_field(4, "<I", 15), "a message of 15 bytes"),
    "much more than was asked for": (with_field(4, "<I", 1 << 20), "at most"),
}


@every_use
@pytest.mark.parametrize(("change", "reason"), NONSENSE.values(), ids=NONSENSE)
def test_a_reply_that_cannot_be_understood_ends_the_connection(
    server: RawServer, bar: BAR, use: Use, change: Callable[[bytes], bytes], reason: str
) -> None:
    first_only(server, lambda message: server.peer.send(change(usual(server, message))))
    with pytest.raises(RemoteProtocolError, match=reason):
        use(bar)
    with pytest.raises(ConnectionLost):
        use(bar)


@every_use
@pytest.mark.parametrize("sent", [0, 7, 16, 31])
def test_a_server_that_hangs_up_in_the_reply_is_lost(
    server: RawServer, bar: BAR, use: Use, sent: int
) -> None:
    def hang_up(message: Message) -> None:
        server.peer.send(usual(server, message)[:sent])
        server.hang_up()

    first_only(server, hang_up)
    with pytest.raises(ConnectionLost):
        use(bar)


# No reply in time


@every_use
def test_a_reply_that_comes_too_late_is_drained(server: RawServer, use: Use) -> None:
    waiting: list[Message] = []
    with pyvfio.open(server.uri, posted_writes=False, timeout=TIMEOUT) as device:
        bar = device.bars[0]
        handle(server, waiting.append)
        with pytest.raises(VFIOTimeout):
            use(bar)
        server.handlers.clear()
        for message in waiting:
            server.peer.send(usual(server, message))
        assert in_step(server, bar)


@every_use
def test_close_ends_the_wait_of_another_thread(
    server: RawServer, device: PCIDevice, bar: BAR, use: Use
) -> None:
    asked = threading.Event()
    ends: list[BaseException] = []

    def wait() -> None:
        try:
            use(bar)
        except BaseException as error:
            ends.append(error)

    handle(server, lambda _: asked.set())
    (thread,) = in_threads([wait])
    assert asked.wait(raw.SECONDS)
    device.close()
    thread.join()
    assert [type(error) for error in ends] == [DeviceClosed]


def test_close_ends_the_writes_of_another_thread_to_a_server_that_does_not_read(
    server: RawServer,
) -> None:
    ends: list[BaseException] = []
    with pyvfio.open(server.uri, posted_writes=True) as device:
        bar = device.bars[0]

        def write_on_and_on() -> None:
            try:
                while True:
                    bar.write32(0, 1)
            except VFIOError as error:
                ends.append(error)

        with server.deaf(lambda: bar.write32(0, 1)):
            (thread,) = in_threads([write_on_and_on])
            time.sleep(SLOW)
            device.close()
            thread.join()
    assert [type(error) for error in ends] == [DeviceClosed]


INTERRUPTED = """
import signal, sys, pyvfio

class Alarm(Exception):
    pass

def handle(*_):
    raise Alarm

signal.signal(signal.SIGALRM, handle)
with pyvfio.open(sys.argv[1], posted_writes=False) as device:
    bar = device.bars[0]
    uses = {
        "read": lambda: bar.read32(0x10),
        "write": lambda: bar.write32(0x10, 1),
        "bytes": lambda: bar.read_into(0, bytearray(3000)),
        "many": lambda: bar.write_many(range(0, 0x400, 4), 1),
    }
    for use in (uses[sys.argv[2]],) * 3:
        for _ in range(20):
            bar.read32(0)
        signal.setitimer(signal.ITIMER_REAL, 0.05)  # all is sent by then
        try:
            use()
        except Alarm:
            print("interrupted")
        for _ in range(20):
            bar.read32(0)
    print(bar.read32(0x18))
"""


@pytest.mark.parametrize("use", ["read", "write", "bytes", "many"])
def test_what_a_signal_handler_raises_comes_through_and_the_stream_stays_in_step(
    server: RawServer, use: str
) -> None:
    usual = (raw.REGION_READ, 0, 4)
    before = [usual]

    def late(message: Message) -> None:
        offset, _, count = message.words("QII")
        found = message.command, offset, count
        if found != usual == before[-1]:
            time.sleep(0.2)
        before.append(found)
        server.serve(message)

    handle(server, late)
    server.memory[0][0x18:0x1C] = (99).to_bytes(4, "little")
    said = run_program(INTERRUPTED, server.uri, use).split()
    assert said == ["interrupted"] * 3 + (["99"] if use != "many" else ["1"])


# Other threads meanwhile


def test_descriptors_of_another_threads_reply_are_not_taken_for_ours(
    server: RawServer, device: PCIDevice, bar: BAR
) -> None:
    """A refusal is shorter than what was asked for: the next message is read with it."""
    server.regions[2] = (raw.READABLE | raw.WRITABLE | raw.MAPPABLE, 4096)
    held: list[Message] = []
    asked = threading.Event()

    def hold(message: Message) -> None:
        held.append(message)
        asked.set()

    def answer_both(message: Message) -> None:
        server.handlers.clear()
        server.peer.send(raw.refusal(held[0], errno.EPERM))
        server.serve(message)

    def read() -> None:
        with pytest.raises(RegionError):
            bar.read32(0x10)

    fd = os.memfd_create("raw")
    os.ftruncate(fd, 4096)
    server.fds[raw.GET_REGION_INFO] = [fd]
    server.handlers[raw.REGION_READ] = hold
    server.handlers[raw.GET_REGION_INFO] = answer_both
    (thread,) = in_threads([read])
    assert asked.wait(raw.SECONDS)
    info = device.base.device_io.get_region_info(2)
    thread.join()
    assert info.fd is not None
    os.close(fd)


def test_threads_read_and_write_at_the_same_time(device: PCIDevice) -> None:
    wrong: list[int] = []
    bar = device.bars[0]

    def work(place: int) -> None:
        for number in range(300):
            bar.posted = bool(number % 3)
            bar.write32(place, number)
            if bar.read32(place) != number:
                wrong.append(number)

    for thread in in_threads(partial(work, 0x100 * n) for n in range(4)):
        thread.join()
    assert wrong == []


# Many at once


def test_many_writes_are_made_in_order(server: RawServer, bar: BAR) -> None:
    server.seen.clear()
    bar.write_many([0x40, 0x44, 0x40], [1, 2, 3], width=4)
    assert [(m.words("Q")[0], m.payload[16]) for m in server.seen] == [
        (0x40, 1),
        (0x44, 2),
        (0x40, 3),
    ]


def test_no_more_writes_are_in_flight_than_others_leave_room_for(
    server: RawServer, bar: BAR
) -> None:
    waiting: list[Message] = []

    def hold(message: Message) -> None:
        waiting.append(message)
        if len(waiting) == WINDOW:
            assert server.peer.quiet(0.02)
            server.peer.sock.settimeout(None)
            for held in waiting:
                server.serve(held)
            waiting.clear()

    server.handlers[raw.REGION_WRITE] = hold
    bar.write_many([0x40] * WINDOW, range(WINDOW))
    assert not waiting


def test_of_many_writes_the_first_that_is_refused_is_told(server: RawServer, bar: BAR) -> None:
    def refuse_some(message: Message) -> None:
        if message.words("Q")[0] in {0x50, 0x60}:
            server.peer.send(raw.refusal(message, errno.EACCES))
        else:
            server.serve(message)

    server.handlers[raw.REGION_WRITE] = refuse_some
    with pytest.raises(RegionError, match=r"write bar0\+0x50") as caught:
        bar.write_many(range(0x40, 0x80, 4), 7)
    assert caught.value.errno == errno.EACCES
    assert in_step(server, bar)


@pytest.mark.parametrize("several", [True, False], ids=["REGION_WRITE_MULTI", "REGION_WRITE"])
def test_many_posted_writes_come_in_order_behind_those_that_wait(
    server: RawServer, several: bool
) -> None:
    if several:
        server.capabilities = b'{"capabilities":{"write_multiple":true}}\0'
    with pyvfio.open(server.uri) as device:
        bar = device.bars[0]
        with server.deaf(lambda: bar.write32(0, 1)):
            for number in range(3000):
                bar.write32(8, number)
            bar.write_many([8] * 5000, range(3000, 8000))
            bar.write32(12, 5)
        assert bar.read32(12) == 5
        assert written(server, 8) == list(range(8000))


def written(server: RawServer, place: int) -> list[int]:
    """What was written to a register of BAR 0."""
    entries: list[bytes] = []
    for message in server.seen:
        if message.command == raw.REGION_WRITE:
            entries.append(message.payload)
        elif message.command == raw.WRITE_MULTI:
            entries += (message.payload[at : at + 24] for at in range(8, len(message.payload), 24))
    writes = [(struct.unpack_from("<QII", entry), entry[16:]) for entry in entries]
    return [int.from_bytes(data[: w[2]], "little") for w, data in writes if w[0] == place]


def test_maps_and_unmaps_of_a_batch_go_as_they_were_asked_for(
    server: RawServer, device: PCIDevice
) -> None:
    server.seen.clear()
    with pyvfio.SharedMemory(4096) as memory, device.dma.batch():
        for _ in range(3):
            iova = device.dma.map(memory, iova=0x10000)
            device.dma.unmap(iova, 4096)
    assert server.commands() == 3 * [raw.DMA_MAP, raw.DMA_UNMAP]
    assert [len(message.fds) for message in server.seen] == 3 * [1, 0]
    assert not device.dma.mappings


def test_a_batch_whose_reply_brings_descriptors_is_told_so(
    server: RawServer, device: PCIDevice
) -> None:
    def send(message: Message) -> None:
        server.peer.send(answer(message), [0])

    server.handlers[raw.DMA_MAP] = send
    memory = pyvfio.SharedMemory(4096)
    with pytest.raises(DMABatchError) as caught, device.dma.batch():  # noqa: PT012
        for _ in range(3):
            device.dma.map(memory)
    memory.close()
    assert len(caught.value.failures) == 3


def test_many_maps_and_unmaps_go_as_they_were_asked_for(
    server: RawServer, device: PCIDevice
) -> None:
    server.seen.clear()
    iovas = [0x30000, 0x10000, 0x20000]
    with pyvfio.SharedMemory(3 * PAGE) as memory, device.dma.batch():
        device.dma.map_many(memory, iovas, [PAGE, 0, 2 * PAGE], PAGE)
        device.dma.unmap_many(iovas[:2], PAGE)
        device.dma.map(memory, iova=0x10000, size=PAGE)
        device.dma.unmap(0x20000, PAGE)
    assert [(m.command, m.payload, len(m.fds)) for m in server.seen] == [
        (raw.DMA_MAP, raw.dma_map(0x30000, PAGE, offset=PAGE), 1),
        (raw.DMA_MAP, raw.dma_map(0x10000, PAGE), 1),
        (raw.DMA_MAP, raw.dma_map(0x20000, PAGE, offset=2 * PAGE), 1),
        (raw.DMA_UNMAP, raw.dma_unmap(0x30000, PAGE), 0),
        (raw.DMA_UNMAP, raw.dma_unmap(0x10000, PAGE), 0),
        (raw.DMA_MAP, raw.dma_map(0x10000, PAGE), 1),
        (raw.DMA_UNMAP, raw.dma_unmap(0x20000, PAGE), 0),
    ]
    assert [entry.iova for entry in device.dma.mappings] == [0x10000]


def test_no_descriptor_goes_with_many_maps_in_secure_dma(server: RawServer) -> None:
    with (
        pyvfio.open(server.uri, secure_dma=True) as device,
        pyvfio.SharedMemory(2 * PAGE) as memory,
    ):
        server.seen.clear()
        device.dma.map_many(memory, [0x10000, 0x20000], [0, PAGE], PAGE)
        assert [(m.payload, m.fds) for m in server.seen] == [
            (raw.dma_map(iova, PAGE, offset=0), ()) for iova in (0x10000, 0x20000)
        ]


@pytest.mark.parametrize("room", [4608, 1 << 16])
def test_many_maps_go_through_a_socket_that_takes_few_at_a_time(
    server: RawServer, device: PCIDevice, room: int
) -> None:
    channel = device.base.device_io._channel  # type: ignore[attr-defined]
    channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room // 2)

    def slowly(message: Message) -> None:
        time.sleep(0.0005)
        server.serve(message)

    server.handlers[raw.DMA_MAP] = slowly
    server.seen.clear()
    with pyvfio.SharedMemory(MANY * PAGE) as memory:
        device.dma.map_many(memory, IOVAS, OFFSETS, PAGE)
        device.dma.unmap_many(IOVAS[::2], PAGE)
    expected = [raw.dma_map(iova, PAGE, offset=at) for iova, at in zip(IOVAS, OFFSETS, strict=True)]
    assert [m.payload for m in server.seen[:MANY]] == expected
    assert [len(m.fds) for m in server.seen] == MANY * [1] + MANY // 2 * [0]
    assert [entry.iova for entry in device.dma.mappings] == IOVAS[1::2]


def test_of_many_maps_each_that_is_refused_is_told(server: RawServer, device: PCIDevice) -> None:
    refused = IOVAS[::7]

    def refuse_some(message: Message) -> None:
        if message.words("IIQQQ")[3] in refused:
            server.peer.send(raw.refusal(message, errno.ENOSPC))
        else:
            server.serve(message)

    server.handlers[raw.DMA_MAP] = refuse_some
    with pyvfio.SharedMemory(MANY * PAGE) as memory, pytest.raises(DMABatchError) as caught:
        device.dma.map_many(memory, IOVAS, OFFSETS, PAGE)
    assert [getattr(failure, "iova", None) for failure in caught.value.failures] == refused
    assert {entry.iova for entry in device.dma.mappings} == set(IOVAS) - set(refused)


def test_many_maps_that_are_not_answered_end_in_one_time_out(server: RawServer) -> None:
    asked: list[Message] = []

    def hold(message: Message) -> None:
        asked.append(message)
        if len(asked) < MANY // 2:
            server.serve(message)

    server.handlers[raw.DMA_MAP] = hold
    with (
        pyvfio.open(server.uri, timeout=TIMEOUT) as device,
        pyvfio.SharedMemory(MANY * PAGE) as memory,
    ):
        with pytest.raises(DMABatchError) as caught:
            device.dma.map_many(memory, IOVAS, OFFSETS, PAGE)
        failures = caught.value.failures
        assert all(isinstance(failure, VFIOTimeout) for failure in failures)
        assert len(failures) == MANY - MANY // 2 + 1
        assert [entry.iova for entry in device.dma.mappings] == IOVAS[: MANY // 2 - 1]
        assert len(asked) < MANY


def test_many_maps_end_with_the_connection(server: RawServer, device: PCIDevice) -> None:
    asked: list[Message] = []

    def leave(message: Message) -> None:
        asked.append(message)
        if len(asked) < MANY // 2:
            server.serve(message)
        else:
            server.hang_up()

    server.handlers[raw.DMA_MAP] = leave
    with pyvfio.SharedMemory(MANY * PAGE) as memory, pytest.raises(ConnectionLost, match="batch"):
        device.dma.map_many(memory, IOVAS, OFFSETS, PAGE)
