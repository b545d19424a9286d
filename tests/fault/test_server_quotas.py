# SPDX-License-Identifier: BSD-3-Clause
"""What one client may take of a server: more is refused with an errno, and harms nobody."""

from __future__ import annotations

import errno
import os
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from pyvfio.server.quotas import Quotas
from pyvfio.transport.send_queue import MAX_QUEUED_FDS
from tests.fault import raw
from tests.fault.clients import (
    ASKING,
    BAR2,
    IOVA,
    PAGE,
    eventfds,
    have_callback_ask,
    held,
    in_step,
    memfd,
    serves,
)
from tests.fault.moving import data_read, feature
from tests.fault.raw import RawClient
from tests.fault.raw_migration import GET
from tests.support import ServerProcess, eventually, in_threads, open_fds, resident

MAX_MAPS, MAX_MAPPED, MAX_FDS, MAX_DATA, MAX_QUEUED = 4, 8 * PAGE, 3, 4096, 1 << 20
OPTIONS = (
    f"--max-maps={MAX_MAPS}",
    f"--max-mapped={MAX_MAPPED // 1024}K",
    f"--max-descriptors={MAX_FDS}",
    f"--max-data={MAX_DATA}",
    "--max-queued=1m",
)
OFFER = (
    b'{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576,"max_dma_maps":65535,'
    b'"pgsizes":4096,"write_multiple":true,"pyvfio_long_writes":true}}\0'
)


@pytest.fixture(scope="module")
def small(host: Callable[..., ServerProcess]) -> ServerProcess:
    """A test device whose clients may take little."""
    return host("testdev", *OPTIONS)


@pytest.fixture(scope="module")
def asking(host: Callable[..., ServerProcess]) -> ServerProcess:
    """The same of a model that asks for memory in a callback."""
    return host(ASKING, *OPTIONS)


@pytest.fixture
def client(small: ServerProcess) -> Iterator[RawClient]:
    """A client of it."""
    with RawClient(small.path) as found:
        found.negotiate()
        found.done(raw.RESET)
        yield found


# What is announced


def test_quotas_are_announced_where_there_is_a_key(small: ServerProcess) -> None:
    with RawClient(small.path) as client:
        assert client.negotiate(OFFER).payload[4:] == (
            b'{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":4096,"max_dma_maps":4,'
            b'"pgsizes":4096,"write_multiple":true,"pyvfio_long_writes":true}}\0'
        )


@pytest.mark.parametrize("text", [b"", b'{"capabilities":{"pyvfio_long_writes":false}}\0'])
def test_long_writes_are_not_announced_unasked(small: ServerProcess, text: bytes) -> None:
    with RawClient(small.path) as client:
        assert b"long_writes" not in client.negotiate(text).payload


# Maps


def test_maps_beyond_the_quota_are_refused(client: RawClient) -> None:
    for number in range(MAX_MAPS):
        client.done(raw.DMA_MAP, raw.dma_map(number * PAGE, PAGE))
    beyond = raw.dma_map(MAX_MAPS * PAGE, PAGE)
    assert client.refused(raw.DMA_MAP, beyond) == errno.ENOSPC
    client.done(raw.DMA_UNMAP, raw.dma_unmap(0, PAGE))
    client.done(raw.DMA_MAP, beyond)


def test_mapped_bytes_beyond_the_quota_are_refused(client: RawClient) -> None:
    with memfd(MAX_MAPPED + PAGE) as fd:
        client.done(raw.DMA_MAP, raw.dma_map(0, MAX_MAPPED), [fd])
        beyond = raw.dma_map(1 << 32, PAGE)
        assert client.refused(raw.DMA_MAP, beyond, [fd]) == errno.EDQUOT
        client.done(raw.DMA_UNMAP, raw.dma_unmap(0, 0, flags=2))
        client.done(raw.DMA_MAP, beyond, [fd])


def test_maps_reached_by_messages_take_no_mapped_bytes(client: RawClient) -> None:
    client.done(raw.DMA_MAP, raw.dma_map(0, 1 << 40))


def test_a_refused_map_takes_nothing(client: RawClient) -> None:
    with memfd(MAX_MAPPED) as fd:
        for _ in range(3):
            client.refused(raw.DMA_MAP, raw.dma_map(0, MAX_MAPPED, offset=PAGE), [fd])
        client.done(raw.DMA_MAP, raw.dma_map(0, MAX_MAPPED), [fd])


# Descriptors


def set_eventfds(start: int, count: int) -> bytes:
    """Payload of SET_IRQS for MSI-X vectors."""
    return raw.irq_set(raw.EVENTFD | raw.TRIGGER, raw.MSIX, start, count)


def test_eventfds_beyond_the_quota_are_refused_and_closed(
    client: RawClient, small: ServerProcess
) -> None:
    with eventfds(MAX_FDS + 1) as fds:
        client.done(raw.SET_IRQS, set_eventfds(0, MAX_FDS), fds[:MAX_FDS])
        assert client.refused(raw.SET_IRQS, set_eventfds(8, 1), fds[:1]) == errno.EMFILE
        intx = raw.irq_set(raw.EVENTFD | raw.TRIGGER, raw.INTX, 0, 1)
        assert client.refused(raw.SET_IRQS, intx, fds[:1]) == errno.EMFILE
        client.close()
    assert serves(small)


