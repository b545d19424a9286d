# SPDX-License-Identifier: BSD-3-Clause
"""Callbacks of a model that answer later, from another thread, with a future."""

from __future__ import annotations

import errno
import queue
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class DeferredAnswers:
    """Waits for what a model still owes to one client."""

    def __init__(self) -> None:
        self._over = False
        self._stopped = False
        self._bells: list[queue.SimpleQueue[None]] = []

    def settle(self, answer: T | Future[T]) -> T:
        """What a callback returned, waited for where it is a future; not with the model's lock.

        :raises Exception: what the future failed with.
        :raises OSError: ECANCELED; the client has left or the server stops, and the future is
            cancelled.
        """
        if not isinstance(answer, Future):
            return answer
        bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._bells.append(bell)
        try:
            answer.add_done_callback(lambda _: bell.put(None))
            # Whoever ends it sets the mark first: it is seen here, or the bell rings.
            if not self._over:
                bell.get()
        finally:
            self._bells.remove(bell)
        if answer.done():
            return answer.result()
        answer.cancel()
        raise OSError(errno.ECANCELED, "nobody waits for the model's answer any more")

    @property
    def over(self) -> bool:
        """Whether nobody waits for answers any more."""
        return self._over

    @property
    def stopped(self) -> bool:
        """Whether the server stops."""
        return self._stopped

    def check(self) -> None:
        """Between two accesses of a long transfer.

        :raises OSError: ECANCELED; the server stops.
        """
        if self._stopped:
            raise OSError(errno.ECANCELED, "the server stops")

    def stop(self) -> None:
        """The server stops: wait no longer, and leave off; for signal handlers as :meth:`end`."""
        self._stopped = True
        self.end()

    def end(self) -> None:
        """Wait no longer, now and later; takes no lock, so that a signal handler may call it."""
        self._over = True
        for bell in tuple(self._bells):
            bell.put(None)
