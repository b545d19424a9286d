# SPDX-License-Identifier: BSD-3-Clause
"""A region for C: accesses by offset, checked where they are made.

A register is loaded or stored where it is mapped, and asked for by a message where C can do that.
To get one gives its value, with what failed above its 32 bits: :data:`MISSED` and the others are
greater than any value.  To put one gives 0, or one of them.  64 bits come in a struct of ``value``
and ``failure``.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from pyvfio.native._native import ffi, lib
from pyvfio.native.channel import Stream
from pyvfio.native.mmio import MappedMemory

MISSED = 1 << 32
"""Not mapped as such, or not to be accessed so, or others have the stream; nothing was touched."""
FAULTED = 1 << 33
"""No memory answers."""
BEGUN = 1 << 34
"""Asked for, but not answered the usual way: who is behind the window goes on (:func:`behind`)."""
WAITED = 1 << 35
"""Done, the value is there; others wait for the stream and are to be told."""

GET: dict[int, Callable[[Any, int], int]] = {
    1: lib.pyvfio_get8,
    2: lib.pyvfio_get16,
    4: lib.pyvfio_get32,
}
"""Width in bytes -> get (window, offset)."""
PUT: dict[int, Callable[[Any, int, int], int]] = {
    1: lib.pyvfio_put8,
    2: lib.pyvfio_put16,
    4: lib.pyvfio_put32,
    8: lib.pyvfio_put64,
}
"""Width in bytes -> put (window, offset, value); :class:`OverflowError` if one does not fit."""

get64 = lib.pyvfio_get64
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


class Messages(NamedTuple):
    """How C reaches what is not mapped.

    :ivar region: the number of the region.
    :ivar reads: where its registers are read.
    :ivar writes: where they are written; None where C does not.
    :ivar posts: where they are written without an answer, instead.
    :ivar posting_is_over: a :func:`flag`; nothing is posted any more where it is set.
    :ivar owner: what :func:`behind` gives.
    """

    region: int
    reads: Stream
    writes: Stream | None
    posts: Stream | None
    posting_is_over: Any
    owner: object


def flag() -> Any:
    """A flag that C looks at, 0 at first: ``flag[0]``."""
    return ffi.new("int[1]")


def window(
    size: int,
    readable: bool,
    writable: bool,
    panes: Sequence[Pane] = (),
    messages: Messages | None = None,
) -> Window:
    """Show a region of ``size`` bytes to C."""
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
    handle = None
    if messages is not None:
        handle = ffi.new_handle(messages.owner)
        struct.region, struct.of_python = messages.region, handle
        struct.reads = messages.reads.state
        if messages.writes is not None:
            struct.writes = messages.writes.state
        if messages.posts is not None:
            struct.posts, struct.posting_is_over = messages.posts.state, messages.posting_is_over
    # It refers to all this until nobody holds it.  No Python code runs then: what a signal handler
    # raised in it, nobody would hear of.
    return ffi.gc(struct, functools.partial(operator.is_, (panes, messages, handle)))


def behind(window: Window) -> Any:
    """The owner of a window's messages; None where it has none."""
    return ffi.from_handle(window.of_python) if window.of_python else None


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
