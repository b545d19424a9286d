# SPDX-License-Identifier: BSD-3-Clause
"""A server's usual requests are carried out where they are read; nothing else tells of it.

Whatever comes in whatever pieces, a server with ``PYVFIO_NATIVE_SERVER=0`` answers the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvfio.server.native_paths import VARIABLE
from tests.fault import raw
from tests.fault.direct_model import (
    FAILING,
    MEMORY,
    OVERLAID,
    PENDING,
    PIECE,
    READING_DMA,
    REFUSING,
    REGISTERS,
    START,
    TABLE,
    THREADS,
    WRITING_DMA,
    WRITTEN,
)
from tests.fault.models import IOVA
from tests.fault.raw import RawClient
from tests.support import ServerProcess, eventually, open_fds, stopped, thread_count

PAGE = 4096
PLACES = (
    (REGISTERS, 4096, (0, 0x40, 0x44, 0x101, REFUSING, FAILING, WRITTEN, 4088)),
    (OVERLAID, 16384, (0, TABLE - 4, TABLE, TABLE + 12, PENDING - 2, PENDING, 0x3000)),
    (MEMORY, 1 << 20, (0, 4, 9, 0x800, (1 << 20) - 8)),
    (raw.CONFIG, 256, (0, 4, 0x10, 0x3C, 252)),
    (6, 0, (0,)),
    (3, 0, (0, 64)),
    (77, 0, (0,)),
)
WIDTHS = (1, 2, 4, 8, 1, 2, 4, 8, 3, 16, 0, 100)
USUAL = (raw.REGION_READ, raw.REGION_WRITE, raw.REGION_WRITE, raw.WRITE_MULTI)


def serving(path: Path, native: bool) -> ServerProcess:
    environment = {**os.environ, VARIABLE: "1" if native else "0"}
    return ServerProcess("tests.fault.direct_model:Direct", path, environment=environment)


@pytest.fixture(scope="module", params=[True, False], ids=["direct", "general"])
def server(socket_folder: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with serving(socket_folder / f"direct-{request.param}.sock", request.param) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[RawClient]:
    with RawClient(server.path) as client:
        client.negotiate()
        client.done(raw.RESET)
        client.enable_bus_master()
        yield client


# The same bytes


def random_place(rng: random.Random) -> tuple[int, int, int]:
    """(region, offset, bytes); most are where something is."""
    region, size, offsets = rng.choice(PLACES)
    offset = rng.choice((*offsets, rng.randrange(size + 16)))
    return region, offset, rng.choice(WIDTHS)


def random_request(rng: random.Random, number: int) -> bytes:
    """A message that a client may send."""
    kind, flags = (
        rng.choice((*USUAL, raw.GET_INFO, raw.RESET, 99)),
        rng.choice((0, 0, raw.NO_REPLY)),
    )
    region, offset, count = random_place(rng)
    if kind == raw.REGION_READ:
        payload, flags = raw.region_range(region, offset, count), 0
    elif kind == raw.REGION_WRITE:
        payload = raw.register_write(region, offset, rng.randbytes(count))
        if rng.random() < 0.05:  # a count that is not the size
            payload += b"more"
    elif kind == raw.WRITE_MULTI:
        writes = [random_place(rng) for _ in range(rng.randrange(4))]
        payload = raw.write_multi(*((r, o, rng.randbytes(min(n, 8))) for r, o, n in writes))
    else:
        payload, flags = raw.device_info()[: 16 if kind == raw.GET_INFO else 0], 0
    return raw.frame(kind, payload, number=number, flags=flags)


def random_pieces(rng: random.Random, data: bytes) -> Iterator[bytes]:
    """The same bytes in pieces of all sizes."""
    at = 0
    while at < len(data):
        size = rng.choice((1, 15, 16, 17, 32, 36, 300, 5000))
        yield data[at : at + size]
        at += size


def answers(path: Path, seed: int) -> bytes:
    """All that a server sends back for random requests."""
    rng = random.Random(seed)
    requests = b"".join(random_request(rng, number) for number in range(300))
    fence = raw.frame(raw.REGION_READ, raw.region_range(REGISTERS, WRITTEN, 4), number=999)
    received = b""
    with RawClient(path) as client:
        client.negotiate()
        client.done(raw.RESET)
        for piece in random_pieces(rng, requests + fence):
            client.send(piece)
        while True:
            message = client.receive()
            received += message.data
            if message.number == 999:
                return received


@pytest.fixture(scope="module")
def both(socket_folder: Path) -> Iterator[tuple[Path, Path]]:
    """A server of each kind."""
    one, other = socket_folder / "one.sock", socket_folder / "other.sock"
    with serving(one, True), serving(other, False):
        yield one, other


@pytest.mark.parametrize("seed", range(12))
def test_random_requests_in_random_pieces_are_answered_the_same(
    both: tuple[Path, Path], seed: int
) -> None:
    one, other = both
    assert answers(one, seed) == answers(other, seed)


# Order


def write(offset: int, value: int, region: int = REGISTERS) -> bytes:
    """A posted write of a register."""
    payload = raw.register_write(region, offset, value.to_bytes(4, "little"))
    return raw.frame(raw.REGION_WRITE, payload, flags=raw.NO_REPLY)


def read(offset: int, number: int, region: int = REGISTERS) -> bytes:
    payload = raw.region_range(region, offset, 4)
    return raw.frame(raw.REGION_READ, payload, number=number)


@pytest.mark.parametrize("region", [REGISTERS, MEMORY])
def test_a_read_sees_all_writes_that_were_posted_before_it(client: RawClient, region: int) -> None:
    count = 5000
    client.send(
        b"".join(write(0x40, value, region) for value in range(count)) + read(0x40, 1, region)
    )
    assert client.receive().payload[16:] == (count - 1).to_bytes(4, "little")


def test_posted_writes_that_fail_do_not_keep_others_from_being_done(client: RawClient) -> None:
    client.send(write(REFUSING, 1) + write(FAILING, 2) + write(0x40, 3) + read(0x40, 1))
    assert client.receive().payload[16:] == b"\3\0\0\0"


def test_a_request_between_usual_ones_is_answered_in_its_place(client: RawClient) -> None:
    info = raw.frame(raw.GET_INFO, raw.device_info(), number=2)
    for _ in range(100):
        client.send(write(0x40, 7) + read(0x40, 1) + info + write(0x40, 8) + read(0x40, 3))
        replies = [client.receive() for _ in range(3)]
        assert [reply.number for reply in replies] == [1, 2, 3]
        assert [replies[0].payload[16:], replies[2].payload[16:]] == [b"\7\0\0\0", b"\x08\0\0\0"]


@pytest.mark.parametrize(("offset", "error"), [(REFUSING, errno.EPERM), (FAILING, errno.EIO)])
def test_a_model_that_fails_has_the_client_told(client: RawClient, offset: int, error: int) -> None:
    assert client.refused(raw.REGION_READ, raw.region_range(REGISTERS, offset, 4)) == error
    assert client.refused(raw.REGION_WRITE, raw.register_write(REGISTERS, offset, b"1234")) == error
    client.write32(REGISTERS, 0x40, 5)
    assert client.read32(REGISTERS, 0x40) == 5


def test_the_table_of_msix_is_not_the_memory_under_it(client: RawClient) -> None:
    client.write(OVERLAID, TABLE - 4, bytes(range(8)))
    assert client.read(OVERLAID, TABLE - 4, 8) == bytes(range(8))
    client.done(raw.RESET)
    assert client.read(OVERLAID, TABLE - 4, 8) == bytes(range(4)) + bytes(4)


# Descriptors


def memory_with(data: bytes) -> int:
    """A page of a file that starts with ``data``."""
    fd = os.memfd_create("direct")
    os.ftruncate(fd, PAGE)
    os.pwrite(fd, data, 0)
    return fd


def mapping(address: int, number: int) -> bytes:
    return raw.frame(raw.DMA_MAP, raw.dma_map(address, PAGE), number=number)


@pytest.mark.parametrize("before", [0, 1, 3, 100])
@pytest.mark.parametrize("first", [True, False], ids=["the first map has it", "the second has it"])
def test_a_descriptor_is_of_the_message_that_it_was_sent_with(
    client: RawClient, server: ServerProcess, before: int, first: bool
) -> None:
    """All of it is there before the server reads, so that it could be read at once."""
    fd = memory_with(b"12345678")
    try:
        with stopped(server):
            client.send(b"".join(write(0x40, value) for value in range(before)))
            client.send(mapping(IOVA, 1), [fd] if first else ())
            client.send(mapping(IOVA + PAGE, 2), () if first else [fd])
            client.send(read(0x40, 3))
        assert [client.receive().flags for _ in range(3)] == [raw.REPLY] * 3
    finally:
        os.close(fd)
    client.send(raw.frame(raw.REGION_READ, raw.region_range(REGISTERS, READING_DMA, 8), number=4))
    reply = client.receive()
    if first:
        assert reply.payload[16:] == b"12345678"
    else:  # the map at the IOVA has none, so the client is asked
        assert reply.command == raw.DMA_READ
        client.send(raw.answer(reply, raw.dma_range(IOVA, 8, b"abcdefgh")))
        assert client.receive().payload[16:] == b"abcdefgh"


@pytest.mark.parametrize("before", [0, 1, 100])
def test_a_descriptor_is_of_the_first_message_that_it_was_sent_with(
    client: RawClient, server: ServerProcess, before: int
) -> None:
    fd = memory_with(b"12345678")
    try:
        with stopped(server):
            client.send(b"".join(write(0x40, value) for value in range(before)))
            together = mapping(IOVA, 1) + mapping(IOVA + PAGE, 2) + read(READING_DMA, 3)
            client.send(together, [fd])
        replies = [client.receive() for _ in range(3)]
    finally:
        os.close(fd)
    assert [reply.flags for reply in replies] == [raw.REPLY] * 3
    assert replies[2].payload[16:] == b"1234"


def test_descriptors_where_none_belong_are_refused_and_closed(
    client: RawClient, server: ServerProcess
) -> None:
    before = len(open_fds(server.pid))
    with stopped(server):
        client.send(read(0x40, 1))
        client.send(read(0x40, 2), [0, 0])
        client.send(read(0x40, 3))
    found = [client.receive() for _ in range(3)]
    assert [(reply.number, reply.error) for reply in found] == [(1, 0), (2, errno.EINVAL), (3, 0)]
    assert len(open_fds(server.pid)) == before


# Clients that do not read, or leave


def test_answers_that_nobody_takes_yet_wait_in_order(client: RawClient) -> None:
    count, size = 200, 32768
    request = raw.region_range(MEMORY, 0, size)

    def send() -> None:
        for number in range(count):
            client.send(raw.frame(raw.REGION_READ, request, number=number))

    sender = threading.Thread(target=send)
    sender.start()
    sender.join(0.3)
    replies = [client.receive() for _ in range(count)]
    sender.join()
    assert [reply.number for reply in replies] == list(range(count))
    assert {len(reply.payload) for reply in replies} == {16 + size}


def test_what_threads_of_the_model_ask_is_sent_though_no_request_comes(client: RawClient) -> None:
    """More than the socket takes at once; nothing but the client's reading has it go on."""
    client.done(raw.DMA_MAP, raw.dma_map(IOVA, THREADS * PIECE))
    client.send(write(WRITING_DMA, START))
    for _ in range(20):  # until the server waits where it serves directly
        client.read32(REGISTERS, 0x40)
    time.sleep(0.4)
    asked = [client.receive() for _ in range(THREADS)]
    assert {message.command for message in asked} == {raw.DMA_WRITE}
    for message in asked:
        address = int.from_bytes(message.payload[:8], "little")
        assert message.payload[16:] == bytes([(address - IOVA) // PIECE]) * PIECE
        client.send(raw.answer(message, message.payload[:16]))
    assert eventually(lambda: client.read32(REGISTERS, WRITING_DMA) == THREADS)


def test_all_of_a_long_read_comes(client: RawClient) -> None:
    data = random.Random(1).randbytes(1 << 20)
    for at in range(0, len(data), 32768):
        client.write(MEMORY, at, data[at : at + 32768])
    assert client.read(MEMORY, 0, 1 << 20) == data


@pytest.mark.parametrize("native", [True, False], ids=["direct", "general"])
def test_writes_of_a_client_that_leaves_at_once_are_carried_out(path: Path, native: bool) -> None:
    with serving(path, native) as server:
        with RawClient(server.path) as client:
            client.negotiate()
            client.send(b"".join(write(0x40, value) for value in range(1000)))
        with RawClient(server.path) as client:
            client.negotiate()
            assert client.read32(REGISTERS, 0x40) == 999


@pytest.mark.parametrize("cut", [1, 15, 16, 31, 35])
def test_a_client_that_leaves_in_a_message_leaves_nothing(
    client: RawClient, server: ServerProcess, cut: int
) -> None:
    fds, threads = len(open_fds(server.pid)), thread_count(server.pid)
    for _ in range(5):
        client.close()
        with RawClient(server.path) as other:
            other.negotiate()
            other.send(write(0x40, 1) + write(0x40, 2)[:cut])
    with RawClient(server.path) as last:
        last.negotiate()
        assert eventually(lambda: len(open_fds(server.pid)) <= fds)
        # A thread takes a moment to end; so one more may have been there before.
        assert eventually(lambda: thread_count(server.pid) <= threads)
        assert last.read32(REGISTERS, 0x40) == 1


@pytest.mark.parametrize("region", [REGISTERS, MEMORY])
@pytest.mark.parametrize("native", [True, False], ids=["direct", "general"])
def test_a_server_ends_when_it_is_told_though_requests_never_end(
    path: Path, native: bool, region: int
) -> None:
    with serving(path, native) as server, RawClient(server.path) as client:
        client.negotiate()
        data = b"".join(write(0x40, value, region) for value in range(1000))

        def flood() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client.send(data)

        thread = threading.Thread(target=flood)
        thread.start()
        client_is_read = select.select([], [client.sock], [], raw.SECONDS)[1]
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(raw.SECONDS)
        with contextlib.suppress(OSError):
            client.sock.shutdown(socket.SHUT_RDWR)
        thread.join()
        assert client_is_read
        assert server.stop()[0] == 0
