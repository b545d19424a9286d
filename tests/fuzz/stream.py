# SPDX-License-Identifier: BSD-3-Clause
"""The random end of a socket: sends without ever blocking, and takes apart what comes back.

What the target sends must be well-formed; that is checked here, by hand and not with its own codec.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tests.fuzz.watch import Finding, Tally

_MOST_FDS = 253
_CHUNK = 1 << 18


class Received(NamedTuple):
    """A message of the target."""

    number: int
    command: int
    flags: int
    error: int
    payload: bytes
    fds: tuple[int, ...]


class Stream:
    """A connected socket; :meth:`close` ends it however it stands.

    :ivar deaf: nothing is read any more.
    """

    def __init__(self, sock: socket.socket, tally: Tally) -> None:
        self.sock = sock
        self.sock.setblocking(False)
        self.over = False
        self.deaf = False
        self._tally = tally
        self._out: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._in = bytearray()
        self._fds: list[int] = []

    def send(self, pieces: Iterable[bytes], fds: Sequence[int] = ()) -> None:
        """Queue a message; its descriptors go with the first byte."""
        self._tally.sent += 1
        for piece in pieces:
            if piece:
                self._out.append((memoryview(piece), tuple(fds)))
                fds = ()

    @property
    def queued(self) -> bool:
        """Whether something is to be sent still."""
        return bool(self._out) and not self.over

    def interest(self) -> int:
        """What to poll for."""
        return (0 if self.deaf else select.POLLIN) | (select.POLLOUT if self._out else 0)

    def flush(self) -> None:
        """Send what the socket takes."""
        while self._out and not self.over:
            data, fds = self._out[0]
            try:
                sent = socket.send_fds(self.sock, [data], fds) if fds else self.sock.send(data)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ETOOMANYREFS):
                    raise
                self.over = True
                return
            self._out.popleft()
            if sent < len(data):
                self._out.appendleft((data[sent:], ()))

    def receive(self) -> list[Received]:
        """The messages that have come in full; :attr:`over` is set at the end of the stream."""
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, _CHUNK, _MOST_FDS)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data, fds = b"", []
        if not data:
            self.over = True
        self._in += data
        self._fds += fds
        return list(iter(self._take, None))

    def _take(self) -> Received | None:
        if len(self._in) < 16:
            return None
        number, command, size, flags, error = struct.unpack_from("=HHIII", self._in)
        if size < 16 or flags & 0xF > 1 or size > 16 + (64 << 10) + (1 << 20):
            raise Finding("malformed", f"header {bytes(self._in[:16]).hex()}")
        if len(self._in) < size:
            return None
        payload = bytes(self._in[16:size])
        del self._in[:size]
        # More than one message in a chunk with descriptors: the kernel ends a chunk behind them.
        fds, self._fds = tuple(self._fds), []
        self._tally.received += 1
        return Received(number, command, flags, error, payload, fds)

    def close(self) -> None:
        """Let go of the socket and of what came with unfinished messages."""
        self.over = True
        self._out.clear()
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self.sock.close()


def pump(
    streams: Callable[[], Sequence[Stream]],
    take: Callable[[Stream, Received], None],
    until: Callable[[], bool],
    seconds: float,
    *,
    wake: Sequence[int] = (),
) -> bool:
    """Send and receive until a condition holds; returns whether it came to hold in time.

    :param streams: those that take part, asked again each time.
    :param take: called with each message.
    :param wake: descriptors after whose news the condition is looked at again.
    """
    deadline = time.monotonic() + seconds
    while not until():
        left = deadline - time.monotonic()
        live = {stream.sock.fileno(): stream for stream in streams() if not stream.over}
        if left <= 0 or not (live or wake):
            return until()
        poller = select.poll()
        for fd in wake:
            poller.register(fd, select.POLLIN)
        for fd, stream in live.items():
            poller.register(fd, stream.interest())
        for fd, events in poller.poll(max(1, min(50, int(1000 * left)))):
            if fd in wake:
                continue
            if events & select.POLLOUT:
                live[fd].flush()
            if live[fd].deaf:
                live[fd].over = live[fd].over or bool(events & select.POLLHUP)
            elif events & ~select.POLLOUT:
                for message in live[fd].receive():
                    take(live[fd], message)
    return True
