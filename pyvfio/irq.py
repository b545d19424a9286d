# SPDX-License-Identifier: BSD-3-Clause
"""Interrupts as eventfds: wait with a time-out, ``await``, or poll the descriptor."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from typing import Protocol, overload

from pyvfio import eventfd
from pyvfio.closing import Closing
from pyvfio.errors import ConnectionLost, DeviceClosed, IRQError, VFIOError, operation_error
from pyvfio.eventfd import FOREVER, NO_COUNT
from pyvfio.irq_wait import Waiter
from pyvfio.native._native import lib
from pyvfio.polling import nanoseconds, seconds_at_most
from pyvfio.uapi.vfio import PCIIRQ, IRQFlags, IRQSetFlags
from pyvfio.vectors import IRQInfo

_take_signals = lib.pyvfio_take


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


class IRQ(Waiter[int]):
    """One interrupt vector.

    What is waited for, here and with ``await``, is how often it fired since it was last waited for.

    :ivar vector: its number within the index.
    :ivar total: signals that were waited for so far.
    :ivar wakes: how many signals :meth:`wake` has added, for who waits to look why.
    """

    def __init__(self, owner: IRQOwner, name: str, vector: int) -> None:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        super().__init__(owner, f"wait for {name} vector {vector}", fd)
        self.vector = vector
        self.total = 0
        self._pid = os.getpid()
        self.wakes = 0

    def fileno(self) -> int:
        """The eventfd; readable when the interrupt fired, and when the device is gone.

        Look before you read: read(2) of it waits.
        """
        if self._closed:
            raise self._closed_error()
        return self._fd

    def _take(self, seconds: float | None) -> int:
        # eventfd.take() itself would be felt: who wakes up has nothing in the processor's caches.
        count = _take_signals(self._fd, FOREVER if seconds is None else nanoseconds(seconds))
        if self.wakes or count == NO_COUNT:
            self._look_why(count)
        self.total += count
        return count

    def _look_why(self, count: int) -> None:
        if count == NO_COUNT:
            raise eventfd.error()
        try:
            self._check()
        except VFIOError:
            self.wake()  # the signal is for all who wait, and was taken
            raise

    def drain(self) -> int:
        """Drop signals that nobody has waited for; returns how many there were.

        With them goes the one that has told of a loss, behind which the device is back.
        """
        with self._lock:
            wakes, self.wakes = self.wakes, 0
            return max(0, eventfd.take(self._fd) - wakes)

    def wake(self) -> None:
        """Make everybody who waits look again whether the device is there."""
        if os.getpid() != self._pid:
            return  # a child of a fork: the parent would take it for an interrupt
        with self._lock:
            if self._fd >= 0:
                self.wakes += 1  # before it is seen that somebody woke
                eventfd.signal(self._fd)

    def close(self) -> None:
        """Wake everybody who waits; the last of them closes the descriptor."""
        self._closed = True
        self.wake()
        super().close()

    def hold(self) -> int:
        """Keep the descriptor, which is returned, until :meth:`let_go`."""
        self._enter()
        return self._fd

    def let_go(self) -> None:
        """End a :meth:`hold`."""
        self._leave()

    def _release(self) -> None:
        os.close(self._fd)


class AnyIRQ(Waiter[list[int]]):
    """Any vector of a set, through one epoll instance; what is waited for is the list of vectors.

    It holds the vectors' descriptors, so that a loss or :meth:`IRQ.close` wakes who waits here.
    """

    def __init__(self, owner: IRQOwner, irqs: Sequence[IRQ], name: str) -> None:
        self._epoll = select.epoll()
        super().__init__(owner, f"wait for {name} vectors", self._epoll.fileno())
        self._irqs: dict[int, IRQ] = {}
        try:
            for irq in irqs:
                fd = irq.hold()
                self._irqs[fd] = irq
                self._epoll.register(fd, select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    def _take(self, seconds: float | None) -> list[int]:
        ready = self._epoll.poll(seconds_at_most(seconds), len(self._irqs))
        taken = [(self._irqs[fd], eventfd.take(fd)) for fd, _ in ready]
        for irq, _ in taken:
            if irq.wakes:
                self._look_why([irq for irq, _ in taken])
        fired = []
        for irq, count in taken:
            if count:
                irq.total += count
                fired.append(irq.vector)
        return sorted(fired)

    def _look_why(self, irqs: Sequence[IRQ]) -> None:
        try:
            self._check()
        except VFIOError:
            for irq in irqs:
                irq.wake()  # others who wait for it have to know
            raise

    def _release(self) -> None:
        self._epoll.close()
        for irq in self._irqs.values():
            irq.let_go()


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
        self._any: AnyIRQ | None = None
        self._lock = threading.Lock()
        known = info.index < len(PCIIRQ)
        self._name = PCIIRQ(info.index).name if known else f"irq {info.index}"
        try:
            for vector in range(count):
                self._irqs.append(IRQ(owner, self._name, vector))
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

    def wait(self, timeout: float | None = None) -> list[int]:
        """Wait for any of the vectors, which costs the same however many there are.

        :param timeout: seconds; None waits for ever, 0 only looks.
        :returns: the vectors that fired since they were last waited for, in ascending order;
            :attr:`IRQ.total` of each counts how often.
        :raises VFIOTimeout: none did.
        :raises ConnectionLost: the device is gone; pending signals are not delivered.
        """
        return self._any_irq().wait(timeout)

    def __await__(self) -> Generator[object, None, list[int]]:
        return self._any_irq().__await__()

    def __aiter__(self) -> AsyncIterator[list[int]]:
        return self._any_irq().__aiter__()

    def _any_irq(self) -> AnyIRQ:
        with self._lock:
            if not self._open:
                raise self._closed_error()
            if self._any is None:
                try:
                    self._any = AnyIRQ(self._owner, self._irqs, self._name)
                except OSError as error:
                    op = f"wait for {self._name} vectors"
                    raise operation_error(error, IRQError, op=op, uri=self._owner.uri) from error
            return self._any

    def _closed_error(self) -> DeviceClosed:
        return DeviceClosed("closed", op=f"irq {self.index}", uri=self._owner.uri)

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
            raise self._closed_error()
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
        with self._lock:
            self._open = False
        if self._any is not None:
            self._any.close()  # first: what wakes it must not be taken for interrupts
        for irq in self._irqs:
            irq.close()
        self._owner.forget_irqs(self)
