# SPDX-License-Identifier: BSD-3-Clause
"""The live client under test, in a process of its own: ``python -m tests.fuzz.subject SOCKET``.

Each line of stdin is the seed of one connection.  A line of JSON tells how it went; nothing but the
package's errors may come of it.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import random
import signal
import sys
import threading
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from typing import Any

import pyvfio
from pyvfio.errors import ConnectionLost, RemoteProtocolError, VFIOError, VFIOTimeout
from pyvfio.uapi.vfio import PCIRegion
from tests.fuzz.operations import PAGE, User

TIMEOUT = 0.1
"""Seconds that each request waits; a server that is silent costs no more time than this."""

MARK = b"honestly"
"""Data of a write after which the server does its work as it should."""

PATTERN = bytes(range(1, 9))
"""What an honest server answers to a read of 8 bytes at :data:`PATTERN_OFFSET`."""

PATTERN_OFFSET = 0x4000

MEMORY_SIZE = 8 * PAGE
"""Bytes of the memory that all connections map; no other of the client's files has that size."""

_TRIES = 40


class _Troubles(logging.Handler):
    """What went wrong where no exception reaches the caller."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(logging.Formatter().format(record))

    def note(self, args: Any) -> None:
        """As a hook for threads and for what is raised while collecting garbage."""
        self.found.append("".join(traceback.format_exception(args.exc_value)))


def _in_step(dev: pyvfio.PCIDevice) -> str:
    """Whether the stream is in step: an honest answer is understood."""
    device_io = dev.base.device_io
    try:
        for _ in range(_TRIES):
            with suppress(VFIOTimeout, pyvfio.RemoteError):
                device_io.region_write(PCIRegion.CONFIG, PATTERN_OFFSET, MARK)
                found = device_io.region_read(PCIRegion.CONFIG, PATTERN_OFFSET, len(PATTERN))
                return "in step" if found == PATTERN else f"read {bytes(found).hex()}"
    except ConnectionLost:
        return "lost"
    except RemoteProtocolError:
        if dev.lost:  # what was sent before broke the protocol, and is read only now
            return "lost"
        raise
    return "no answer"


def _connection(path: str, seed: int, memory: pyvfio.SharedMemory) -> tuple[str, Counter[str]]:
    """How the stream ended, and what was raised on the way."""
    rng = random.Random(seed)
    errors: Counter[str] = Counter()
    try:
        options = {"twin_socket": rng.random() < 0.7, "secure_dma": rng.random() < 0.2}
        dev = pyvfio.open(f"vfio-user:{path}", timeout=TIMEOUT, **options)
    except VFIOError as error:
        return "not opened", Counter([f"open: {type(error).__name__}"])
    with dev:
        user = User(dev, memory, rng)
        for _ in range(rng.randrange(1, 60)):
            try:
                user.act()
            except VFIOError as error:
                errors[type(error).__name__] += 1
            if dev.lost and rng.random() < 0.2:
                break
        state = _in_step(dev)
        user.leave()
    return state, errors


def main(path: str) -> None:
    """Make connections until stdin ends."""
    faulthandler.register(signal.SIGUSR1)
    warnings.simplefilter("error")
    troubles = _Troubles()
    logging.getLogger().addHandler(troubles)
    threading.excepthook = sys.unraisablehook = troubles.note
    with pyvfio.SharedMemory(MEMORY_SIZE) as memory:
        for line in sys.stdin:
            state, errors, failure = "failed", Counter[str](), ""
            try:
                state, errors = _connection(path, int(line), memory)
            except Exception:  # the point of it all: this must not happen
                failure = traceback.format_exc()
            gc.collect()
            failure += "".join(troubles.found)
            troubles.found.clear()
            report = {"state": state, "errors": errors, "failure": failure}
            sys.stdout.write(json.dumps(report) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
