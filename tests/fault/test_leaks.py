# SPDX-License-Identifier: BSD-3-Clause
"""Nothing grows: descriptors, threads and memory after many clients are those after a few."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyvfio
from pyvfio.errors import ConnectionLost, RemoteProtocolError, VFIOError, VFIOTimeout
from tests.fault import raw
from tests.fault.raw import Message, RawClient, RawServer
from tests.holdings import GROWTH, check_flat, of_server, own
from tests.support import (
    ServerProcess,
    eventually,
    in_threads,
    open_fds,
    resident,
    thread_names,
)

CYCLES = 1000
WARM_UP = 100
CLIENTS = 200
TWIN = b'{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}\0'

OPEN_MESSAGES = 13
"""Commands that opening the raw server's device takes."""


def open_and_close(server: ServerProcess) -> None:
    with pyvfio.open(server.uri) as device:
        assert device.config.vendor_id == 0x1234


def use(server: ServerProcess) -> None:
    """One client with all that a client can make a server hold."""
    with pyvfio.open(server.uri) as device:
        device.dma.alloc(64 << 10)
        device.dma.alloc(4096)
        device.msi.enable(1)
        device.bars[0].write32(0x60, 1)


def vanish(server: ServerProcess) -> None:
    """The same by a client that goes without a word, in the middle of a message."""
    with RawClient(server.path) as client:
        client.negotiate()
        fds = [os.memfd_create("raw"), os.eventfd(0)]
        os.ftruncate(fds[0], 4096)
        client.done(raw.DMA_MAP, raw.dma_map(0, 4096), fds[:1])
        enable = raw.irq_set(raw.EVENTFD | raw.TRIGGER, raw.MSI, 0, 1)
        client.done(raw.SET_IRQS, enable, fds[1:])
        client.send(raw.frame(raw.DMA_MAP, raw.dma_map(4096, 4096))[:40], fds[:1])
        raw.close(fds)


@pytest.mark.parametrize(
    ("cycle", "count"),
    [(open_and_close, CYCLES), (use, CLIENTS), (vanish, CLIENTS)],
    ids=["open and close", "clients", "clients that vanish"],
)
def test_many_clients_leave_nothing_in_either_process(
    serve: Callable[..., ServerProcess], cycle: Callable[[ServerProcess], None], count: int
) -> None:
    server = serve("edu")
    for _ in range(WARM_UP):
        cycle(server)
    before, before_server = own(), of_server(server)
    for _ in range(count):
        cycle(server)
    check_flat(before, own())
    check_flat(before_server, of_server(server))


def test_many_requests_on_one_connection_leave_nothing(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("edu")

    def cycle() -> None:
        with device.dma.alloc(4096), device.msi.enable(1):
            device.bars[0].write32(4, 1)
            device.bars[0].read_bytes(0, 64)

    with pyvfio.open(server.uri) as device:
        for _ in range(WARM_UP):
            cycle()
        before, before_fds = own(), len(open_fds(server.pid))
        memory = resident(server.pid)
        for _ in range(CYCLES):
            cycle()
        check_flat(before, own())
        assert len(open_fds(server.pid)) == before_fds
        assert resident(server.pid) - memory < GROWTH


# An open that fails half way


def nonsense(server: RawServer) -> None:
    server.peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def silence(server: RawServer) -> None:
    """The client gives up."""


FAILURES: dict[str, tuple[Callable[[RawServer], None], type[VFIOError]]] = {
    "hangs up": (RawServer.hang_up, ConnectionLost),
    "falls silent": (silence, VFIOTimeout),
    "talks nonsense": (nonsense, RemoteProtocolError),
}


@pytest.fixture
def server(socket_folder: Path) -> Iterator[RawServer]:
    """A raw server whose clients get all the descriptors that a client can get."""
    ours, theirs = socket.socketpair()
    fd = os.memfd_create("raw")
    os.ftruncate(fd, 4096)
    with RawServer(socket_folder / "raw.sock") as server, ours, theirs:
        server.regions[0] = (raw.READABLE | raw.WRITABLE | raw.MAPPABLE, 4096)
        server.fds = {raw.VERSION: [theirs.fileno()], raw.GET_REGION_INFO: [fd]}
        server.capabilities = TWIN
        yield server
    os.close(fd)


def test_an_open_takes_as_many_messages_as_are_tried_here(server: RawServer) -> None:
    with pyvfio.open(server.uri):
        assert len(server.seen) == OPEN_MESSAGES


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("answers", range(OPEN_MESSAGES))
def test_an_open_that_fails_leaves_nothing(server: RawServer, answers: int, failure: str) -> None:
    fail, error = FAILURES[failure]

    def serve(message: Message) -> None:
        if len(server.seen) > answers:
            fail(server)
        else:
            server.serve(message)

    server.handlers = dict.fromkeys(range(1, 19), serve)
    fds, threads = len(open_fds()), thread_names()
    with pytest.raises(error):
        pyvfio.open(server.uri, timeout=0.1)
    assert thread_names() <= threads
    assert eventually(lambda: len(open_fds()) <= fds)  # the server's end closes by itself


def test_an_open_of_what_hangs_up_at_once_leaves_nothing(socket_folder: Path) -> None:
    def hang_up() -> None:
        sock, _ = listener.accept()
        sock.close()

    path = socket_folder / "rude.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        fds, threads = len(open_fds()), thread_names()
        (thread,) = in_threads([hang_up])
        with pytest.raises(ConnectionLost):
            pyvfio.open(f"vfio-user:{path}")
        thread.join()
        assert thread_names() <= threads
        assert len(open_fds()) == fds
    path.unlink()


@pytest.mark.parametrize(
    "uri", ["vfio-user:/no/such.sock", "vfio-user:/dev/null", "vfio-user:/" + "x" * 200]
)
def test_an_open_of_what_is_no_server_leaves_nothing(uri: str) -> None:
    fds, threads = len(open_fds()), thread_names()
    with pytest.raises(VFIOError):
        pyvfio.open(uri)
    assert thread_names() <= threads
    assert len(open_fds()) == fds
