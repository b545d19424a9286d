# SPDX-License-Identifier: BSD-3-Clause
"""Interrupts as eventfds: wait with a time-out, ``await``, or poll the descriptor."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from typing import Protocol, overload

from pyvfio import eventfd
from pyvfio.closing import Closing
from pyvfio.errors import ConnectionLost, DeviceClosed, VFIOTimeout
from pyvfio.polling import milliseconds
from pyvfio.uapi.vfio import PCIIRQ, IRQFlags, IRQSetFlags
from pyvfio.vectors import IRQInfo


class IRQOwner(Protocol):
    """What interrupts need of their device."""

    uri: str

    def check_present(self, op: str) -> None:
        """Raise where the device is gone or closed."""

    def set_irqs(
        self,
        index: int,
        action: IRQSetFlags,
        start: int,
        count: int,
        *,
        eventfds: Sequence[int] | None = None,
        bools: Sequence[bool] | None = None,
    ) -> None:
        """Configure vectors of an interrupt index."""

    def forget_irqs(self, irqs: IRQSet) -> None:
        """A set was closed."""


class IRQ:
    """One interrupt vector.

    :ivar vector: its number within the index.
    :ivar total: signals taken by :meth:`wait` and ``await`` so far.
    """

    def __init__(self, owner: IRQOwner, name: str, vector: int) -> None:
        self.vector = vector
        self.total = 0
        self._owner = owner
        self._op = f"wait for {name} vector {vector}"
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._users = 0
        self._wakes = 0
        self._closed = False
        self._futures: list[asyncio.Future[None]] = []

    def fileno(self) -> int:
        """The eventfd; readable when the interrupt fired, and when the device is gone."""
        if self._closed:
            raise DeviceClosed("closed", op=self._op, uri=self._owner.uri)
        return self._fd

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the interrupt.

        :param timeout: seconds; None waits for ever, 0 only looks.
        :returns: how often it fired since it was last waited for, at least 1.
        :raises VFIOTimeout: it did not fire.
        :raises ConnectionLost: the device is gone; pending signals are not delivered.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._enter()
        try:
            poller = select.poll()
            poller.register(self._fd, select.POLLIN)
            while True:
                count = self._take()
                if count:
                    return count
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise VFIOTimeout(
                        f"no interrupt within {timeout} s", op=self._op, uri=self._owner.uri
                    )
                poller.poll(milliseconds(left))
        finally:
            self._leave()

    def __await__(self) -> Generator[object, None, int]:
        return self._wait_async().__await__()

    async def __aiter__(self) -> AsyncIterator[int]:
        """Yield the number of signals each time the interrupt fired, until the set is closed."""
        while not self._closed:
            try:
                yield await self
            except DeviceClosed:
                return

    async def _wait_async(self) -> int:
        loop = asyncio.get_running_loop()
        if self._futures and self._futures[0].get_loop() is not loop:
            raise RuntimeError(f"{self._op}: another event loop waits for it already")
        self._enter()
        try:
            while True:
                count = self._take()
                if count:
                    return count
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

    def _take(self) -> int:
        self._check()
        count = eventfd.take(self._fd)
        # Closing and loss signal as well, after they have become known.
        self._check()
        self.total += count
        return count

    def _check(self) -> None:
        if self._closed:
            raise DeviceClosed("closed", op=self._op, uri=self._owner.uri)
        self._owner.check_present(self._op)

    def drain(self) -> int:
        """Drop signals that nobody has waited for; returns how many there were."""
        with self._lock:
            wakes, self._wakes = self._wakes, 0
            return max(0, eventfd.take(self._fd) - wakes)

    def wake(self) -> None:
        """Make everybody who waits look again whether the device is there."""
        if os.getpid() != self._pid:
            return  # a child of a fork: the parent would take it for an interrupt
        with self._lock:
            if self._fd >= 0:
                eventfd.signal(self._fd)
                self._wakes += 1

    def close(self) -> None:
        """Wake everybody who waits; the last of them closes the descriptor."""
        self._closed = True
        self.wake()
        self._leave(0)

    def _enter(self) -> None:
        with self._lock:
            if self._closed:
                raise DeviceClosed("closed", op=self._op, uri=self._owner.uri)
            self._users += 1

    def _leave(self, users: int = 1) -> None:
        with self._lock:
            self._users -= users
            if self._closed and not self._users and self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


class IRQSet(Closing):
    """The enabled vectors of one interrupt index; disables the index when closed.

    Made by ``enable`` of MSI, MSI-X or INTx.  Use it in a ``with`` statement.
    """

    def __init__(self, owner: IRQOwner, info: IRQInfo, count: int) -> None:
        self.index = info.index
        self.flags = info.flags
        self._owner = owner
        self._open = True
        self._irqs: list[IRQ] = []
        name = PCIIRQ(info.index).name if info.index < len(PCIIRQ) else f"irq {info.index}"
        try:
            for vector in range(count):
                self._irqs.append(IRQ(owner, name, vector))
        except OSError:
            self.release()
            raise

    def __len__(self) -> int:
        return len(self._irqs)

    def __iter__(self) -> Iterator[IRQ]:
        return iter(self._irqs)

    @overload
    def __getitem__(self, position: int) -> IRQ: ...

    @overload
    def __getitem__(self, position: slice) -> list[IRQ]: ...

    def __getitem__(self, position: int | slice) -> IRQ | list[IRQ]:
        return self._irqs[position]

    def filenos(self) -> list[int]:
        """The eventfds, in order of the vectors."""
        return [irq.fileno() for irq in self._irqs]

    def mask(self, vector: int = 0) -> None:
        """Keep a vector from firing; raises :class:`IRQError` where the device cannot."""
        self._act(IRQSetFlags.MASK, vector)

    def unmask(self, vector: int = 0) -> None:
        """Let a vector fire again; one that is automasked needs it after each interrupt."""
        self._act(IRQSetFlags.UNMASK, vector)

    def trigger(self, vector: int = 0) -> None:
        """Have the kernel or server signal the vector, as if the device had (loop-back test)."""
        self._act(IRQSetFlags.TRIGGER, vector)

    def _act(self, action: IRQSetFlags, vector: int) -> None:
        if not self._open:
            raise DeviceClosed("closed", op=f"irq {self.index}", uri=self._owner.uri)
        if not 0 <= vector < len(self._irqs):
            raise IndexError(f"vector {vector} of {len(self._irqs)}")
        self._owner.set_irqs(self.index, action, vector, 1)

    @property
    def automasked(self) -> bool:
        """Whether a vector masks itself when it fires, until :meth:`unmask`."""
        return bool(self.flags & IRQFlags.AUTOMASKED)

    @property
    def closed(self) -> bool:
        """Whether the index was disabled again."""
        return not self._open

    def drain(self) -> int:
        """Drop signals that nobody has waited for; returns how many there were."""
        return sum(irq.drain() for irq in self._irqs)

    def wake(self) -> None:
        """Make everybody who waits for a vector look whether the device is still there."""
        for irq in self._irqs:
            irq.wake()

    def close(self) -> None:
        """Disable the index and close its eventfds.  May be repeated."""
        if not self._open:
            return
        try:
            self._owner.set_irqs(self.index, IRQSetFlags.TRIGGER, 0, 0)
        except (ConnectionLost, DeviceClosed):
            pass  # nothing is left that could signal
        finally:
            self.release()

    def release(self) -> None:
        """Close the eventfds without a word to the device."""
        self._open = False
        for irq in self._irqs:
            irq.close()
        self._owner.forget_irqs(self)
