# SPDX-License-Identifier: BSD-3-Clause
"""Two ends of a socket that both have more to send than the other takes: neither waits for ever."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pyvfio.errors import VFIOError, VFIOTimeout
from pyvfio.transport import send_queue
from pyvfio.transport.channel import MAX_IN_FLIGHT, Channel, PeerRequest
from pyvfio.wire import messages
from pyvfio.wire.commands import Role
from pyvfio.wire.connection import RequestReceived
from pyvfio.wire.header import Command
from tests.fault import raw

SECONDS = 20.0
LITTLE = 128 << 10
"""Bytes after which either end waits before it queues more; a socket holds about as much."""
SIZE = 32 << 10
READERS, READS, WRITES = 16, 40, 2000


class Memory:
    """Answers for a region, or for a client's memory, with bytes that say where they are from."""

    def __init__(self) -> None:
        self.written = 0

    def __call__(self, channel: Channel, request: PeerRequest) -> None:
        assert isinstance(request, RequestReceived)
        message = request.message
        if request.command is Command.REGION_WRITE:
            self.written += len(message.data)
        elif request.command is Command.REGION_READ:
            data = bytes([message.offset & 0xFF]) * message.count
            channel.reply(request, messages.RegionData(message.offset, message.region, data))
        else:
            data = bytes([message.address & 0xFF]) * message.count
            channel.reply(request, messages.DMAData(message.address, data))


class Ends:
    """A client and a server that are nothing but channels."""

    def __init__(self) -> None:
        self.losses: list[VFIOError] = []
        self.memory = Memory()
        ours, theirs = socket.socketpair()
        self.client = self._channel(ours, Role.CLIENT)
        self.server = self._channel(theirs, Role.SERVER)

    def _channel(self, sock: socket.socket, role: Role) -> Channel:
        return Channel(
            sock,
            role,
            name=role.value,
            max_data=1 << 20,
            timeout=SECONDS,
            on_request=self.memory,
            on_lost=self.losses.append,
        )


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    monkeypatch.setattr(send_queue, "MAX_QUEUED", LITTLE)
    monkeypatch.setattr(send_queue, "MAX_ANSWERS", 2 * READERS * SIZE)
    found = Ends()
    yield found
    found.client.close()
    found.server.close()


def test_reads_are_answered_while_more_writes_wait_than_are_taken(ends: Ends) -> None:
    answers: list[bool] = []

    def write() -> None:
        for number in range(WRITES):
            write = messages.RegionWrite(number, 0, bytes(SIZE))
            ends.client.post(Command.REGION_WRITE, write)

    def read(first: int) -> None:
        for number in range(first, first + READS):
            request = messages.RegionRead(number, 0, SIZE)
            reply = ends.client.call(Command.REGION_READ, request).message
            answers.append(bytes(reply.data) == bytes([number & 0xFF]) * SIZE)

    jobs = [threading.Thread(target=write)]
    jobs += [threading.Thread(target=read, args=(READS * index,)) for index in range(READERS)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    ends.client.call(Command.REGION_READ, messages.RegionRead(0, 0, 1))
    assert ends.memory.written == WRITES * SIZE
    assert answers == [True] * READERS * READS
    assert ends.losses == []


def test_both_ends_ask_at_once_for_more_than_is_queued(ends: Ends) -> None:
    answers: list[bool] = []

    def read_region(first: int) -> None:
        for number in range(first, first + READS):
            request = messages.RegionRead(number, 0, SIZE)
            reply = ends.client.call(Command.REGION_READ, request).message
            answers.append(bytes(reply.data) == bytes([number & 0xFF]) * SIZE)

    def read_memory(first: int) -> None:
        for number in range(first, first + READS):
            reply = ends.server.call(Command.DMA_READ, messages.DMARead(number, SIZE)).message
            answers.append(bytes(reply.data) == bytes([number & 0xFF]) * SIZE)

    jobs = [
        threading.Thread(target=job, args=(READS * index,))
        for index in range(READERS)
        for job in (read_region, read_memory)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert answers == [True] * 2 * READERS * READS
    assert ends.losses == []


# A server of another make: one thread, which reads nothing while it answers


def _receive(sock: socket.socket, size: int) -> bytes:
    """So many bytes; the descriptors that come along are closed."""
    data = b""
    while len(data) < size:
        part, fds, _, _ = socket.recv_fds(sock, min(size - len(data), 1 << 16), 253)
        raw.close(fds)
        if not part:
            raise EOFError
        data += part
    return data


def _serve_one_by_one(sock: socket.socket) -> None:
    with suppress(EOFError, OSError):
        while True:
            head = _receive(sock, 16)
            message = raw.Message(head + _receive(sock, int.from_bytes(head[4:8], "little") - 16))
            if message.command == raw.REGION_READ:
                offset, region, count = message.words("QII")
                answer = raw.region_range(region, offset, count, bytes(count))
                sock.sendall(raw.answer(message, answer))
            elif not message.flags & raw.NO_REPLY:
                sock.sendall(raw.answer(message))


def test_descriptors_that_wait_do_not_keep_answers_from_being_read() -> None:
    mib = 1 << 20
    ours, theirs = socket.socketpair()
    memory, losses = Memory(), list[VFIOError]()
    client = Channel(
        ours,
        Role.CLIENT,
        name="client",
        max_data=mib,
        timeout=SECONDS,
        on_request=memory,
        on_lost=losses.append,
    )
    server = threading.Thread(target=_serve_one_by_one, args=(theirs,))
    server.start()
    eventfd = os.eventfd(0)
    client.pause_reading(True)  # until all of it is queued
    reads = [client.submit(Command.REGION_READ, messages.RegionRead(0, 0, mib)) for _ in range(3)]
    for _ in range(2):
        client.post(Command.REGION_WRITE, messages.RegionWrite(0, 0, bytes(mib)))
    flags = raw.EVENTFD | raw.TRIGGER
    request = messages.SetIRQs(flags, raw.MSIX, 0, send_queue.MAX_QUEUED_FDS)
    irqs = client.submit(Command.DEVICE_SET_IRQS, request, [eventfd] * send_queue.MAX_QUEUED_FDS)
    client.pause_reading(False)
    for call in (*reads, irqs):
        call.result()
    theirs.shutdown(socket.SHUT_RDWR)
    client.close()
    server.join()
    theirs.close()
    os.close(eventfd)


def test_requests_that_timed_out_count_until_their_answers_have_come() -> None:
    ours, theirs = socket.socketpair()
    losses: list[VFIOError] = []
    client = Channel(
        ours,
        Role.CLIENT,
        name="client",
        max_data=1 << 20,
        timeout=0.05,
        on_request=Memory(),
        on_lost=losses.append,
    )
    request = messages.RegionRead(0, 0, 1)
    for _ in range(MAX_IN_FLIGHT):
        with pytest.raises(VFIOTimeout, match="no reply"):
            client.call(Command.REGION_READ, request)
    with pytest.raises(VFIOTimeout, match=f"{MAX_IN_FLIGHT} requests are unanswered"):
        client.call(Command.REGION_READ, request)
    server = threading.Thread(target=_serve_one_by_one, args=(theirs,))
    server.start()
    assert client.call(Command.REGION_READ, request, timeout=SECONDS).message.data == b"\0"
    client.close()
    server.join()
    theirs.close()
