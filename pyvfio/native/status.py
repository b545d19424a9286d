# SPDX-License-Identifier: BSD-3-Clause
"""How calls of the C parts that use a socket end."""

from __future__ import annotations

from enum import IntEnum

from pyvfio.native._native import lib


class Status(IntEnum):
    """``enum pyvfio_status`` of messages.c, which says what each means."""

    DONE = lib.PYVFIO_DONE
    UNSENT = lib.PYVFIO_UNSENT
    LATE = lib.PYVFIO_LATE
    OTHER = lib.PYVFIO_OTHER
    ENDED = lib.PYVFIO_ENDED
    FAILED = lib.PYVFIO_FAILED
    BUSY = lib.PYVFIO_BUSY
    CROWDED = lib.PYVFIO_CROWDED
    PAUSE = lib.PYVFIO_PAUSE
    READ = lib.PYVFIO_READ
    WRITE = lib.PYVFIO_WRITE
    POSTED = lib.PYVFIO_POSTED
