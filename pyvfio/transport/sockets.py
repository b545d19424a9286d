# SPDX-License-Identifier: BSD-3-Clause
"""Bytes with file descriptors over a non-blocking UNIX stream socket."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Sequence

from pyvfio.errors import RemoteProtocolError
from pyvfio.uapi.layout import Buffer
from pyvfio.wire.version import MAX_FDS

_RIGHTS_SPACE = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


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
        return sock.sendmsg(buffers, rights, socket.MSG_NOSIGNAL)
    except BlockingIOError:
        return 0


def receive(sock: socket.socket, space: memoryview) -> tuple[int, list[int]] | None:
    """Read into ``space``; returns the number of bytes and the descriptors that came along.

    :returns: None where there is nothing to read now; 0 bytes is the end of the stream.
    :raises RemoteProtocolError: descriptors were sent but did not fit, so they are lost.
    """
    try:
        count, rights, flags, _ = sock.recvmsg_into([space], _RIGHTS_SPACE, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return None
    fds = array.array("i")
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        close_fds(fds)
        raise RemoteProtocolError(
            "file descriptors were lost on the way",
            hint="too many were sent, or the limit of open files is reached (ulimit -n)",
        )
    return count, fds.tolist()
