# SPDX-License-Identifier: BSD-3-Clause
"""A bar on a terminal: how much is done, how fast, how much is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from pyvfio.cli.tables import rounded

CELLS = 24
SHOWN_SECONDS = 0.1
ASKED_SECONDS = 1.0
"""How often it is asked what is left of the same, which may cost the device some time."""

_CLEAR = "\r\x1b[K"


class ProgressBar:
    """Shows itself on a terminal; elsewhere it is quiet.  Gone at the end of a ``with`` statement.

    :param stream: where it is shown.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()
        self._started = self._next = time.monotonic()
        self._next_question = 0.0
        self._what = ""
        self._left: int | None = None

    def show(self, what: str, done: int, remaining: Callable[[], int | None]) -> None:
        """Something more is done.

        :param what: what is being done.
        :param done: bytes so far.
        :param remaining: tells the bytes that are left, None where it is not known.
        """
        now = time.monotonic()
        if not self._shown or now < self._next:
            return
        if now >= self._next_question or what != self._what:
            self._what, self._left = what, remaining()
            self._next_question = time.monotonic() + ASKED_SECONDS
        self._next = time.monotonic() + SHOWN_SECONDS
        rate = done / max(now - self._started, 1e-3)
        self._stream.write(f"{_CLEAR}{line(what, done, rate, self._left)}")
        self._stream.flush()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._stream.write(_CLEAR)
            self._stream.flush()


def line(what: str, done: int, rate: float, left: int | None) -> str:
    """What a bar shows.

    :param rate: bytes a second.
    :param left: bytes, or None where it is not known; then there is no bar.
    """
    text = f"{what:<12} {rounded(done):>10}  {rounded(int(rate)):>10}/s"
    if left is None:
        return text
    filled = CELLS * done // max(done + left, 1)
    return f"{text}  [{'#' * filled}{'.' * (CELLS - filled)}]  {rounded(left)} left"
