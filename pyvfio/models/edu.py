# SPDX-License-Identifier: BSD-3-Clause
"""QEMU's educational device (1234:11e8), register for register.

Behaviour is that of QEMU's ``edu`` device (docs/specs/edu.rst): access widths, busy bits, the DMA
engine with its 28-bit mask and 4 KiB buffer, MSI or INTx.  Two things differ: a DMA takes 1 ms
instead of 100 ms, and one that leaves the buffer transfers nothing.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from struct import Struct
from typing import ClassVar

from pyvfio.errors import VFIOError
from pyvfio.server.model import DeviceModel, Identity, ModelBAR, ModelMSI

log = logging.getLogger(__name__)

ID, LIVENESS, FACTORIAL, STATUS, IRQ_STATUS = 0x00, 0x04, 0x08, 0x20, 0x24
IRQ_RAISE, IRQ_ACK = 0x60, 0x64
DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
WIDE = DMA_SOURCE
"""From here on registers take 64-bit accesses as well as 32-bit ones."""

IDENTIFICATION = 0x010000ED
STATUS_COMPUTING, STATUS_IRQ = 0x01, 0x80
DMA_RUN, DMA_TO_HOST, DMA_IRQ = 0x1, 0x2, 0x4
FACTORIAL_IRQ, DMA_DONE_IRQ = 0x001, 0x100

BUFFER, BUFFER_SIZE = 0x40000, 4096
DMA_MASK = (1 << 28) - 1
DMA_SECONDS = 0.001

_STATE = Struct(f"<IIIIQQQQ{BUFFER_SIZE}s")
"""What is saved: liveness, factorial, status, interrupt status, the DMA's registers, the buffer."""

_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1


@dataclass(slots=True)
class _DMA:
    source: int = 0
    destination: int = 0
    count: int = 0
    command: int = 0


_DMA_FIELDS = {DMA_SOURCE: "source", DMA_DESTINATION: "destination", DMA_COUNT: "count"}


