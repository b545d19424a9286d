# SPDX-License-Identifier: BSD-3-Clause
"""A device that migrates, put together by hand on :class:`~tests.fault.raw.RawServer`."""

from __future__ import annotations

import errno
import struct
from collections import deque

from tests.fault import raw
from tests.fault.raw import Message, RawServer, answer, refusal

GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
MIGRATION, STATE, LOGGING_START, LOGGING_STOP, LOGGING_REPORT, DATA_SIZE = 1, 2, 6, 7, 8, 9
(ERROR, STOP, RUNNING, STOP_COPY, RESUMING, _, PRE_COPY) = range(7)
HAS_STOP_COPY, HAS_PRE_COPY = 1, 4


def feature_reply(message: Message, data: bytes) -> bytes:
    """The reply of DEVICE_FEATURE with a feature's data."""
    flags = message.words("II")[1]
    return answer(message, struct.pack("<II", 8 + len(data), flags) + data)


def data_reply(message: Message, data: bytes, *, size: int | None = None, pad: int = 0) -> bytes:
    """The reply of MIG_DATA_READ."""
    head = struct.pack("<II", 8 + len(data), len(data) if size is None else size)
    return answer(message, head + data + bytes(pad))


class MigratingDevice:
    """What a raw server says of migration; it goes wherever it is told to go.

    :ivar state: what it is in.
    :ivar states: the states that it was told to go to.
    :ivar refusals: state -> errno with which it refuses to go there, and what it is in then.
    :ivar precopy: pieces of data that it has while it runs; an empty one is "nothing now".
    :ivar rest: pieces of data that it has when it is stopped.
    :ivar loaded: what was written to it.
    :ivar writes: bytes in each write.
    """

    def __init__(self, server: RawServer, flags: int = HAS_STOP_COPY | HAS_PRE_COPY) -> None:
        self.server = server
        self.flags = flags
        self.state = RUNNING
        self.states: list[int] = []
        self.refusals: dict[int, tuple[int, int | None]] = {}
        self.precopy: deque[bytes] = deque()
        self.rest: deque[bytes] = deque()
        self.loaded = bytearray()
        self.writes: list[int] = []
        self.resets = 0
        server.handlers[raw.DEVICE_FEATURE] = self.feature
        server.handlers[raw.MIG_DATA_READ] = self.read
        server.handlers[raw.MIG_DATA_WRITE] = self.write
        server.handlers[raw.RESET] = self.reset

    def feature(self, message: Message) -> None:
        """Answer DEVICE_FEATURE."""
        flags = message.words("II")[1]
        if flags == GET | MIGRATION:
            self.server.peer.send(feature_reply(message, struct.pack("<Q", self.flags)))
        elif flags == GET | STATE:
            self.server.peer.send(feature_reply(message, struct.pack("<II", self.state, 0)))
        elif flags == SET | STATE:
            self._go(message, message.words("IIII")[2])
        else:
            self.server.peer.send(refusal(message, errno.ENOTSUP))

    def _go(self, message: Message, state: int) -> None:
        self.states.append(state)
        if state in self.refusals:
            number, left_in = self.refusals[state]
            self.state = self.state if left_in is None else left_in
            self.server.peer.send(refusal(message, number))
            return
        self.state = state
        self.server.peer.send(answer(message, message.payload))

    def read(self, message: Message) -> None:
        """Answer MIG_DATA_READ with the next piece."""
        pieces = self.precopy if self.state == PRE_COPY else self.rest
        data = pieces.popleft() if pieces else b""
        size = message.words("II")[1]
        if len(data) > size:
            pieces.appendleft(data[size:])
        self.server.peer.send(data_reply(message, data[:size]))

    def write(self, message: Message) -> None:
        """Take MIG_DATA_WRITE."""
        self.writes.append(message.words("II")[1])
        self.loaded += message.payload[8:]
        self.server.peer.send(answer(message))

    def reset(self, message: Message) -> None:
        """Be as new."""
        self.resets += 1
        self.state = RUNNING
        self.server.peer.send(answer(message))
