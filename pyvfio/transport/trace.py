# SPDX-License-Identifier: BSD-3-Clause
"""A trace of what goes over the sockets: one line of JSON a message, in the file that
:data:`VARIABLE` names.

Every channel of the process writes there, and so may other processes: a line is one write to the
end of the file.  The members of a line:

``time``, ``mono``
    when it was: UTC, and seconds of CLOCK_MONOTONIC, which all processes of a host share.
``pid``, ``role``, ``channel``, ``connection``, ``socket``
    whose line it is: the process, which end, what the channel is called, its number within the
    process, and ``main`` or ``twin``.
``direction``, ``id``, ``command``, ``type``, ``size``
    ``sent`` or ``received``, and the header; ``flags`` and ``error`` by name where there are some.
``fds``
    the descriptors that go with it, each with its number in this process and what it is.
``fields`` or ``undecoded``
    the payload, or the start of it with the reason why it cannot be decoded.  Data are shown by
    their length and their first 32 bytes.
``us``
    in a reply: microseconds since its request, as this end saw both.
``request``
    in an error reply: the fields of what was refused.

A line with ``event`` is no message: ``connected``, ``agreed``, ``not sent``, ``time-out``,
``late reply``, ``protocol error``, ``lost`` and ``closed``.

A message is noted before it is handed to the socket, or to the queue of what the socket has not
taken yet, in the order of the stream; and as soon as it has been received, before it is decoded.
Data of the device are in there, so the file is made for its owner only.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pyvfio.errors import OperationError, operation_error
from pyvfio.transport.fields import bits, decode, descriptors
from pyvfio.uapi.layout import Buffer
from pyvfio.wire.commands import Role
from pyvfio.wire.header import HEADER, TYPE_MASK, Command, Header, HeaderFlags, command_name

log = logging.getLogger(__name__)

VARIABLE = "PYVFIO_TRACE"
"""The environment variable that names the file to write to; without it nothing is traced."""

MAX_PENDING = 4096
"""Requests without a reply that a channel remembers, for the time that the reply took."""

_CREDENTIALS = struct.Struct("=iII")
"""``struct ucred``: pid, uid, gid."""
_encode = json.JSONEncoder(separators=(",", ":")).encode
_TYPES = {int(HeaderFlags.COMMAND): "command", int(HeaderFlags.REPLY): "reply"}


class TraceFile:
    """The file that lines go to, opened for appending.

    :raises OperationError: it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        # A pipe that nobody reads must not hold up a device.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise operation_error(
                error,
                OperationError,
                op="trace",
                uri=path,
                hint=f"the file that --trace or {VARIABLE} names must be writable",
            ) from error

    def write(self, entry: dict[str, Any]) -> None:
        """Append a line.  Where that fails, the log is told and nothing is written any more."""
        line = _encode(entry).encode() + b"\n"
        with self._lock:
            if self._fd < 0:
                return
            try:
                if os.write(self._fd, line) == len(line):
                    return
                reason = "there was no room for a whole line"
            except OSError as error:
                reason = error.strerror or str(error)
            self._close()
        log.warning("%s: %s; tracing has stopped", self.path, reason)

    def renew_lock(self) -> None:
        """In the child of a fork: who held the lock is not here."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """Write no more.  May be repeated."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _after_fork() -> None:
    """Locks that another thread of the parent held would never be released here."""
    global _files_lock  # noqa: PLW0603 - the module's own
    _files_lock = threading.Lock()
    for file in _files.values():
        file.renew_lock()


_files: dict[str, TraceFile] = {}
_files_lock = threading.Lock()
_connections = itertools.count(1)
os.register_at_fork(after_in_child=_after_fork)


