# SPDX-License-Identifier: BSD-3-Clause
"""Drivers that go along with a device that moves, and know what must be in it.

A stopped device refuses accesses (EBUSY), so one that was refused was not made: it is made again
where the device has gone.  That holds for writes that are waited for, not for posted ones.
"""

from __future__ import annotations

import errno
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from pyvfio.errors import RegionError
from pyvfio.irq import IRQSet
from pyvfio.memory import ByteArray, SharedMemory
from pyvfio.pci.device import PCIDevice
from tests.conformance.devices import Dev, Edu
from tests.support import eventually

_Answer = TypeVar("_Answer")

PAGE = 4096
PATIENCE = 20.0
"""Seconds that a device may take to arrive, or for anything else, on a machine that is busy."""
MEMORY, AREA, AREA_SIZE = 2, 40 << 20, 4 << 20
"""The part of the test device's memory that is used, in BAR 2."""
VECTORS = 4
TO_DEVICE, TO_CLIENT = 1, 2
PAGES = 64
"""Pages of memory that the devices reach."""


class Following:
    """Accesses to a device that moves.

    :ivar dev: where it is.
    :ivar served_by: who has answered last.
    """

    def __init__(self, dev: PCIDevice) -> None:
        self.dev = self.served_by = dev
        self._moved = threading.Condition()

    def move(self, dev: PCIDevice) -> None:
        """The device has arrived elsewhere."""
        with self._moved:
            self.dev = dev
            self._moved.notify_all()

    def do(self, access: Callable[[PCIDevice], _Answer]) -> _Answer:
        """Make an access, wherever the device is then."""
        while True:
            dev = self.dev
            try:
                answer = access(dev)
            except RegionError as error:
                if error.errno != errno.EBUSY:
                    raise
                with self._moved:
                    if not self._moved.wait_for(lambda dev=dev: self.dev is not dev, PATIENCE):  # type: ignore[misc]
                        raise
            else:
                self.served_by = dev
                return answer

    def read32(self, offset: int) -> int:
        return self.do(lambda dev: dev.bars[0].read32(offset))

    def write32(self, offset: int, value: int) -> None:
        self.do(lambda dev: dev.bars[0].write32(offset, value))

    def write64(self, offset: int, value: int) -> None:
        self.do(lambda dev: dev.bars[0].write64(offset, value))


