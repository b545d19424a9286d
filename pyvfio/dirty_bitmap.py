# SPDX-License-Identifier: BSD-3-Clause
"""Which pages of a range a device has written: one bit for each, in little-endian words of 64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pyvfio.uapi.layout import Buffer

Words: TypeAlias = npt.NDArray[np.uint64]
Numbers: TypeAlias = npt.NDArray[np.int64]
Bits: TypeAlias = npt.NDArray[np.bool_]

WORD = 8
"""Bytes in a word."""
MAX_PAGES = 1 << 31
"""Pages that one bitmap may have; a type1 container has the same limit (``DIRTY_BITMAP_PAGES_MAX``
of the kernel)."""
STEP = 1 << 22
"""Pages that are looked at together, which bounds the memory that this takes."""

_BITS_IN_BYTE = np.array([number.bit_count() for number in range(256)], np.uint8)


def bitmap_size(size: int, page_size: int) -> int:
    """Bytes of the bitmap of a range: a bit for each page that it touches, in whole words."""
    pages = -(-size // page_size)
    return -(-pages // (8 * WORD)) * WORD


class DirtyBitmap:
    """The pages of a range that were written.

    Bit ``n`` stands for the page at ``iova + n * page_size``; bits behind the range are 0.

    :param iova: first address of the range.
    :param size: bytes in it; the last page may be cut.
    :param page_size: bytes for each bit, a power of two.
    :ivar words: the bits, an array of little-endian words.
    :raises ValueError: the range has no address, too many pages, or does not end within 64 bits.
    """

    def __init__(self, iova: int, size: int, page_size: int) -> None:
        if page_size <= 0 or page_size & (page_size - 1):
            raise ValueError(f"pages of {page_size} bytes")
        if size <= 0 or iova < 0 or iova + size > 1 << 64:
            raise ValueError(f"a bitmap of {size} bytes at {iova:#x}")
        if size > MAX_PAGES * page_size:
            raise ValueError(
                f"a bitmap of {size} bytes in pages of {page_size}: {MAX_PAGES} pages at most"
            )
        self.iova = iova
        self.size = size
        self.page_size = page_size
        self.words: Words = np.zeros(bitmap_size(size, page_size) // WORD, "<u8")

    @classmethod
    def of(cls, iova: int, size: int, page_size: int, data: Buffer) -> DirtyBitmap:
        """The bitmap that a device or kernel has given; bits behind the range are dropped.

        :raises ValueError: it has not the size that it must have.
        """
        found = cls(iova, size, page_size)
        if len(data) != found.words.nbytes:
            raise ValueError(f"a bitmap of {len(data)} bytes instead of {found.words.nbytes}")
        found.words[:] = np.frombuffer(data, "<u8")
        found._mask(found.pages, 8 * WORD * len(found.words))
        return found

    @classmethod
    def full(cls, iova: int, size: int, page_size: int) -> DirtyBitmap:
        """Everything was written."""
        found = cls(iova, size, page_size)
        found.fill()
        return found

    @property
    def pages(self) -> int:
        """Pages in the range."""
        return -(-self.size // self.page_size)

    @property
    def count(self) -> int:
        """Pages that were written."""
        return int(_BITS_IN_BYTE[self._bytes].sum(dtype=np.int64))

    def page_numbers(self) -> Numbers:
        """The pages that were written, counted from the range's start, in ascending order."""
        parts = list(self._set_bits(0, self.pages, STEP))
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def addresses(self) -> Words:
        """The first address of each page that was written, in ascending order."""
        return np.uint64(self.iova) + self.page_numbers().astype(np.uint64) * np.uint64(
            self.page_size
        )

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Each run of pages that were written, as (address, bytes), within the range."""
        numbers = self.page_numbers()
        if not len(numbers):
            return
        breaks = np.flatnonzero(np.diff(numbers) != 1)
        firsts = numbers[np.concatenate(([0], breaks + 1))]
        lasts = numbers[np.concatenate((breaks, [len(numbers) - 1]))]
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            start = first * self.page_size
            end = min((last + 1) * self.page_size, self.size)
            yield self.iova + start, end - start

    def __contains__(self, address: int) -> bool:
        offset = address - self.iova
        if not 0 <= offset < self.size:
            return False
        page = offset // self.page_size
        return bool(self._bytes[page // 8] >> (page % 8) & 1)

    def __or__(self, other: DirtyBitmap) -> DirtyBitmap:
        """What was written by one or the other; both must be of the same range and pages."""
        if not isinstance(other, DirtyBitmap):
            return NotImplemented
        mine, theirs = ((bitmap.iova, bitmap.size, bitmap.page_size) for bitmap in (self, other))
        if mine != theirs:
            raise ValueError(f"bitmaps of different ranges: {self!r} and {other!r}")
        found = DirtyBitmap(*mine)
        np.bitwise_or(self.words, other.words, out=found.words)
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DirtyBitmap):
            return NotImplemented
        return (
            (self.iova, self.size, self.page_size) == (other.iova, other.size, other.page_size)
        ) and bool(np.array_equal(self.words, other.words))

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def __repr__(self) -> str:
        return (
            f"<DirtyBitmap {self.iova:#x}+{self.size:#x}:"
            f" {self.count} of {self.pages} pages of {self.page_size}>"
        )

    # Changes

    def fill(self) -> None:
        """Everything was written."""
        self.words[:] = ~np.uint64(0)
        self._mask(self.pages, 8 * WORD * len(self.words))

    def mark(self, offset: int, size: int) -> None:
        """Bytes of the range were written."""
        if size > 0:
            first, last = offset // self.page_size, (offset + size - 1) // self.page_size
            self._or(first, np.ones(last + 1 - first, np.bool_))

    def clear(self, offset: int, size: int) -> None:
        """Forget the pages that lie wholly in a part of the range."""
        first = -(-offset // self.page_size)
        end = offset + size
        last = self.pages if end >= self.size else end // self.page_size
        if last > first:
            self._mask(first, last)

    def merge(self, other: DirtyBitmap) -> None:
        """Take in what another bitmap says of addresses that are in both ranges.

        Its pages may be of another size, or lie otherwise: what they touch counts as written.
        """
        low = max(self.iova, other.iova)
        high = min(self.iova + self.size, other.iova + other.size)
        if low >= high:
            return
        shift, first = other.iova - low, (low - other.iova) // other.page_size
        end = -(-(high - other.iova) // other.page_size)
        step = max(1, STEP * self.page_size // max(self.page_size, other.page_size))
        for numbers in other._set_bits(first, end, step):
            starts = np.maximum(numbers * other.page_size + shift, 0) + (low - self.iova)
            ends = np.minimum((numbers + 1) * other.page_size + shift, high - low)
            ends += low - self.iova
            self._mark_all(starts // self.page_size, (ends - 1) // self.page_size)

    def _mark_all(self, firsts: Numbers, lasts: Numbers) -> None:
        """Mark pages from each first to its last; both are in ascending order."""
        base = int(firsts[0])
        pages = int(lasts[-1]) + 1 - base
        depth = np.bincount(firsts - base, minlength=pages + 1)
        depth -= np.bincount(lasts - base + 1, minlength=pages + 1)
        self._or(base, np.cumsum(depth[:pages]) > 0)

    def _or(self, first: int, bits: Bits) -> None:
        aligned = np.concatenate((np.zeros(first % 8, np.bool_), bits))
        packed = np.packbits(aligned, bitorder="little")
        self._bytes[first // 8 : first // 8 + len(packed)] |= packed

    def _mask(self, first: int, end: int) -> None:
        """Clear the bits from ``first`` to before ``end``."""
        whole, rest = -(-first // 8), end // 8
        if whole > rest:  # both are within one byte
            self._bytes[rest] &= ~(_low(end % 8) & ~_low(first % 8)) & 0xFF
            return
        self._bytes[whole:rest] = 0
        if first % 8:
            self._bytes[first // 8] &= _low(first % 8)
        if end % 8:
            self._bytes[rest] &= ~_low(end % 8) & 0xFF

    @property
    def _bytes(self) -> npt.NDArray[np.uint8]:
        return self.words.view(np.uint8)

    def _set_bits(self, first: int, end: int, step: int) -> Iterator[Numbers]:
        """The numbers of the pages that are set, part by part; empty parts are left out."""
        step = -(-step // 8) * 8
        for start in range(first // 8 * 8, end, step):
            stop = min(start + step, end)
            part = self._bytes[start // 8 : -(-stop // 8)]
            bits = np.unpackbits(part, count=stop - start, bitorder="little")
            bits[: max(0, first - start)] = 0
            if bits.any():
                yield np.flatnonzero(bits) + start


def _low(bits: int) -> int:
    """A byte of which the lowest bits are set."""
    return (1 << bits) - 1
