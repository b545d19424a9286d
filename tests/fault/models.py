# SPDX-License-Identifier: BSD-3-Clause
"""Device models with a will of their own, for tests of the server: ``tests.fault.models:Name``."""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar, TypeVar

from pyvfio.errors import VFIOError
from pyvfio.server.model import DeviceModel, Identity, ModelBAR, ModelIOEventFD
from pyvfio.uapi.pci import BARType
from pyvfio.uapi.vfio import DMAMapFlags

T = TypeVar("T")
IOVA = 0x100000


class Small(DeviceModel):
    """Base of the others: one BAR of registers that keep what is written, 8 bytes each."""

    identity = Identity(0x1234, 0x0001, 0xFF0000)
    bars: ClassVar[Mapping[int, ModelBAR]] = {0: ModelBAR(4096)}

    def __init__(self) -> None:
        super().__init__()
        self.registers: dict[int, int] = {}

    def bar_read(self, bar: int, offset: int, width: int) -> int | Future[int]:
        return self.registers.get(offset, 0)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> Future[None] | None:
        self.registers[offset] = value
        return None


class Doorbells(Small):
    """Ports that count their kicks, and a register that fails on each."""

    bars: ClassVar[Mapping[int, ModelBAR]] = {0: ModelBAR(4096), 1: ModelBAR(64, BARType.IO)}
    io_eventfds = (
        ModelIOEventFD(1, 2, 2, 0x1234),
        ModelIOEventFD(1, 8, 8, 0x1122334455667788),
        ModelIOEventFD(0, 0x20, 1),
        ModelIOEventFD(1, 16, 1),
    )

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        if bar == 0:
            raise RuntimeError("a mistake of the model")
        self.registers[0] = self.registers.get(0, 0) + 1
        self.registers[8] = offset << 8 | width
        self.registers[16] = value


class Deferring(Small):
    """Answers from a thread of its own, which reads 8 bytes of the client's memory first.

    ======  ====================================================================
    0x10    reads those 8 bytes; a write stores them in 0x18, and so does a kick
    0x18    what was stored last
    0x20    never answers
    0x28    how many answers were cancelled
    0x30    fails with ENODEV
    0x38    fails with something that has no errno
    0x40    is cancelled by the model itself
    0x48    1: reset waits for those 8 bytes as well; 2: it takes its time, and sets 0x18 to 1
    ======  ====================================================================
    """

    io_eventfds = (ModelIOEventFD(0, 0x10, 8),)

    def __init__(self) -> None:
        super().__init__()
        self._pool = ThreadPoolExecutor(2)
        self._cancelled = 0

    def bar_read(self, bar: int, offset: int, width: int) -> int | Future[int]:
        if offset == 0x10:
            return self._pool.submit(self._fetch)
        if offset in (0x20, 0x40):
            return self._unanswered(cancelled=offset == 0x40)
        if offset in (0x30, 0x38):
            return self._pool.submit(self._fail, offset == 0x30)
        return self._cancelled if offset == 0x28 else super().bar_read(bar, offset, width)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> Future[None] | None:
        if offset == 0x10:
            return self._pool.submit(self._store)
        if offset == 0x20:
            return self._unanswered()
        return super().bar_write(bar, offset, width, value)

    def reset(self) -> Future[None] | None:
        waits = self.registers.get(0x48)
        self.registers.clear()
        self._cancelled = 0
        if not waits:
            return None
        return self._pool.submit(self._store if waits == 1 else self._take_time)

    def _unanswered(self, cancelled: bool = False) -> Future[T]:
        future: Future[T] = Future()
        if cancelled:
            future.cancel()
        else:
            future.add_done_callback(self._count)
        return future

    def _count(self, future: Future[T]) -> None:
        self._cancelled += future.cancelled()

    def _fetch(self) -> int:
        with self.lock:  # free while the answer is awaited
            pass
        return int.from_bytes(self.dma_read(IOVA, 8), "little")

    def _store(self) -> None:
        value = self._fetch()
        with self.lock:
            self.registers[0x18] = value

    def _take_time(self) -> None:
        time.sleep(0.05)
        with self.lock:
            self.registers[0x18] = 1

    def _fail(self, with_errno: bool) -> int:
        raise OSError(errno.ENODEV, "gone") if with_errno else RuntimeError("a mistake")

    def close(self) -> None:
        self._pool.shutdown()


