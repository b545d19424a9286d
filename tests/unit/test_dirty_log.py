# SPDX-License-Identifier: BSD-3-Clause
"""The log of dirty pages against sets of pages: any writes, ranges and page sizes."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio.server import dirty_log
from pyvfio.server.dirty_log import MAX_RANGES, PAGE, DirtyLog

MODERATE = settings(deadline=None, max_examples=60)

END = 1 << 64
SPAN = 40000
"""Pages that the examples write to: more than are kept together."""

writes = st.lists(st.tuples(st.integers(0, SPAN * PAGE), st.integers(1, 3 * PAGE)), max_size=20)
spans = st.tuples(st.integers(0, SPAN), st.integers(1, SPAN))
"""(first page, pages)."""


def touched(written: list[tuple[int, int]]) -> set[int]:
    """The pages that writes touch."""
    return {
        page
        for address, size in written
        for page in range(address // PAGE, (address + size - 1) // PAGE + 1)
    }


def marked(written: list[tuple[int, int]], *ranges: tuple[int, int]) -> DirtyLog:
    """A log that has seen writes."""
    log = DirtyLog()
    log.start(PAGE, ranges)
    for address, size in written:
        log.mark(address, size)
    return log


def dirty(log: DirtyLog, first: int, pages: int, page_size: int = PAGE) -> set[int]:
    """The bits of a report; checks how long it is, and that nothing is set behind its end."""
    bitmap = log.report(first * PAGE, pages * PAGE, page_size)
    bits = -(-pages * PAGE // page_size)
    assert len(bitmap) == -(-bits // 64) * 8
    set_bytes = [n for n, byte in enumerate(bitmap) if byte]
    found = {8 * n + bit for n in set_bytes for bit in range(8) if bitmap[n] >> bit & 1}
    assert all(n < bits for n in found)
    return found


@MODERATE
@given(writes, spans)
def test_a_report_has_the_pages_of_its_range_that_were_written(
    written: list[tuple[int, int]], span: tuple[int, int]
) -> None:
    first, pages = span
    found = dirty(marked(written), first, pages)
    assert found == {p - first for p in touched(written) if first <= p < first + pages}


@MODERATE
@given(writes, spans)
def test_what_was_reported_is_clean_and_the_rest_is_not(
    written: list[tuple[int, int]], span: tuple[int, int]
) -> None:
    log = marked(written)
    first, pages = span
    dirty(log, first, pages)
    left = {p for p in touched(written) if not first <= p < first + pages}
    assert dirty(log, 0, 2 * SPAN) == left


@MODERATE
@given(writes, spans, st.integers(0, 12))
def test_a_report_of_larger_pages_has_each_of_which_a_part_was_written(
    written: list[tuple[int, int]], span: tuple[int, int], order: int
) -> None:
    first, pages = span
    found = dirty(marked(written), first, pages, PAGE << order)
    expected = {(p - first) >> order for p in touched(written) if first <= p < first + pages}
    assert found == expected


@MODERATE
@given(writes, spans)
def test_only_the_ranges_that_were_asked_for_are_logged(
    written: list[tuple[int, int]], span: tuple[int, int]
) -> None:
    first, pages = span
    log = marked(written, (first * PAGE, pages * PAGE))
    expected = {p for p in touched(written) if first <= p < first + pages}
    assert dirty(log, 0, 2 * SPAN) == expected


def test_a_report_of_the_whole_address_space_is_possible() -> None:
    log = marked([(END - 1, 1), (0, 1)])
    bitmap = log.report(0, END - PAGE, 1 << 44)
    assert bitmap == b"\x01" + bytes(len(bitmap) - 1)
    assert log.report(END - PAGE, PAGE, PAGE) == b"\x01" + bytes(7)


def test_nothing_is_logged_before_the_start_nor_after_the_stop() -> None:
    log = DirtyLog()
    log.mark(0, PAGE)
    log.start(PAGE, ())
    assert dirty(log, 0, 64) == set()
    log.mark(0, PAGE)
    log.stop()
    log.mark(PAGE, PAGE)
    log.start(PAGE, ())
    assert dirty(log, 0, 64) == set()


def test_it_may_be_stopped_twice() -> None:
    log = marked([])
    log.stop()
    log.stop()
    assert log.start(PAGE, ()) == PAGE


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (4096, 4096),
        (8192, 8192),
        (1 << 40, 1 << 40),
        *((size, 4096) for size in (0, 1, 2048, 4097, 12288, END - 1)),
    ],
)
def test_the_page_size_is_the_one_that_was_asked_for_where_it_is_one(
    wanted: int, chosen: int
) -> None:
    assert DirtyLog().start(wanted, ()) == chosen


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 0)],
        [(END - PAGE, 2 * PAGE)],
        [(0, 2 * PAGE), (PAGE, PAGE)],
        [(PAGE, PAGE), (0, 3 * PAGE)],
        [(0, PAGE), (0, PAGE)],
    ],
)
def test_ranges_that_cannot_be_are_refused(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(OSError, match="cannot be logged") as caught:
        DirtyLog().start(PAGE, ranges)
    assert caught.value.errno == errno.EINVAL


def test_ranges_may_come_in_any_order_and_touch() -> None:
    log = marked([(0, 4 * PAGE)], (2 * PAGE, PAGE), (PAGE, PAGE))
    assert dirty(log, 0, 64) == {1, 2}


@pytest.mark.parametrize(("count", "number"), [(MAX_RANGES, 0), (MAX_RANGES + 1, errno.E2BIG)])
def test_ranges_are_limited(count: int, number: int) -> None:
    ranges = [(n * PAGE, PAGE) for n in range(count)]
    if not number:
        assert DirtyLog().start(PAGE, ranges) == PAGE
        return
    with pytest.raises(OSError, match="at most") as caught:
        DirtyLog().start(PAGE, ranges)
    assert caught.value.errno == number


def test_a_second_start_is_refused_and_keeps_what_there_is() -> None:
    log = marked([(0, 1)])
    with pytest.raises(OSError, match="already"):
        log.start(PAGE, ())
    assert dirty(log, 0, 64) == {0}


@pytest.mark.parametrize(
    ("iova", "length", "page_size"),
    [
        (0, PAGE, 0),
        (0, PAGE, 2048),
        (0, PAGE, PAGE + 1),
        (0, PAGE, 3 * PAGE),
        (0, 0, PAGE),
        (1, PAGE, PAGE),
        (0, PAGE + 1, PAGE),
        (END - PAGE, 2 * PAGE, PAGE),
    ],
)
def test_a_report_that_cannot_be_is_refused(iova: int, length: int, page_size: int) -> None:
    log = marked([])
    with pytest.raises(OSError, match=r"pages of|a report of") as caught:
        log.report(iova, length, page_size)
    assert caught.value.errno == errno.EINVAL


def test_a_report_without_logging_is_refused() -> None:
    with pytest.raises(OSError, match="not logged"):
        DirtyLog().report(0, PAGE, PAGE)


def test_a_device_that_writes_everywhere_is_reported_dirty_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dirty_log, "_MAX_CHUNKS", 4)
    far = 1 << 40
    log = marked([(n * far, 1) for n in range(6)], (0, 2 * far), (3 * far, 10 * far))
    assert dirty(log, 0, 300) == set(range(300))
    assert dirty(log, 0, 300) == set(range(300))  # nobody knows better
    assert dirty(log, 2 * far // PAGE, 64) == set()
    log.stop()
    log.start(PAGE, ())
    assert dirty(log, 0, 64) == set()
