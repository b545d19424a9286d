# SPDX-License-Identifier: BSD-3-Clause
"""What goes out on a socket: at once where it can, in order with what waits where it cannot."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from pyvfio.transport.sockets import close_fds, send
from pyvfio.uapi.layout import Buffer
from pyvfio.wire.header import HEADER
from pyvfio.wire.messages import RegionWrite, RegionWriteMulti, payload_size
from pyvfio.wire.messages.region import WRITE_COUNT, WRITE_ENTRY

MAX_QUEUED = 64 << 20
"""Bytes queued for a peer that does not read."""

MAX_ANSWERS = 2 * MAX_QUEUED
"""Bytes queued for it of answers, after which it is not given the chance to ask for more.

An end that has 64 requests of 1 MiB in flight is still read, so that two such ends never wait for
each other."""

MAX_QUEUED_FDS = 64
"""Descriptors queued for it, each a descriptor of this process."""


class Outgoing:
    """A message of which the socket has not taken all yet; owns duplicates of its descriptors.

    :param is_answer: whether the peer has asked for it.
    """

    def __init__(self, data: bytes, fds: Sequence[int], is_answer: bool = False) -> None:
        self.data = memoryview(data)
        self.is_answer = is_answer
        self.fds: list[int] = []
        try:
            for fd in fds:
                self.fds.append(os.dup(fd))
        except OSError:
            self.drop_fds()
            raise

    def seal(self) -> None:
        """Nothing more comes into the message: it is about to be sent, or another follows it."""

    def drop_fds(self) -> None:
        """Close the descriptors: they have been sent, or never will be."""
        fds, self.fds = self.fds, []
        close_fds(fds)


class WriteCollection(Outgoing):
    """Posted writes that the socket has not taken yet; they go as one REGION_WRITE_MULTI.

    :param encode: makes the message.
    """

    MAX_WRITES = 200
    """Writes in one message; the same bound as QEMU's, so that every server has room for it."""

    def __init__(self, encode: Callable[[RegionWriteMulti], list[Buffer]]) -> None:
        super().__init__(b"", ())
        self._encode = encode
        self._writes: list[RegionWrite] = []

    def add(self, write: RegionWrite) -> int:
        """Take one more write along.

        :returns: the bytes that it adds; 0 where there is no room, or the message is sealed.
        """
        if self.data or len(self._writes) == self.MAX_WRITES:
            return 0
        # A copy: the caller may change its buffer from here on.
        self._writes.append(RegionWrite(write.offset, write.region, bytes(write.data)))
        first = len(self._writes) == 1
        return WRITE_ENTRY.size + (HEADER.size + WRITE_COUNT.size if first else 0)

    def seal(self) -> None:
        if not self.data:
            self.data = memoryview(b"".join(self._encode(RegionWriteMulti(tuple(self._writes)))))


class SendQueue:
    """The outgoing side of a socket; not locked, its channel is.

    :param sock: a stream socket, which stays the channel's.
    :ivar messages: what is queued.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.messages: deque[Outgoing] = deque()
        self._bytes = self._fds = 0
        self._answer_bytes = self._answer_fds = 0

    def __bool__(self) -> bool:
        return bool(self.messages)

    @property
    def is_full(self) -> bool:
        """Whether who sends should wait until less is queued."""
        return self._bytes >= MAX_QUEUED or self._fds >= MAX_QUEUED_FDS

    @property
    def is_flooded(self) -> bool:
        """Whether the peer should not be given the chance to ask for more.

        Our own requests do not count: their answers have to be read, or two ends whose queues are
        full would wait for each other.
        """
        return self._answer_bytes >= MAX_ANSWERS or self._answer_fds >= MAX_QUEUED_FDS

    def seal(self) -> None:
        """Another message follows what is collected."""
        if self.messages:
            self.messages[-1].seal()

    def send(self, buffers: Sequence[Buffer], fds: Sequence[int], is_answer: bool) -> bool:
        """Send a message, or what the socket takes of it, and queue the rest.

        :param fds: stay the caller's, who may close them when this returns.
        :returns: whether something is queued.
        :raises OSError: nothing was sent or queued.
        """
        sent = 0 if self.messages else send(self._sock, buffers, fds)
        rest = payload_size(buffers) - sent
        if not rest:
            return False
        # A copy: the caller may change its buffers and close its descriptors from here on.
        outgoing = Outgoing(b"".join(buffers)[sent:], () if sent else fds, is_answer)
        self._append(outgoing, rest)
        return True

    def collect(
        self, write: RegionWrite, encode: Callable[[RegionWriteMulti], list[Buffer]]
    ) -> bool:
        """Have a posted write go with others that wait; False where nothing does."""
        if not self.messages or self.is_full:
            return False
        last = self.messages[-1]
        added = last.add(write) if isinstance(last, WriteCollection) else 0
        if added:
            self._count(last, added, 0)
        else:
            last.seal()
            collection = WriteCollection(encode)
            self._append(collection, collection.add(write))
        return True

    def append(self, rest: bytes, is_answer: bool = False) -> None:
        """Queue what the socket has not taken of a message that was begun."""
        self._append(Outgoing(rest, (), is_answer), len(rest))

    def _append(self, outgoing: Outgoing, size: int) -> None:
        self.messages.append(outgoing)
        self._count(outgoing, size, len(outgoing.fds))

    def _count(self, outgoing: Outgoing, size: int, fds: int) -> None:
        self._bytes += size
        self._fds += fds
        if outgoing.is_answer:
            self._answer_bytes += size
            self._answer_fds += fds

    def flush(self) -> None:
        """Send what the socket takes; raises OSError as ``socket.send`` does."""
        while self.messages and self._flush_first(self.messages[0]):
            pass

    def _flush_first(self, outgoing: Outgoing) -> bool:
        """Send more of the first message; returns whether the socket may take still more."""
        outgoing.seal()
        sent = send(self._sock, [outgoing.data], outgoing.fds)
        if not sent:
            return False
        self._count(outgoing, -sent, -len(outgoing.fds))
        outgoing.drop_fds()
        outgoing.data = outgoing.data[sent:]
        if not outgoing.data:
            self.messages.popleft()
        return True

    def drop(self) -> None:
        """Close the descriptors of what will not be sent."""
        for outgoing in self.messages:
            outgoing.drop_fds()
        self.messages.clear()
