# SPDX-License-Identifier: BSD-3-Clause
"""Eventfds that came from somebody else, who may have passed something different."""

from __future__ import annotations

import os
import select

_LINK = "anon_inode:[eventfd]"


def is_eventfd(fd: int) -> bool:
    """Whether a descriptor is an eventfd."""
    return os.readlink(f"/proc/self/fd/{fd}") == _LINK


def signal(fd: int) -> None:
    """Add 1 to an eventfd, unless it is full: then whoever waits for it is signalled already.

    Never blocks, whatever mode its other owner has put it in.
    """
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    if poller.poll(0):
        os.eventfd_write(fd, 1)
