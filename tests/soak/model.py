# SPDX-License-Identifier: BSD-3-Clause
"""A device that never rests: it fills and empties rings in the client's memory, without pause.

========  ==================================================================
BAR 0     registers, 4 KiB, below
BAR 2, 3  memory, 64 KiB each, reached by messages only
BAR 4     1,024 registers of 32 bits that read as the inverse of what was written
========  ==================================================================

A stream is a ring of blocks in the client's memory.  Blocks of an even stream are written by the
device, those of an odd stream are read and compared by it.  A side may be ``SLOTS`` blocks ahead.

=============  ===========================================================
0x000          writing 1 starts the streams, 0 stops them
0x004          streams that are running
0x100 + 64 s   stream s: address of its ring (64 bits)
0x108 + 64 s   blocks that were put into the ring so far
0x10c + 64 s   blocks that were taken out
0x110 + 64 s   errno that ended it, 0 for none
0x114 + 64 s   blocks that were not what they must be
0x118 + 64 s   longest time in microseconds that a DMA of it took
=============  ===========================================================

MSI vector s tells that the device's counter of stream s has grown; the other vectors never fire.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from pyvfio.errors import DMAError
from pyvfio.server.model import DeviceModel, Identity, ModelBAR, ModelMSI
from tests.soak import pattern

log = logging.getLogger(__name__)

RUN, ACTIVE = 0x000, 0x004
RING, PUT, TAKEN, ERRNO, WRONG, LONGEST = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x18
REGISTERS, INVERSES = 0, 4
MEMORIES = (2, 3)
STREAMS, SLOTS, VECTORS = 4, 4, 8
RING_SIZE = SLOTS * pattern.BLOCK

_FIRST, _STEP = 0x100, 0x40


def register(stream: int, name: int) -> int:
    """Where a stream has a register."""
    return _FIRST + _STEP * stream + name


class Traffic(DeviceModel):
    """The device."""

    identity = Identity(0x1B36, 0x0005, 0x00FF00)
    bars: ClassVar[Mapping[int, ModelBAR]] = {
        REGISTERS: ModelBAR(4096),
        **{number: ModelBAR(pattern.BLOCK, backed=True) for number in MEMORIES},
        INVERSES: ModelBAR(4096),
    }
    msi = ModelMSI(VECTORS)

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition(self.lock)
        self._registers = dict.fromkeys(range(0, 4096, 4), 0)
        self._inverses = dict.fromkeys(range(0, 4096, 4), 0)
        self._going = False
        self._active = 0

    # Registers

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        if bar == INVERSES:
            return ~self._inverses.get(offset, 0)
        return self._active if offset == ACTIVE else self._registers.get(offset, 0)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        if bar == INVERSES:
            self._inverses[offset] = value
        elif offset == RUN and value:
            self._start()
        elif offset == RUN:
            self._stop()
        else:
            self._registers[offset] = value & 0xFFFF_FFFF
            if width == 8:
                self._registers[offset + 4] = value >> 32
            self._changed.notify_all()

    def reset(self) -> None:
        self._stop()

    def client_lost(self) -> None:
        self._stop()

    def close(self) -> None:
        with self.lock:
            self._stop()
            self._changed.wait_for(lambda: not self._active)

    # Streams

    def _start(self) -> None:
        if self._active:
            return
        self._going = True
        for stream in range(STREAMS):
            for name in (PUT, TAKEN, ERRNO, WRONG, LONGEST):
                self._registers[register(stream, name)] = 0
            self._active += 1
            threading.Thread(target=self._run, args=(stream,), name=f"stream {stream}").start()

    def _stop(self) -> None:
        self._going = False
        self._changed.notify_all()

    def _run(self, stream: int) -> None:
        step, counter = (self._take, TAKEN) if stream % 2 else (self._put, PUT)
        try:
            number = 0
            while self._wait_for_turn(stream, number):
                step(stream, number)
                number += 1
                with self.lock:
                    self._registers[register(stream, counter)] = number
                    self.send_msi(stream)
        except DMAError as error:
            log.info("stream %d: %s", stream, error)
            with self.lock:
                self._registers[register(stream, ERRNO)] = error.errno or errno.EIO
        finally:
            with self.lock:
                self._active -= 1
                self._changed.notify_all()

    def _wait_for_turn(self, stream: int, number: int) -> bool:
        """Wait until block ``number`` can be moved; False where there are to be no more."""

        def ready() -> bool:
            if stream % 2:
                return self._registers[register(stream, PUT)] > number
            return number - self._registers[register(stream, TAKEN)] < SLOTS

        with self._changed:
            self._changed.wait_for(lambda: ready() or not self._going)
            return self._going

    def _put(self, stream: int, number: int) -> None:
        data = pattern.block(stream, number).tobytes()
        with self._timed(stream):
            self.dma_write(self._slot(stream, number), data)

    def _take(self, stream: int, number: int) -> None:
        with self._timed(stream):
            data = self.dma_read(self._slot(stream, number), pattern.BLOCK)
        try:
            pattern.check(data, stream, number)
        except pattern.WrongData:
            log.exception("a block of the client's")
            with self.lock:
                self._registers[register(stream, WRONG)] += 1

    def _slot(self, stream: int, number: int) -> int:
        with self.lock:
            low = self._registers[register(stream, RING)]
            high = self._registers[register(stream, RING) + 4]
        return (high << 32 | low) + number % SLOTS * pattern.BLOCK

    @contextmanager
    def _timed(self, stream: int) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            spent = int(1e6 * (time.monotonic() - start))
            at = register(stream, LONGEST)
            with self.lock:
                self._registers[at] = max(self._registers[at], spent)