class Edu(DeviceModel):
    """The educational device."""

    identity = Identity(
        vendor_id=0x1234,
        device_id=0x11E8,
        class_code=0x00FF00,
        revision_id=0x10,
        subsystem_vendor_id=0x1AF4,
        subsystem_id=0x1100,
    )
    bars: ClassVar[Mapping[int, ModelBAR]] = {0: ModelBAR(1 << 20)}
    interrupt_pin = 1
    msi = ModelMSI(vectors=1)
    migration_version = 1

    def __init__(self) -> None:
        super().__init__()
        self._work = threading.Condition(self.lock)
        self._closing = self._stopped = self._busy = False
        self._buffer = bytearray(BUFFER_SIZE)
        self._generation = 0
        self._clear()
        self._worker = threading.Thread(target=self._run, name="edu", daemon=True)
        self._worker.start()

    def _clear(self) -> None:
        self._liveness = 0
        self._factorial = 0
        self._status = 0
        self._irq_status = 0
        self._dma = _DMA()

    # Registers

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """A register; narrow reads give 0, others of a wrong width and holes give all ones."""
        if width < 4:
            return 0
        if width != 4 and offset < WIDE:
            return _MASK64
        return self._read_register(offset)

    def _read_register(self, offset: int) -> int:
        if offset in _DMA_FIELDS:
            value: int = getattr(self._dma, _DMA_FIELDS[offset])
            return value
        return {
            ID: IDENTIFICATION,
            LIVENESS: self._liveness,
            FACTORIAL: self._factorial,
            STATUS: self._status,
            IRQ_STATUS: self._irq_status,
            DMA_COMMAND: self._dma.command,
        }.get(offset, _MASK64)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """A register; writes of a wrong width and to holes are dropped."""
        if width < 4 or (width != 4 and offset < WIDE):
            return
        if offset == LIVENESS:
            self._liveness = ~value & _MASK32
        elif offset == FACTORIAL:
            self._start_factorial(value)
        elif offset == STATUS:
            self._status = (self._status & ~STATUS_IRQ) | (value & STATUS_IRQ)
        elif offset == IRQ_RAISE:
            self._raise_irq(value)
        elif offset == IRQ_ACK:
            self._lower_irq(value)
        elif offset in _DMA_FIELDS:
            if not self._dma.command & DMA_RUN:
                setattr(self._dma, _DMA_FIELDS[offset], value)
        elif offset == DMA_COMMAND:
            self._start_dma(value)

    def _start_factorial(self, value: int) -> None:
        if not self._status & STATUS_COMPUTING:
            self._factorial = value
            self._status |= STATUS_COMPUTING
            self._work.notify_all()

    def _start_dma(self, command: int) -> None:
        if command & DMA_RUN and not self._dma.command & DMA_RUN:
            self._dma.command = command
            self._work.notify_all()

    # Interrupts

    def _raise_irq(self, value: int) -> None:
        self._irq_status |= value
        if not self._irq_status:
            return
        if self.msi_enabled:
            self.send_msi(0)
        else:
            self.set_intx(True)

    def _lower_irq(self, value: int) -> None:
        self._irq_status &= ~value
        if not self._irq_status and not self.msi_enabled:
            self.set_intx(False)

    # What takes time

    def _run(self) -> None:
        while True:
            with self.lock:
                self._busy = False
                self._work.notify_all()
                self._work.wait_for(self._has_work)
                if self._closing:
                    return
                self._busy = True
                computing = bool(self._status & STATUS_COMPUTING)
                generation, number, dma = self._generation, self._factorial, self._dma
            if computing:
                self._compute(generation, number)
            else:
                self._transfer(generation, dma)

    def _has_work(self) -> bool:
        busy = self._status & STATUS_COMPUTING or self._dma.command & DMA_RUN
        return self._closing or (bool(busy) and not self._stopped)

    def _compute(self, generation: int, number: int) -> None:
        # From 34 on, a factorial is a multiple of 2^32.
        result = math.factorial(min(number, 34)) & _MASK32
        with self.lock:
            if generation != self._generation:
                return  # the device was reset meanwhile
            self._factorial = result
            self._status &= ~STATUS_COMPUTING
            if self._status & STATUS_IRQ:
                self._raise_irq(FACTORIAL_IRQ)

    def _transfer(self, generation: int, dma: _DMA) -> None:
        with self.lock:
            self._work.wait_for(lambda: self._closing or self._stopped, DMA_SECONDS)
            if (
                self._closing
                or self._stopped
                or generation != self._generation
                or dma is not self._dma
            ):
                return
        try:
            self._move(dma)
        except VFIOError as error:
            # On the bus a failed DMA of this device goes unnoticed.
            log.info("edu: %s", error)
        with self.lock:
            if generation != self._generation or dma is not self._dma:
                return
            dma.command &= ~DMA_RUN
            if dma.command & DMA_IRQ:
                self._raise_irq(DMA_DONE_IRQ)

    def _move(self, dma: _DMA) -> None:
        """Copy without the lock: the client may have to be asked for its memory."""
        to_host = bool(dma.command & DMA_TO_HOST)
        start = (dma.source if to_host else dma.destination) - BUFFER
        if start < 0 or start + dma.count > BUFFER_SIZE:
            log.info("edu: DMA of %d bytes at buffer offset %d", dma.count, start)
        elif to_host:
            data = bytes(self._buffer[start : start + dma.count])
            self.dma_write(dma.destination & DMA_MASK, data)
        else:
            data = self.dma_read(dma.source & DMA_MASK, dma.count)
            self._buffer[start : start + dma.count] = data

    # Life

    def reset(self) -> None:
        """Registers and interrupts to their power-on state; the buffer keeps its contents."""
        self._clear()
        self._generation += 1
        self.set_intx(False)

    def client_lost(self) -> None:
        """A DMA under way is dropped: it was for the memory of the client that has gone."""
        self._dma = replace(self._dma, command=self._dma.command & ~DMA_RUN)

    # Migration

    def stopped(self) -> None:
        """Wait for what is being done; a DMA that has not begun is saved, and begins later."""
        self._stopped = True
        self._work.notify_all()
        self._work.wait_for(lambda: not self._busy)

    def started(self) -> None:
        """Go on with what the busy bits tell of."""
        self._stopped = False
        self._work.notify_all()

    def save_state(self) -> bytes:
        """Registers and buffer; busy bits are among them."""
        registers = (self._liveness, self._factorial, self._status, self._irq_status)
        return _STATE.pack(*registers, *astuple(self._dma), bytes(self._buffer))

    def load_state(self, data: bytes, version: int) -> None:
        """Registers and buffer of another; any value that they hold is possible."""
        liveness, factorial, status, irq_status, *dma, buffer = _STATE.unpack(data)
        self._liveness, self._factorial = liveness, factorial
        self._status, self._irq_status = status, irq_status
        self._dma = _DMA(*dma)
        self._buffer[:] = buffer
        self._generation += 1

    # The end

    def close(self) -> None:
        """Stop the worker."""
        with self.lock:
            self._closing = True
            self._work.notify_all()
        self._worker.join()
