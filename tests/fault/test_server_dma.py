# SPDX-License-Identifier: BSD-3-Clause
"""DMA of a model's threads: of any size, over any maps, and while the client takes memory away.

Specification: "VFIO_USER_DMA_READ", "VFIO_USER_DMA_WRITE", "VFIO_USER_DMA_UNMAP", "Version".
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fault import raw
from tests.fault.clients import BAR0, IOVA, PAGE, ClientMemory, in_step, memfd, pattern
from tests.fault.raw import RawClient
from tests.support import ServerProcess, in_threads

SOURCE, DESTINATION, COUNT, RUN, RESULT = range(0x00, 0x28, 8)
THREADS, SIZE, COPIES, FAILURES, LAST_ERRNO = range(0x00, 0x28, 8)
CHUNK = 64 << 10
"""Bytes in one message, where the client takes more."""
ROUNDS = 30
LARGE = 1 << 20


@pytest.fixture(scope="module")
def moving(host: Callable[..., ServerProcess]) -> ServerProcess:
    """A server of the model that moves the client's memory."""
    return host("tests.fault.models:Moving")


@pytest.fixture(scope="module")
def copying(host: Callable[..., ServerProcess]) -> ServerProcess:
    """A server of the model whose threads reach for the client's memory all the time."""
    return host("tests.fault.models:Copying")


def capabilities(max_data: int, twin: bool) -> bytes:
    """JSON of a client."""
    offer = b',"twin_socket":{"supported":true}' if twin else b""
    return b'{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":%d%s}}\0' % (max_data, offer)


@contextmanager
def connected(
    server: ServerProcess, max_data: int = 1 << 20, twin: bool = False
) -> Iterator[tuple[RawClient, raw.Peer]]:
    """A client, and the socket that DMA comes on."""
    with RawClient(server.path) as client:
        fds = client.negotiate(capabilities(max_data, twin)).fds
        client.enable_bus_master()
        if not twin:
            yield client, client
            return
        with raw.Peer(socket.socket(fileno=fds[0])) as second:
            yield client, second


def start_move(client: RawClient, source: int, destination: int, count: int) -> None:
    """Have the model move bytes between two addresses of the client, in one DMA each way."""
    client.write64(BAR0, SOURCE, source)
    client.write64(BAR0, DESTINATION, destination)
    client.write64(BAR0, COUNT, count)
    client.send(raw.frame(raw.REGION_WRITE, raw.register_write(BAR0, RUN, bytes(8))))


def finish_move(client: RawClient) -> int:
    """Wait for the model's thread; returns the errno that it saw."""
    while not (result := client.read32(BAR0, RESULT)):
        time.sleep(0.001)
    return result >> 8


def move(
    client: RawClient,
    peer: raw.Peer,
    memory: ClientMemory,
    where: tuple[int, int, int],
) -> int:
    """Have the model move bytes, and answer for ``memory`` until it has."""
    if peer is not client:
        (answering,) = in_threads([lambda: memory.answer_until_end(peer)])
        start_move(client, *where)
        client.receive()
        result = finish_move(client)
        peer.sock.shutdown(socket.SHUT_RDWR)
        answering.join()
        return result
    start_move(client, *where)
    memory.answer_until_reply(client)
    while True:
        client.send(raw.frame(raw.REGION_READ, raw.region_range(BAR0, RESULT, 4)))
        result = int.from_bytes(memory.answer_until_reply(client).payload[16:], "little")
        if result:
            return result >> 8
        time.sleep(0.001)


def chunks(address: int, count: int, chunk: int) -> list[tuple[int, int]]:
    """(address, count) of the messages that a transfer takes."""
    return [(address + at, min(chunk, count - at)) for at in range(0, count, chunk)]


# Of any size


