# SPDX-License-Identifier: BSD-3-Clause
"""A storm of signals: a handler runs thousands of times a second, in the middle of everything."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.soak.model import Traffic

PERIOD = 0.0002
"""Seconds from one signal to the next."""


class Counter:
    """How many signals there were."""

    count = 0


@contextmanager
def storm() -> Iterator[Counter]:
    """Signals all the time; only for the main thread of a process that has no other timer."""
    counter = Counter()

    def handle(*_: object) -> None:
        counter.count += 1

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, PERIOD, PERIOD)
    try:
        yield counter
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class StormyTraffic(Traffic):
    """The device that never rests, in a process where signals do not rest either."""

    def __init__(self) -> None:
        super().__init__()
        self._storm = storm()
        self._storm.__enter__()

    def close(self) -> None:
        self._storm.__exit__(None, None, None)
        super().close()
