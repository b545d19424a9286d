# SPDX-License-Identifier: BSD-3-Clause
"""Everything that a client can do with the device of :mod:`tests.soak.model`, at the same time.

Each load is a thread that repeats one thing until it is told to stop, or until it fails.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pyvfio
from pyvfio.errors import DMABatchError
from pyvfio.memory import DMABuffer
from pyvfio.pci.device import PCIDevice
from tests.soak import model, pattern
from tests.soak.model import INVERSES, MEMORIES, REGISTERS, register

SECONDS = 60.0
"""How long a load waits for the device to move a block, and for its streams to end."""

SINGLE, BATCH = 2, 16
"""Threads that use registers, and maps in a batch."""

WAIT, AWAIT, OPEN = "wait", "await", "open"
"""Names of the loads that are not always there."""

NEVER, NEVER_ASYNC = 6, 7
"""Vectors that never fire."""

_BULK_STREAM = 0x10


def kinds(error: Exception) -> set[type[Exception]]:
    """What went wrong, of a batch of maps each by itself."""
    if isinstance(error, DMABatchError):
        return {type(failure) for failure in error.failures}
    return {type(error)}


class Tally:
    """How much a load has done.

    :ivar operations: calls that came to their end.
    :ivar moved: bytes that they moved.
    :ivar longest: seconds that the longest of them took.
    """

    def __init__(self) -> None:
        self.operations = self.moved = 0
        self.longest = 0.0

    @contextmanager
    def timed(self, size: int = 4) -> Iterator[None]:
        """Take note of a call that moves ``size`` bytes."""
        start = time.monotonic()
        try:
            yield
            self.operations += 1
            self.moved += size
        finally:
            self.longest = max(self.longest, time.monotonic() - start)

    def add(self, other: Tally) -> None:
        """Take in what another load of the kind has done."""
        self.operations += other.operations
        self.moved += other.moved
        self.longest = max(self.longest, other.longest)


class Traffic:
    """Loads on a device whose bus mastering they switch on; started by the constructor.

    :param patience: seconds that a load waits for the device to move a block.
    :ivar ends: how each load that ended by itself did: its name and the error.
    """

    def __init__(self, dev: PCIDevice, patience: float = SECONDS) -> None:
        self.dev = dev
        self.ends: list[tuple[str, Exception]] = []
        self.tallies: dict[str, Tally] = {}
        self._patience = patience
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._registers = dev.bars[REGISTERS]
        self._inverses = dev.bars[INVERSES]
        self._registers.posted, self._inverses.posted = False, True
        dev.bus_master = True
        self._irqs = dev.msi.enable(model.VECTORS)
        rings = [dev.dma.alloc(model.RING_SIZE) for _ in range(model.STREAMS)]
        self.wait_until_idle()
        for stream, ring in enumerate(rings):
            self._registers.write64(register(stream, model.RING), ring.iova)
        self._registers.write32(model.RUN, 1)
        self._start_loads(rings)

    def _start_loads(self, rings: Sequence[DMABuffer]) -> None:
        for stream, ring in enumerate(rings):
            load = self._give if stream % 2 else self._take
            self.start("stream", partial(load, stream, ring))
        for number in range(len(MEMORIES)):
            self.start("bulk", partial(self._move_blocks, number))
        for number in range(SINGLE):
            self.start("registers", partial(self._use_registers, number))
        self.start("maps", self._map_and_unmap)
        self.start("batches", self._map_in_batches)

    def start(self, name: str, load: Callable[[Tally], None]) -> None:
        """Run a load in a thread of its own."""
        tally = Tally()
        self.tallies.setdefault(name, Tally())
        thread = threading.Thread(target=self._run, args=(name, load, tally), name=name)
        self._threads.append(thread)
        thread.start()

    def _run(self, name: str, load: Callable[[Tally], None], tally: Tally) -> None:
        try:
            load(tally)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold views of DMA memory
            self.ends.append((name, error))
        finally:
            self.tallies[name].add(tally)

    def _going(self) -> Iterator[int]:
        return itertools.takewhile(lambda _: not self._stopping, itertools.count())

    # Loads

    def _take(self, stream: int, ring: DMABuffer, tally: Tally) -> None:
        """Compare the blocks that the device puts into a ring."""
        view = ring.array
        taken = 0
        for _ in self._going():
            self._irqs[stream].wait(self._patience)
            with tally.timed():
                put = self._registers.read32(register(stream, model.PUT))
            for number in range(taken, put):
                pattern.check(_slot(view, number).data, stream, number)
                with tally.timed():
                    self._registers.write32(register(stream, model.TAKEN), number + 1)
            taken = put

    def _give(self, stream: int, ring: DMABuffer, tally: Tally) -> None:
        """Put blocks into a ring, which the device compares."""
        view = ring.array
        taken = 0
        for number in self._going():
            while number - taken >= model.SLOTS:
                self._irqs[stream].wait(self._patience)
                with tally.timed():
                    taken = self._registers.read32(register(stream, model.TAKEN))
            _slot(view, number)[:] = pattern.block(stream, number).view("u1")
            with tally.timed():
                self._registers.write32(register(stream, model.PUT), number + 1)

    def _move_blocks(self, thread: int, tally: Tally) -> None:
        """Write a block to the device's memory and read it back; posted by every other thread."""
        stream, memory = _BULK_STREAM + thread, self.dev.bars[MEMORIES[thread]]
        memory.posted = bool(thread % 2)
        for number in self._going():
            with tally.timed(pattern.BLOCK):
                memory.write_bytes(0, pattern.block(stream, number).tobytes())
            with tally.timed(pattern.BLOCK):
                found = memory.read_bytes(0, pattern.BLOCK)
            pattern.check(found, stream, number)

    def _use_registers(self, thread: int, tally: Tally) -> None:
        """Post writes to registers and read them back."""
        for number in self._going():
            offset = 4 * (SINGLE * (number % 64) + thread)
            with tally.timed():
                self._inverses.write32(offset, number)
            with tally.timed():
                found = self._inverses.read32(offset)
            if found != ~number & 0xFFFF_FFFF:
                raise pattern.WrongData(f"register {offset:#x}: {found:#x} for {number:#x}")

    def _map_and_unmap(self, tally: Tally) -> None:
        for _ in self._going():
            with tally.timed(0):
                buffer = self.dev.dma.alloc(pattern.BLOCK)
            with tally.timed(0):
                buffer.close()

    def _map_in_batches(self, tally: Tally) -> None:
        for _ in self._going():
            with tally.timed(0), self.dev.dma.batch():
                buffers = [self.dev.dma.alloc(4096) for _ in range(BATCH)]
            with tally.timed(0), self.dev.dma.batch():
                for buffer in buffers:
                    buffer.close()

    def wait_in_vain(self) -> None:
        """Also wait for interrupts that never come, blocking and in an event loop."""

        async def wait() -> None:
            await self._irqs[NEVER_ASYNC]

        self.start(WAIT, lambda _: _ignore(self._irqs[NEVER].wait()))
        self.start(AWAIT, lambda _: asyncio.run(wait()))

    def open_again(self, uri: str) -> None:
        """Also be a second client, which the server may let wait."""

        def load(tally: Tally) -> None:
            for _ in self._going():
                with tally.timed(0), pyvfio.open(uri):
                    pass

        self.start(OPEN, load)

    # The end

    def stop(self) -> None:
        """Let the loads come to their ends, then the device's streams."""
        self.stop_loads()
        self._registers.write32(model.RUN, 0)
        self.wait_until_idle()

    def stop_loads(self) -> None:
        """Let the loads come to their ends."""
        self._stopping = True
        self.join(SECONDS)

    def join(self, seconds: float, *, but: Sequence[str] = ()) -> None:
        """Assert that the loads end within a time, ``but`` for those of some names."""
        deadline = time.monotonic() + seconds
        threads = [thread for thread in self._threads if thread.name not in but]
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))
        hanging = [thread.name for thread in threads if thread.is_alive()]
        assert not hanging, f"these hang: {hanging}"

    def wait_until_idle(self) -> None:
        """Wait until the device's streams have ended; those of an earlier client may be left."""
        deadline = time.monotonic() + SECONDS
        while self._registers.read32(model.ACTIVE):
            assert time.monotonic() < deadline, "the device's streams do not end"
            time.sleep(0.01)

    def device_tallies(self) -> dict[int, Tally]:
        """What the device says of its streams; asserts that it found nothing wrong."""
        found = {}
        for stream in range(model.STREAMS):
            tally = found[stream] = Tally()
            assert self._stream(stream, model.ERRNO) == 0
            assert self._stream(stream, model.WRONG) == 0
            tally.operations = self._stream(stream, model.TAKEN if stream % 2 else model.PUT)
            tally.moved = tally.operations * pattern.BLOCK
            tally.longest = self._stream(stream, model.LONGEST) / 1e6
        return found

    def _stream(self, stream: int, name: int) -> int:
        return self._registers.read32(register(stream, name))


def _slot(view: pyvfio.memory.ByteArray, number: int) -> pyvfio.memory.ByteArray:
    at = number % model.SLOTS * pattern.BLOCK
    return view[at : at + pattern.BLOCK]


def _ignore(_: object) -> None:
    """A load returns nothing."""