class Driver:
    """Drives a device from a thread, turn after turn, until it is told to stop.

    :param devices: both places; the device is in the first.
    :param memory: memory that both reach.
    :param iova: where.
    :param vectors: interrupts to use.
    :ivar turns: how many were done.
    :ivar device_wrote: pages of the memory that the device has written, by who has said so.
    """

    def __init__(
        self, devices: Sequence[PCIDevice], memory: SharedMemory, iova: int, vectors: int
    ) -> None:
        self.following = Following(devices[0])
        self.turns = 0
        self.device_wrote: list[tuple[PCIDevice, int]] = []
        self.rng = random.Random(vectors)
        self.array: ByteArray = memory.array
        self.iova = iova
        self.fired: Counter[int] = Counter()
        self.came: Counter[int] = Counter()
        self._vectors = vectors
        self._sets = [self._enable(dev, vectors) for dev in devices]
        self._turn = threading.Lock()
        self._over = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="driver")
        self._thread.start()

    def _enable(self, dev: PCIDevice, vectors: int) -> IRQSet:
        return (dev.msix if dev.msix.count else dev.msi).enable(vectors)

    def _run(self) -> None:
        try:
            while not self._over:
                with self._turn:
                    self.turn()
                    self.turns += 1
        except BaseException as error:
            self._failure = error

    def turn(self) -> None:
        """Use the device in each of its ways, and compare."""
        raise NotImplementedError

    def check_state(self) -> None:
        """Compare all that the device has, between two turns."""
        raise NotImplementedError

    def check(self) -> None:
        """Compare all there is; the driver waits meanwhile."""
        with self.between_turns():
            self.check_state()
            assert eventually(self._all_came, PATIENCE), (self.fired, self.came)
            assert self.came == self.fired

    @contextmanager
    def between_turns(self) -> Iterator[None]:
        """The driver waits meanwhile."""
        self._raise_failure()
        with self._turn:
            self._raise_failure()
            yield

    def let_go(self) -> None:
        """Close the device, which has work yet; between two turns."""
        self.await_interrupts()
        for irqs in self._sets:
            irqs.close()
        self._sets.clear()
        self.leave_work()
        self.following.dev.close()

    def take_up(self, dev: PCIDevice) -> None:
        """Go on with a device that was opened anew; in the same break."""
        self.following.move(dev)
        with dev.intx.enable() as irqs:
            assert irqs[0].wait(PATIENCE) == 1
            self.finish_work()
            assert irqs[0].drain() == 0
        self._sets.append(self._enable(dev, self._vectors))

    def leave_work(self) -> None:
        """Have the device do something whose end it tells by its pin."""
        raise NotImplementedError

    def finish_work(self) -> None:
        """The pin has told the end of it: compare, and have the pin lowered."""
        raise NotImplementedError

    @property
    def failed(self) -> bool:
        """Whether the thread has ended by an error."""
        return self._failure is not None

    def has_turned(self, turns: int) -> bool:
        """Whether it has done more than so many turns, or has ended by an error."""
        return self.turns > turns or self.failed

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def expect(self, vector: int) -> None:
        """An interrupt will come once."""
        self.fired[vector] += 1

    def await_interrupts(self) -> None:
        """All that were expected have come, and none twice."""
        assert eventually(self._all_came, PATIENCE), (self.fired, self.came)

    def _all_came(self) -> bool:
        for irqs in self._sets:
            for irq in irqs:
                self.came[irq.vector] += irq.drain()
        return all(self.came[vector] >= count for vector, count in self.fired.items())

    def page(self, number: int) -> ByteArray:
        """A page of the memory."""
        return self.array[number * PAGE : (number + 1) * PAGE]

    def fill(self, number: int) -> ByteArray:
        """Put something new into a page; returns it."""
        data = np.frombuffer(self.rng.randbytes(PAGE), np.uint8)
        self.page(number)[:] = data
        return data

    def two_pages(self) -> tuple[int, int]:
        """A page to read from and another to write to."""
        first, second = self.rng.sample(range(PAGES), 2)
        return first, second

    def note_write(self, number: int) -> None:
        """The device has written a page; whoever has said that it is done may have."""
        self.device_wrote.append((self.following.served_by, number))

    def stop(self) -> None:
        """End the thread; raises what it has failed with."""
        self._over = True
        self._thread.join()
        for irqs in self._sets:
            irqs.close()
        del self.array
        self._raise_failure()


