# SPDX-License-Identifier: BSD-3-Clause
"""The device that is measured: registers with and without callbacks, DMA that times itself.

========  ==========================================================================
BAR 0     4 KiB of registers with callbacks, below
BAR 1     MSI-X table and pending bits, 2,048 vectors
BAR 2     4 MiB of memory that the server serves, and that cannot be mapped
BAR 3     4 KiB of memory that can be mapped
========  ==========================================================================

======  ==================================================================
0x000   scratch, 4 bytes
0x010   address of the client's memory, 8 bytes, for the reads below; each makes ``ROUND`` copies
        of ``COPY`` bytes and gives the nanoseconds that they took
0x018   copies from shared memory of this process to the client's memory
0x020   copies from the client's memory to new bytes
0x028   the baseline of all: memcpy from BAR 2 to shared memory of this process
0x030   copies from the client's memory to shared memory of this process
0x038   the same through a view of the client's memory
======  ==================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import numpy as np

from bench import baseline
from pyvfio.memory import ByteArray, MemoryKind, SharedMemory
from pyvfio.server.model import DeviceModel, Identity, ModelBAR, ModelMSIX

SCRATCH, ADDRESS, TO_CLIENT, FROM_CLIENT, MEMCPY = 0x000, 0x010, 0x018, 0x020, 0x028
INTO_MODEL, VIEWED = 0x030, 0x038
REGISTERS, MEMORY, MAPPED = 0, 2, 3
MEMORY_SIZE = 4 << 20
VECTORS = 2048
COPY, ROUND = 1 << 20, 16


class BenchDevice(DeviceModel):
    """The device that is measured."""

    identity = Identity(0x1B36, 0x00FF, 0xFF0000)
    bars: ClassVar[Mapping[int, ModelBAR]] = {
        REGISTERS: ModelBAR(4096),
        1: ModelBAR(64 * 1024),
        MEMORY: ModelBAR(MEMORY_SIZE, backed=True),
        MAPPED: ModelBAR(4096, backed=True, mappable=((0, 4096),)),
    }
    msix = ModelMSIX(VECTORS, table=(1, 0), pba=(1, 0x8000))

    def __init__(self) -> None:
        super().__init__()
        self._scratch = 0
        self._shared = SharedMemory(COPY, MemoryKind.MEMFD)
        self._own = self._shared.array.data
        self._copies: dict[int, Callable[[], object]] = {}

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """A register."""
        if offset == SCRATCH:
            return self._scratch
        if offset == MEMCPY:
            source = address_of(self.bar_memory(MEMORY))
            return int(baseline.memcpy(self._shared.address, source, COPY, ROUND) * 1e9)
        copy = self._copies.get(offset)
        return 0 if copy is None else _time(copy)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """A register."""
        if offset == SCRATCH:
            self._scratch = value
        elif offset == ADDRESS:
            # Without a function of ours between, which would be felt.
            self._copies = {
                TO_CLIENT: partial(self.dma_write, value, self._own),
                FROM_CLIENT: partial(self.dma_read, value, COPY),
                INTO_MODEL: partial(self.dma_read_into, value, self._own),
                VIEWED: partial(self._copy_view, value),
            }

    def _copy_view(self, address: int) -> None:
        with self.dma_view(address, COPY) as view:
            self._shared.array[:] = view

    def close(self) -> None:
        """Release the memory of the baseline."""
        self._copies.clear()
        self._own.release()
        self._shared.release()


def address_of(array: ByteArray) -> int:
    """Where an array's bytes are in this process."""
    assert array.dtype == np.uint8
    return int(array.__array_interface__["data"][0])


def _time(copy: Callable[[], object]) -> int:
    started = time.perf_counter_ns()
    for _ in range(ROUND):
        copy()
    return time.perf_counter_ns() - started
