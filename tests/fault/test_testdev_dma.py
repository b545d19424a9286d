# SPDX-License-Identifier: BSD-3-Clause
"""DMA of the test device beside its registers: what they read while it runs, and what ends it."""

from __future__ import annotations

import errno

import pytest

from tests.fault import raw
from tests.fault.clients import (
    BAR0,
    BAR2,
    IOVA,
    PAGE,
    TEST_ADDRESS,
    TEST_COUNT,
    TEST_OFFSET,
    TEST_RUN,
    TEST_SCRATCH,
    TO_CLIENT,
    TO_DEVICE,
    finish_test_dma,
    have_test_device_ask,
    memfd,
    pattern,
    prepare_test_dma,
    run_test_dma,
    start_test_dma,
)
from tests.fault.raw import RawClient
from tests.support import ServerProcess

OLD, NEW = b"\x11" * PAGE, pattern(PAGE)


def answer(client: RawClient, request: raw.Message, data: bytes = NEW) -> None:
    """Give the device what it asked for."""
    client.send(raw.answer(request, raw.dma_range(IOVA, len(data), data)))


def test_the_write_that_starts_it_is_answered_while_it_runs(tester: RawClient) -> None:
    tester.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
    prepare_test_dma(tester)
    run = raw.register_write(BAR0, TEST_RUN, TO_DEVICE.to_bytes(4, "little"))
    tester.send(raw.frame(raw.REGION_WRITE, run))
    messages = {message.command: message for message in (tester.receive(), tester.receive())}
    assert messages[raw.REGION_WRITE].flags == raw.REPLY
    answer(tester, messages[raw.DMA_READ])
    assert finish_test_dma(tester) == 0


def test_registers_are_answered_while_it_runs(tester: RawClient) -> None:
    request = have_test_device_ask(tester)
    assert tester.read32(BAR0, TEST_RUN) == errno.EINPROGRESS
    tester.write32(BAR0, TEST_SCRATCH, 5)
    assert tester.read32(BAR0, TEST_SCRATCH) == 5
    answer(tester, request)
    assert finish_test_dma(tester) == 0
    assert tester.read(BAR2, 0, PAGE) == NEW


def test_a_second_start_is_ignored_while_it_runs(tester: RawClient) -> None:
    request = have_test_device_ask(tester)
    tester.write32(BAR0, TEST_RUN, TO_CLIENT)
    tester.write32(BAR0, TEST_RUN, 3)  # EINVAL otherwise
    assert tester.read32(BAR0, TEST_RUN) == errno.EINPROGRESS
    answer(tester, request)
    assert finish_test_dma(tester) == 0
    assert tester.quiet()


def test_it_takes_its_registers_as_they_were_when_it_started(tester: RawClient) -> None:
    tester.write(BAR2, PAGE, OLD)
    request = have_test_device_ask(tester)
    tester.write64(BAR0, TEST_ADDRESS, 0)
    tester.write64(BAR0, TEST_OFFSET, PAGE)
    tester.write32(BAR0, TEST_COUNT, 1)
    answer(tester, request)
    assert finish_test_dma(tester) == 0
    assert tester.read(BAR2, 0, 2 * PAGE) == NEW + OLD


@pytest.mark.parametrize(
    ("direction", "offset", "count"),
    [(0, 0, PAGE), (3, 0, PAGE), (TO_DEVICE, 64 << 20, 1), (TO_CLIENT, (1 << 64) - 1, 1)],
)
def test_a_start_that_makes_no_sense_is_an_error_at_once(
    tester: RawClient, direction: int, offset: int, count: int
) -> None:
    prepare_test_dma(tester, count=count)
    tester.write64(BAR0, TEST_OFFSET, offset)
    start_test_dma(tester, direction)
    assert tester.read32(BAR0, TEST_RUN) == errno.EINVAL


def test_a_reset_drops_it(tester: RawClient) -> None:
    tester.write(BAR2, 0, OLD)
    request = have_test_device_ask(tester)
    tester.done(raw.RESET)
    assert tester.read32(BAR0, TEST_RUN) == 0
    answer(tester, request)
    with memfd(PAGE) as fd:  # the next one ends when the dropped one has
        tester.done(raw.DMA_MAP, raw.dma_map(0, PAGE), [fd])
        assert run_test_dma(tester, TO_CLIENT, address=0) == 0
    assert tester.read(BAR2, 0, PAGE) == OLD


def test_it_ends_with_its_client(testdev_server: ServerProcess) -> None:
    with RawClient(testdev_server.path) as client:
        client.negotiate()
        client.done(raw.RESET)
        client.write(BAR2, 0, OLD)
        have_test_device_ask(client)
    with RawClient(testdev_server.path) as following, memfd(PAGE, NEW) as fd:
        following.sock.settimeout(4)  # less than the server waits for an answer
        following.negotiate()
        assert following.read32(BAR0, TEST_RUN) == errno.ENOTCONN
        assert following.read(BAR2, 0, PAGE) == OLD
        following.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd])
        assert run_test_dma(following, TO_DEVICE) == 0
        assert following.read(BAR2, 0, PAGE) == NEW
