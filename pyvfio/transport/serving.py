# SPDX-License-Identifier: BSD-3-Clause
"""A channel whose peer's usual requests are carried out where they are read: by a service in C.

Whoever calls the service has the turn to read meanwhile.  What the service has read and does not
carry out is read by the channel next, in place of the socket's bytes; what it cannot send is queued
with the channel's own messages.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from typing import NoReturn, Protocol

from pyvfio.errors import ConnectionLost, VFIOError
from pyvfio.native.serve import Service
from pyvfio.transport.shared_queue import SharedSendQueue
from pyvfio.transport.sockets import limit_waits
from pyvfio.transport.turn import Turn
from pyvfio.wire.connection import Connection

PATIENCE = 0.01
"""Seconds that C waits for a request; nobody can wake it meanwhile."""


class ServingOwner(Protocol):
    """What is needed of the channel."""

    name: str
    paused: bool

    def over(self) -> bool:
        """Whether the peer is gone, or the channel is closed."""

    def lose(self, kind: type[VFIOError], reason: str, hint: str = "") -> None:
        """Take the peer for gone."""

    def await_event(self, seconds: float | None) -> list[tuple[int, int]]:
        """Wait for the socket, or to be woken; what is to be attended to."""

    def attend_to_wake(self, events: Sequence[tuple[int, int]]) -> None:
        """Take note of having been woken."""


class Serving:
    """The service of a channel.

    :param queue: what the channel sends, as shared with the service.
    :ivar service: to be called by who has taken the turn.
    """

    def __init__(
        self,
        owner: ServingOwner,
        sock: socket.socket,
        service: Service,
        *,
        lock: threading.Lock,
        turn: Turn,
        connection: Connection,
        queue: SharedSendQueue,
    ) -> None:
        self.service = service
        self._owner = owner
        self._lock = lock
        self._turn = turn
        self._connection = connection
        self._queue = queue
        limit_waits(sock, PATIENCE)

    def take_turn(self) -> bool:
        """Take the turn to read, where it is free and the stream is as a service can read on.

        Who gets it calls :meth:`leave_turn`, soon.
        """
        turn = self._turn
        with self._lock:
            if turn.holder is not None or self._connection.in_message or not self.can_go_on():
                return False
            turn.holder = threading.get_ident()
            turn.waits += 1
            return True

    def can_go_on(self) -> bool:
        """Whether the service may read on; if not, the general way has to.

        What waits to be sent is sent by who reads, where the socket takes more.
        """
        return not (self._queue or self._owner.paused or self._owner.over())

    def leave_turn(self) -> None:
        """Leave the turn to who waits."""
        self._turn.step_back()

    def wait(self) -> None:
        """Wait, with the turn, until there is something to read, or another reason to look."""
        self._owner.attend_to_wake(self._owner.await_event(None))

    def queue_rest(self) -> None:
        """Queue what the service has not sent."""
        with self._lock:
            self._queue.adopt()

    def fail(self) -> NoReturn:
        """The service cannot send: raises :class:`ConnectionLost`."""
        number = self.service.error
        reason = os.strerror(number)
        self._owner.lose(ConnectionLost, reason)
        raise ConnectionLost(reason, uri=self._owner.name, errno=number)
