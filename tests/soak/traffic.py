# SPDX-License-Identifier: BSD-3-Clause
"""Everything that a client can do with the device of :mod:`tests.soak.model`, at the same time.

Each load is a thread that repeats one thing until it is told to stop, or until it fails.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pyvfio
from pyvfio.backends.user.container_io import UserContainerIO
from pyvfio.memory import DMABuffer
from pyvfio.pci.device import PCIDevice
from tests.soak import model, pattern
from tests.soak.model import INVERSES, MEMORY, REGISTERS, register

SECONDS = 60.0
"""How long a load waits for the device to move a block, and for its streams to end."""

BULK, SINGLE, MAPS = 2, 2, 1
"""Threads that move blocks to and from the device's memory, use registers, and map and unmap."""

NEVER, NEVER_ASYNC = 6, 7
"""Vectors that never fire."""

_BULK_STREAM = 0x10


def open_by_messages(uri: str, **options: bool | float) -> PCIDevice:
    """Open a device that gets no descriptor of the client's memory, and must ask for every byte."""
    dev = pyvfio.open(uri, **options)
    io = dev.base.container_io
    assert isinstance(io, UserContainerIO)
    io._limits = dataclasses.replace(io._limits, max_msg_fds=0)
    return dev


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

    :ivar ends: how each load that ended by itself did: its name and the error.
    """

    def __init__(self, dev: PCIDevice) -> None:
        self.dev = dev
        self.ends: list[tuple[str, Exception]] = []
        self.tallies: dict[str, Tally] = {}
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._registers = dev.bars[REGISTERS]
        self._memory = dev.bars[MEMORY]
        self._inverses = dev.bars[INVERSES]
        self._inverses.posted = True
        self._resources = ExitStack()
        dev.bus_master = True
        self._irqs = self._resources.enter_context(dev.msi.enable(model.VECTORS))
        self._rings = [self._make_ring(stream) for stream in range(model.STREAMS)]
        self._wait_until_idle()
        self._registers.write32(model.RUN, 1)
        self._start_loads()

    def _make_ring(self, stream: int) -> DMABuffer:
        ring = self._resources.enter_context(self.dev.dma.alloc(model.RING_SIZE))
        self._registers.write64(register(stream, model.RING), ring.iova)
        return ring

    def _start_loads(self) -> None:
        for stream in range(model.STREAMS):
            self.start("stream", partial(self._give if stream % 2 else self._take, stream))
        for number in range(BULK):
            self.start("bulk", partial(self._move_blocks, number))
        for number in range(SINGLE):
            self.start("registers", partial(self._use_registers, number))
        for _ in range(MAPS):
            self.start("maps", self._map_and_unmap)

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
            self.ends.append((name, error))
        finally:
            self.tallies[name].add(tally)

    def _going(self) -> Iterator[int]:
        return itertools.takewhile(lambda _: not self._stopping, itertools.count())

    # Loads

    def _take(self, stream: int, tally: Tally) -> None:
        """Compare the blocks that the device puts into a ring."""
        view = self._rings[stream].array
        taken = 0
        for _ in self._going():
            self._irqs[stream].wait(SECONDS)
            with tally.timed():
                put = self._registers.read32(register(stream, model.PUT))
            for number in range(taken, put):
                pattern.check(_slot(view, number).data, stream, number)
                with tally.timed():
                    self._registers.write32(register(stream, model.TAKEN), number + 1)
            taken = put

    def _give(self, stream: int, tally: Tally) -> None:
        """Put blocks into a ring, which the device compares."""
        view = self._rings[stream].array
        taken = 0
        for number in self._going():
            while number - taken >= model.SLOTS:
                self._irqs[stream].wait(SECONDS)
                with tally.timed():
                    taken = self._registers.read32(register(stream, model.TAKEN))
            _slot(view, number)[:] = pattern.block(stream, number).view("u1")
            with tally.timed():
                self._registers.write32(register(stream, model.PUT), number + 1)

    def _move_blocks(self, thread: int, tally: Tally) -> None:
        """Write a block to the device's memory and read it back."""
        stream, offset = _BULK_STREAM + thread, thread * pattern.BLOCK
        for number in self._going():
            with tally.timed(pattern.BLOCK):
                self._memory.write_bytes(offset, pattern.block(stream, number).tobytes())
            with tally.timed(pattern.BLOCK):
                found = self._memory.read_bytes(offset, pattern.BLOCK)
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

    def wait_in_vain(self) -> None:
        """Also wait for interrupts that never come, blocking and in an event loop."""

        async def wait() -> None:
            await self._irqs[NEVER_ASYNC]

        self.start("wait", lambda _: _ignore(self._irqs[NEVER].wait()))
        self.start("await", lambda _: asyncio.run(wait()))

    def open_again(self, uri: str) -> None:
        """Also be a second client, which the server may let wait."""

        def load(tally: Tally) -> None:
            for _ in self._going():
                with tally.timed(0), pyvfio.open(uri):
                    pass

        self.start("open", load)

    # The end

    def stop(self) -> None:
        """Let the loads come to their ends, then the device's streams."""
        self._stopping = True
        assert self.join(SECONDS), f"these hang: {self.alive()}"
        self._registers.write32(model.RUN, 0)
        self._wait_until_idle()

    def join(self, seconds: float) -> bool:
        """Whether all loads ended within a time."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))
        return not self.alive()

    def alive(self) -> list[str]:
        """The loads that have not ended."""
        return [thread.name for thread in self._threads if thread.is_alive()]

    def close(self) -> None:
        """Let go of interrupts and rings; after the loads have ended."""
        self._rings.clear()
        self._resources.close()

    def _wait_until_idle(self) -> None:
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
