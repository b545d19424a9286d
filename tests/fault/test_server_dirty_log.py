# SPDX-License-Identifier: BSD-3-Clause
"""The log of what a served device writes to its client's memory, asked for by hand-written bytes.

Specification: "VFIO_DEVICE_FEATURE_DMA_LOGGING_START / VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP",
"VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT".
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

import pytest

from tests.fault import raw
from tests.fault.clients import (
    IOVA,
    PAGE,
    TO_CLIENT,
    TO_DEVICE,
    ClientMemory,
    finish_test_dma,
    in_step,
    memfd,
    prepare_test_dma,
    run_test_dma,
    start_test_dma,
)
from tests.fault.moving import connected, feature, go, report, start_logging
from tests.fault.raw import RawClient
from tests.fault.raw_migration import (
    GET,
    LOGGING_REPORT,
    LOGGING_START,
    LOGGING_STOP,
    RUNNING,
    SET,
    STOP,
)
from tests.support import ServerProcess, resident

SIZE = 64 * PAGE
STOP_LOGGING = feature(SET | LOGGING_STOP)


@pytest.fixture
def client(tester: RawClient) -> Iterator[RawClient]:
    """A client with 64 pages mapped in three pieces, the last by messages; everything is logged."""
    with memfd(SIZE) as fd:
        for first, pages in ((0, 16), (16, 32)):
            mapped = raw.dma_map(IOVA + first * PAGE, pages * PAGE, offset=first * PAGE)
            tester.done(raw.DMA_MAP, mapped, [fd])
        tester.done(raw.DMA_MAP, raw.dma_map(IOVA + 48 * PAGE, 16 * PAGE))
        tester.done(raw.DEVICE_FEATURE, start_logging(PAGE))
        yield tester


def write(client: RawClient, first: int, pages: int = 1) -> None:
    """Have the device write pages."""
    assert run_test_dma(client, TO_CLIENT, IOVA + first * PAGE, pages * PAGE) == 0


def write_by_message(client: RawClient, address: int, size: int) -> None:
    """Have the device write memory that it asks the client for."""
    prepare_test_dma(client, address, size)
    start_test_dma(client, TO_CLIENT)
    memory = ClientMemory(address, bytes(size))
    memory.answer(client, client.receive())
    assert finish_test_dma(client) == 0


def test_pages_that_the_device_writes_are_dirty(client: RawClient) -> None:
    write(client, 3)
    write(client, 40, 2)
    assert report(client, IOVA, SIZE) == {3, 40, 41}


def test_a_write_over_two_maps_and_a_report_over_three(client: RawClient) -> None:
    write(client, 14, 4)
    write_by_message(client, IOVA + 50 * PAGE + 100, 8)
    assert report(client, IOVA, SIZE) == {14, 15, 16, 17, 50}


def test_a_report_clears_what_it_has_and_no_more(client: RawClient) -> None:
    write(client, 14, 4)
    assert report(client, IOVA + 15 * PAGE, 2 * PAGE) == {0, 1}
    assert report(client, IOVA, SIZE) == {14, 17}
    assert report(client, IOVA, SIZE) == set()


def test_a_few_bytes_make_a_page_dirty_and_at_its_end_the_next(client: RawClient) -> None:
    assert run_test_dma(client, TO_CLIENT, IOVA + 5 * PAGE - 1, 2) == 0
    assert report(client, IOVA, SIZE) == {4, 5}


def test_what_the_device_reads_is_not_dirty(client: RawClient) -> None:
    assert run_test_dma(client, TO_DEVICE, IOVA, PAGE) == 0
    assert report(client, IOVA, SIZE) == set()


def test_a_write_that_was_refused_leaves_the_rest_clean(client: RawClient) -> None:
    assert run_test_dma(client, TO_CLIENT, IOVA - PAGE, 4 * PAGE) == errno.EFAULT
    assert report(client, IOVA - PAGE, SIZE + PAGE) == set()


def test_a_write_that_failed_half_way_is_dirty(client: RawClient) -> None:
    prepare_test_dma(client, IOVA + 47 * PAGE, 2 * PAGE)
    start_test_dma(client, TO_CLIENT)
    client.send(raw.refusal(client.receive(), errno.EIO))
    assert finish_test_dma(client) == errno.EIO
    assert report(client, IOVA, SIZE) >= {47}


def test_pages_stay_dirty_when_their_map_goes(client: RawClient) -> None:
    write(client, 3)
    client.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, 16 * PAGE))
    assert report(client, IOVA, SIZE) == {3}


def test_the_log_goes_on_over_a_stop_and_a_reset(client: RawClient) -> None:
    write(client, 3)
    go(client, STOP)
    assert report(client, IOVA, PAGE) == set()
    go(client, RUNNING)
    client.done(raw.RESET)
    write(client, 4)
    assert report(client, IOVA, SIZE) == {3, 4}


def test_the_log_ends_with_its_client(client: RawClient, testdev_server: ServerProcess) -> None:
    client.close()
    with connected(testdev_server) as other:
        asked = feature(GET | LOGGING_REPORT, struct.pack("<QQQ", IOVA, PAGE, PAGE))
        assert other.refused(raw.DEVICE_FEATURE, asked) == errno.EINVAL
        other.done(raw.DEVICE_FEATURE, start_logging(PAGE))
        assert report(other, IOVA, SIZE) == set()


def test_the_reply_says_which_page_size_was_chosen(tester: RawClient) -> None:
    for wanted, chosen in ((0, PAGE), (1 << 21, 1 << 21), (5000, PAGE)):
        asked = start_logging(wanted, (IOVA, SIZE), (0, PAGE))
        expected = start_logging(chosen, (IOVA, SIZE), (0, PAGE))
        assert tester.done(raw.DEVICE_FEATURE, asked).payload == expected
        assert tester.done(raw.DEVICE_FEATURE, STOP_LOGGING).payload == STOP_LOGGING


def test_only_the_ranges_that_were_named_are_logged(client: RawClient) -> None:
    client.done(raw.DEVICE_FEATURE, STOP_LOGGING)
    ranges = ((IOVA + 4 * PAGE, PAGE), (IOVA, PAGE))
    client.done(raw.DEVICE_FEATURE, start_logging(PAGE, *ranges))
    write(client, 0, 16)
    assert report(client, IOVA, SIZE) == {0, 4}


def test_a_report_may_have_larger_pages(client: RawClient) -> None:
    write(client, 3)
    write(client, 9, 8)
    assert report(client, IOVA, SIZE, 4 * PAGE) == {0, 2, 3, 4}


# Requests that are not right


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (b"", errno.EINVAL),
        (struct.pack("<QI", PAGE, 0), errno.EINVAL),
        (struct.pack("<QII", PAGE, 1, 0), errno.EINVAL),
        (struct.pack("<QII", PAGE, 0, 0) + bytes(16), errno.EINVAL),
        (struct.pack("<QIIQQ", PAGE, 2, 0, 0, PAGE), errno.EINVAL),
        (struct.pack("<QIIQ", PAGE, 1, 0, 0), errno.EINVAL),
        (struct.pack("<QII", PAGE, 0xFFFF_FFFF, 0), errno.EINVAL),
        (struct.pack("<QIIQQ", PAGE, 1, 0, 0, 0), errno.EINVAL),
        (struct.pack("<QIIQQ", PAGE, 1, 0, 1 << 63, (1 << 63) + 1), errno.EINVAL),
        (struct.pack("<QIIQQQQ", PAGE, 2, 0, 0, 2 * PAGE, PAGE, PAGE), errno.EINVAL),
        (
            struct.pack("<QII", PAGE, 257, 0)
            + b"".join(struct.pack("<QQ", n * PAGE, PAGE) for n in range(257)),
            errno.E2BIG,
        ),
    ],
)
def test_a_start_that_is_not_right_is_refused(tester: RawClient, data: bytes, number: int) -> None:
    assert tester.refused(raw.DEVICE_FEATURE, feature(SET | LOGGING_START, data)) == number
    tester.done(raw.DEVICE_FEATURE, start_logging(PAGE))
    assert in_step(tester)


def test_a_second_start_is_refused(client: RawClient) -> None:
    write(client, 3)
    assert client.refused(raw.DEVICE_FEATURE, start_logging(PAGE)) == errno.EINVAL
    assert report(client, IOVA, SIZE) == {3}


def test_a_stop_may_be_repeated_and_has_no_data(client: RawClient) -> None:
    for _ in range(2):
        client.done(raw.DEVICE_FEATURE, STOP_LOGGING)
    with_data = feature(SET | LOGGING_STOP, bytes(1))
    assert client.refused(raw.DEVICE_FEATURE, with_data) == errno.EINVAL


@pytest.mark.parametrize(
    ("iova", "length", "page_size"),
    [
        (IOVA, PAGE, 0),
        (IOVA, PAGE, 1),
        (IOVA, PAGE, 2048),
        (IOVA, PAGE, 3 * PAGE),
        (IOVA, 0, PAGE),
        (IOVA + 1, PAGE, PAGE),
        (IOVA, 100, PAGE),
        ((1 << 64) - PAGE, 2 * PAGE, PAGE),
        (0, (1 << 64) - PAGE, PAGE),
        (0, (1 << 35) + PAGE, PAGE),
    ],
)
def test_a_report_that_cannot_be_is_refused_before_it_takes_memory(
    client: RawClient, testdev_server: ServerProcess, iova: int, length: int, page_size: int
) -> None:
    write(client, 3)
    before = resident(testdev_server.pid)
    asked = struct.pack("<QQQ", iova, length, page_size)
    request = feature(GET | LOGGING_REPORT, asked, (1 << 32) - 1)
    assert client.refused(raw.DEVICE_FEATURE, request) == errno.EINVAL
    assert resident(testdev_server.pid) - before < 1 << 20
    assert report(client, IOVA, SIZE) == {3}


def test_a_report_that_the_client_has_no_room_for_clears_nothing(client: RawClient) -> None:
    write(client, 3)
    asked = struct.pack("<QQQ", IOVA, SIZE, PAGE)
    for argsz in (8, 32, 39):
        request = feature(GET | LOGGING_REPORT, asked, argsz)
        assert client.refused(raw.DEVICE_FEATURE, request) == errno.EINVAL
    assert report(client, IOVA, SIZE) == {3}


@pytest.mark.parametrize("size", [0, 8, 23])
def test_a_report_of_a_short_range_is_refused(client: RawClient, size: int) -> None:
    request = feature(GET | LOGGING_REPORT, bytes(size))
    assert client.refused(raw.DEVICE_FEATURE, request) == errno.EINVAL


def test_the_largest_report_is_as_large_as_any_data(client: RawClient) -> None:
    write(client, 3)
    asked = struct.pack("<QQQ", 0, 1 << 35, PAGE)
    reply = client.done(raw.DEVICE_FEATURE, feature(GET | LOGGING_REPORT, asked, 2 << 20))
    assert len(reply.payload) == 32 + (1 << 20)
    page = IOVA // PAGE + 3
    assert reply.payload[32 + page // 8] == 1 << page % 8
    assert reply.payload[32:].count(0) == (1 << 20) - 1
