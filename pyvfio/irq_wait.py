# SPDX-License-Identifier: BSD-3-Clause
"""Waiting for interrupts: in a thread, with a time-out, or in a task."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Generator
from typing import Generic, Protocol, TypeVar

from pyvfio.errors import DeviceClosed, VFIOTimeout

_Fired = TypeVar("_Fired", int, list[int])


class Waited(Protocol):
    """What waiting needs of the device."""

    uri: str

    def check_present(self, op: str) -> None:
        """Raise where the device is gone or closed."""


class Waiter(ABC, Generic[_Fired]):
    """Something that threads and tasks wait for.

    :param owner: the device.
    :param op: what errors call the waiting.
    :param fd: a descriptor that is readable when there is something to take.
    """

    def __init__(self, owner: Waited, op: str, fd: int) -> None:
        self._owner = owner
        self._op = op
        self._fd = fd
        self._lock = threading.Lock()
        self._users: list[None] = []
        self._closed = False
        self._futures: list[asyncio.Future[None]] = []

    @abstractmethod
    def _take(self, seconds: float | None) -> _Fired:
        """What has fired, waiting for it; nothing where nothing did, for whatever reason.

        Closing and loss signal as well, after they have become known: who takes something checks
        whether that is why.
        """

    @abstractmethod
    def _release(self) -> None:
        """Close the descriptors: nobody uses them any more."""

    def wait(self, timeout: float | None = None) -> _Fired:
        """Wait until there is something to take, and take it.

        :param timeout: seconds; None waits for ever, 0 only looks.
        :raises VFIOTimeout: there was nothing.
        :raises ConnectionLost: the device is gone; pending signals are not delivered.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        left = None if timeout is None else max(timeout, 0.0)
        # As _enter(), _check() and _leave(), which would take as long as the wake-up.
        self._users.append(None)
        try:
            if self._closed:
                raise self._closed_error()
            self._owner.check_present(self._op)
            while True:
                fired = self._take(left)
                if fired:
                    return fired
                self._check()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise VFIOTimeout(
                        f"no interrupt within {timeout} s", op=self._op, uri=self._owner.uri
                    )
        finally:
            self._users.pop()
            if self._closed:
                self._release_unused()

    def __await__(self) -> Generator[object, None, _Fired]:
        return self._wait_async().__await__()

    async def __aiter__(self) -> AsyncIterator[_Fired]:
        """Yield what is taken, again and again, until it is closed."""
        while not self._closed:
            try:
                yield await self
            except DeviceClosed:
                return

    async def _wait_async(self) -> _Fired:
        loop = asyncio.get_running_loop()
        if self._futures and self._futures[0].get_loop() is not loop:
            raise RuntimeError(f"{self._op}: another event loop waits for it already")
        self._enter()
        try:
            self._owner.check_present(self._op)
            while True:
                fired = self._take(0)
                if fired:
                    return fired
                self._check()
                future: asyncio.Future[None] = loop.create_future()
                self._futures.append(future)
                # One reader serves all tasks that wait; whoever is too late finds 0 and waits on.
                loop.add_reader(self._fd, self._wake_futures)
                try:
                    await future
                finally:
                    self._futures.remove(future)
                    if not self._futures:
                        loop.remove_reader(self._fd)
        finally:
            self._leave()

    def _wake_futures(self) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(None)

    def _check(self) -> None:
        if self._closed:
            raise self._closed_error()
        self._owner.check_present(self._op)

    def _closed_error(self) -> DeviceClosed:
        return DeviceClosed("closed", op=self._op, uri=self._owner.uri)

    def close(self) -> None:
        """Refuse new waits; the last that is under way closes the descriptors.  May be repeated."""
        self._closed = True
        self._release_unused()

    def _enter(self) -> None:
        """Keep the descriptors until :meth:`_leave`."""
        # Without the lock, which is not free where a processor has slept: an item of a list comes
        # and goes as a whole, before and behind a look at whether it is closed.
        self._users.append(None)
        if self._closed:
            self._leave()
            raise self._closed_error()

    def _leave(self) -> None:
        self._users.pop()
        if self._closed:
            self._release_unused()

    def _release_unused(self) -> None:
        with self._lock:
            if not self._users and self._fd >= 0:
                self._release()
                self._fd = -1
