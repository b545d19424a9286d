# SPDX-License-Identifier: BSD-3-Clause
"""Bytes with file descriptors over a UNIX stream socket, without ever waiting for it."""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence

from pyvfio.errors import RemoteProtocolError
from pyvfio.uapi.layout import Buffer
from pyvfio.wire.version import MAX_FDS

GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
"""What the system says of a peer that has left."""

LOST_FDS = "file descriptors were lost on the way"
LOST_FDS_HINT = "too many were sent, or the limit of open files is reached (ulimit -n)"

# The peer may have the same open socket, and change the flag that it does not wait.
_SEND = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
_RECEIVE = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
_RIGHTS_SPACE = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


def limit_waits(sock: socket.socket, seconds: float) -> None:
    """Have C code that waits for the socket come back after a time; nobody can wake it."""
    whole, microseconds = divmod(int(1e6 * seconds), 1_000_000)
    limit = struct.pack("@ll", whole, microseconds)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def close_fds(fds: Iterable[int]) -> None:
    """Close every descriptor of ``fds``."""
    for fd in fds:
        os.close(fd)


def send(sock: socket.socket, buffers: Sequence[Buffer], fds: Sequence[int]) -> int:
    """Send what the socket takes now; returns the number of bytes, 0 where it takes none.

    The descriptors go with the first byte, so they are gone as soon as the result is not 0.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        return sock.sendmsg(buffers, rights, _SEND)
    except BlockingIOError:
        return 0


def receive(sock: socket.socket, space: memoryview) -> tuple[int, list[int]] | None:
    """Read into ``space``; returns the number of bytes and the descriptors that came along.

    :returns: None where there is nothing to read now; 0 bytes is the end of the stream.
    :raises RemoteProtocolError: descriptors were sent but did not fit, so they are lost.
    """
    try:
        count, rights, flags, _ = sock.recvmsg_into([space], _RIGHTS_SPACE, _RECEIVE)
    except BlockingIOError:
        return None
    fds = array.array("i")
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    check_fds(fds, bool(flags & socket.MSG_CTRUNC))
    return count, fds.tolist()


def check_fds(fds: Iterable[int], lost: bool) -> None:
    """Close descriptors and raise :class:`RemoteProtocolError` where others were lost."""
    if lost:
        close_fds(fds)
        raise RemoteProtocolError(LOST_FDS, hint=LOST_FDS_HINT)
