# SPDX-License-Identifier: BSD-3-Clause
"""Test devices with which a migration can be met at a certain step, or never ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from pyvfio.models.testdev import TestDevice

FOLDER = "TESTED_STEPS"
"""The environment variable that names a folder.  A file in it, called like a step, has the next
one of that kind linger; the file is gone when it has begun."""
LINGER = 1.0
PRECOPY, SAVE, START = STEPS = ("precopy", "save", "start")
PIECE = bytes(1 << 16)


class Lingering(TestDevice):
    """Takes its time at a step that a test has chosen."""

    def _linger(self, step: str) -> None:
        chosen = Path(os.environ[FOLDER], step)
        if chosen.exists():
            chosen.unlink()
            time.sleep(LINGER)

    def precopy_data(self) -> Iterator[bytes]:
        self._linger(PRECOPY)
        return iter(())

    def load_precopy_data(self, data: bytes) -> None:
        raise ValueError("there is none")

    def save_state(self) -> bytes:
        self._linger(SAVE)
        return super().save_state()

    def started(self) -> None:
        self._linger(START)
        super().started()


class Endless(TestDevice):
    """Always has more to say while it runs."""

    def precopy_data(self) -> Iterator[bytes]:
        while True:
            yield PIECE

    def load_precopy_data(self, data: bytes) -> None:
        """Nothing changes."""
