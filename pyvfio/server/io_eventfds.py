# SPDX-License-Identifier: BSD-3-Clause
"""The eventfds by which one client kicks a model's registers (DEVICE_GET_REGION_IO_FDS).

A client, or KVM on its behalf, signals an eventfd instead of sending a write.  The eventfds are
made when the client first asks for them, each counts (``EFD_SEMAPHORE``), so that as many writes
reach the model as kicks were made, and one thread waits for all.  While the device is stopped for
migration they are left in the eventfds.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable, Sequence

from pyvfio import eventfd
from pyvfio.closing import Closing
from pyvfio.server.failures import note
from pyvfio.server.model import ModelIOEventFD
from pyvfio.transport.sockets import close_fds
from pyvfio.uapi.layout import Buffer

log = logging.getLogger(__name__)

MOST_KICKS = 4096
"""Kicks of one eventfd that are carried out when the device is stopped."""

_FLAGS = os.EFD_CLOEXEC | os.EFD_NONBLOCK


class IOEventFDs(Closing):
    """The ioeventfds of one client.

    :param declared: what the model declares.
    :param write: carries out a register write: region, offset, data.
    :param is_over: whether the client has gone, or is to.
    :param name: what the log and the thread call the client.
    """

    def __init__(
        self,
        declared: Sequence[ModelIOEventFD],
        write: Callable[[int, int, Buffer], object],
        is_over: Callable[[], bool],
        name: str,
    ) -> None:
        self._declared = declared
        self._write = write
        self._is_over = is_over
        self._name = name
        self._fds: list[int] = []
        self._control_fd = -1
        self._thread: threading.Thread | None = None
        self._closing = self._paused = False
        self._delivering = threading.Lock()

    def of(self, bar: int) -> list[tuple[ModelIOEventFD, int]]:
        """The sub-regions of a BAR, each with its eventfd, which stays this object's.

        :raises OSError: there are no descriptors left.
        """
        if not any(entry.bar == bar for entry in self._declared):
            return []
        if self._thread is None:
            self._start()
        pairs = zip(self._declared, self._fds, strict=True)
        return [(entry, fd) for entry, fd in pairs if entry.bar == bar]

    def _start(self) -> None:
        try:
            self._control_fd = os.eventfd(0, _FLAGS)
            for _ in self._declared:
                self._fds.append(os.eventfd(0, _FLAGS | os.EFD_SEMAPHORE))
            thread = threading.Thread(target=self._run, name=f"{self._name} kicks", daemon=True)
            thread.start()
        except BaseException:
            self._close_fds()
            raise
        self._thread = thread

    def _run(self) -> None:
        kicked = dict(zip(self._fds, self._declared, strict=True))
        told, told_or_kicked = select.poll(), select.poll()
        told.register(self._control_fd, select.POLLIN)
        for fd in (self._control_fd, *kicked):
            told_or_kicked.register(fd, select.POLLIN)
        # Looked at before each kick: a client may leave with 2^64 of them undelivered.
        while not self._closing:
            poller = told if self._paused else told_or_kicked
            for fd, _ in poller.poll():
                if fd == self._control_fd:
                    eventfd.take(fd)
                else:
                    self._deliver(fd, kicked[fd])

    def _deliver(self, fd: int, entry: ModelIOEventFD) -> bool:
        """Carry out one kick, if there is one and it is time."""
        with self._delivering:
            # Without one: the client has the eventfd as well, and was faster.
            if self._closing or self._paused or not eventfd.take(fd):
                return False
            try:
                self._write(entry.bar, entry.offset, entry.data)
            except BaseException as error:
                # A kick has no answer: nobody can be told, and the next one may do better.
                note(log, self._name, error)
            return True

    def pause(self) -> None:
        """Carry out what was kicked before, and leave the rest where it is; may be repeated.

        Of an eventfd with more than :data:`MOST_KICKS` the rest is left as well: no device was
        kicked so often.
        """
        for fd, entry in zip(self._fds, self._declared, strict=False):
            left = MOST_KICKS
            while left and not self._is_over() and self._deliver(fd, entry):
                left -= 1
        with self._delivering:
            self._paused = True
        self._wake()

    def resume(self) -> None:
        """Carry out kicks again."""
        self._paused = False
        self._wake()

    def _wake(self) -> None:
        if self._thread is not None:
            os.eventfd_write(self._control_fd, 1)

    def close(self) -> None:
        """Stop the thread and close the eventfds; the client's own copies kick nothing any more."""
        self._closing = True
        self._wake()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
            self._close_fds()

    def _close_fds(self) -> None:
        close_fds(fd for fd in (self._control_fd, *self._fds) if fd >= 0)
        self._control_fd, self._fds = -1, []