class Raising(Small):
    """Fails as it is told, and keeps account of maps.

    ======  ====================================================================
    0x00    errno of its failures; 0 for one without, 2^32-1 for a negative one
    0x08    what fails; 1 the register 0x10, 2 reset, 4 maps, 8 unmaps, 16 a client that leaves
    0x10    a register
    0x18    number of maps that were announced, 0x20 of unmaps
    0x28    address of the last map or unmap, 0x30 its size, 0x38 its flags
    0x40    the first 8 bytes there, as an unmap could read them still
    ======  ====================================================================
    """

    def _fail(self, what: int) -> None:
        number = self.registers.get(0x00, 0)
        if self.registers.get(0x08, 0) & what:
            if not number:
                raise RuntimeError("a mistake of the model")
            raise OSError(-5 if number == 0xFFFF_FFFF else number, "as was asked for")

    def bar_read(self, bar: int, offset: int, width: int) -> int | Future[int]:
        if offset == 0x10:
            self._fail(1)
        return super().bar_read(bar, offset, width)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        if offset == 0x10:
            self._fail(1)
        super().bar_write(bar, offset, width, value)

    def reset(self) -> None:
        self._fail(2)
        self.registers.clear()

    def memory_mapped(self, iova: int, size: int, flags: DMAMapFlags) -> None:
        self._note(0x18, iova, size)
        self.registers[0x38] = flags
        self._fail(4)

    def memory_unmapped(self, iova: int, size: int) -> None:
        self._note(0x20, iova, size)
        try:
            self.registers[0x40] = int.from_bytes(self.dma_read(iova, 8), "little")
        except VFIOError:
            self.registers[0x40] = 0
        self._fail(8)

    def _note(self, counter: int, iova: int, size: int) -> None:
        self.registers[counter] = self.registers.get(counter, 0) + 1
        self.registers[0x28], self.registers[0x30] = iova, size

    def client_lost(self) -> None:
        self._fail(16)


class FailsWhenClosed(Small):
    """Fails when the server ends."""

    def close(self) -> None:
        raise RuntimeError("a mistake of the model")


class Asking(Small):
    """Reads the client's memory in a callback, which the client's other requests wait for.

    ======  ====================================================================
    0x00    a write of n reads n bytes at the IOVA; reads its errno, 0 for done
    ======  ====================================================================
    """

    bars: ClassVar[Mapping[int, ModelBAR]] = {
        0: ModelBAR(4096),
        2: ModelBAR(1 << 20, backed=True),
    }

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        try:
            self.dma_read(IOVA, value)
            self.registers[offset] = 0
        except VFIOError as error:
            self.registers[offset] = error.errno or errno.EIO


class Copying(Small):
    """Threads of the model's own copy from and to the client's memory all the time.

    ======  ====================================================================
    0x00    number of threads; 0 stops them
    0x08    bytes of a copy
    0x10    copies that succeeded, 0x18 copies that failed
    0x20    errno of the last failure
    ======  ====================================================================
    """

    def __init__(self) -> None:
        super().__init__()
        self._threads: list[threading.Thread] = []
        self._running = threading.Event()

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        super().bar_write(bar, offset, width, value)
        if offset == 0:
            self._stop()
            self._running.set()
            size = self.registers.get(0x08, 8)
            for _ in range(value):
                thread = threading.Thread(target=self._copy, args=(size,))
                self._threads.append(thread)
                thread.start()

    def _copy(self, size: int) -> None:
        while self._running.is_set():
            try:
                data = self.dma_read(IOVA, size)
                self.dma_write(IOVA, data)
                counter = 0x10
            except VFIOError as error:
                self.registers[0x20] = error.errno or errno.EIO
                counter = 0x18
            self.registers[counter] = self.registers.get(counter, 0) + 1

    def _stop(self) -> None:
        self._running.clear()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def close(self) -> None:
        self._stop()


class Moving(Small):
    """Copies between two addresses of the client from a thread of its own, in one piece.

    ======  ====================================================================
    0x00    source, 0x08 destination, 0x10 number of bytes
    0x18    runs on write
    0x20    0 while it runs, then 1 and the errno << 8
    ======  ====================================================================
    """

    def __init__(self) -> None:
        super().__init__()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        super().bar_write(bar, offset, width, value)
        if offset == 0x18:
            self.registers[0x20] = 0
            source, destination, size = (self.registers.get(at, 0) for at in (0x00, 0x08, 0x10))
            self._jobs.put(lambda: self.dma_write(destination, self.dma_read(source, size)))

    def _run(self) -> None:
        while job := self._jobs.get():
            try:
                job()
                result = 0
            except VFIOError as error:
                result = error.errno or errno.EIO
            self.registers[0x20] = 1 | result << 8

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()


class Reader(Small):
    """Reads 64 MiB of the client's memory in a thread of its own for each write of a register."""

    def __init__(self) -> None:
        super().__init__()
        self._pool = ThreadPoolExecutor(1)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self._pool.submit(self.dma_read, IOVA, 64 << 20)

    def close(self) -> None:
        self._pool.shutdown()
