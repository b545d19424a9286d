# SPDX-License-Identifier: BSD-3-Clause
"""Peers that stop reading, say nothing, or send a byte at a time: whoever deals with them goes on.

Every call ends in its time, what is kept for such a peer is bounded, the next client is served, and
when the peer catches up the stream is in step.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import repeat
from pathlib import Path

import pytest

import pyvfio
from pyvfio.errors import VFIOTimeout
from pyvfio.pci.device import PCIDevice
from tests.fault import raw
from tests.fault.clients import ASKING, IOVA, have_callback_ask
from tests.fault.raw import Message, Peer, RawClient, RawServer
from tests.support import ServerProcess, eventually, in_threads, resident

PAGE = 4096
TIMEOUT = 0.3
BOUND = 100 << 20
"""Bytes that a process may keep for a peer, and some more."""
ASKING_BOUND = 500 << 20
"""The same of a server that reads on, since the answer that its model waits for may come."""
LONG_WRITES = b'{"capabilities":{"max_msg_fds":8,"pyvfio_long_writes":true}}\0'


@pytest.fixture
def server(socket_folder: Path) -> Iterator[RawServer]:
    with RawServer(socket_folder / "raw.sock") as server:
        server.regions[2] = (raw.READABLE | raw.WRITABLE, 2 << 20)
        server.memory[2] = bytearray(2 << 20)
        yield server


def in_step(device: PCIDevice, server: RawServer) -> bool:
    """Whether answers belong to their questions again, though many came late."""

    def try_it() -> bool:
        server.memory[0][0x80:0x84] = b"step"
        with suppress(VFIOTimeout):
            return device.bars[0].read32(0x80) == int.from_bytes(b"step", "little")
        return False

    return eventually(try_it, raw.SECONDS)


# A server that does not read


def fill_the_socket(device: PCIDevice) -> None:
    """As much as the socket takes, and a little more, of what is not waited for."""
    for _ in range(64):
        device.bars[0].write_bytes(0, bytes(PAGE))


CALLS: dict[str, Callable[[PCIDevice], object]] = {
    "read a register": lambda device: device.bars[0].read32(0),
    "read bytes": lambda device: device.bars[2].read_bytes(0, 64 << 10),
    "write bytes": lambda device: device.bars[2].write_bytes(0, bytes(64 << 10)),
    "write configuration": lambda device: setattr(device, "bus_master", True),
    "flush": lambda device: device.flush(),
    "region info": lambda device: device.base.region(8),
    "enable interrupts": lambda device: device.msi.enable(2),
    "map": lambda device: device.dma.alloc(PAGE),
    "unmap": lambda device: device.dma.unmap_all(),
    "reset": lambda device: device.reset(),
}


@pytest.mark.parametrize("full", [False, True], ids=["socket empty", "socket full"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_to_a_server_that_does_not_read_times_out_and_leaves_the_stream_in_step(
    server: RawServer, call: Callable[[PCIDevice], object], full: bool
) -> None:
    with pyvfio.open(server.uri, timeout=TIMEOUT) as device:
        device.bars[2].posted = False
        with server.deaf(lambda: device.bars[0].write8(0, 0)):
            if full:
                fill_the_socket(device)
            with pytest.raises(VFIOTimeout):
                call(device)
        assert in_step(device, server)


def test_requests_to_a_server_that_does_not_read_are_not_piled_up(server: RawServer) -> None:
    server.capabilities = LONG_WRITES
    with pyvfio.open(server.uri, timeout=TIMEOUT) as device:
        device.bars[2].posted = False
        data = bytes(1 << 20)

        def write() -> None:
            for _ in range(10):
                with pytest.raises(VFIOTimeout):
                    device.bars[2].write_bytes(0, data)

        before = resident()
        with server.deaf(lambda: device.bars[0].write8(0, 0)):
            for thread in in_threads(repeat(write, 16)):
                thread.join()
            assert resident() - before < BOUND
        assert in_step(device, server)


# A server that sends a byte at a time


class Dribble:
    """Sends bytes one at a time, without end in sight, until it is left."""

    def __init__(self, peer: Callable[[], Peer], pause: float = TIMEOUT / 6) -> None:
        self._peer, self._pause = peer, pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._data = b""
        self.finished = threading.Event()

    def start(self, data: bytes) -> None:
        """Begin; another thread sends."""
        self._data = data
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            for at in range(len(self._data)):
                # What is left comes at once, so that the stream can be seen to be in step.
                if self._over.wait(self._pause):
                    self._peer().send(self._data[at:])
                    break
                self._peer().send(self._data[at : at + 1])
        self.finished.set()

    def __enter__(self) -> Dribble:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()


def test_an_open_of_a_server_that_dribbles_its_version_times_out(server: RawServer) -> None:
    with Dribble(lambda: server.peer) as dribble:
        server.handlers[raw.VERSION] = lambda message: dribble.start(
            raw.answer(message, raw.version())
        )
        with pytest.raises(VFIOTimeout):
            pyvfio.open(server.uri, timeout=TIMEOUT)


@pytest.mark.parametrize("count", [4, PAGE], ids=["register", "page"])
def test_a_reply_that_is_dribbled_times_out_and_is_drained(server: RawServer, count: int) -> None:
    def dribble_reply(message: Message) -> None:
        server.handlers.pop(raw.REGION_READ)
        dribble.start(raw.answer(message, server.payload_for(message)))

    with pyvfio.open(server.uri, timeout=TIMEOUT) as device:
        with Dribble(lambda: server.peer) as dribble:
            server.handlers[raw.REGION_READ] = dribble_reply
            with pytest.raises(VFIOTimeout):
                device.bars[0].read_bytes(0, count)
        assert in_step(device, server)


def test_a_command_that_is_dribbled_keeps_calls_waiting_for_their_time_only(
    server: RawServer,
) -> None:
    with pyvfio.open(server.uri, timeout=TIMEOUT) as device, device.dma.alloc(PAGE) as buffer:
        with Dribble(lambda: server.peer) as dribble:
            dribble.start(raw.frame(raw.DMA_READ, raw.dma_range(buffer.iova, 64), number=7))
            # Half of a message stands before whatever the server could answer.
            server.handlers[raw.REGION_READ] = lambda _: None
            with pytest.raises(VFIOTimeout):
                device.bars[0].read32(0)
        server.handlers.clear()
        assert server.replies.get(timeout=raw.SECONDS).number == 7
        assert in_step(device, server)


def test_a_server_that_dribbles_does_not_keep_a_device_from_closing(server: RawServer) -> None:
    with Dribble(lambda: server.peer) as dribble:
        with pyvfio.open(server.uri, timeout=60) as device, device.dma.alloc(PAGE) as buffer:
            dribble.start(raw.frame(raw.DMA_READ, raw.dma_range(buffer.iova, 64)))
        assert device.closed


# A client that has not agreed on a version; one that says nothing is in test_raw_client.py


def test_a_client_that_dribbles_its_version_makes_room_for_the_next(
    edu_server: ServerProcess,
) -> None:
    with RawClient(edu_server.path) as slow, Dribble(lambda: slow, pause=0.2) as dribble:
        dribble.start(raw.frame(raw.VERSION, raw.version()))  # sixteen seconds long
        with RawClient(edu_server.path) as following:  # its waits end after ten
            following.negotiate()
        assert slow.ended()


# A client that has agreed, and then stalls


def test_a_dma_whose_answer_is_dribbled_times_out_and_leaves_the_stream_in_step(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve(ASKING)
    with RawClient(server.path) as client:
        client.negotiate()
        question = have_callback_ask(client, 256)
        with Dribble(lambda: client, pause=0.1) as dribble:
            dribble.start(raw.answer(question, raw.dma_range(IOVA, 256, bytes(256))))
            done = client.receive()
            assert not dribble.finished.is_set()
        assert (done.command, done.number, done.error) == (raw.REGION_WRITE, 9, 0)
        assert client.read32(0, 0) == errno.ETIMEDOUT
        client.done(raw.GET_INFO, raw.device_info(0, 0, 0))


def send_until_full(client: RawClient, data: bytes) -> None:
    """Send again and again, until the server takes nothing more for a while, or hangs up."""
    client.sock.settimeout(1)
    with suppress(TimeoutError, ConnectionError):
        while True:
            client.sock.sendall(data)


@pytest.mark.parametrize("dma", [False, True], ids=["idle", "while a DMA waits for the client"])
def test_what_a_server_keeps_for_a_client_that_does_not_read_is_bounded(
    serve: Callable[..., ServerProcess], dma: bool
) -> None:
    server = serve(ASKING)
    with RawClient(server.path) as client:
        client.negotiate()
        if dma:
            have_callback_ask(client)
        flood = raw.frame(raw.REGION_READ, raw.region_range(2, 0, 1 << 20))
        before = resident(server.pid)
        send_until_full(client, flood * 64)
        assert resident(server.pid) - before < (ASKING_BOUND if dma else BOUND)
    with pyvfio.open(server.uri) as device:
        assert device.config.vendor_id == 0x1234