class TestDeviceDriver(Driver):
    """DMA both ways, interrupts, registers whose accesses are counted, and memory."""

    __test__ = False

    def __init__(self, devices: Sequence[PCIDevice], memory: SharedMemory, iova: int) -> None:
        self.expected = np.zeros(AREA_SIZE, np.uint8)
        self.scratch = self.accesses = self.kicks = 0
        super().__init__(devices, memory, iova, VECTORS)

    def turn(self) -> None:
        there, back = self.two_pages()
        data = self.fill(there)
        offset = PAGE * self.rng.randrange(AREA_SIZE // PAGE)
        self._dma(TO_DEVICE, there, offset)
        self.expected[offset : offset + PAGE] = data
        self._dma(TO_CLIENT, back, offset)
        self.note_write(back)
        assert np.array_equal(self.page(back), data)
        vector = self.rng.randrange(VECTORS)
        self.expect(vector)
        self.following.write32(Dev.FIRE, vector)
        self._count()
        self._write_memory()
        self.await_interrupts()

    def _dma(self, direction: int, page: int, offset: int) -> None:
        device = self.following
        device.write64(Dev.DMA_ADDRESS, self.iova + page * PAGE)
        device.write64(Dev.DMA_OFFSET, AREA + offset)
        device.write32(Dev.DMA_COUNT, PAGE)
        device.write32(Dev.DMA_RUN, direction)
        assert eventually(lambda: device.read32(Dev.DMA_RUN) != errno.EINPROGRESS, PATIENCE)
        assert device.read32(Dev.DMA_RUN) == 0

    def _count(self) -> None:
        self.scratch = self.rng.getrandbits(32)
        self.following.write32(Dev.SCRATCH, self.scratch)
        self.following.write32(Dev.DOORBELL, 1)
        self.accesses += 1
        self.kicks += 1

    def _write_memory(self) -> None:
        data = self.rng.randbytes(16 * PAGE)
        offset = PAGE * self.rng.randrange(AREA_SIZE // PAGE - 16)
        self.following.do(lambda dev: dev.bars[MEMORY].write_bytes(AREA + offset, data))
        self.expected[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    def leave_work(self) -> None:
        self.following.write32(Dev.PIN, 1)

    def finish_work(self) -> None:
        self.following.write32(Dev.PIN, 0)

    def check_state(self) -> None:
        registers = {Dev.ACCESSES: self.accesses, Dev.KICKS: self.kicks}
        assert {at: self.following.read32(at) for at in registers} == registers
        if self.accesses:
            assert self.following.read32(Dev.SCRATCH) == self.scratch
            self.accesses += 1
        memory = self.following.do(lambda dev: dev.bars[MEMORY].read_bytes(AREA, AREA_SIZE))
        assert np.array_equal(np.frombuffer(memory, np.uint8), self.expected)


class EduDriver(Driver):
    """Factorials and DMA, which take time and end with an interrupt; a buffer and registers."""

    BUFFER, RUN, TO_HOST, IRQ = 0x40000, 1, 2, 4
    COMPUTING, FACTORIAL_IRQ = 0x01, 0x80

    def __init__(self, devices: Sequence[PCIDevice], memory: SharedMemory, iova: int) -> None:
        self.buffer = np.zeros(PAGE, np.uint8)
        self.liveness = self.number = 0
        super().__init__(devices, memory, iova, 1)

    def turn(self) -> None:
        device = self.following
        there, back = self.two_pages()
        self.buffer = self.fill(there)
        self._dma(self.iova + there * PAGE, self.BUFFER, 0)
        self._dma(self.BUFFER, self.iova + back * PAGE, self.TO_HOST)
        self.note_write(back)
        assert np.array_equal(self.page(back), self.buffer)
        number = self.rng.randrange(2, 13)
        device.write32(Edu.STATUS, self.FACTORIAL_IRQ)
        self.expect(0)
        device.write32(Edu.FACTORIAL, number)
        self.await_interrupts()
        assert device.read32(Edu.STATUS) == self.FACTORIAL_IRQ
        assert device.read32(Edu.FACTORIAL) == math.factorial(number)
        device.write32(Edu.IRQ_ACK, 0x001)
        self.liveness = self.rng.getrandbits(32)
        device.write32(Edu.LIVENESS, self.liveness)

    def _dma(self, source: int, destination: int, direction: int) -> None:
        device = self.following
        device.write64(Edu.DMA_SOURCE, source)
        device.write64(Edu.DMA_DESTINATION, destination)
        device.write64(Edu.DMA_COUNT, PAGE)
        self.expect(0)
        device.write32(Edu.DMA_COMMAND, self.RUN | direction | self.IRQ)
        self.await_interrupts()
        assert not device.read32(Edu.DMA_COMMAND) & self.RUN
        assert device.read32(Edu.IRQ_STATUS) == 0x100
        device.write32(Edu.IRQ_ACK, 0x100)

    def leave_work(self) -> None:
        self.number = self.rng.randrange(2, 13)
        self.following.write32(Edu.FACTORIAL, self.number)

    def finish_work(self) -> None:
        device = self.following
        assert device.read32(Edu.FACTORIAL) == math.factorial(self.number)
        assert device.read32(Edu.IRQ_STATUS) == 0x001
        device.write32(Edu.IRQ_ACK, 0x001)

    def check_state(self) -> None:
        if self.turns:
            assert self.following.read32(Edu.LIVENESS) == ~self.liveness & 0xFFFF_FFFF
            assert self.following.read32(Edu.IRQ_STATUS) == 0


DRIVERS = {"edu": EduDriver, "testdev": TestDeviceDriver}
"""Models, and who drives them."""