@pytest.mark.parametrize("twin", [False, True], ids=["main socket", "twin socket"])
@pytest.mark.parametrize(
    ("max_data", "count"),
    [
        (8, 8),
        (8, 1000),
        (9, 1000),
        (100, 4096),
        (4096, 3 * PAGE + 1),
        (1 << 20, 5),
        (1 << 20, 150_001),
    ],
)
def test_dma_comes_in_messages_that_the_client_takes(
    moving: ServerProcess, max_data: int, count: int, twin: bool
) -> None:
    data = pattern(-(-count // 4) * 4)[:count]
    memory = ClientMemory(IOVA, data.ljust(2 * LARGE, b"\0"))
    with connected(moving, max_data, twin) as (client, peer):
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, 2 * LARGE))
        assert move(client, peer, memory, (IOVA, IOVA + LARGE + 1, count)) == 0
    chunk = min(max_data, CHUNK)
    reads = [(raw.DMA_READ, *piece) for piece in chunks(IOVA, count, chunk)]
    writes = [(raw.DMA_WRITE, *piece) for piece in chunks(IOVA + LARGE + 1, count, chunk)]
    assert memory.asked == reads + writes
    assert memory.contents[LARGE + 1 : LARGE + 1 + count] == data
    assert not any(memory.contents[LARGE + 1 + count :])


def test_dma_of_nothing_asks_for_nothing(moving: ServerProcess) -> None:
    memory = ClientMemory(IOVA, bytes(PAGE))
    with connected(moving) as (client, peer):
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
        assert move(client, peer, memory, (IOVA, IOVA, 0)) == 0
    assert memory.asked == []


# Over several maps


def test_dma_crosses_maps_of_both_kinds(moving: ServerProcess) -> None:
    data = pattern(4 * PAGE)
    middle = ClientMemory(IOVA + PAGE, bytes(PAGE))
    with connected(moving) as (client, peer), memfd(PAGE) as low, memfd(8 * PAGE) as high:
        os.pwrite(high, data, 4 * PAGE)
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [low])
        client.done(raw.DMA_MAP, raw.dma_map(IOVA + PAGE, PAGE))
        client.done(raw.DMA_MAP, raw.dma_map(IOVA + 2 * PAGE, 7 * PAGE, offset=PAGE), [high])
        into = IOVA + PAGE - 8  # 8 bytes, a page, and what is left
        assert move(client, peer, middle, (IOVA + 5 * PAGE, into, 3 * PAGE)) == 0
        assert os.pread(low, 8, PAGE - 8) == data[:8]
        assert middle.contents == data[8 : PAGE + 8]
        assert os.pread(high, 2 * PAGE - 8, PAGE) == data[PAGE + 8 : 3 * PAGE]
        assert move(client, peer, middle, (into, IOVA + 6 * PAGE, 3 * PAGE)) == 0
        assert os.pread(high, 3 * PAGE, 5 * PAGE) == data[: 3 * PAGE]
    assert middle.asked == [
        (raw.DMA_WRITE, IOVA + PAGE, PAGE),
        (raw.DMA_READ, IOVA + PAGE, PAGE),
    ]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (None, errno.EFAULT),
        (raw.dma_map(IOVA + PAGE, PAGE, flags=raw.WRITABLE), errno.EPERM),
        (raw.dma_map(IOVA + 2 * PAGE, PAGE), errno.EFAULT),
    ],
    ids=["not mapped", "not readable", "a gap"],
)
def test_dma_that_is_not_all_allowed_moves_nothing(
    moving: ServerProcess, second: bytes | None, expected: int
) -> None:
    memory = ClientMemory(IOVA, bytes(4 * PAGE))
    with connected(moving) as (client, peer):
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
        if second is not None:
            client.done(raw.DMA_MAP, second)
        assert move(client, peer, memory, (IOVA, IOVA, 2 * PAGE)) == expected
    assert memory.asked == []


@pytest.mark.parametrize("address", [(1 << 64) - 8, (1 << 64) - PAGE])
def test_dma_over_the_end_of_the_address_space_moves_nothing(
    moving: ServerProcess, address: int
) -> None:
    memory = ClientMemory(address, bytes(PAGE))
    with connected(moving) as (client, peer):
        client.done(raw.DMA_MAP, raw.dma_map((1 << 64) - PAGE, PAGE))
        assert move(client, peer, memory, (address, address, 2 * PAGE)) == errno.EFAULT
    assert memory.asked == []


