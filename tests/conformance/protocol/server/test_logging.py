# SPDX-License-Identifier: BSD-3-Clause
"""The log of the pages that a device writes: started, stopped, reported."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.conformance.protocol.device import in_step
from tests.conformance.protocol.specification import MESSAGES, needs, spec
from tests.fault import raw
from tests.fault.clients import IOVA, PAGE, TO_CLIENT, TO_DEVICE, memfd, run_test_dma
from tests.fault.moving import feature, report, start_logging
from tests.fault.raw import RawClient
from tests.fault.raw_migration import (
    GET,
    LOGGING_REPORT,
    LOGGING_STOP,
    SET,
)

FEATURE = "VFIO_USER_DEVICE_FEATURE"
LOGGING = f"{FEATURE} / {MESSAGES[FEATURE][-2]}"
REPORT = f"{FEATURE} / VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT"
STOP = feature(SET | LOGGING_STOP)
PAGES = 100


@pytest.fixture
def mapped(client: RawClient) -> Iterator[RawClient]:
    """A client with pages that the device can write."""
    with memfd(PAGES * PAGE) as fd:
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGES * PAGE), [fd])
        yield client


def write(client: RawClient, first: int, pages: int = 1) -> None:
    """Have the device write pages."""
    assert run_test_dma(client, TO_CLIENT, IOVA + first * PAGE, pages * PAGE) == 0


@needs("migration", "memory")
@spec(LOGGING)
def test_the_reply_to_a_start_is_the_request(client: RawClient) -> None:
    request = start_logging(PAGE)
    assert client.done(raw.DEVICE_FEATURE, request).payload == request
    assert client.done(raw.DEVICE_FEATURE, STOP).payload == STOP


@needs("registers")
@spec(LOGGING, REPORT)
def test_writes_of_the_device_are_logged(mapped: RawClient) -> None:
    mapped.done(raw.DEVICE_FEATURE, start_logging(PAGE))
    write(mapped, 3)
    write(mapped, 70, 2)
    assert report(mapped, IOVA, PAGES * PAGE) == {3, 70, 71}


@needs("registers")
@spec(LOGGING)
def test_reads_of_the_device_are_not_logged(mapped: RawClient) -> None:
    mapped.done(raw.DEVICE_FEATURE, start_logging(PAGE))
    assert run_test_dma(mapped, TO_DEVICE) == 0
    assert report(mapped, IOVA, PAGES * PAGE) == set()


@needs("registers")
@spec(LOGGING)
def test_writes_before_the_start_and_after_the_stop_are_not_logged(mapped: RawClient) -> None:
    write(mapped, 3)
    mapped.done(raw.DEVICE_FEATURE, start_logging(PAGE))
    mapped.done(raw.DEVICE_FEATURE, STOP)
    write(mapped, 4)
    mapped.done(raw.DEVICE_FEATURE, start_logging(PAGE))
    assert report(mapped, IOVA, PAGES * PAGE) == set()


@needs("registers")
@spec(REPORT)
def test_the_pages_of_a_report_need_not_be_those_of_the_log(mapped: RawClient) -> None:
    mapped.done(raw.DEVICE_FEATURE, start_logging(PAGE))
    write(mapped, 9, 8)
    assert report(mapped, IOVA, PAGES * PAGE, 8 * PAGE) == {1, 2}


@needs("registers")
@spec(REPORT)
def test_a_report_is_only_valid_while_there_is_a_log(mapped: RawClient) -> None:
    asked = feature(GET | LOGGING_REPORT, struct.pack("<QQQ", IOVA, PAGE, PAGE))
    assert mapped.refused(raw.DEVICE_FEATURE, asked)
    mapped.done(raw.DEVICE_FEATURE, start_logging(PAGE))
    mapped.done(raw.DEVICE_FEATURE, STOP)
    assert mapped.refused(raw.DEVICE_FEATURE, asked)
    assert in_step(mapped)


@needs("registers")
@spec(REPORT)
@pytest.mark.parametrize("page_size", [0, 3 * PAGE])
def test_a_page_size_of_a_report_is_a_power_of_two(mapped: RawClient, page_size: int) -> None:
    mapped.done(raw.DEVICE_FEATURE, start_logging(PAGE))
    asked = feature(GET | LOGGING_REPORT, struct.pack("<QQQ", IOVA, PAGE, page_size))
    assert mapped.refused(raw.DEVICE_FEATURE, asked)
