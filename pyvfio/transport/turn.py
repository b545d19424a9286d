# SPDX-License-Identifier: BSD-3-Clause
"""Who reads a socket: one thread at a time has the turn.

A thread that waits for something takes the turn if it is free, so a request costs no switch between
threads; when it has its answer it passes the turn to another that waits.  While nobody waits, a
thread of the turn's own takes it when there is something to read.

A call of C takes the turn without a holder, by its claim (:mod:`pyvfio.native.claims`), and none
does while anybody here has it or waits for it.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Protocol

from pyvfio.native.claims import Claims
from pyvfio.transport.call import Waiter

IDLE = 0.001
"""Seconds without a caller after which the turn's own thread looks for something to read."""
LONG_IDLE, MANY = 4 * IDLE, 32
"""The same while there are so many in that time that hardly any is left between them."""


class Reader(Protocol):
    """What is read, and by whom it is owned."""

    def over(self) -> bool:
        """Whether nothing is read any more."""

    def read_once(self, seconds: float | None) -> bool:
        """Wait for the socket and do what it is ready for; only with the turn.

        :returns: whether there was something to do.
        """

    def await_work(self) -> None:
        """Wait until there may be something to do for :meth:`read_once`; without the turn."""

    def interrupted(self) -> None:
        """A signal handler raised where the turn was to be left."""

    def review(self) -> None:
        """Let C have the socket where nothing is in its way; with the lock held."""


class Turn:
    """The turn to read.

    :param reader: what reads.
    :param room: the reader's condition; told when the turn is left for good.
    :param lock: the lock of ``room``.
    :param claims: of C on the socket.
    :param name: of the thread.
    :ivar holder: the thread that has the turn.
    :ivar waiters: those who have it not sleep, and are passed it.
    :ivar waits: how many waits there have been, but for those in C.
    :ivar standby: the turn's own thread sleeps until a wait is over.
    """

    def __init__(
        self,
        reader: Reader,
        room: threading.Condition,
        lock: threading.Lock,
        claims: Claims,
        name: str,
    ) -> None:
        self._reader = reader
        self._claims = claims
        self.holder: int | None = None
        self.waiters: list[Waiter] = []
        self.waits = 0
        self.standby = False
        self._recall: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.use(room, lock)

    def use(self, room: threading.Condition, lock: threading.Lock) -> None:
        """Begin anew: in the child of a fork, who held these is not here to release them."""
        self._room, self._lock = room, lock
        self.waiters, self.holder, self.standby = [], None, False

    def start(self) -> None:
        """Start the thread; raises RuntimeError where there can be no more."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread, which ends soon."""
        self._thread.join()

    def wait_for(self, waiter: Waiter, seconds: float | None) -> bool:
        """Wait until ``waiter`` is ready, reading the socket if nobody else does.

        :param seconds: how long at most; None for ever.
        :returns: whether it is ready; False as well when the reader's time is over.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            with self._lock:
                # Before the turn is asked for: whoever leaves it then sees that somebody waits.
                self.waiters.append(waiter)
                self.waits += 1
            while not waiter.ready() and not self._reader.over():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                if self._take():
                    self._read_for(waiter, deadline)
                else:
                    waiter.sleep(left)
            return waiter.ready()
        finally:
            try:
                self.step_back(waiter)
            except BaseException:  # a signal handler's: nobody may be left waiting for the turn
                self.drop()
                self._reader.interrupted()
                raise

    def _take(self) -> bool:
        # Not a lock of its own: who is interrupted on the way back must still be known to have it.
        with self._lock:
            if self.holder is not None or self._claims.block_reading():
                return False
            self.holder = threading.get_ident()
            return True

    @property
    def is_free(self) -> bool:
        """Whether nobody has the turn, or waits for it; with the lock held."""
        return self.holder is None and not self.waiters and not self.standby

    def drop(self) -> None:
        """Have the turn no more, whoever waits for it."""
        if self.holder == threading.get_ident():
            self.holder = None

    def step_back(self, waiter: Waiter | None = None) -> None:
        """Wait no more, and leave the turn to somebody who does, or to the turn's own thread."""
        with self._lock:
            if waiter in self.waiters:
                self.waiters.remove(waiter)
            self.drop()
        self.pass_on()

    def pass_on(self) -> None:
        """Tell of a turn that may be free."""
        with self._lock:
            if self._reader.over():
                self._room.notify_all()
            heir = self.waiters[0] if self.waiters and self.holder is None else None
            if self.standby:
                self._recall.put(None)  # before it is forgotten: a signal handler may raise here
                self.standby = False
            self._reader.review()
        if heir is not None:
            heir.wake()

    def _read_for(self, waiter: Waiter, deadline: float | None) -> None:
        while not waiter.ready() and not self._reader.over():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            self._reader.read_once(left)

    def _run(self) -> None:
        """The turn's own thread: reads while nobody waits."""
        over = self._reader.over
        while not over():
            waits = self._all_waits()
            if self.holder is None:
                self._reader.await_work()
            if waits != self._all_waits():
                pass  # it was for the one who came
            elif self._take():
                try:
                    while not over() and self._reader.read_once(0.0) and waits == self._all_waits():
                        pass
                finally:
                    self.step_back()
            else:
                self._stand_by(waits)
            self._rest(waits)

    def _rest(self, waits: int) -> None:
        """Callers come in bursts; between two of them there is little else to read.

        :param waits: how many there had been.
        """
        while (more := self._all_waits() - waits) and not self._reader.over():
            waits += more
            time.sleep(LONG_IDLE if more >= MANY else IDLE)

    def _all_waits(self) -> int:
        return self.waits + int(self._claims.state.exchanges)

    def _stand_by(self, waits: int) -> None:
        """Sleep as long as the one who waits now does; a short wait is not worth it."""
        time.sleep(IDLE)
        with self._lock:
            self.standby = True  # before the look at who has the turn: who leaves it looks here
            waited = self._claims.block_reading() or self.holder is not None or self.waiters
            if not waited or waits != self._all_waits() or self._reader.over():
                self.standby = False
                self._reader.review()
                return
        self._recall.get()