def test_eventfds_may_be_replaced_and_taken_away_at_the_quota(client: RawClient) -> None:
    with eventfds(MAX_FDS) as fds:
        client.done(raw.SET_IRQS, set_eventfds(0, MAX_FDS), fds)
        client.done(raw.SET_IRQS, set_eventfds(0, MAX_FDS), fds)
        client.done(raw.SET_IRQS, set_eventfds(1, 1))
        client.done(raw.SET_IRQS, set_eventfds(20, 1), fds[:1])


# Data


@pytest.mark.parametrize("count", [MAX_DATA + 1, MAX_DATA + 4096])
def test_data_beyond_the_quota_is_refused(client: RawClient, count: int) -> None:
    request = raw.region_range(BAR2, 0, count)
    assert client.refused(raw.REGION_READ, request) == errno.EINVAL
    request = raw.register_write(BAR2, 0, bytes(count))
    assert client.refused(raw.REGION_WRITE, request) == errno.EINVAL
    assert in_step(client)


def test_data_up_to_the_quota_is_served(client: RawClient) -> None:
    client.write(BAR2, 0, b"\x5a" * MAX_DATA)
    assert client.read(BAR2, 0, MAX_DATA) == b"\x5a" * MAX_DATA


def test_a_message_beyond_all_quotas_ends_the_connection(small: ServerProcess) -> None:
    with RawClient(small.path) as client:
        client.negotiate()
        client.send(struct.pack("<HHIII", 1, raw.REGION_WRITE, 1 << 20, 0, 0))
        assert client.ended()
    assert serves(small)


# The queue


COSTLY = {
    "data": (raw.REGION_WRITE, raw.register_write(BAR2, 0, bytes(MAX_DATA))),
    "reads": (raw.REGION_READ, raw.region_range(BAR2, 0, MAX_DATA)),
    "reads of migration data": (raw.MIG_DATA_READ, data_read(MAX_DATA)),
    "features": (raw.DEVICE_FEATURE, feature(GET, argsz=MAX_DATA)),
}
"""What is sent, or has to be answered with, MAX_DATA bytes."""


@pytest.mark.parametrize(("command", "payload"), COSTLY.values(), ids=COSTLY)
def test_a_client_that_queues_too_much_while_it_is_asked_is_cut_off(
    asking: ServerProcess, command: int, payload: bytes
) -> None:
    request = raw.frame(command, payload)
    with RawClient(asking.path) as client:
        client.negotiate()
        have_callback_ask(client)
        with suppress(ConnectionError):  # cut off before the end
            for _ in range(2 * MAX_QUEUED // MAX_DATA):
                client.send(request)
        assert client.ended()
    assert serves(asking)


def test_descriptors_queued_while_it_is_asked_cut_a_client_off(asking: ServerProcess) -> None:
    before = held(asking)
    with RawClient(asking.path) as client, eventfds(1) as (fd,):
        client.negotiate()
        have_callback_ask(client)
        message = raw.frame(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
        with suppress(ConnectionError):
            for _ in range(4):
                client.send(message, [fd] * 250)
        assert client.ended()
    assert held(asking) == before


def test_a_client_that_pipelines_without_being_asked_is_made_to_wait(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("testdev", *OPTIONS)
    message = raw.frame(
        raw.REGION_WRITE, raw.register_write(BAR2, 0, bytes(MAX_DATA)), flags=raw.NO_REPLY
    )
    with RawClient(server.path) as client:
        client.negotiate()
        before = resident(server.pid)
        for _ in range(8 * MAX_QUEUED // MAX_DATA):
            client.send(message)
        assert in_step(client)
        assert resident(server.pid) - before < 4 * MAX_QUEUED


def test_descriptors_for_a_client_that_does_not_read_are_not_piled_up(
    testdev_server: ServerProcess,
) -> None:
    before = held(testdev_server)
    question = raw.frame(raw.GET_REGION_INFO, raw.region_info(BAR2, 80))
    count = 2000
    with RawClient(testdev_server.path) as client:
        client.negotiate()
        (sending,) = in_threads([lambda: client.send(question * count)])
        most = before + MAX_QUEUED_FDS
        piled_up = eventually(lambda: len(open_fds(testdev_server.pid)) > most, seconds=1)
        for _ in range(count):
            (fd,) = client.receive().fds
            os.close(fd)
        sending.join()
    assert not piled_up


def test_a_server_without_descriptors_serves_the_next_client_when_it_has_some(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("edu")
    taken = open_fds(server.pid)
    limit = next(fd for fd in range(1024) if fd not in taken)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, limit + 100))
    with RawClient(server.path) as client:
        client.send(raw.frame(raw.VERSION, raw.version()))
        assert client.quiet(1.5)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit + 100, limit + 100))
        assert client.receive().command == raw.VERSION
    _, said = server.stop()
    assert 1 <= said.count("cannot accept a client") <= 5  # once a second, not all the time


# The dataclass


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_maps": 0},
        {"max_maps": 65536},
        {"max_mapped": -1},
        {"max_descriptors": 0},
        {"max_data": 7},
        {"max_data": (64 << 20) + 1},
        {"max_queued": 1 << 20},
        {"max_state": -1},
        {"max_state": (1 << 31) + 1},
    ],
    ids=str,
)
def test_quotas_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Quotas(**wrong)
