# SPDX-License-Identifier: BSD-3-Clause
"""Where a server's clients come from: a socket file of its own, or a socket that it inherited.

The latter is for a program that is started with its socket by a manager (specification, "Backend
Program Conventions"); it may listen, or be connected to the only client already.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from pyvfio.closing import Closing
from pyvfio.errors import AccessDenied, DeviceBusy, OpenError

CLIENTS_WAITING = 16
"""Clients that may wait in the socket's queue while another is served."""

DEFAULT_MODE = 0o600
"""Permission bits of a socket file: its owner's only."""


class Listener(Closing):
    """A socket that clients come from.

    :param sock: it is closed with this object.
    :param name: what the log calls it.
    :param path: the socket file to remove at the end, if it is this server's own.
    :ivar over: no client will come any more.
    """

    def __init__(self, sock: socket.socket, name: str, path: str | None = None) -> None:
        self.name = name
        self.over = False
        self._sock = sock
        self._path = path
        self._file = _identity(path) if path is not None else None
        self._connected = not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)

    @classmethod
    def at(cls, path: str, mode: int = DEFAULT_MODE, group: int | None = None) -> Listener:
        """Listen at a path; a socket file there that nobody listens on is replaced.

        :param mode: permission bits of the socket file.
        :param group: id of the group that it belongs to; by default the process's own.
        :raises AccessDenied: the file cannot be made there, or not be given to the group.
        :raises DeviceBusy: a server listens there already.
        :raises OpenError: the path is something else, or the socket cannot be made.
        """
        sock = _listen(path, mode, group)
        try:
            return cls(sock, path, path)
        except BaseException:
            sock.close()
            os.unlink(path)
            raise

    @classmethod
    def inherited(cls, fd: int) -> Listener:
        """Take a UNIX stream socket that listens or is connected; the descriptor is owned then.

        :raises OpenError: it is something else.
        """
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise OpenError("no socket", op="listen", uri=f"fd {fd}", errno=error.errno) from error
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            sock.close()
            raise OpenError("no UNIX stream socket", op="listen", uri=f"fd {fd}")
        sock.setblocking(False)
        os.set_inheritable(fd, False)
        return cls(sock, f"fd {fd}")

    def fileno(self) -> int:
        """Readable when a client is there."""
        return self._sock.fileno()

    def accept(self) -> socket.socket:
        """The next client; raises OSError as ``socket.accept`` does."""
        if not self._connected:
            return self._sock.accept()[0]
        self.over = True
        return self._sock.dup()

    def close(self) -> None:
        """Close the socket, and remove its file, unless another server has put its own there."""
        self._sock.close()
        if self._path is not None:
            try:
                if _identity(self._path) == self._file:
                    os.unlink(self._path)
            except FileNotFoundError:
                pass


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _listen(path: str, mode: int, group: int | None) -> socket.socket:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = False
    try:
        sock.bind(path)
        bound = True
        # Before listen(), so that nobody else could have connected.
        if group is not None:
            os.chown(path, -1, group)
        os.chmod(path, mode)
        sock.listen(CLIENTS_WAITING)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if bound:
            os.unlink(path)
        if isinstance(error, PermissionError):
            raise AccessDenied(
                "permission denied", op="listen", uri=path, errno=error.errno
            ) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OpenError(reason, op="listen", uri=path, errno=error.errno or errno.EINVAL) from error
    return sock


def _remove_stale(path: str) -> None:
    try:
        status = os.lstat(path)
    except OSError:
        return  # nothing there, or bind() says what is wrong
    if not stat.S_ISSOCK(status.st_mode):
        raise OpenError("the file exists and is no socket", op="listen", uri=path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            # BlockingIOError: somebody listens whose queue is full.
            if not isinstance(error, BlockingIOError):
                raise OpenError(
                    os.strerror(error.errno or errno.EINVAL),
                    op="listen",
                    uri=path,
                    errno=error.errno,
                ) from error
    raise DeviceBusy(
        "a server listens there already", op="listen", uri=path, errno=errno.EADDRINUSE
    )
