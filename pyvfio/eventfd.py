# SPDX-License-Identifier: BSD-3-Clause
"""Eventfds that the other end of a socket has as well.

It may have passed something different.  And whether a read or write of an eventfd blocks
(O_NONBLOCK) is known by all who have it, and changed by any of them, at any moment.
"""

from __future__ import annotations

import os
import select
import sys

from pyvfio.native._native import lib

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


def take(fd: int) -> int:
    """Set an eventfd to 0; returns what it was (1, for one that counts single steps).

    Never blocks, as :func:`signal`.
    """
    counter = bytearray(8)
    try:
        os.preadv(fd, [counter], -1, os.RWF_NOWAIT)
    except BlockingIOError:
        return 0
    return int.from_bytes(counter, sys.byteorder)
