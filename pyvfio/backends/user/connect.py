# SPDX-License-Identifier: BSD-3-Clause
"""Reach a vfio-user server and agree on a version (specification, "VFIO_USER_VERSION")."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import time
from typing import NamedTuple

from pyvfio.errors import (
    AccessDenied,
    BackendUnavailable,
    DeviceNotFound,
    NegotiationError,
    OpenError,
    RemoteError,
    VFIOError,
    VFIOTimeout,
)
from pyvfio.transport.channel import Channel
from pyvfio.transport.sockets import close_fds
from pyvfio.wire import messages, version
from pyvfio.wire.header import Command
from pyvfio.wire.version import Capabilities, Limits

MAX_MSG_FDS = 64
"""Descriptors that we take in one message; a region's IO fds are the longest list."""


def own_capabilities(twin_socket: bool) -> Capabilities:
    """What this client offers."""
    return Capabilities(
        max_msg_fds=MAX_MSG_FDS,
        max_data_xfer_size=version.DEFAULT_MAX_DATA_XFER_SIZE,
        max_dma_maps=version.DEFAULT_MAX_DMA_MAPS,
        pgsizes=version.DEFAULT_PGSIZES,
        twin_socket=True if twin_socket else None,
        write_multiple=True,
        long_writes=True,
    )


def connect(path: str, timeout: float) -> socket.socket:
    """A stream connected to the socket at ``path``.

    :raises OSError: there is no such socket, nobody listens, access is denied, or the server's
        queue of clients is full for ``timeout`` seconds; see :func:`open_error`.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + timeout
    try:
        # A signal may end the wait before a server has accepted, which looks like success.
        while not _connected(sock):
            _try_to_connect(sock, path, deadline - time.monotonic())
    except BaseException:
        sock.close()
        raise
    return sock


def _try_to_connect(sock: socket.socket, path: str, seconds: float) -> None:
    if seconds <= 0:
        raise TimeoutError
    # A time-out of Python's own would not wait for room in the server's queue of clients.
    microseconds = max(1, int(1e6 * seconds))
    limit = struct.pack("@ll", *divmod(microseconds, 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    sock.connect(path)


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return False
    return True


def open_error(error: OSError | RuntimeError, uri: str, timeout: float) -> VFIOError:
    """What to tell of a failure of the system while a device is opened.

    :param error: RuntimeError is what Python has for a thread that cannot be started.
    """
    if isinstance(error, RuntimeError):
        return OpenError(str(error), op="open", uri=uri, errno=errno.EAGAIN)
    if isinstance(error, TimeoutError | BlockingIOError):
        return VFIOTimeout(f"the server accepts nobody within {timeout} s", op="open", uri=uri)
    if isinstance(error, FileNotFoundError):
        return DeviceNotFound(
            "no such socket", op="open", uri=uri, errno=error.errno, hint="is the server running?"
        )
    if isinstance(error, ConnectionRefusedError):
        return BackendUnavailable(
            "nobody listens on the socket",
            op="open",
            uri=uri,
            errno=error.errno,
            hint="start the server again; the file is left from an earlier one",
        )
    if isinstance(error, PermissionError):
        return AccessDenied(
            "permission denied",
            op="open",
            uri=uri,
            errno=error.errno,
            hint="the socket's owner and mode decide who may connect",
        )
    # A path that is too long has no errno.
    number = error.errno or errno.EINVAL
    reason = os.strerror(error.errno) if error.errno else str(error)
    hint = "the limit of open files is reached (ulimit -n)" if number == errno.EMFILE else ""
    return OpenError(reason, op="open", uri=uri, errno=number, hint=hint)


class Agreement(NamedTuple):
    """What client and server agreed on.

    :ivar version: (major, minor) of the protocol.
    :ivar limits: what holds for sending to the server.
    :ivar twin: the socket that the server sends its own commands on, if it uses one.
    """

    version: tuple[int, int]
    limits: Limits
    twin: socket.socket | None


def negotiate(channel: Channel, own: Capabilities) -> Agreement:
    """Exchange VERSION, which must be the first message.

    :raises NegotiationError: the server's answer does not go with ours.
    :raises VFIOTimeout: there is none.
    """
    request = messages.Version(version.MAJOR, version.MINOR, own)
    try:
        reply, fds = channel.call(Command.VERSION, request)
    except RemoteError as error:
        raise NegotiationError(
            f"the server refuses version {version.MAJOR}.{version.MINOR}: {error.reason}",
            uri=channel.name,
            errno=error.errno,
        ) from error
    except VFIOTimeout as error:
        error.hint = "another client may have the device: a server has one at a time"
        raise
    try:
        if reply.major != version.MAJOR or reply.minor > version.MINOR:
            raise NegotiationError(
                f"the server speaks version {reply.major}.{reply.minor},"
                f" {version.MAJOR}.{version.MINOR} was offered",
                uri=channel.name,
            )
        limits = Limits.of(reply.capabilities, own)
        twin = _twin_socket(reply.capabilities or Capabilities(), own, fds, channel.name)
    except BaseException:
        close_fds(fds)
        raise
    return Agreement((reply.major, reply.minor), limits, twin)


def _twin_socket(
    theirs: Capabilities, own: Capabilities, fds: tuple[int, ...], uri: str
) -> socket.socket | None:
    if not theirs.twin_socket:
        if fds:
            raise NegotiationError(f"{len(fds)} descriptors came with VERSION", uri=uri)
        return None
    index = theirs.twin_fd_index
    if not own.twin_socket or len(fds) != 1 or index != 0:
        raise NegotiationError(f"a twin socket at index {index} of {len(fds)} descriptors", uri=uri)
    if not stat.S_ISSOCK(os.fstat(fds[0]).st_mode):
        raise NegotiationError("the twin socket is no socket", uri=uri)
    return socket.socket(fileno=fds[0])
