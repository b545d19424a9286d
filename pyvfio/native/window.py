# SPDX-License-Identifier: BSD-3-Clause
"""The mapped areas of a region, for C: accesses by offset, checked where they are made.

A load gives the value, or :data:`MISSED` or :data:`FAULTED`, which are greater than any value; a
store gives 0, or one of them.  Loads of 64 bits give a struct of ``value`` and ``failure``.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from pyvfio.native._native import ffi, lib
from pyvfio.native.mmio import MappedMemory

MISSED = 1 << 32
"""Not mapped as such, or not to be accessed so; nothing was touched."""
FAULTED = 1 << 33
"""No memory answers."""

LOAD: dict[int, Callable[[Any, int], int]] = {
    1: lib.pyvfio_load8,
    2: lib.pyvfio_load16,
    4: lib.pyvfio_load32,
}
"""Width in bytes -> load (window, offset)."""
STORE: dict[int, Callable[[Any, int, int], int]] = {
    1: lib.pyvfio_store8,
    2: lib.pyvfio_store16,
    4: lib.pyvfio_store32,
    8: lib.pyvfio_store64,
}
"""Width in bytes -> store (window, offset, value); :class:`OverflowError` if one does not fit."""

load64 = lib.pyvfio_load64
load64_halves = lib.pyvfio_load64_halves
store64_halves = lib.pyvfio_store64_halves

Window: TypeAlias = Any
"""``struct pyvfio_window *``: what it shows stays mapped as long as somebody holds it."""


class Pane(NamedTuple):
    """One area of a window.

    :ivar start: offset of its first byte in the region.
    :ivar memory: what is mapped there.
    """

    start: int
    memory: MappedMemory


def window(size: int, readable: bool, writable: bool, panes: Sequence[Pane] = ()) -> Window:
    """Show the areas of a region of ``size`` bytes to C."""
    areas = [(start, start + memory.size, memory.address) for start, memory in panes]
    struct = ffi.new(
        "struct pyvfio_window *",
        {
            "size": size,
            "readable": readable,
            "writable": writable,
            "count": len(areas),
            "areas": areas,
        },
    )
    # It refers to the panes until nobody holds it.  No Python code runs then: what a signal handler
    # raised in it, nobody would hear of.
    return ffi.gc(struct, functools.partial(operator.is_, tuple(panes)))


def load_block(window: Window, offset: int, target: memoryview, width: int) -> int:
    """Fill ``target``.

    :param width: bytes of each access, of which offset and length are multiples; 0 for any.
    """
    pinned = ffi.from_buffer(target, require_writable=True)
    return lib.pyvfio_load_block(window, offset, pinned, len(target), width)


def store_block(window: Window, offset: int, data: memoryview, width: int) -> int:
    """Write ``data``; see :func:`load_block`."""
    pinned = ffi.from_buffer(data)
    return lib.pyvfio_store_block(window, offset, pinned, len(data), width)
