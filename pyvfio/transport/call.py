# SPDX-License-Identifier: BSD-3-Clause
"""What a channel keeps of its messages: requests that wait for a reply, bytes not sent yet."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from pyvfio.errors import VFIOError, VFIOTimeout
from pyvfio.transport.sockets import close_fds
from pyvfio.uapi.layout import Buffer
from pyvfio.wire.header import HEADER, Command
from pyvfio.wire.messages import RegionWrite, RegionWriteMulti
from pyvfio.wire.messages.region import WRITE_COUNT, WRITE_ENTRY


class Reply(NamedTuple):
    """A reply's payload and the descriptors that came with it, which are the caller's."""

    message: Any
    fds: tuple[int, ...]


class Outgoing:
    """Bytes that the socket has not taken yet; owns duplicates of its descriptors."""

    def __init__(self, data: bytes, fds: Sequence[int]) -> None:
        self.data = memoryview(data)
        self.fds = [os.dup(fd) for fd in fds]

    def seal(self) -> None:
        """Nothing more comes into the message: it is about to be sent, or another follows it."""

    def drop_fds(self) -> None:
        """Close the descriptors: they have been sent, or never will be."""
        close_fds(self.fds)
        self.fds = []


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


class Waiter(Protocol):
    """Somebody who waits for something to be read; see :meth:`Channel.wait_for`."""

    def ready(self) -> bool:
        """Whether it has come."""

    def sleep(self, seconds: float | None) -> None:
        """Wait for it, or to be woken, while another thread reads."""

    def wake(self) -> None:
        """End :meth:`sleep`: it has come, or the turn to read is free."""


class CallOwner(Protocol):
    """What a call needs of its channel."""

    timeout: float

    def wait_for(self, waiter: Waiter, seconds: float | None) -> bool:
        """Wait until ``waiter`` is ready; returns whether it is."""

    def give_up(self, call: Call, seconds: float) -> None:
        """Stop waiting for ``call``, unless it completed just now."""

    def forget(self, call: Call) -> None:
        """Nobody waits for ``call`` any more."""


class Call:
    """A request that has been sent, or is about to be."""

    def __init__(self, channel: CallOwner, command: Command) -> None:
        self._channel = channel
        self.command = command
        self.number = -1
        self._outcome: Reply | VFIOError | None = None
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def complete(self, outcome: Reply | VFIOError) -> bool:
        """Called by the channel, with its lock; returns whether the outcome is the first."""
        first = self._outcome is None
        if first:
            self._outcome = outcome
        self._bell.put(None)
        return first

    def close_fds(self) -> None:
        """Close the descriptors of a reply that nobody takes."""
        if isinstance(self._outcome, Reply):
            close_fds(self._outcome.fds)

    def ready(self) -> bool:
        """Whether the outcome is known."""
        return self._outcome is not None

    def sleep(self, seconds: float | None) -> None:
        """Wait to be woken."""
        with contextlib.suppress(queue.Empty):
            self._bell.get(timeout=seconds)

    def wake(self) -> None:
        """End :meth:`sleep`."""
        self._bell.put(None)

    def result(self, timeout: float | None = None) -> Reply:
        """Wait for the reply.

        :param timeout: seconds; the channel's own time-out by default.
        :raises RemoteError: the peer refused.
        :raises RemoteProtocolError: the reply does not answer the request.
        :raises ConnectionLost: the peer is gone.
        :raises VFIOTimeout: no reply came; it will be drained if it still comes.
        """
        seconds = self._channel.timeout if timeout is None else timeout
        try:
            if not self._channel.wait_for(self, seconds):
                self._channel.give_up(self, seconds)
        except BaseException as error:
            if not isinstance(error, VFIOTimeout):
                self._channel.forget(self)
            raise
        outcome = self._outcome
        if isinstance(outcome, VFIOError):
            raise outcome
        assert outcome is not None
        return outcome
