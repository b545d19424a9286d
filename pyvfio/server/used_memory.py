# SPDX-License-Identifier: BSD-3-Clause
"""Which parts of a memory have ever been used, and which differ from what was sent of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pyvfio.memory import PAGE_SIZE, ByteArray, SharedMemory
from pyvfio.server.saved_state import PIECE


def used_pieces(memory: SharedMemory, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what has pages behind it, no piece beyond a multiple of :data:`PIECE`.

    Pages that nobody has touched are holes of the file, and reading would fill them.
    """
    at = 0
    while at < size:
        try:
            start = os.lseek(memory.fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        at = os.lseek(memory.fd, start, os.SEEK_HOLE)
        while start < min(at, size):
            end = min(start // PIECE * PIECE + PIECE, at, size)
            yield start, end
            start = end


def used_bytes(memory: SharedMemory, size: int) -> int:
    """How much of a memory has pages behind it."""
    return sum(end - start for start, end in used_pieces(memory, size))


def differing(
    memory: SharedMemory, size: int, sent: ByteArray | None
) -> Iterator[tuple[int, ByteArray]]:
    """(offset, copy) of the pages that are not what ``sent`` has, or not zero."""
    for start, end in used_pieces(memory, size):
        now = memory.array[start:end].copy()
        unit = min(PAGE_SIZE, len(now))  # a small BAR has less than a page
        for first, last in _runs(_changed(now, None if sent is None else sent[start:end], unit)):
            yield start + first * unit, now[first * unit : last * unit]


def _changed(now: ByteArray, before: ByteArray | None, unit: int) -> npt.NDArray[np.bool_]:
    """Whether each page has changed."""
    pages = now.reshape(-1, unit)
    if before is None:
        return np.asarray(pages.any(axis=1))
    return np.asarray((pages != before.reshape(-1, unit)).any(axis=1))


def _runs(changed: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """(first, end) of each run of pages that have changed."""
    steps = np.diff(changed.astype(np.int8), prepend=0, append=0)
    edges = np.flatnonzero(steps).tolist()
    yield from zip(edges[::2], edges[1::2], strict=True)
