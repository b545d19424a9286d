# SPDX-License-Identifier: BSD-3-Clause
"""A server that is to stop does so, and a client that has left keeps it from nothing."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import pyvfio
from pyvfio.errors import DeviceClosed
from pyvfio.server import dma_maps
from pyvfio.server.server import Server
from tests.fault import raw
from tests.fault.clients import BAR0, IOVA, PAGE, memfd
from tests.fault.models import Small
from tests.fault.raw import RawClient
from tests.support import ServerProcess

MIB = 1 << 20
SOON = 20
"""Seconds that a server may take to end; what is queued for it would take many minutes."""


class Counting(Small):
    """Counts what is done to it; fails in a way of its own where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.failure: BaseException | None = None

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self.writes += 1

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        if self.failure is not None:
            raise self.failure
        return 0


class Hosted:
    """A server in a thread of this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = Counting()
        self.server = Server(self.model, str(path))
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()


@pytest.fixture
def hosted(socket_folder: Path) -> Iterator[Hosted]:
    found = Hosted(socket_folder / "hosted.sock")
    yield found
    found.server.close()
    found.thread.join()


def posted(command: int, payload: bytes) -> bytes:
    return raw.frame(command, payload, flags=raw.NO_REPLY)


QUEUES = {
    "reads": posted(raw.REGION_READ, raw.region_range(BAR0, 0, MIB)) * 2000,
    "writes": posted(raw.REGION_WRITE, raw.register_write(BAR0, 0, bytes(MIB))) * 6,
}
"""What costs a client little and the model much: each is a million accesses of a register."""


@pytest.mark.parametrize("queue", QUEUES.values(), ids=QUEUES)
def test_a_server_ends_though_much_is_queued(
    serve: Callable[..., ServerProcess], queue: bytes
) -> None:
    server = serve("edu")
    with RawClient(server.path) as client:
        client.negotiate()
        sender = threading.Thread(target=_send, args=(client, queue))
        sender.start()
        client.quiet(0.2)
        server.process.terminate()
        assert server.process.wait(SOON) == 0
        sender.join()


def _send(client: RawClient, data: bytes) -> None:
    with suppress(OSError):  # the server has ended
        client.send(data)


def test_reads_of_a_client_that_has_left_are_not_made(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("edu")
    with RawClient(server.path) as client:
        client.negotiate()
        client.send(QUEUES["reads"])
    with pyvfio.open(server.uri, timeout=SOON) as device:
        assert device.config.vendor_id == 0x1234


def test_writes_of_a_client_that_has_left_are_made(hosted: Hosted) -> None:
    with RawClient(hosted.path) as client:
        client.negotiate()
        client.send(posted(raw.REGION_WRITE, raw.register_write(BAR0, 0, bytes(4))) * 1000)
    with RawClient(hosted.path) as client:
        client.negotiate()
        assert hosted.model.writes == 1000


def test_a_server_ends_between_two_messages_of_a_long_dma(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("tests.fault.models:Reader")
    with RawClient(server.path) as client:
        client.negotiate()
        client.enable_bus_master()
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, 64 * MIB))
        client.send(posted(raw.REGION_WRITE, raw.register_write(BAR0, 0, bytes(8))))
        first = client.receive()
        assert first.command == raw.DMA_READ
        server.process.terminate()
        address, count = first.words("QQ")
        client.send(raw.answer(first, raw.dma_range(address, count, bytes(count))))
        assert server.process.wait(SOON) == 0


# Server.close()


def test_close_ends_a_server_that_waits_for_clients(hosted: Hosted) -> None:
    hosted.server.close()
    hosted.thread.join(SOON)
    assert not hosted.thread.is_alive()
    assert not hosted.path.exists()


def test_close_ends_a_server_that_has_a_client(hosted: Hosted) -> None:
    with RawClient(hosted.path) as client:
        client.negotiate()
        hosted.server.close()
        assert client.ended()
    hosted.thread.join(SOON)
    assert not hosted.thread.is_alive()


class ClosesItself(Small):
    """Closes its server when its client leaves."""

    server: Server

    def client_lost(self) -> None:
        self.server.close()


def test_close_within_the_server_is_done_when_it_returns(socket_folder: Path) -> None:
    path = socket_folder / "within.sock"
    model = ClosesItself()
    model.server = Server(model, str(path))
    with RawClient(path) as client:
        client.send(raw.frame(raw.VERSION, raw.version()))
        leaving = threading.Timer(0.1, client.sock.shutdown, [socket.SHUT_RDWR])
        leaving.start()
        model.server.serve_forever()
        leaving.join()
    assert not path.exists()


def test_a_closed_server_serves_nobody(hosted: Hosted) -> None:
    hosted.server.close()
    with pytest.raises(DeviceClosed):
        hosted.server.serve_forever()


# Models that fail in ways of their own


@pytest.mark.parametrize(
    ("failure", "number"),
    [(asyncio.CancelledError(), errno.ECANCELED), (MemoryError(), errno.ENOMEM)],
    ids=["cancelled", "no memory"],
)
def test_a_failure_of_the_model_is_an_errno_and_the_server_lives(
    hosted: Hosted, failure: BaseException, number: int
) -> None:
    hosted.model.failure = failure
    with RawClient(hosted.path) as client:
        client.negotiate()
        assert client.refused(raw.REGION_READ, raw.region_range(BAR0, 0, 4)) == number
        hosted.model.failure = None
        assert client.read32(BAR0, 0) == 0


# Mappings that the kernel allows a process


def test_mappings_are_left_for_the_process(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dma_maps._mappings, "_most", dma_maps._mappings._used + 2)
    with memfd(PAGE) as fd, RawClient(hosted.path) as client:
        client.negotiate()
        maps = [raw.dma_map(IOVA + PAGE * number, PAGE) for number in range(4)]
        client.done(raw.DMA_MAP, maps[0], [fd])
        client.done(raw.DMA_MAP, maps[1], [fd])
        assert client.refused(raw.DMA_MAP, maps[2], [fd]) == errno.ENOSPC
        client.done(raw.DMA_MAP, maps[3])  # without a descriptor it takes none
        client.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, PAGE))
        client.done(raw.DMA_MAP, maps[2], [fd])