def start() -> TraceFile | None:
    """Open the file that :data:`VARIABLE` names, once; None where nothing is to be traced.

    :raises OperationError: the file cannot be written.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    with _files_lock:
        if path not in _files:
            _files[path] = TraceFile(path)
        return _files[path]


def stop() -> None:
    """Close what :func:`start` has opened; channels that are open are not traced any more."""
    with _files_lock:
        for file in _files.values():
            file.close()
        _files.clear()


def tracer(sock: socket.socket, role: Role, name: str, twin: bool) -> Tracer | None:
    """What a channel on ``sock`` tells of its messages; None where nothing is to be traced.

    :raises OperationError: the file cannot be written.
    """
    file = start()
    return None if file is None else Tracer(file, sock, role, name, twin)


class _Request(NamedTuple):
    """A request that is not answered yet.

    :ivar moment: when it was noted, in seconds of CLOCK_MONOTONIC.
    """

    moment: float
    fields: dict[str, Any] | None


class Tracer:
    """Writes the lines of one channel, which calls it under its lock where order matters."""

    def __init__(
        self, file: TraceFile, sock: socket.socket, role: Role, name: str, twin: bool
    ) -> None:
        self._file = file
        self._whose = {
            "role": role.value,
            "channel": name,
            "connection": next(_connections),
            "socket": "twin" if twin else "main",
        }
        self._requests: dict[tuple[str, int], _Request] = {}
        pid, uid, gid = _CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        self.event("connected", peer={"pid": pid, "uid": uid, "gid": gid})

    def sent(self, buffers: Sequence[Buffer], fds: Sequence[int]) -> None:
        """Note a message that is about to be sent."""
        data = memoryview(b"".join(buffers))
        self._message("sent", HEADER.unpack_from(data), data[HEADER.size :], fds)

    def received(self, header: Header, payload: memoryview, fds: Sequence[int]) -> None:
        """Note a message that has been received, or of which only the header was."""
        self._message("received", header, payload, fds)

    def event(self, what: str, **details: Any) -> None:
        """Note something that is no message."""
        self._write(time.monotonic(), {"event": what, **details})

    def _message(
        self, direction: str, header: Header, payload: memoryview, fds: Sequence[int]
    ) -> None:
        moment = time.monotonic()
        found = decode(header, payload)
        entry = {"direction": direction, **_header(header)}
        if fds:
            entry["fds"] = descriptors(fds)
        entry |= found
        asked = self._pair(moment, direction, header, found.get("fields"))
        if asked is not None:
            entry["us"] = round(1e6 * (moment - asked.moment), 1)
            if "error" in entry and asked.fields is not None:
                entry["request"] = asked.fields
        self._write(moment, entry)
        if asked is not None and header.command == Command.VERSION and "fields" in found:
            self.event("agreed", **found["fields"])

    def _pair(
        self, moment: float, direction: str, header: Header, fields: dict[str, Any] | None
    ) -> _Request | None:
        """The request that a message answers; a message that wants an answer is kept for it."""
        if header.flags & TYPE_MASK == HeaderFlags.REPLY:
            asked_by = "received" if direction == "sent" else "sent"
            return self._requests.pop((asked_by, header.id), None)
        if not header.flags & HeaderFlags.NO_REPLY and len(self._requests) < MAX_PENDING:
            self._requests[direction, header.id] = _Request(moment, fields)
        return None

    def _write(self, moment: float, entry: dict[str, Any]) -> None:
        when = datetime.now(UTC).isoformat(timespec="microseconds")
        whose = {"time": when, "mono": round(moment, 6), "pid": os.getpid(), **self._whose}
        self._file.write({**whose, **entry})


def _header(header: Header) -> dict[str, Any]:
    kind = header.flags & TYPE_MASK
    found: dict[str, Any] = {
        "id": header.id,
        "command": command_name(header.command),
        "type": _TYPES.get(kind, f"type {kind}"),
        "size": header.size,
    }
    flags = header.flags & ~TYPE_MASK
    if flags:
        found["flags"] = bits(HeaderFlags, flags)
    if flags & HeaderFlags.ERROR:
        found["error"] = errno.errorcode.get(header.error, str(header.error))
    return found
