# SPDX-License-Identifier: BSD-3-Clause
"""What a channel keeps of its messages: requests that wait for a reply, bytes not sent yet."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from pyvfio.errors import VFIOError
from pyvfio.transport.sockets import close_fds
from pyvfio.wire.header import Command


class Reply(NamedTuple):
    """A reply's payload and the descriptors that came with it, which are the caller's."""

    message: Any
    fds: tuple[int, ...]


class Outgoing:
    """Bytes that the socket has not taken yet; owns duplicates of its descriptors."""

    def __init__(self, data: bytes, fds: Sequence[int]) -> None:
        self.data = memoryview(data)
        self.fds = [os.dup(fd) for fd in fds]

    def drop_fds(self) -> None:
        """Close the descriptors: they have been sent, or never will be."""
        close_fds(self.fds)
        self.fds = []


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


class Call:
    """A request that has been sent, or is about to be."""

    def __init__(self, channel: CallOwner, command: Command) -> None:
        self._channel = channel
        self.command = command
        self.number = -1
        self._outcome: Reply | VFIOError | None = None
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def complete(self, outcome: Reply | VFIOError) -> None:
        """Called once, by the channel."""
        self._outcome = outcome
        self._bell.put(None)

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
        if not self._channel.wait_for(self, seconds):
            self._channel.give_up(self, seconds)
        outcome = self._outcome
        if isinstance(outcome, VFIOError):
            raise outcome
        assert outcome is not None
        return outcome
