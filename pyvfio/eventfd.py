# SPDX-License-Identifier: BSD-3-Clause
"""Eventfds that the other end of a socket has as well.

It may have passed something different.  And whether a read or write of an eventfd blocks
(O_NONBLOCK) is known by all who have it, and changed by any of them, at any moment.
"""

from __future__ import annotations

import os
import select

from pyvfio.native._native import ffi, lib
from pyvfio.polling import nanoseconds

NO_COUNT = (1 << 64) - 1
"""What C has for a failure."""
FOREVER = -1
"""What C has for a time without end."""
_LINK = "anon_inode:[eventfd]"


def is_eventfd(fd: int) -> bool:
    """Whether a descriptor is an eventfd."""
    return os.readlink(f"/proc/self/fd/{fd}") == _LINK


def signal(fd: int) -> None:
    """Add 1 to an eventfd, unless it is full: then whoever waits for it is signalled already.

    Never blocks, whatever mode its other owner has put it in, and whatever he does meanwhile.  (On
    a kernel without asynchronous I/O only where he does not fill it at this very moment.)
    """
    if not lib.pyvfio_signal(fd):
        return
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    if poller.poll(0):
        os.eventfd_write(fd, 1)


def take(fd: int, seconds: float | None = 0.0) -> int:
    """Set an eventfd to 0; returns what it was (1, for one that counts single steps).

    :param seconds: how long to wait for it where it is 0; None is for ever.  It may be less, where
        another thread takes it or a signal comes: who has time left tries again.
    :raises OSError: it is none.

    Never blocks otherwise, as :func:`signal`.
    """
    count = lib.pyvfio_take(fd, FOREVER if seconds is None else nanoseconds(seconds))
    if count == NO_COUNT:
        raise error()
    return count


def error() -> OSError:
    """Why the last take of this thread gave no count."""
    return OSError(ffi.errno, os.strerror(ffi.errno))
