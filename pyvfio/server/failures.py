# SPDX-License-Identifier: BSD-3-Clause
"""Requests that are refused and models that fail: what the client is told, and what the log.

A model may fail in any way; its client is told, the server and the model live on.
"""

from __future__ import annotations

import errno
import logging
from concurrent.futures import CancelledError

from pyvfio.errors import VFIOError
from pyvfio.wire.connection import MAX_ERRNO


def errno_of(error: Exception) -> int:
    """What a client is told of a failure: its errno where it has one, EIO otherwise."""
    if isinstance(error, CancelledError):
        return errno.ECANCELED
    number = getattr(error, "errno", None) if isinstance(error, OSError | VFIOError) else None
    return number if isinstance(number, int) and 0 < number <= MAX_ERRNO else errno.EIO


def note(log: logging.Logger, name: str, error: Exception) -> None:
    """Log a failure in the name of a client; with its traceback where nobody failed on purpose."""
    if isinstance(error, OSError | VFIOError | CancelledError):
        log.info("%s: %s", name, error or type(error).__name__)
    else:
        log.error("%s: the model failed", name, exc_info=error)
