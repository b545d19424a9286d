# SPDX-License-Identifier: BSD-3-Clause
"""Requests that are refused and models that fail: what the client is told, and what the log.

A model may fail in any way; its client is told, the server and the model live on.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from concurrent.futures import CancelledError

from pyvfio.errors import VFIOError
from pyvfio.wire.connection import MAX_ERRNO

_ON_PURPOSE = (OSError, VFIOError, CancelledError, asyncio.CancelledError, MemoryError)

FAILURES = (Exception, asyncio.CancelledError)
"""What a callback may fail with; SystemExit and KeyboardInterrupt mean the process, and end it."""


def errno_of(error: BaseException) -> int:
    """What a client is told of a failure: its errno where it has one, EIO otherwise."""
    if isinstance(error, CancelledError | asyncio.CancelledError):
        return errno.ECANCELED
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    number = getattr(error, "errno", None) if isinstance(error, OSError | VFIOError) else None
    return number if isinstance(number, int) and 0 < number <= MAX_ERRNO else errno.EIO


def note(log: logging.Logger, name: str, error: BaseException) -> None:
    """Log a failure in the name of a client; with its traceback where nobody failed on purpose."""
    if isinstance(error, _ON_PURPOSE):
        log.info("%s: %s", name, error or type(error).__name__)
    else:
        log.error("%s: the model failed", name, exc_info=error)
