# SPDX-License-Identifier: BSD-3-Clause
"""A model with every kind of place that a request can be to."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Mapping
from typing import ClassVar

from pyvfio.server.model import DeviceModel, Identity, ModelBAR, ModelIOEventFD, ModelMSIX
from tests.fault.models import IOVA

REGISTERS, OVERLAID, MEMORY = 0, 1, 2
TABLE, PENDING = 0x1000, 0x2000
REFUSING, FAILING, READING_DMA, WRITTEN = 0x100, 0x108, 0x110, 0x118
WRITING_DMA, PIECE = 0x120, 64 << 10


class Direct(DeviceModel):
    """BAR 0: registers; BAR 1: memory with the MSI-X table over it; BAR 2: memory.

    ======  ====================================================================
    0x100   refuses every access with EPERM
    0x108   fails at every access
    0x110   reads as 8 bytes of the client's memory at the IOVA
    0x118   reads as a number that depends on all writes so far, and their order
    0x120   a write of n has n threads write ``PIECE`` bytes each to the client's memory, from the
            IOVA on; reads as the number of those that did
    others  read as what was written last
    ======  ====================================================================
    """

    identity = Identity(0x1234, 0x0001, 0xFF0000)
    bars: ClassVar[Mapping[int, ModelBAR]] = {
        REGISTERS: ModelBAR(4096),
        OVERLAID: ModelBAR(16384, backed=True),
        MEMORY: ModelBAR(1 << 20, backed=True),
    }
    msix = ModelMSIX(4, table=(OVERLAID, TABLE), pba=(OVERLAID, PENDING))
    io_eventfds = (ModelIOEventFD(REGISTERS, 0x200, 4),)

    def __init__(self) -> None:
        super().__init__()
        self._threads: list[threading.Thread] = []
        self.reset()

    def reset(self) -> None:
        self._values: dict[int, int] = {}
        self._written = 0

    def close(self) -> None:
        for thread in self._threads:
            thread.join()

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        self._check(offset)
        if offset == READING_DMA:
            return int.from_bytes(self.dma_read(IOVA, 8), "little")
        return self._written if offset == WRITTEN else self._values.get(offset, 0)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self._check(offset)
        if offset == WRITING_DMA:
            self._write_dma(value)
            return
        self._values[offset] = value
        self._written = hash((self._written, offset, width, value)) & 0xFFFFFFFF

    def _write_dma(self, threads: int) -> None:
        self._values[WRITING_DMA] = 0

        def write(number: int) -> None:
            time.sleep(0.2)  # when the server waits for a request
            self.dma_write(IOVA + number * PIECE, bytes([number]) * PIECE)
            with self.lock:
                self._values[WRITING_DMA] += 1

        self._threads = [threading.Thread(target=write, args=(n,)) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def _check(self, offset: int) -> None:
        if offset == REFUSING:
            raise OSError(errno.EPERM, "as asked")
        if offset == FAILING:
            raise RuntimeError("a mistake of the model")
