# SPDX-License-Identifier: BSD-3-Clause
"""What tests of a server by hand-written bytes share: the models' registers, what a client brings
along, and how to see that a server is well.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fault import raw
from tests.fault.raw import RawClient
from tests.support import ServerProcess, eventually, open_fds

BAR0, BAR1, BAR2 = 0, 1, 2
LIVENESS, IRQ_RAISE, IRQ_ACK = 0x04, 0x60, 0x64
DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
DMA_RUN, DMA_TO_HOST, BUFFER = 1, 2, 0x40000
TEST_SCRATCH, TEST_FIRE, TEST_PIN = 0x10, 0x28, 0x2C
TEST_ADDRESS, TEST_OFFSET, TEST_COUNT, TEST_RUN = 0x30, 0x38, 0x40, 0x44
TO_DEVICE, TO_CLIENT = 1, 2

IOVA, PAGE = 0x100000, 4096
TWIN = b'{"capabilities":{"max_msg_fds":8,"twin_socket":{"supported":true}}}\0'


@contextmanager
def eventfds(count: int) -> Iterator[list[int]]:
    fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(count)]
    try:
        yield fds
    finally:
        raw.close(fds)


@contextmanager
def memfd(size: int, contents: bytes = b"") -> Iterator[int]:
    fd = os.memfd_create("raw")
    try:
        os.ftruncate(fd, size)
        os.pwrite(fd, contents, 0)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    fds = os.pipe()
    try:
        yield fds
    finally:
        raw.close(fds)


def in_step(client: RawClient) -> bool:
    """Whether the next request is answered as ever."""
    return client.done(raw.GET_INFO, raw.device_info(0, 0, 0)).payload == raw.device_info()


def serves(server: ServerProcess) -> bool:
    """Whether the server serves the next client."""
    with RawClient(server.path) as client:
        client.negotiate()
        return in_step(client)


def held(server: ServerProcess) -> int:
    """Descriptors that the server holds while a client that gave it none is connected."""
    with RawClient(server.path) as client:
        client.negotiate()
        return len(open_fds(server.pid))


def pattern(size: int) -> bytes:
    """Bytes of which no two neighbouring words are the same."""
    return struct.pack(f"<{size // 4}I", *(0x01000193 * n & 0xFFFFFFFF for n in range(size // 4)))


def start_edu_dma(client: RawClient, source: int, destination: int, command: int) -> None:
    client.enable_bus_master()
    client.write64(BAR0, DMA_SOURCE, source)
    client.write64(BAR0, DMA_DESTINATION, destination)
    client.write64(BAR0, DMA_COUNT, PAGE)
    client.write32(BAR0, DMA_COMMAND, command)


def finish_edu_dma(client: RawClient) -> None:
    deadline = time.monotonic() + raw.SECONDS
    while client.read32(BAR0, DMA_COMMAND) & DMA_RUN:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def prepare_test_dma(client: RawClient, address: int = IOVA, count: int = PAGE) -> None:
    client.enable_bus_master()
    client.write64(BAR0, TEST_ADDRESS, address)
    client.write64(BAR0, TEST_OFFSET, 0)
    client.write32(BAR0, TEST_COUNT, count)


def run_test_dma(client: RawClient, direction: int, address: int = IOVA, count: int = PAGE) -> int:
    """Have the test device copy from or to memory that it maps; returns the errno it saw."""
    prepare_test_dma(client, address, count)
    start_test_dma(client, direction)
    return finish_test_dma(client)


def start_test_dma(client: RawClient, direction: int) -> None:
    """Start it with a write that has no reply: what the device asks for is what comes next."""
    run = raw.register_write(BAR0, TEST_RUN, direction.to_bytes(4, "little"))
    client.send(raw.frame(raw.REGION_WRITE, run, flags=raw.NO_REPLY))


def finish_test_dma(client: RawClient) -> int:
    """Wait for the end of a DMA that asks for nothing more; returns the errno it saw."""
    assert eventually(lambda: client.read32(BAR0, TEST_RUN) != errno.EINPROGRESS, raw.SECONDS)
    return client.read32(BAR0, TEST_RUN)


def have_test_device_ask(client: RawClient, count: int = PAGE) -> raw.Message:
    """Have the test device read memory that it got no descriptor for; returns what it sends."""
    client.done(raw.DMA_MAP, raw.dma_map(IOVA, count))
    prepare_test_dma(client, count=count)
    start_test_dma(client, TO_DEVICE)
    return _dma_read(client)


ASKING = "tests.fault.models:Asking"


def have_callback_ask(client: RawClient, count: int = PAGE) -> raw.Message:
    """Have the model ``Asking`` read memory before it answers a write; returns what it sends.

    Until it has its answer, the server carries out nothing else.  The write has the id 9.
    """
    client.enable_bus_master()
    client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
    write = raw.register_write(BAR0, 0, count.to_bytes(4, "little"))
    client.send(raw.frame(raw.REGION_WRITE, write, number=9))
    return _dma_read(client)


def _dma_read(client: RawClient) -> raw.Message:
    request = client.receive()
    assert request.command == raw.DMA_READ
    return request


class ClientMemory:
    """Memory that a client gave no descriptor for, from ``start`` on: answers DMA for it.

    :ivar asked: (command, address, count) of each message answered.
    """

    def __init__(self, start: int, contents: bytes) -> None:
        self.start = start
        self.contents = bytearray(contents)
        self.asked: list[tuple[int, int, int]] = []

    def answer(self, peer: raw.Peer, message: raw.Message) -> None:
        """Answer a DMA_READ or DMA_WRITE on the socket that it came on."""
        address, count = message.words("QQ")
        at = address - self.start
        self.asked.append((message.command, address, count))
        data = b""
        if message.command == raw.DMA_READ:
            data = bytes(self.contents[at : at + count])
        else:
            assert message.command == raw.DMA_WRITE
            self.contents[at : at + count] = message.payload[16:]
        peer.send(raw.answer(message, raw.dma_range(address, count, data)))

    def answer_until_reply(self, client: RawClient) -> raw.Message:
        """Answer on the main socket until something else comes; returns that."""
        while (message := client.receive()).flags & raw.TYPE != raw.REPLY:
            self.answer(client, message)
        return message

    def answer_until_end(self, twin: raw.Peer) -> None:
        """Answer on a twin socket as long as there is one."""
        try:
            while True:
                self.answer(twin, twin.receive())
        except EOFError:
            pass