# Memory that is taken away


def mapped_by(server: ServerProcess) -> int:
    """How often a test's memory is mapped in the server's process."""
    return Path(f"/proc/{server.pid}/maps").read_text().count("memfd:raw")


def test_an_unmap_is_answered_when_no_thread_reaches_for_the_memory(
    copying: ServerProcess,
) -> None:
    with connected(copying) as (client, _), memfd(LARGE) as fd:
        client.write64(BAR0, SIZE, LARGE)
        client.write64(BAR0, THREADS, 2)
        for number in range(ROUNDS):
            client.done(raw.DMA_MAP, raw.dma_map(IOVA, LARGE), [fd])
            before = client.read(BAR0, COPIES, 8)
            while client.read(BAR0, COPIES, 8) == before:
                pass
            client.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, LARGE))
            assert mapped_by(copying) == 0
            ours = bytes([number + 1]) * LARGE
            os.pwrite(fd, ours, 0)
            time.sleep(0.002)  # a copy that still runs would write what was there before
            assert os.pread(fd, LARGE, 0) == ours
        client.write64(BAR0, THREADS, 0)
        assert client.read32(BAR0, LAST_ERRNO) == errno.EFAULT


def test_the_memory_of_a_client_that_leaves_is_unmapped(copying: ServerProcess) -> None:
    with connected(copying) as (client, _), memfd(LARGE) as fd:
        client.write64(BAR0, SIZE, LARGE)
        client.write64(BAR0, THREADS, 2)
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, LARGE), [fd])
    with connected(copying) as (following, _):
        assert mapped_by(copying) == 0
        following.write64(BAR0, THREADS, 0)


UNMAP = raw.dma_unmap(IOVA, LARGE)


def first_request(client: RawClient, peer: raw.Peer) -> raw.Message:
    """Have the model move four messages' worth of bytes; returns the first DMA_READ."""
    client.done(raw.DMA_MAP, raw.dma_map(IOVA, LARGE))
    start_move(client, IOVA, IOVA, 4 * CHUNK)
    messages = [client.receive(), peer.receive()]  # on one socket in either order
    return next(message for message in messages if message.command == raw.DMA_READ)


@pytest.mark.parametrize("twin", [False, True], ids=["main socket", "twin socket"])
def test_an_unmap_waits_for_the_message_that_is_under_way(
    moving: ServerProcess, twin: bool
) -> None:
    with connected(moving, twin=twin) as (client, peer):
        request = first_request(client, peer)
        client.send(raw.frame(raw.DMA_UNMAP, UNMAP, number=9))
        assert client.quiet(0.2)
        peer.send(raw.answer(request, raw.dma_range(IOVA, CHUNK, bytes(CHUNK))))
        assert client.receive().number == 9
        assert peer.quiet()  # nothing more is asked of that memory
        assert finish_move(client) == errno.EFAULT


@pytest.mark.parametrize("twin", [False, True], ids=["main socket", "twin socket"])
def test_a_client_that_answers_nothing_while_it_waits_for_its_unmap_gets_on(
    moving: ServerProcess, twin: bool
) -> None:
    with connected(moving, twin=twin) as (client, peer):
        request = first_request(client, peer)
        client.sock.settimeout(4)  # less than the server waits for an answer to DMA_READ
        client.done(raw.DMA_UNMAP, UNMAP)
        peer.send(raw.answer(request, raw.dma_range(IOVA, CHUNK, bytes(CHUNK))))
        assert finish_move(client) == errno.EFAULT
        assert peer.quiet()


def test_an_unmap_of_other_memory_does_not_wait(moving: ServerProcess) -> None:
    with connected(moving, twin=True) as (client, peer):
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, LARGE))
        client.done(raw.DMA_MAP, raw.dma_map(0, PAGE))
        start_move(client, IOVA, IOVA, 8)
        client.receive()
        request = peer.receive()
        client.done(raw.DMA_UNMAP, raw.dma_unmap(0, PAGE))
        peer.send(raw.refusal(request, errno.EFAULT))
        assert finish_move(client) == errno.EFAULT
        assert in_step(client)
