# SPDX-License-Identifier: BSD-3-Clause
"""Which pages of the client's memory the device has written (DMA logging).

Specification, "VFIO_DEVICE_FEATURE_DMA_LOGGING_START / VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP" and
"VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT".  Pages of 4 KiB are logged whatever size the client
prefers, and reports are put together of them, so a report of any page size is exact.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pyvfio.dirty_bitmap import bitmap_size
from pyvfio.native.dma import DirectDMA

PAGE = 4096
"""Bytes of the pages that are logged, and of the smallest that are reported, as the kernel's."""

MAX_RANGES = 256
"""Ranges that can be logged at one time, as many as the kernel takes (``LOG_MAX_RANGES``)."""

_CHUNK = 4096
"""Pages that are kept together: 4 KiB stand for 16 MiB."""
_MAX_CHUNKS = 16384
"""Of a device that has written to more places at once, everything is reported."""
_PART = 1 << 16
_END = 1 << 64


class DirtyLog:
    """The log of one client; any thread marks, the client's own starts, reports and stops.

    :param direct: the DMA that marks nothing; its writes are done elsewhere while it is logged.
    """

    def __init__(self, direct: DirectDMA | None = None) -> None:
        self._direct = direct
        self._lock = threading.Lock()
        self._ranges: list[tuple[int, int]] | None = None
        self._chunks: dict[int, npt.NDArray[np.bool_]] = {}
        self._everything = False

    def start(self, page_size: int, ranges: Sequence[tuple[int, int]]) -> int:
        """Begin to log.

        :param page_size: what the client would like, bytes.
        :param ranges: (iova, length) each; none at all stands for everything.
        :returns: the page size that was chosen: the client's, where it is a power of two of at
            least 4 KiB.
        :raises OSError: EINVAL; ranges overlap, are empty or leave the address space, or it logs
            already.  E2BIG; they are too many.
        """
        if self._ranges is not None:
            raise OSError(errno.EINVAL, "DMA is logged already")
        if len(ranges) > MAX_RANGES:
            raise OSError(errno.E2BIG, f"{len(ranges)} ranges to log, at most {MAX_RANGES}")
        found = sorted((iova, iova + length) for iova, length in ranges) or [(0, _END)]
        _check_ranges(found)
        with self._lock:
            self._chunks, self._everything = {}, False
            self._ranges = found
        self._tell_direct(True)
        return page_size if _is_page_size(page_size) else PAGE

    def stop(self) -> None:
        """Log no longer and forget what was; it may be stopped already."""
        self._tell_direct(False)
        with self._lock:
            self._ranges = None
            self._chunks = {}

    def _tell_direct(self, logged: bool) -> None:
        if self._direct is not None:
            self._direct.log(logged)

    def mark(self, address: int, size: int) -> None:
        """The device has written; called behind the write, so that a report is never early."""
        if self._ranges is None:
            return
        with self._lock:
            for start, end in self._logged(address, address + size):
                self._mark_pages(start // PAGE, -(-end // PAGE))

    def _logged(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of a range that are logged."""
        for first, last in self._ranges or ():
            if first < end and start < last:
                yield max(first, start), min(last, end)

    def _mark_pages(self, first: int, end: int) -> None:
        while first < end and not self._everything:
            number, at = divmod(first, _CHUNK)
            chunk = self._chunks.get(number)
            if chunk is None:
                if len(self._chunks) >= _MAX_CHUNKS:
                    self._everything, self._chunks = True, {}
                    return
                chunk = self._chunks[number] = np.zeros(_CHUNK, np.bool_)
            chunk[at : at + end - first] = True
            first += _CHUNK - at

    def check_report(self, iova: int, length: int, page_size: int) -> int:
        """The bytes of the bitmap of a report: a bit for each page, in whole 64-bit words.

        :raises OSError: EINVAL; nothing is logged, or there is no such range or page size.
        """
        if self._ranges is None:
            raise OSError(errno.EINVAL, "DMA is not logged")
        if not _is_page_size(page_size):
            raise OSError(errno.EINVAL, f"pages of {page_size} bytes")
        if not length or (iova | length) % PAGE or iova + length > _END:
            raise OSError(errno.EINVAL, f"a report of {length} bytes at {iova:#x}")
        return bitmap_size(length, page_size)

    def report(self, iova: int, length: int, page_size: int) -> bytes:
        """The bitmap of a range, which is clean then; bit n is the page n counted from ``iova``.

        The caller has checked what :meth:`check_report` gives, which is how much is allocated.
        """
        bitmap = np.zeros(self.check_report(iova, length, page_size), np.uint8)
        with self._lock:
            if self._everything:
                for start, end in self._logged(iova, iova + length):
                    _set_bits(bitmap, (start - iova) // page_size, -(-(end - iova) // page_size))
            else:
                for pages in self._take(iova // PAGE, (iova + length) // PAGE):
                    _merge(bitmap, (pages - iova // PAGE) // (page_size // PAGE))
        return bitmap.tobytes()

    def _take(self, first: int, end: int) -> Iterator[npt.NDArray[np.int64]]:
        """The numbers of the dirty pages of a range, which are clean then."""
        numbers = range(first // _CHUNK, -(-end // _CHUNK))
        there = self._chunks if len(self._chunks) < len(numbers) else numbers
        for number in [number for number in there if number in self._chunks and number in numbers]:
            start, chunk = number * _CHUNK, self._chunks[number]
            part = chunk[max(first - start, 0) : end - start]
            yield np.flatnonzero(part) + max(first, start)
            part[:] = False
            if not chunk.any():
                del self._chunks[number]


def _is_page_size(size: int) -> bool:
    return size >= PAGE and size & (size - 1) == 0


def _merge(bitmap: npt.NDArray[np.uint8], bits: npt.NDArray[np.int64]) -> None:
    """Set bits, which are near each other and in order."""
    if len(bits):
        start = int(bits[0]) // 8
        near = np.zeros(int(bits[-1]) + 1 - 8 * start, np.bool_)
        near[bits - 8 * start] = True
        packed = np.packbits(near, bitorder="little")
        bitmap[start : start + len(packed)] |= packed


def _set_bits(bitmap: npt.NDArray[np.uint8], first: int, end: int) -> None:
    """Set the bits of a range, a part of them at a time."""
    for at in range(first, end, _PART):
        _merge(bitmap, np.arange(at, min(at + _PART, end)))


def _check_ranges(found: Sequence[tuple[int, int]]) -> None:
    before = 0
    for start, end in found:
        if start < before or end <= start or end > _END:
            raise OSError(errno.EINVAL, f"{end - start} bytes at {start:#x} cannot be logged")
        before = end
