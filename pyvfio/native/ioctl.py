# SPDX-License-Identifier: BSD-3-Clause
"""ioctl(2) that never holds the interpreter's lock.

``fcntl.ioctl`` keeps it for arguments above 1,024 bytes, and drops the result, a descriptor maybe,
where the argument is immutable.
"""

from __future__ import annotations

import errno
import os

from pyvfio.native._native import ffi, lib


def ioctl(fd: int, request: int, argument: bytearray | int = 0) -> int:
    """Make the call; a buffer is changed in place.

    :returns: what the call returned.
    :raises OSError: with the errno of the failure.
    """
    value = argument if isinstance(argument, int) else address_of(argument)
    while True:
        result = lib.pyvfio_ioctl(fd, request, value)
        if result >= 0:
            return result
        if result != -errno.EINTR:
            raise OSError(-result, os.strerror(-result))


def address_of(buffer: bytearray) -> int:
    """Where a buffer is in memory, for a struct that points to it; it must not be resized."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))
