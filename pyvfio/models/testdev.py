# SPDX-License-Identifier: BSD-3-Clause
"""A device for testing clients: every kind of BAR, MSI-X, extended capabilities, a DMA engine.

========  ==========================================================================
BAR 0     registers, 4 KiB, below
BAR 1     MSI-X table at 0, pending bits at 0x800, 4 KiB
BAR 2     memory, 64 MiB, 64-bit prefetchable; two areas of 1 MiB can be mapped
BAR 4     I/O ports, 32 bytes of scratch
========  ==========================================================================

Registers (little-endian, any width that is aligned):

======  ==================================================================
0x000   identification, 0x54534554 ("TEST")
0x010   scratch, 8 bytes
0x020   number of accesses to the scratch so far (32 bits)
0x024   width in bytes of the last access to the scratch
0x028   fires on write: MSI-X vector of that number
0x02c   level of the interrupt pin, bit 0
0x030   DMA: address in the client's memory (64 bits)
0x038   DMA: offset in BAR 2 (64 bits)
0x040   DMA: number of bytes (32 bits)
0x044   DMA: a write starts it; 1 client to BAR 2, 2 BAR 2 to client.  Reads EINPROGRESS while
        it runs, then its errno, 0 for done
0x050   doorbell: an ioeventfd kicks it, a write of any width and value
0x054   doorbell: an ioeventfd kicks it, a write of 4 bytes with the value 0xC0FFEE
0x058   number of writes and kicks of the doorbell 0x050 so far (32 bits)
0x05c   number of writes and kicks of the doorbell 0x054 so far (32 bits)
0x060   value of the last write to a doorbell (64 bits); a kick of 0x050 writes 0
======  ==================================================================

DMA runs beside the accesses: the write that starts it is answered at once.  It takes its registers
as they are then, a second start while it runs is ignored, and a reset drops it.  When the device is
stopped for migration, one that runs comes to its end first, and one that has not begun goes along.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from struct import Struct
from typing import ClassVar

import numpy as np

from pyvfio.errors import VFIOError
from pyvfio.memory import ByteArray
from pyvfio.server.failures import errno_of
from pyvfio.server.model import (
    DeviceModel,
    Identity,
    ModelBAR,
    ModelCapability,
    ModelIOEventFD,
    ModelMSIX,
)
from pyvfio.uapi.pci import BARType, CapabilityID, ExtendedCapabilityID

ID, SCRATCH, ACCESSES, WIDTH, FIRE, PIN = 0x000, 0x010, 0x020, 0x024, 0x028, 0x02C
DMA_ADDRESS, DMA_OFFSET, DMA_COUNT, DMA_RUN = 0x030, 0x038, 0x040, 0x044
DOORBELL, MATCHED_DOORBELL, KICKS, MATCHED_KICKS, KICKED = 0x050, 0x054, 0x058, 0x05C, 0x060

IDENTIFICATION = 0x54534554
REGISTERS, TABLE, MEMORY, PORTS = 0, 1, 2, 4
MEMORY_SIZE = 64 << 20
MAPPABLE = ((0, 1 << 20), (32 << 20, 1 << 20))
VECTORS = 32
PBA_OFFSET = 0x800
SERIAL_NUMBER = 0x0123_4567_89AB_CDEF
TO_DEVICE, TO_CLIENT = 1, 2
DOORBELL_MATCH = 0xC0FFEE

_STORED = {DMA_ADDRESS: 8, DMA_OFFSET: 8, DMA_COUNT: 4}

_STATE = Struct("<8sQIIIQQQ3QIQQQ")
"""What is saved: scratch, accesses, width, pin, result, kicks of both doorbells, value of the last
kick, the DMA's registers, and the DMA that has not begun, or zeros."""

_PATIENCE = 1.0
"""Seconds that a client which has gone is waited for to let go of its DMA."""


@dataclass(frozen=True, slots=True)
class _DMA:
    direction: int
    address: int
    offset: int
    count: int

    @property
    def possible(self) -> bool:
        """Whether there is such a DMA."""
        inside = self.offset + self.count <= MEMORY_SIZE
        return inside and self.direction in (TO_DEVICE, TO_CLIENT)


