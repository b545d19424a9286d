# SPDX-License-Identifier: BSD-3-Clause
"""Registers that are kicked through eventfds (specification, "VFIO_USER_DEVICE_GET_REGION_IO_FDS").

testdev declares two in BAR 0: 0x50 takes any write, 0x54 one of 4 bytes with the value 0xC0FFEE.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.fault import raw
from tests.fault.clients import BAR0, BAR2, eventfds, held, in_step
from tests.fault.raw import RawClient, unhex
from tests.support import ServerProcess, eventually, open_fds, thread_count

KICKS, MATCHED_KICKS, KICKED = 0x58, 0x5C, 0x60
MATCH = 0xC0FFEE
ROOM = 4096
ENTRIES = 2

LISTED = unhex(
    "60000000 00000000 00000000 02000000"
    "50000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000"
    "54000000 00000000 04000000 00000000 01000000 00000000 01000000 00000000 eeffc000 00000000"
)
"""The reply as the specification lays it out: 16 bytes, then 40 for each sub-region."""

BAD = {
    "no such region": (9, ROOM, 0, 0),
    "region 2^32-1": (0xFFFFFFFF, ROOM, 0, 0),
    "argsz 15": (BAR0, 15, 0, 0),
    "argsz 0": (BAR0, 0, 0, 0),
    "flags": (BAR0, ROOM, 1, 0),
    "count": (BAR0, ROOM, 0, 1),
}


def question(index: int, argsz: int = ROOM, flags: int = 0, count: int = 0) -> bytes:
    """Payload of DEVICE_GET_REGION_IO_FDS."""
    return struct.pack("<IIII", argsz, flags, index, count)


@contextmanager
def doorbells(client: RawClient) -> Iterator[tuple[int, ...]]:
    """The descriptors of BAR 0."""
    fds = client.done(raw.GET_REGION_IO_FDS, question(BAR0)).fds
    try:
        yield fds
    finally:
        raw.close(fds)


def kicks(client: RawClient) -> tuple[int, int]:
    """How many writes each doorbell has seen."""
    return client.read32(BAR0, KICKS), client.read32(BAR0, MATCHED_KICKS)


# What is listed


def test_sub_regions_are_listed_with_a_descriptor_each(tester: RawClient) -> None:
    reply = tester.done(raw.GET_REGION_IO_FDS, question(BAR0))
    raw.close(reply.fds)
    assert reply.payload == LISTED
    assert len(reply.fds) == ENTRIES


def test_exactly_enough_room_is_enough(tester: RawClient) -> None:
    reply = tester.done(raw.GET_REGION_IO_FDS, question(BAR0, len(LISTED)))
    raw.close(reply.fds)
    assert reply.payload == LISTED


@pytest.mark.parametrize("argsz", [16, 17, 56, 95])
def test_too_small_an_argsz_gets_what_is_needed_and_no_descriptors(
    tester: RawClient, argsz: int
) -> None:
    reply = tester.done(raw.GET_REGION_IO_FDS, question(BAR0, argsz))
    assert reply.payload == LISTED[:16]
    assert reply.fds == ()


@pytest.mark.parametrize("index", [1, 2, 3, 4, 5, 6, raw.CONFIG, 8])
def test_a_region_without_any_is_answered_with_none(tester: RawClient, index: int) -> None:
    reply = tester.done(raw.GET_REGION_IO_FDS, question(index))
    assert reply.payload == struct.pack("<IIII", 16, 0, index, 0)
    assert reply.fds == ()


def test_a_model_without_any_is_answered_with_none(edu_client: RawClient) -> None:
    reply = edu_client.done(raw.GET_REGION_IO_FDS, question(BAR0))
    assert reply.payload == struct.pack("<IIII", 16, 0, BAR0, 0)


@pytest.mark.parametrize("what", BAD.values(), ids=BAD)
def test_a_question_that_makes_no_sense_is_refused(
    tester: RawClient, what: tuple[int, int, int, int]
) -> None:
    assert tester.refused(raw.GET_REGION_IO_FDS, question(*what)) == errno.EINVAL
    assert in_step(tester)


@pytest.mark.parametrize("most", [0, 1])
def test_no_more_descriptors_come_than_the_client_takes(
    testdev_server: ServerProcess, most: int
) -> None:
    with RawClient(testdev_server.path) as client:
        client.negotiate(b'{"capabilities":{"max_msg_fds":%d}}\0' % most)
        reply = client.done(raw.GET_REGION_IO_FDS, question(BAR0))
        raw.close(reply.fds)
        assert reply.words("IIII") == (16 + 40 * most, 0, BAR0, most)
        assert len(reply.fds) == most


def test_asked_again_the_eventfds_are_the_same(tester: RawClient) -> None:
    with doorbells(tester) as (first, _), doorbells(tester) as (again, _):
        os.eventfd_write(first, 1)
        os.eventfd_write(again, 1)
        assert eventually(lambda: kicks(tester) == (2, 0))


# Kicks


def test_a_kick_arrives_as_a_write(tester: RawClient) -> None:
    with doorbells(tester) as (doorbell, _):
        tester.write64(BAR0, 0x50, 77)
        os.eventfd_write(doorbell, 1)
        assert eventually(lambda: kicks(tester) == (2, 0))
        assert tester.read(BAR0, KICKED, 8) == bytes(8)


def test_a_kick_with_datamatch_arrives_as_the_write_of_that_value(tester: RawClient) -> None:
    with doorbells(tester) as (_, doorbell):
        os.eventfd_write(doorbell, 1)
        assert eventually(lambda: kicks(tester) == (0, 1))
        assert tester.read32(BAR0, KICKED) == MATCH


def test_every_kick_arrives(tester: RawClient) -> None:
    with doorbells(tester) as (doorbell, matched):
        os.eventfd_write(matched, 5)
        for _ in range(100):
            os.eventfd_write(doorbell, 1)
        assert eventually(lambda: kicks(tester) == (100, 5))


def test_the_register_can_be_written_by_messages_as_well(tester: RawClient) -> None:
    tester.write32(BAR0, 0x54, MATCH)
    assert kicks(tester) == (0, 1)


def doorbell_ports(client: RawClient) -> list[int]:
    """The descriptors of the ports of ``Doorbells``."""
    return list(client.done(raw.GET_REGION_IO_FDS, question(1)).fds)


def test_ports_are_marked_as_such(serve: Callable[..., ServerProcess]) -> None:
    with RawClient(serve("tests.fault.models:Doorbells").path) as client:
        client.negotiate()
        reply = client.done(raw.GET_REGION_IO_FDS, question(1))
        raw.close(reply.fds)
        entries = list(struct.iter_unpack("<QQIIIIQ", reply.payload[16:]))
        assert entries == [
            (2, 2, 0, 0, 3, 0, 0x1234),
            (8, 8, 1, 0, 3, 0, 0x1122334455667788),
            (16, 1, 2, 0, 2, 0, 0),
        ]


@pytest.mark.parametrize(
    ("number", "offset", "width", "value"),
    [(0, 2, 2, 0x1234), (1, 8, 8, 0x1122334455667788), (2, 16, 1, 0)],
)
def test_a_kick_has_the_width_that_was_declared(
    serve: Callable[..., ServerProcess], number: int, offset: int, width: int, value: int
) -> None:
    with RawClient(serve("tests.fault.models:Doorbells").path) as client:
        client.negotiate()
        fds = doorbell_ports(client)
        os.eventfd_write(fds[number], 1)
        raw.close(fds)
        assert eventually(lambda: client.read(BAR0, 0, 8) == b"\1" + bytes(7))
        assert client.read32(BAR0, 8) == offset << 8 | width
        assert client.read(BAR0, 16, 8) == value.to_bytes(8, "little")


def test_a_model_that_fails_on_a_kick_gets_the_next(serve: Callable[..., ServerProcess]) -> None:
    with RawClient(serve("tests.fault.models:Doorbells").path) as client:
        client.negotiate()
        (failing,) = client.done(raw.GET_REGION_IO_FDS, question(BAR0)).fds
        ports = doorbell_ports(client)
        os.eventfd_write(failing, 3)
        os.eventfd_write(ports[0], 1)
        raw.close([failing, *ports])
        assert eventually(lambda: client.read(BAR0, 0, 8) == b"\1" + bytes(7))


# A client that leaves, and one that is bad


def test_the_eventfds_and_their_thread_go_with_the_client(testdev_server: ServerProcess) -> None:
    before, threads = held(testdev_server), thread_count(testdev_server.pid)
    with RawClient(testdev_server.path) as client:
        client.negotiate()
        with doorbells(client):
            assert len(open_fds(testdev_server.pid)) == before + ENTRIES + 1  # one wakes the thread
    assert held(testdev_server) == before
    assert eventually(lambda: thread_count(testdev_server.pid) <= threads)


def test_nothing_is_made_for_a_client_that_does_not_ask(testdev_server: ServerProcess) -> None:
    before = held(testdev_server)
    with RawClient(testdev_server.path) as client:
        client.negotiate()
        client.done(raw.GET_REGION_IO_FDS, question(BAR2))
        assert len(open_fds(testdev_server.pid)) == before


def test_the_eventfds_of_a_client_that_left_kick_nothing(testdev_server: ServerProcess) -> None:
    with RawClient(testdev_server.path) as client:
        client.negotiate()
        doorbell, matched = client.done(raw.GET_REGION_IO_FDS, question(BAR0)).fds
    with RawClient(testdev_server.path) as following:
        following.negotiate()
        following.done(raw.RESET)
        with doorbells(following) as (own, _):
            os.eventfd_write(doorbell, 1)
            os.eventfd_write(own, 1)
            assert eventually(lambda: kicks(following)[0] > 0)
            assert kicks(following) == (1, 0)
    raw.close([doorbell, matched])


def test_a_client_may_leave_with_kicks_without_end(testdev_server: ServerProcess) -> None:
    before = held(testdev_server)
    with RawClient(testdev_server.path) as client:
        client.negotiate()
        with doorbells(client) as fds:
            for fd in fds:
                os.eventfd_write(fd, (1 << 64) - 2)
            assert in_step(client)
    assert held(testdev_server) == before


def test_kicks_that_the_client_takes_back_block_nobody(testdev_server: ServerProcess) -> None:
    before = held(testdev_server)
    with RawClient(testdev_server.path) as client:
        client.negotiate()
        with doorbells(client) as (doorbell, _):
            flags = fcntl.fcntl(doorbell, fcntl.F_GETFL)
            fcntl.fcntl(doorbell, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
            for _ in range(500):
                os.eventfd_write(doorbell, 1)
                with suppress(BlockingIOError):
                    os.preadv(doorbell, [bytearray(8)], -1, os.RWF_NOWAIT)
            assert in_step(client)
    assert held(testdev_server) == before


def test_descriptors_with_the_question_are_refused_and_closed(
    tester: RawClient, testdev_server: ServerProcess
) -> None:
    before = len(open_fds(testdev_server.pid))
    with eventfds(1) as fds:
        assert tester.refused(raw.GET_REGION_IO_FDS, question(BAR0), fds) == errno.EINVAL
    assert len(open_fds(testdev_server.pid)) == before


def test_a_server_without_descriptors_left_refuses_and_goes_on(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("testdev")
    with RawClient(server.path) as client:
        client.negotiate()
        before = open_fds(server.pid)
        limit = max(before) + 2
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, limit))
        assert client.refused(raw.GET_REGION_IO_FDS, question(BAR0)) == errno.EMFILE
        assert open_fds(server.pid) == before
        assert in_step(client)
