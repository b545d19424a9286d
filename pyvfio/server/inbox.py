# SPDX-License-Identifier: BSD-3-Clause
"""The requests of a client that were read and not carried out yet, and how many there may be."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Iterator

from pyvfio.server.quotas import Quotas
from pyvfio.transport.channel import Channel, PeerRequest
from pyvfio.transport.sockets import close_fds
from pyvfio.wire.connection import RequestInvalid, RequestReceived
from pyvfio.wire.header import Command
from pyvfio.wire.version import MAX_FDS

BACKLOG = 8 << 20
"""Bytes of requests queued for the model before the socket is left unread."""
BACKLOG_FDS = 64
"""Descriptors that come with them, before the socket is left unread."""
QUEUED_REQUEST = 512
"""What a queued request costs beyond its bytes on the wire, about."""


class Inbox:
    """Filled by the thread that reads, emptied by the session, which waits for it.

    None stands for the end.
    """

    _WAKE = object()

    def __init__(self, quotas: Quotas) -> None:
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._first: deque[PeerRequest | None] = deque()
        self._flow = threading.Lock()
        self._bytes = self._fds = 0
        self._asking = 0
        self._most_bytes = quotas.max_queued
        self._most_data = quotas.max_data
        # What comes in one message more than this does not cut the client off.
        self._most_fds = quotas.max_descriptors + MAX_FDS
        self._pause_bytes = min(BACKLOG, quotas.max_queued // 2)
        self._pause_fds = min(BACKLOG_FDS, quotas.max_descriptors)

    # The thread that reads

    def put(self, channel: Channel, request: PeerRequest) -> None:
        """Queue a request that came on ``channel``, and leave that unread where it is too much.

        :raises ConnectionResetError: the client sends more than its quota.
        """
        self._queue.put(request)
        with self._flow:
            self._bytes += self._cost(request)
            self._fds += len(request.fds)
            if self._bytes > self._most_bytes or self._fds > self._most_fds:
                raise ConnectionResetError("the client sends more than can be queued")
            # The answer that the model waits for may stand behind all this: then read on.
            if not self._asking and self._exceeds(self._pause_bytes, self._pause_fds):
                channel.pause_reading(True)

    def end(self) -> None:
        """There will be no more; takes no lock, so that a signal handler may call it."""
        self._queue.put(None)

    def _cost(self, request: PeerRequest) -> int:
        """What a request takes, in bytes; a read costs what it will have to be answered with."""
        return request.size + QUEUED_REQUEST + min(_wanted(request), self._most_data)

    def _exceeds(self, most_bytes: int, most_fds: int) -> bool:
        return self._bytes > most_bytes or self._fds > most_fds

    # The session, as a waiter of its channel

    def ready(self) -> bool:
        """Whether a request is there; notes of being woken are thrown away."""
        while not self._first and not self._queue.empty():
            self._keep(self._queue.get())
        return bool(self._first)

    def sleep(self, seconds: float | None) -> None:
        """Wait for a request, or to be woken."""
        with contextlib.suppress(queue.Empty):
            self._keep(self._queue.get(timeout=seconds))

    def wake(self) -> None:
        """End :meth:`sleep`."""
        self._queue.put(self._WAKE)

    def _keep(self, item: object) -> None:
        if item is None or isinstance(item, RequestReceived | RequestInvalid):
            self._first.append(item)

    def take(self, channel: Channel) -> PeerRequest | None:
        """The next request; only after :meth:`ready` was true.  Its descriptors are the caller's.

        :param channel: is read again where there is room again.
        """
        request = self._first.popleft()
        if request is not None:
            with self._flow:
                self._bytes -= self._cost(request)
                self._fds -= len(request.fds)
                if not self._exceeds(self._pause_bytes // 2, self._pause_fds // 2):
                    channel.pause_reading(False)
        return request

    @contextlib.contextmanager
    def asking(self, channel: Channel) -> Iterator[None]:
        """While the client is asked for something: its answer may stand behind its requests."""
        with self._flow:
            self._asking += 1
            channel.pause_reading(False)
        try:
            yield
        finally:
            with self._flow:
                self._asking -= 1

    def drop(self, channel: Channel) -> None:
        """Close the descriptors of what will not be carried out."""
        while self.ready():
            request = self.take(channel)
            if request is not None:
                close_fds(request.fds)


def _wanted(request: PeerRequest) -> int:
    """Bytes that a request asks for."""
    if not isinstance(request, RequestReceived):
        return 0
    message = request.message
    if request.command is Command.REGION_READ:
        return int(message.count)
    if request.command is Command.MIG_DATA_READ:
        return int(message.size)
    return int(message.argsz) if request.command is Command.DEVICE_FEATURE else 0