class TestDevice(DeviceModel):
    """The test device."""

    __test__ = False  # the name is not meant for a test collector

    identity = Identity(0x1B36, 0x0005, 0x00FF00, 0x01, 0x1AF4, 0x1100)
    bars: ClassVar[Mapping[int, ModelBAR]] = {
        REGISTERS: ModelBAR(4096),
        TABLE: ModelBAR(4096),
        MEMORY: ModelBAR(
            MEMORY_SIZE, BARType.MEM64, prefetchable=True, backed=True, mappable=MAPPABLE
        ),
        PORTS: ModelBAR(32, BARType.IO, backed=True),
    }
    io_eventfds = (
        ModelIOEventFD(REGISTERS, DOORBELL),
        ModelIOEventFD(REGISTERS, MATCHED_DOORBELL, 4, DOORBELL_MATCH),
    )
    interrupt_pin = 1
    msix = ModelMSIX(VECTORS, table=(TABLE, 0), pba=(TABLE, PBA_OFFSET))
    express = True
    migration_version = 1
    capabilities = (
        ModelCapability(CapabilityID.PM, b"\x03\x00\x08\x00\x00\x00", b"\0\0\x03\0\0\0"),
        ModelCapability(CapabilityID.VNDR, b"\x08TEST\x00"),
    )
    extended_capabilities = (
        ModelCapability(ExtendedCapabilityID.ERR, bytes(0x44), version=2),
        ModelCapability(ExtendedCapabilityID.DSN, SERIAL_NUMBER.to_bytes(8, "little")),
        ModelCapability(ExtendedCapabilityID.VNDR, b"\x01\x00\x00\x01TEST"),
    )

    def __init__(self) -> None:
        super().__init__()
        self._work = threading.Condition(self.lock)
        self._closing = self._moving = self._stopped = False
        self._clear()
        self._worker = threading.Thread(target=self._run, name="testdev", daemon=True)
        self._worker.start()

    def _clear(self) -> None:
        self._scratch = bytearray(8)
        self._accesses = 0
        self._width = 0
        self._pin = 0
        self._dma: _DMA | None = None
        self._result = 0
        self._kicks = {DOORBELL: 0, MATCHED_DOORBELL: 0}
        self._kicked = 0
        self._stored = dict.fromkeys(_STORED, 0)

    # Registers

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """A register; holes give 0."""
        if bar != REGISTERS:
            return 0
        if SCRATCH <= offset < SCRATCH + 8:
            self._note(width)
            at = offset - SCRATCH
            return int.from_bytes(self._scratch[at : at + width], "little")
        for register, size in _STORED.items():
            if register <= offset < register + size:
                return self._stored[register] >> 8 * (offset - register)
        return {
            ID: IDENTIFICATION,
            ACCESSES: self._accesses,
            WIDTH: self._width,
            PIN: self._pin,
            DMA_RUN: self._result if self._dma is None else errno.EINPROGRESS,
            KICKS: self._kicks[DOORBELL],
            MATCHED_KICKS: self._kicks[MATCHED_DOORBELL],
            KICKED: self._kicked,
        }.get(offset, 0)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """A register; writes to holes are dropped."""
        if bar != REGISTERS:
            return
        if SCRATCH <= offset < SCRATCH + 8:
            self._note(width)
            at = offset - SCRATCH
            self._scratch[at : at + width] = value.to_bytes(width, "little")
        elif offset == FIRE:
            if value < VECTORS:
                self.send_msix(value)
        elif offset == PIN:
            self._pin = value & 1
            self.set_intx(bool(self._pin))
        elif offset == DMA_RUN:
            self._start_dma(value)
        elif offset in self._kicks:
            self._kicks[offset] += 1
            self._kicked = value
        else:
            self._store(offset, width, value)

    def _store(self, offset: int, width: int, value: int) -> None:
        for register, size in _STORED.items():
            if register <= offset < register + size:
                shift = 8 * (offset - register)
                mask = ((1 << 8 * width) - 1) << shift
                kept = self._stored[register] & ~mask
                self._stored[register] = (kept | value << shift) & ((1 << 8 * size) - 1)

    def _note(self, width: int) -> None:
        self._accesses += 1
        self._width = width

    # DMA

    def _start_dma(self, direction: int) -> None:
        if self._dma is not None:
            return
        dma = _DMA(direction, *(self._stored[at] for at in (DMA_ADDRESS, DMA_OFFSET, DMA_COUNT)))
        if not dma.possible:
            self._result = errno.EINVAL
            return
        self._dma = dma
        self._work.notify_all()

    def _run(self) -> None:
        while (dma := self._next_dma()) is not None:
            result = self._transfer(dma)
            with self.lock:
                if self._dma is dma:
                    self._dma, self._result = None, result

    def _next_dma(self) -> _DMA | None:
        """Wait for the next DMA; None at the end."""
        with self.lock:
            self._moving = False
            self._work.notify_all()
            self._work.wait_for(self._has_work)
            self._moving = not self._closing
            return self._dma if self._moving else None

    def _has_work(self) -> bool:
        return self._closing or (self._dma is not None and not self._stopped)

    def _transfer(self, dma: _DMA) -> int:
        """Copy, and return the errno; without the lock, since the client may have to be asked."""
        memory = self.bar_memory(MEMORY)[dma.offset : dma.offset + dma.count]
        try:
            if dma.direction == TO_DEVICE:
                self._store_data(dma, memory, self.dma_read(dma.address, dma.count))
            else:
                self.dma_write(dma.address, memory.tobytes())
        except (VFIOError, MemoryError) as error:
            return errno_of(error)
        return 0

    def _store_data(self, dma: _DMA, memory: ByteArray, data: bytes) -> None:
        with self.lock:
            if self._dma is dma:  # neither was the device reset meanwhile, nor has the client gone
                memory[:] = np.frombuffer(data, np.uint8)

    # Life

    def reset(self) -> None:
        """Registers to their power-on state; the memory of BAR 2 keeps its contents."""
        self._clear()
        self.set_intx(False)

    def client_lost(self) -> None:
        """Its DMA ends with ENOTCONN, before the next client whose memory it might reach."""
        if self._dma is not None:
            self._dma, self._result = None, errno.ENOTCONN
        self._work.wait_for(lambda: not self._moving, _PATIENCE)

    # Migration

    def stopped(self) -> None:
        """Wait for the DMA that runs; one that has not begun is saved, and begins later."""
        self._stopped = True
        self._work.wait_for(lambda: not self._moving)

    def started(self) -> None:
        """Begin what has not begun."""
        self._stopped = False
        self._work.notify_all()

    def save_state(self) -> bytes:
        """Registers and DMA; the server saves the memory of BAR 2."""
        return _STATE.pack(
            bytes(self._scratch),
            self._accesses,
            self._width,
            self._pin,
            self._result,
            *self._kicks.values(),
            self._kicked,
            *self._stored.values(),
            *astuple(self._dma or _DMA(0, 0, 0, 0)),
        )

    def load_state(self, data: bytes, version: int) -> None:
        """Registers and DMA of another; raises ValueError for a DMA that there cannot be."""
        scratch, accesses, width, pin, result, *rest = _STATE.unpack(data)
        kicks, (kicked, *stored), dma = rest[:2], rest[2:6], _DMA(*rest[6:])
        if dma != _DMA(0, 0, 0, 0) and not dma.possible:
            raise ValueError(f"the device cannot have {dma}")
        self._scratch[:] = scratch
        self._accesses, self._width, self._pin, self._result = accesses, width, pin, result
        self._kicks = dict(zip(self._kicks, kicks, strict=True))
        self._kicked = kicked
        self._stored = dict(zip(_STORED, stored, strict=True))
        self._dma = dma if dma.possible else None

    # The end

    def close(self) -> None:
        """Stop the worker."""
        with self.lock:
            self._closing = True
            self._work.notify_all()
        self._worker.join()
