# SPDX-License-Identifier: BSD-3-Clause
"""Requests that wait for their replies."""

from __future__ import annotations

import contextlib
import queue
from typing import Any, NamedTuple, Protocol

from pyvfio.errors import VFIOError, VFIOTimeout
from pyvfio.transport.sockets import close_fds
from pyvfio.wire.header import Command


class Reply(NamedTuple):
    """A reply's payload and the descriptors that came with it, which are the caller's."""

    message: Any
    fds: tuple[int, ...]


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
