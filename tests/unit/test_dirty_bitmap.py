# SPDX-License-Identifier: BSD-3-Clause
"""Bitmaps of dirty pages, against plain sets of page numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio import dirty_bitmap
from pyvfio.dirty_bitmap import MAX_PAGES, DirtyBitmap, bitmap_size

PAGE = 4096
TOP = 1 << 64

sizes = st.integers(1, 300 * PAGE)
page_sizes = st.sampled_from([1, 512, PAGE, 4 * PAGE, 1 << 20])
addresses = st.integers(0, 1000).map(lambda n: n * 1000) | st.integers(0, TOP - 300 * PAGE)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int, int]:
    """(address, bytes, page size) of a bitmap that is not too long to look at."""
    page_size = draw(page_sizes)
    return draw(addresses), draw(st.integers(1, 300 * page_size)) % (300 * PAGE) + 1, page_size


def made(where: tuple[int, int, int], pages: set[int]) -> DirtyBitmap:
    """A bitmap with these pages, made as a device makes it: bit by bit."""
    iova, size, page_size = where
    data = bytearray(bitmap_size(size, page_size))
    for page in pages:
        data[page // 8] |= 1 << page % 8
    return DirtyBitmap.of(iova, size, page_size, data)


def pages_of(bitmap: DirtyBitmap) -> set[int]:
    return set(bitmap.page_numbers().tolist())


@st.composite
def bitmaps(draw: st.DrawFn) -> tuple[DirtyBitmap, set[int]]:
    """A bitmap, and the pages in it."""
    where = draw(ranges())
    last = DirtyBitmap(*where).pages - 1
    pages = draw(st.sets(st.integers(0, last), max_size=40))
    return made(where, pages), pages


# What it says


@given(bitmaps())
def test_the_numbers_are_those_of_the_bits(found: tuple[DirtyBitmap, set[int]]) -> None:
    bitmap, pages = found
    assert bitmap.page_numbers().tolist() == sorted(pages)
    assert bitmap.count == len(pages)
    expected = [bitmap.iova + page * bitmap.page_size for page in sorted(pages)]
    assert bitmap.addresses().tolist() == expected
    assert bitmap.addresses().dtype == np.uint64


@given(bitmaps())
def test_the_runs_are_the_pages_within_the_range(found: tuple[DirtyBitmap, set[int]]) -> None:
    bitmap, pages = found
    covered: list[int] = []
    for start, size in bitmap.ranges():
        first, rest = divmod(start - bitmap.iova, bitmap.page_size)
        assert rest == 0
        assert start + size <= bitmap.iova + bitmap.size
        covered.extend(range(first, -(-(start + size - bitmap.iova) // bitmap.page_size)))
        covered.append(-1)
    assert [page for page in covered if page >= 0] == sorted(pages)
    runs = sum(page - 1 not in pages for page in pages)
    assert covered.count(-1) == runs


@given(bitmaps(), st.integers(-PAGE, 301 * PAGE))
def test_an_address_is_in_it_where_its_page_is(
    found: tuple[DirtyBitmap, set[int]], offset: int
) -> None:
    bitmap, pages = found
    inside = 0 <= offset < bitmap.size and offset // bitmap.page_size in pages
    assert (bitmap.iova + offset in bitmap) is inside


def test_the_words_are_little_endian_and_of_64_bits() -> None:
    bitmap = DirtyBitmap.of(0, 65 * PAGE, PAGE, bytes([1, 0, 0, 0, 0, 0, 0, 0x80, 1]) + bytes(7))
    assert bitmap.words.dtype == np.dtype("<u8")
    assert bitmap.words.tolist() == [1 << 63 | 1, 1]
    assert bitmap.page_numbers().tolist() == [0, 63, 64]
    assert repr(bitmap) == "<DirtyBitmap 0x0+0x41000: 3 of 65 pages of 4096>"


@given(ranges())
def test_bits_behind_the_range_are_dropped(where: tuple[int, int, int]) -> None:
    iova, size, page_size = where
    bitmap = DirtyBitmap.of(iova, size, page_size, b"\xff" * bitmap_size(size, page_size))
    assert pages_of(bitmap) == set(range(bitmap.pages))
    assert bitmap == DirtyBitmap.full(iova, size, page_size)
    assert sum(size for _, size in bitmap.ranges()) == size


@pytest.mark.parametrize(
    ("pages", "size"), [(1, 8), (63, 8), (64, 8), (65, 16), (128, 16), (129, 24)]
)
def test_a_bitmap_has_whole_words(pages: int, size: int) -> None:
    assert bitmap_size(pages * PAGE, PAGE) == bitmap_size(pages * PAGE - 1, PAGE) == size


@pytest.mark.parametrize("size", [0, 7, 9, 16])
def test_a_bitmap_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes instead of 8"):
        DirtyBitmap.of(0, PAGE, PAGE, bytes(size))


@pytest.mark.parametrize(
    ("iova", "size", "page_size"),
    [
        (0, 0, PAGE),
        (0, -1, PAGE),
        (-PAGE, PAGE, PAGE),
        (TOP - PAGE, PAGE + 1, PAGE),
        (0, PAGE, 0),
        (0, PAGE, -PAGE),
        (0, PAGE, 3000),
        (0, MAX_PAGES * PAGE + 1, PAGE),
        (0, TOP, PAGE),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(iova: int, size: int, page_size: int) -> None:
    with pytest.raises(ValueError, match="bytes"):
        DirtyBitmap(iova, size, page_size)


def test_the_last_page_of_all_has_a_bit() -> None:
    assert DirtyBitmap.full(TOP - PAGE, PAGE, PAGE).addresses().tolist() == [TOP - PAGE]


# Changes


@given(ranges(), st.data())
def test_bytes_that_were_written_mark_their_pages(
    where: tuple[int, int, int], data: st.DataObject
) -> None:
    bitmap = DirtyBitmap(*where)
    expected: set[int] = set()
    for _ in range(data.draw(st.integers(0, 4))):
        first = data.draw(st.integers(0, bitmap.size - 1))
        last = data.draw(st.integers(first, bitmap.size - 1))
        bitmap.mark(first, last + 1 - first)
        expected |= set(range(first // bitmap.page_size, last // bitmap.page_size + 1))
    bitmap.mark(0, 0)
    assert pages_of(bitmap) == expected


@given(bitmaps(), st.data())
def test_only_whole_pages_are_forgotten(
    found: tuple[DirtyBitmap, set[int]], data: st.DataObject
) -> None:
    bitmap, pages = found
    first = data.draw(st.integers(0, bitmap.size - 1))
    end = data.draw(st.integers(first + 1, bitmap.size))
    bitmap.clear(first, end - first)
    page_size = bitmap.page_size
    inside = {
        page
        for page in pages
        if page * page_size >= first and min((page + 1) * page_size, bitmap.size) <= end
    }
    assert pages_of(bitmap) == pages - inside


@given(bitmaps(), st.data())
def test_what_either_of_two_says_is_in_both_together(
    found: tuple[DirtyBitmap, set[int]], data: st.DataObject
) -> None:
    bitmap, pages = found
    others = data.draw(st.sets(st.integers(0, bitmap.pages - 1), max_size=40))
    other = made((bitmap.iova, bitmap.size, bitmap.page_size), others)
    assert pages_of(bitmap | other) == pages | others
    assert (pages_of(bitmap), pages_of(other)) == (pages, others)
    assert (bitmap == other) is (pages == others)


def test_bitmaps_of_different_ranges_are_not_combined() -> None:
    bitmap = DirtyBitmap(0, PAGE, PAGE)
    for other in (
        DirtyBitmap(PAGE, PAGE, PAGE),
        DirtyBitmap(0, 2 * PAGE, PAGE),
        DirtyBitmap(0, PAGE, 2 * PAGE),
    ):
        assert bitmap != other
        with pytest.raises(ValueError, match="different ranges"):
            _ = bitmap | other
    with pytest.raises(TypeError):
        _ = bitmap | 1  # type: ignore[operator]
    assert bitmap != 1


@given(bitmaps(), ranges(), st.integers(-300, 300), st.booleans(), st.integers(8, 64))
def test_a_bitmap_takes_in_what_another_touches(
    found: tuple[DirtyBitmap, set[int]],
    where: tuple[int, int, int],
    shift: int,
    near: bool,
    step: int,
) -> None:
    other, pages = found
    iova, size, page_size = where
    if near:  # most ranges would not meet
        iova = min(max(0, other.iova + shift * 1000), TOP - size)
    bitmap = DirtyBitmap(iova, size, page_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dirty_bitmap, "STEP", step)
        bitmap.merge(other)
    expected = set()
    for page in pages:
        start = max(other.iova + page * other.page_size, other.iova, iova)
        end = min(other.iova + min((page + 1) * other.page_size, other.size), iova + size)
        if start < end:
            first = (start - iova) // page_size
            expected |= set(range(first, (end - 1 - iova) // page_size + 1))
    assert pages_of(bitmap) == expected


def test_a_large_bitmap_is_taken_in_part_by_part() -> None:
    other = DirtyBitmap.full(0, 1 << 40, 1 << 18)
    bitmap = DirtyBitmap(1 << 30, 1 << 35, PAGE)
    bitmap.merge(other)
    assert bitmap.count == bitmap.pages == 1 << 23
