# SPDX-License-Identifier: BSD-3-Clause
"""A device's usual DMA in C, without the interpreter's lock; dma.c says what is usual."""

from __future__ import annotations

from functools import partial

from pyvfio.native._native import ffi, lib


class DirectDMA:
    """Finds the mapped memory of a client, and copies it.

    Whoever changes something waits for the copies that are under way, and is heard by all others.

    :param config: what has the command register of the function; it keeps its size.
    :param command: where that is.
    :param on: False has everything go the general way.
    :ivar read: (address, buffer, size): copy from the client's memory; not 0 where it has to go
        the general way.
    :ivar write: the same, to the client's memory.
    """

    def __init__(self, config: bytearray, command: int, on: bool = True) -> None:
        self._on = on
        # Of the bytearray itself: a memoryview may be collected before what was made of it.
        self._config = ffi.from_buffer("uint8_t[]", config)
        state = lib.pyvfio_dma_new(self._config + command)
        if state == ffi.NULL:
            raise MemoryError
        self._state = state = ffi.gc(state, lib.pyvfio_dma_free)
        self.read = partial(lib.pyvfio_dma_read, state)
        self.write = partial(lib.pyvfio_dma_write, state)

    def add(self, iova: int, size: int, memory: int, flags: int) -> None:
        """A map, which overlaps none.

        :param memory: the address of its first byte here, where it stays until :meth:`remove`.
        :param flags: of DMA_MAP.
        """
        if not self._on:
            return
        if lib.pyvfio_dma_insert(self._state, iova, iova + size - 1, memory, flags):
            raise MemoryError

    def remove(self, iova: int, size: int) -> None:
        """Forget the maps of a range."""
        lib.pyvfio_dma_remove(self._state, iova, iova + size - 1)

    def stop(self, stopped: bool) -> None:
        """Have all of it go the general way, or not any more."""
        lib.pyvfio_dma_stop(self._state, stopped)

    def log(self, logged: bool) -> None:
        """Have writes go the general way, or not any more."""
        lib.pyvfio_dma_log(self._state, logged)
