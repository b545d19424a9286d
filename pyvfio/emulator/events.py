# SPDX-License-Identifier: BSD-3-Clause
"""The descriptors that a function waits for, as one: eventfds of interrupts and timers.

An emulator polls :meth:`Events.fileno` in a loop of its own and calls :meth:`Events.dispatch`;
nothing here starts a thread.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from heapq import heappop, heappush

from pyvfio import eventfd
from pyvfio.closing import Closing

Handler = Callable[[], None]

_LONGEST = 1e6
"""Seconds that epoll(7) is asked to wait at most."""


class Timer:
    """A call that is due at a time, unless it is cancelled."""

    def __init__(self, due: float, handler: Handler) -> None:
        self.due = due
        self.handler: Handler | None = handler

    def cancel(self) -> None:
        """It is not called any more.  May be repeated."""
        self.handler = None

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due


class EventFD(Closing):
    """An eventfd whose signals are handed to a function by :meth:`Events.dispatch`.

    :param handler: called once for all signals that came since the last time.
    """

    def __init__(self, events: Events, handler: Handler) -> None:
        self._events = events
        self._handler = handler
        self._watched = False
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self.watch(True)
        except BaseException:
            os.close(self.fd)
            raise

    def watch(self, watched: bool) -> None:
        """Whether signals are handed over; not while somebody else (an irqfd) takes them."""
        if watched != self._watched:
            self._events.watch(self, watched)
            self._watched = watched

    def take(self) -> None:
        """Call the handler if there are signals; called by :class:`Events`."""
        if eventfd.take(self.fd):
            self._handler()

    def close(self) -> None:
        """Close it; what was signalled and not yet handed over is lost.  May be repeated."""
        if self.fd >= 0:
            self.watch(False)
            os.close(self.fd)
            self.fd = -1


class Events(Closing):
    """Eventfds and timers behind one descriptor.

    All calls come from one thread, or one at a time.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, EventFD] = {}
        self._timers: list[Timer] = []

    def fileno(self) -> int:
        """Readable while signals wait for :meth:`dispatch`; see :attr:`timeout` for timers."""
        return self._epoll.fileno()

    @property
    def timeout(self) -> float | None:
        """Seconds until a timer is due; None where there is none."""
        while self._timers and self._timers[0].handler is None:
            heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, self._timers[0].due - time.monotonic())

    def eventfd(self, handler: Handler) -> EventFD:
        """A new eventfd; the caller closes it.

        :raises OSError: no descriptor is left.
        """
        return EventFD(self, handler)

    def call_after(self, seconds: float, handler: Handler) -> Timer:
        """Have a function called when some time has passed, by :meth:`dispatch`."""
        timer = Timer(time.monotonic() + seconds, handler)
        heappush(self._timers, timer)
        return timer

    def watch(self, event: EventFD, watched: bool) -> None:
        """Look at an eventfd, or not any more; called by it."""
        if watched:
            self._epoll.register(event.fd, select.EPOLLIN)
            self._watched[event.fd] = event
        elif self._watched.pop(event.fd, None) and not self._epoll.closed:
            self._epoll.unregister(event.fd)

    def dispatch(self, timeout: float | None = 0.0) -> int:
        """Hand over what was signalled, and call the timers that are due.

        :param timeout: seconds to wait for the first of them, none below 0; None waits for ever.
        :returns: how many handlers were called.
        """
        left = self.timeout
        if left is not None and (timeout is None or left < timeout):
            timeout = left
        ready = self._epoll.poll(None if timeout is None else min(max(timeout, 0.0), _LONGEST))
        called = 0
        for fd, _ in ready:
            event = self._watched.get(fd)  # a handler before may have closed it
            if event is not None:
                event.take()
                called += 1
        return called + self._call_timers()

    def _call_timers(self) -> int:
        called, now = 0, time.monotonic()
        while self._timers and self._timers[0].due <= now:
            timer = heappop(self._timers)
            handler, timer.handler = timer.handler, None
            if handler is not None:
                handler()
                called += 1
        return called

    def close(self) -> None:
        """Close the descriptor, and every eventfd that is still there.  May be repeated."""
        for event in list(self._watched.values()):
            event.close()
        self._timers.clear()
        self._epoll.close()
