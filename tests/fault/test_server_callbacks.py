# SPDX-License-Identifier: BSD-3-Clause
"""Models that answer later, that fail, and that want to know of the client's memory."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.fault import raw
from tests.fault.clients import (
    BAR0,
    IOVA,
    PAGE,
    ClientMemory,
    in_step,
    memfd,
    serves,
)
from tests.fault.raw import RawClient
from tests.support import ServerProcess, eventually

FETCH, STORED, NEVER, CANCELLED, ENODEV, NO_ERRNO, GIVEN_UP = range(0x10, 0x48, 8)
RESET_WAITS = 0x48
ERRNO, FAILS, REGISTER, MAPPED, UNMAPPED, ADDRESS, SIZE, FLAGS, SEEN = range(0x00, 0x48, 8)
ON_REGISTER, ON_RESET, ON_MAP, ON_UNMAP, ON_LEAVE = 1, 2, 4, 8, 16
VALUE = b"\x11\x22\x33\x44\x55\x66\x77\x88"


def read64(client: RawClient, offset: int) -> int:
    """A register of the models here."""
    return int.from_bytes(client.read(BAR0, offset, 8), "little")


# Answers from another thread


@pytest.fixture(scope="module")
def deferring(host: Callable[..., ServerProcess]) -> ServerProcess:
    """A server of the model that answers later."""
    return host("tests.fault.models:Deferring")


@pytest.fixture
def waiting(deferring: ServerProcess) -> Iterator[RawClient]:
    """A client of it whose memory is reached by messages."""
    with RawClient(deferring.path) as client:
        client.negotiate()
        client.done(raw.RESET)
        client.enable_bus_master()
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
        yield client


def read_request(offset: int, number: int = 0) -> bytes:
    """REGION_READ of a register."""
    return raw.frame(raw.REGION_READ, raw.region_range(BAR0, offset, 8), number=number)


def write_request(offset: int, flags: int = 0) -> bytes:
    """REGION_WRITE of a register."""
    return raw.frame(raw.REGION_WRITE, raw.register_write(BAR0, offset, bytes(8)), flags=flags)


def test_a_deferred_read_is_answered_when_the_model_is_ready(waiting: RawClient) -> None:
    memory = ClientMemory(IOVA, VALUE)
    waiting.send(read_request(FETCH))
    assert memory.answer_until_reply(waiting).payload[16:] == VALUE
    assert memory.asked == [(raw.DMA_READ, IOVA, 8)]


def test_the_next_request_is_carried_out_after_a_deferred_one(waiting: RawClient) -> None:
    waiting.send(write_request(FETCH) + read_request(STORED, number=1))
    memory = ClientMemory(IOVA, VALUE)
    assert memory.answer_until_reply(waiting).command == raw.REGION_WRITE
    assert waiting.receive().payload[16:] == VALUE


def test_a_posted_write_may_be_deferred(waiting: RawClient) -> None:
    waiting.send(write_request(FETCH, raw.NO_REPLY) + read_request(STORED))
    assert ClientMemory(IOVA, VALUE).answer_until_reply(waiting).payload[16:] == VALUE


def test_a_deferred_reset_is_answered_when_it_is_done(waiting: RawClient) -> None:
    waiting.write64(BAR0, RESET_WAITS, 2)
    waiting.done(raw.RESET)
    assert read64(waiting, STORED) == 1


def test_a_deferred_reset_may_fail(waiting: RawClient) -> None:
    waiting.write64(BAR0, RESET_WAITS, 1)
    waiting.send(raw.frame(raw.RESET))
    message = waiting.receive()
    # Config space has been reset, so the model's DMA is over before it begins.
    assert (message.command, message.flags, message.error) == (
        raw.RESET,
        raw.ERROR_REPLY,
        errno.EPERM,
    )


def test_long_transfers_are_deferred_register_by_register(waiting: RawClient) -> None:
    waiting.write64(BAR0, STORED, 0x0102030405060708)
    memory = ClientMemory(IOVA, VALUE)
    waiting.send(raw.frame(raw.REGION_READ, raw.region_range(BAR0, FETCH, 12)))
    assert (
        memory.answer_until_reply(waiting).payload[16:]
        == VALUE[:4] + bytes(4) + b"\x08\x07\x06\x05"
    )
    assert len(memory.asked) == 1


def test_a_kick_may_be_deferred(waiting: RawClient) -> None:
    question = struct.pack("<IIII", PAGE, 0, BAR0, 0)
    (doorbell,) = waiting.done(raw.GET_REGION_IO_FDS, question).fds
    os.eventfd_write(doorbell, 1)
    os.close(doorbell)
    memory = ClientMemory(IOVA, VALUE)
    memory.answer(waiting, waiting.receive())
    assert eventually(lambda: waiting.read(BAR0, STORED, 8) == VALUE)


@pytest.mark.parametrize(
    ("offset", "expected"),
    [(ENODEV, errno.ENODEV), (NO_ERRNO, errno.EIO), (GIVEN_UP, errno.ECANCELED)],
    ids=["with an errno", "without", "cancelled"],
)
def test_a_deferred_answer_that_fails_is_an_errno(
    waiting: RawClient, offset: int, expected: int
) -> None:
    assert waiting.refused(raw.REGION_READ, raw.region_range(BAR0, offset, 8)) == expected
    assert in_step(waiting)


def test_dma_that_the_client_refuses_is_an_errno_of_the_access(waiting: RawClient) -> None:
    waiting.send(read_request(FETCH))
    waiting.send(raw.refusal(waiting.receive(), errno.EFAULT))
    assert waiting.receive().error == errno.EFAULT


@pytest.mark.parametrize(
    "request_", [read_request(NEVER), write_request(NEVER)], ids=["a read", "a write"]
)
def test_a_client_that_leaves_cancels_what_it_waits_for(
    deferring: ServerProcess, request_: bytes
) -> None:
    with RawClient(deferring.path) as client:
        client.negotiate()
        client.done(raw.RESET)
        client.send(request_)
        assert client.quiet()
    with RawClient(deferring.path) as following:
        following.negotiate()
        assert read64(following, CANCELLED) == 1


def test_a_client_may_leave_while_a_kick_waits(deferring: ServerProcess) -> None:
    with RawClient(deferring.path) as client:
        client.negotiate()
        client.done(raw.RESET)
        client.enable_bus_master()
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
        question = struct.pack("<IIII", PAGE, 0, BAR0, 0)
        (doorbell,) = client.done(raw.GET_REGION_IO_FDS, question).fds
        os.eventfd_write(doorbell, 1)
        os.close(doorbell)
        assert client.receive().command == raw.DMA_READ
    assert serves(deferring)


def test_a_server_that_stops_cancels_what_is_waited_for(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("tests.fault.models:Deferring")
    with RawClient(server.path) as client:
        client.negotiate()
        client.send(read_request(NEVER))
        assert client.quiet()
        status, _ = server.stop()
        assert status == 0
        assert client.receive().error == errno.ECANCELED
        assert client.ended()


# Callbacks that fail


@pytest.fixture(scope="module")
def raising(host: Callable[..., ServerProcess]) -> ServerProcess:
    """A server of the model that fails."""
    return host("tests.fault.models:Raising")


def start_well(client: RawClient) -> None:
    """Negotiate, with nothing that fails and no account of earlier maps."""
    client.negotiate()
    have_fail(client, 0, 0)
    client.done(raw.RESET)


@pytest.fixture
def failing(raising: ServerProcess) -> Iterator[RawClient]:
    """A client of it."""
    with RawClient(raising.path) as client:
        start_well(client)
        client.enable_bus_master()
        yield client


def have_fail(client: RawClient, what: int, number: int) -> None:
    """Have callbacks fail with an errno, 0 for none."""
    client.write64(BAR0, ERRNO, number)
    client.write64(BAR0, FAILS, what)


ACCESSES = {
    "read": (ON_REGISTER, raw.REGION_READ, raw.region_range(BAR0, REGISTER, 8)),
    "write": (ON_REGISTER, raw.REGION_WRITE, raw.register_write(BAR0, REGISTER, bytes(8))),
    "write multi": (ON_REGISTER, raw.WRITE_MULTI, raw.write_multi((BAR0, REGISTER, bytes(8)))),
    "reset": (ON_RESET, raw.RESET, b""),
    "map": (ON_MAP, raw.DMA_MAP, raw.dma_map(IOVA, PAGE)),
}


NUMBERS = {
    "an errno": (errno.ENODEV, errno.ENODEV),
    "none": (0, errno.EIO),
    "a negative one": (0xFFFFFFFF, errno.EIO),
    "one that does not exist": (4096, errno.EIO),
}


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("access", ACCESSES.values(), ids=ACCESSES)
def test_a_callback_that_fails_is_an_errno(
    failing: RawClient, access: tuple[int, int, bytes], numbers: tuple[int, int]
) -> None:
    (what, command, payload), (number, told) = access, numbers
    have_fail(failing, what, number)
    assert failing.refused(command, payload) == told
    have_fail(failing, 0, 0)
    failing.done(command, payload)


def test_a_posted_write_that_the_model_fails_is_not_answered(failing: RawClient) -> None:
    have_fail(failing, ON_REGISTER, errno.ENODEV)
    failing.send(write_request(REGISTER, raw.NO_REPLY))
    assert in_step(failing)


def test_write_multi_says_how_many_were_done_before_one_failed(failing: RawClient) -> None:
    have_fail(failing, ON_REGISTER, errno.ENODEV)
    writes = [(BAR0, at, VALUE) for at in (0x80, 0x88, REGISTER, 0x90)]
    reply = failing.done(raw.WRITE_MULTI, raw.write_multi(*writes))
    assert reply.payload == struct.pack("<Q", 2)
    assert [failing.read(BAR0, at, 8) for at in (0x80, 0x88, 0x90)] == [VALUE, VALUE, bytes(8)]


def test_a_model_that_fails_when_its_client_leaves_gets_the_next(raising: ServerProcess) -> None:
    with RawClient(raising.path) as client, memfd(PAGE) as fd:
        start_well(client)
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd])
        have_fail(client, ON_LEAVE | ON_UNMAP, 0)
    with RawClient(raising.path) as following:
        following.negotiate()
        assert read64(following, UNMAPPED) == 1


def test_a_model_that_fails_when_it_is_closed_leaves_nothing_behind(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("tests.fault.models:FailsWhenClosed")
    status, said = server.stop()
    assert status == 0
    assert "a mistake of the model" in said
    assert not server.path.exists()


# Maps


@pytest.mark.parametrize("flags", [1, 2, 3])
def test_the_model_is_told_of_a_map(failing: RawClient, flags: int) -> None:
    failing.done(raw.DMA_MAP, raw.dma_map(IOVA, 2 * PAGE, flags=flags))
    told = [read64(failing, at) for at in (MAPPED, UNMAPPED, ADDRESS, SIZE, FLAGS)]
    assert told == [1, 0, IOVA, 2 * PAGE, flags]


def test_the_model_is_not_told_of_a_map_that_makes_no_sense(failing: RawClient) -> None:
    failing.refused(raw.DMA_MAP, raw.dma_map(IOVA, 1))
    assert read64(failing, MAPPED) == 0


def test_the_model_is_told_of_an_unmap_while_the_memory_can_be_reached(
    failing: RawClient,
) -> None:
    with memfd(PAGE, VALUE) as fd:
        failing.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd])
        failing.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, PAGE))
    assert failing.read(BAR0, SEEN, 8) == VALUE
    told = [read64(failing, at) for at in (MAPPED, UNMAPPED, ADDRESS, SIZE)]
    assert told == [1, 1, IOVA, PAGE]


@pytest.mark.parametrize(
    "request_",
    [raw.dma_unmap(IOVA, 16 * PAGE), raw.dma_unmap(0, 0, flags=2)],
    ids=["a range", "all"],
)
def test_the_model_is_told_of_each_map_that_goes(failing: RawClient, request_: bytes) -> None:
    with memfd(PAGE) as fd:
        for number in range(4):
            failing.done(raw.DMA_MAP, raw.dma_map(IOVA + 2 * number * PAGE, PAGE), [fd])
    failing.done(raw.DMA_UNMAP, request_)
    assert [read64(failing, at) for at in (MAPPED, UNMAPPED)] == [4, 4]


def test_a_map_that_the_model_refuses_is_undone(failing: RawClient, raising: ServerProcess) -> None:
    have_fail(failing, ON_MAP, errno.EBUSY)
    with memfd(PAGE, VALUE) as fd:
        assert failing.refused(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd]) == errno.EBUSY
        assert "memfd:raw" not in maps_of(raising)
        have_fail(failing, 0, 0)
        failing.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd])
        assert "memfd:raw" in maps_of(raising)
    assert read64(failing, UNMAPPED) == 0


def test_a_failing_unmap_is_told_and_the_memory_is_gone(
    failing: RawClient, raising: ServerProcess
) -> None:
    with memfd(PAGE, VALUE) as fd:
        for address in (IOVA, IOVA + PAGE):
            failing.done(raw.DMA_MAP, raw.dma_map(address, PAGE), [fd])
        have_fail(failing, ON_UNMAP, errno.EBUSY)
        assert failing.refused(raw.DMA_UNMAP, raw.dma_unmap(IOVA, 2 * PAGE)) == errno.EBUSY
        assert "memfd:raw" not in maps_of(raising)
        assert read64(failing, UNMAPPED) == 2
        failing.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, 2 * PAGE))


def test_the_model_is_told_of_what_a_lost_client_leaves_behind(raising: ServerProcess) -> None:
    with RawClient(raising.path) as client, memfd(PAGE, VALUE) as fd:
        start_well(client)
        client.enable_bus_master()
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd])
        client.done(raw.DMA_MAP, raw.dma_map(0, PAGE))
    with RawClient(raising.path) as following:
        following.negotiate()
        assert read64(following, UNMAPPED) == 2
        assert (read64(following, ADDRESS), following.read(BAR0, SEEN, 8)) == (IOVA, VALUE)


def maps_of(server: ServerProcess) -> str:
    """What the server's process has mapped."""
    with open(f"/proc/{server.pid}/maps") as maps:
        return maps.read()
