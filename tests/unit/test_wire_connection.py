# SPDX-License-Identifier: BSD-3-Clause
"""The codec as a state machine: one end fed with what the other end, or nobody sane, sends."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio.errors import LocalProtocolError, RemoteProtocolError
from pyvfio.wire import messages as m
from pyvfio.wire.commands import COMMANDS, Role
from pyvfio.wire.connection import (
    MAX_OVERHEAD,
    Connection,
    ErrorReceived,
    Event,
    ReplyDropped,
    ReplyInvalid,
    ReplyReceived,
    RequestInvalid,
    RequestReceived,
)
from pyvfio.wire.header import Command
from pyvfio.wire.version import MAX_FDS
from tests.unit.wire_examples import (
    BY_COMMAND,
    ERROR,
    EXAMPLES,
    MAX_DATA,
    MODERATE,
    NO_REPLY,
    REPLY,
    Chunk,
    ConnectionPair,
    Turn,
    advance,
    asked,
    cut,
    fed,
    frame,
    glued,
    joined,
    turns,
    written,
)

EVENTS = get_args(Event)
ROLES = [pytest.param(role, id=role.value) for role in Role]
EVERY_COMMAND = [pytest.param(command, id=name) for command, name in BY_COMMAND]
READ, RESET = Command.REGION_READ, Command.DEVICE_RESET
RESET_REQUEST = frame(5, RESET)


@pytest.fixture
def pair() -> ConnectionPair:
    return ConnectionPair()


@pytest.fixture
def client() -> Connection:
    return Connection(Role.CLIENT, MAX_DATA)


@pytest.fixture
def server() -> Connection:
    return Connection(Role.SERVER, MAX_DATA)


# A request and its answer


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_request_arrives_at_the_other_end(command: Command, pair: ConnectionPair) -> None:
    request = pair.ask(command, EXAMPLES[command].request)
    assert (request.command, request.message) == (command, EXAMPLES[command].request)
    assert not request.no_reply


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_reply_arrives_with_the_token_of_its_request(
    command: Command, pair: ConnectionPair
) -> None:
    request = pair.ask(command, EXAMPLES[command].request, token="token")
    event = pair.answer(request, EXAMPLES[command].reply)
    assert event == ReplyReceived("token", EXAMPLES[command].reply)


def test_event_of_a_request_tells_the_size_of_its_message(pair: ConnectionPair) -> None:
    assert pair.ask(Command.REGION_WRITE, m.RegionWrite(0, 0, bytes(100))).size == 16 + 16 + 100


def test_replies_may_come_in_any_order(pair: ConnectionPair) -> None:
    first = pair.ask(READ, m.RegionRead(0, 0, 1), token="first")
    second = pair.ask(READ, m.RegionRead(8, 0, 1), token="second")
    answers = [
        pair.answer(second, m.RegionData(8, 0, b"2")),
        pair.answer(first, m.RegionData(0, 0, b"1")),
    ]
    assert answers == [
        ReplyReceived("second", m.RegionData(8, 0, b"2")),
        ReplyReceived("first", m.RegionData(0, 0, b"1")),
    ]


def test_both_ends_may_ask_with_the_same_id_at_one_time(pair: ConnectionPair) -> None:
    ours = pair.ask(RESET, m.Empty(), token="ours")
    theirs = pair.ask(Command.DMA_READ, m.DMARead(0, 1), token="theirs")
    assert ours.id == theirs.id
    assert pair.answer(ours, m.Empty()) == ReplyReceived("ours", m.Empty())
    assert pair.answer(theirs, m.DMAData(0, b"1")) == ReplyReceived("theirs", m.DMAData(0, b"1"))


def test_the_peer_may_use_one_id_for_all_its_requests(server: Connection) -> None:
    events = server.receive_data(RESET_REQUEST * 3)
    assert [event.id for event in events if isinstance(event, RequestReceived)] == [5, 5, 5]


def test_request_that_wants_no_reply_says_so(pair: ConnectionPair) -> None:
    assert pair.ask(RESET, m.Empty(), no_reply=True).no_reply


def test_reserved_error_number_of_a_request_is_ignored(server: Connection) -> None:
    [event] = server.receive_data(frame(5, RESET, error=7))
    assert isinstance(event, RequestReceived)


# Ids


def number_of(connection: Connection, **options: Any) -> int:
    """The id of one more request."""
    number, _ = connection.request(RESET, m.Empty(), **options)
    return number


def test_ids_count_up_from_0(client: Connection) -> None:
    assert [number_of(client) for _ in range(3)] == [0, 1, 2]


def test_ids_begin_again_behind_32767(client: Connection) -> None:
    advance(client, 32767)
    assert [number_of(client, no_reply=True) for _ in range(2)] == [32767, 0]


def test_id_that_waits_for_its_reply_is_skipped(client: Connection) -> None:
    number_of(client)
    advance(client, 32767)
    assert number_of(client) == 1


def test_id_that_was_given_up_is_skipped_until_its_reply_came(client: Connection) -> None:
    client.abandon(number_of(client))
    advance(client, 32767)
    assert number_of(client) == 1


def test_id_without_reply_is_free_at_once(client: Connection) -> None:
    for _ in range(32768 + 2):
        number = number_of(client, no_reply=True)
    assert number == 1


def test_the_65537th_unanswered_request_is_refused(client: Connection) -> None:
    for _ in range(32768):
        number_of(client)
    with pytest.raises(LocalProtocolError, match="unanswered"):
        number_of(client)


def test_the_one_id_that_was_answered_is_used_next(client: Connection) -> None:
    for _ in range(32768):
        number_of(client)
    client.receive_data(frame(1234, RESET, flags=REPLY))
    assert number_of(client) == 1234


# What this side must not do


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_command_of_the_other_role_is_refused(command: Command, pair: ConnectionPair) -> None:
    wrong = pair.receiver(command)
    with pytest.raises(LocalProtocolError, match=command.name):
        wrong.request(command, EXAMPLES[command].request)


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_request_with_the_payload_of_another_command_is_refused(
    command: Command, pair: ConnectionPair
) -> None:
    other = m.Empty() if command is not RESET else m.RegionRead(0, 0, 4)
    with pytest.raises(LocalProtocolError, match=command.name):
        pair.sender(command).request(command, other)


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_reply_with_the_payload_of_another_command_is_refused(
    command: Command, pair: ConnectionPair
) -> None:
    request = pair.ask(command, EXAMPLES[command].request)
    other: m.Message = m.Empty()
    if isinstance(EXAMPLES[command].reply, m.Empty):
        other = m.MigData(b"")
    with pytest.raises(LocalProtocolError, match=command.name):
        pair.receiver(command).reply(request, other)


def test_reply_to_a_request_that_wants_none_is_refused(pair: ConnectionPair) -> None:
    request = pair.ask(RESET, m.Empty(), no_reply=True)
    with pytest.raises(LocalProtocolError, match="wants no reply"):
        pair.server.reply(request, m.Empty())


def test_error_reply_to_a_request_that_wants_none_is_refused(pair: ConnectionPair) -> None:
    request = pair.ask(RESET, m.Empty(), no_reply=True)
    with pytest.raises(LocalProtocolError, match="wants no reply"):
        pair.server.error(request, errno.EINVAL)


def test_refused_request_leaves_nothing_pending(client: Connection) -> None:
    with pytest.raises(LocalProtocolError):
        client.request(RESET, m.RegionRead(0, 0, 4))
    assert not client.has_pending()


# Error replies


def test_error_reply_gives_the_number_to_the_request(pair: ConnectionPair) -> None:
    request = pair.ask(RESET, m.Empty(), token="token")
    assert pair.refuse(request, errno.EBUSY) == ErrorReceived("token", errno.EBUSY)


def test_error_reply_is_a_header_alone(pair: ConnectionPair) -> None:
    request = pair.ask(READ, m.RegionRead(0, 0, 4))
    sent = joined(pair.server.error(request, errno.EFAULT))
    assert sent == frame(0, READ, flags=ERROR, error=errno.EFAULT)


def test_invalid_request_is_answered_with_its_errno(pair: ConnectionPair) -> None:
    pair.client.request(READ, m.RegionRead(0, 0, 4), "token")
    [invalid] = pair.server.receive_data(frame(0, READ, b"short"))
    assert isinstance(invalid, RequestInvalid)
    assert pair.refuse(invalid, invalid.errno) == ErrorReceived("token", errno.EINVAL)


def test_error_reply_without_number_is_eio(client: Connection) -> None:
    client.request(RESET, m.Empty(), "token")
    events = client.receive_data(frame(0, RESET, flags=ERROR, error=0))
    assert events == [ErrorReceived("token", errno.EIO)]


@pytest.mark.parametrize("number", [1 << 31, (1 << 32) - 22, (1 << 32) - 1])
def test_number_of_an_error_reply_is_one_that_the_system_can_name(
    number: int, client: Connection
) -> None:
    client.request(RESET, m.Empty())
    [event] = client.receive_data(frame(0, RESET, flags=ERROR, error=number))
    assert isinstance(event, ErrorReceived)
    assert os.strerror(event.errno)


ECHOED = {
    "region_write": (Command.REGION_WRITE, m.RegionWrite(0x10, 0, bytes(100)), 116),
    "dma_map": (Command.DMA_MAP, m.DMAMap(3, 0, 0, 4096), 32),
    "region_read-full": (READ, m.RegionRead(0x10, 0, 100), 116),
    "set_irqs": (Command.DEVICE_SET_IRQS, m.SetIRQs(0x22, 0, 0, 4, bytes(4)), 24),
}
"""Requests with the longest payload that is taken behind an error."""


@pytest.mark.parametrize(("command", "request_", "size"), ECHOED.values(), ids=ECHOED)
def test_error_reply_may_send_the_request_back(
    command: Command, request_: m.Request, size: int, client: Connection
) -> None:
    client.request(command, request_, "token")
    events = client.receive_data(frame(0, command, bytes(size), flags=ERROR, error=errno.EPERM))
    assert events == [ErrorReceived("token", errno.EPERM)]


@pytest.mark.parametrize(("command", "request_", "size"), ECHOED.values(), ids=ECHOED)
def test_error_reply_longer_than_request_and_reply_breaks_the_stream(
    command: Command, request_: m.Request, size: int, client: Connection
) -> None:
    client.request(command, request_, "token")
    with pytest.raises(RemoteProtocolError):
        client.receive_data(frame(0, command, bytes(size + 1), flags=ERROR, error=errno.EPERM))


def test_stream_is_in_step_behind_an_error_with_payload(client: Connection) -> None:
    client.request(READ, m.RegionRead(0, 0, 4), "first")
    client.request(RESET, m.Empty(), "second")
    refusal = frame(0, READ, b"whatever", flags=ERROR, error=errno.EPERM)
    events = client.receive_data(refusal + frame(1, RESET, flags=REPLY))
    assert events == [ErrorReceived("first", errno.EPERM), ReplyReceived("second", m.Empty())]


# Replies that break the stream


def broken_by(connection: Connection, data: bytes) -> str:
    """How ``data`` breaks the protocol."""
    with pytest.raises(RemoteProtocolError) as caught:
        connection.receive_data(data)
    return caught.value.reason


def test_reply_that_was_never_asked_for_breaks_the_stream(client: Connection) -> None:
    assert "never asked" in broken_by(client, frame(0, RESET, flags=REPLY))


def test_second_reply_breaks_the_stream(client: Connection) -> None:
    client.request(RESET, m.Empty())
    client.receive_data(frame(0, RESET, flags=REPLY))
    assert "never asked" in broken_by(client, frame(0, RESET, flags=REPLY))


def test_reply_to_a_request_that_wanted_none_breaks_the_stream(client: Connection) -> None:
    client.request(RESET, m.Empty(), no_reply=True)
    assert "never asked" in broken_by(client, frame(0, RESET, flags=REPLY))


def test_reply_with_another_id_breaks_the_stream(client: Connection) -> None:
    client.request(RESET, m.Empty())
    assert "never asked" in broken_by(client, frame(1, RESET, flags=REPLY))


@pytest.mark.parametrize("flags", [REPLY, ERROR], ids=["reply", "error"])
def test_reply_to_another_command_breaks_the_stream(flags: int, client: Connection) -> None:
    client.request(RESET, m.Empty())
    assert "answers request 0" in broken_by(client, frame(0, READ, flags=flags))


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_reply_longer_than_the_request_allows_breaks_the_stream(
    command: Command, pair: ConnectionPair
) -> None:
    request = EXAMPLES[command].request
    pair.ask(command, request)
    reply = frame(0, command, bytes(request.reply_limit() + 1), flags=REPLY)
    assert command.name in broken_by(pair.sender(command), reply)


# Replies that do not answer


NOT_ANSWERING: dict[str, tuple[Command, m.Request, m.Message]] = {
    "read-region": (READ, m.RegionRead(8, 1, 4), m.RegionData(8, 2, b"1234")),
    "read-offset": (READ, m.RegionRead(8, 1, 4), m.RegionData(9, 1, b"1234")),
    "write-region": (Command.REGION_WRITE, m.RegionWrite(8, 1, b"12"), m.RegionWritten(8, 2, 2)),
    "write-offset": (Command.REGION_WRITE, m.RegionWrite(8, 1, b"12"), m.RegionWritten(9, 1, 2)),
    "write-count": (Command.REGION_WRITE, m.RegionWrite(8, 1, b"12"), m.RegionWritten(8, 1, 3)),
    "multi-count": (
        Command.REGION_WRITE_MULTI,
        m.RegionWriteMulti((m.RegionWrite(0, 0, b"1"),)),
        m.RegionWriteMultiDone(2),
    ),
    "dma-address": (Command.DMA_READ, m.DMARead(0x1000, 4), m.DMAData(0x2000, b"1234")),
    "dma-count": (Command.DMA_READ, m.DMARead(0x1000, 4), m.DMAData(0x1000, b"123")),
    "unmap-address": (
        Command.DMA_UNMAP,
        m.DMAUnmap(0, 0x1000, 0x1000),
        m.DMAUnmap(0, 0x2000, 0x1000),
    ),
    "unmap-size": (
        Command.DMA_UNMAP,
        m.DMAUnmap(0, 0x1000, 0x1000),
        m.DMAUnmap(0, 0x1000, 0x2000),
    ),
    "region-index": (
        Command.DEVICE_GET_REGION_INFO,
        m.GetRegionInfo(1),
        m.RegionInfo(32, 0, 2, 0, 0, 0),
    ),
    "io-fds-index": (
        Command.DEVICE_GET_REGION_IO_FDS,
        m.GetRegionIOFDs(1, 16),
        m.RegionIOFDs(16, 2, 0),
    ),
    "irq-index": (Command.DEVICE_GET_IRQ_INFO, m.GetIRQInfo(1), m.IRQInfo(1, 2, 1)),
    "feature-number": (
        Command.DEVICE_FEATURE,
        m.DeviceFeature(16, 0x1_0001),
        m.DeviceFeature(16, 0x1_0002),
    ),
    "feature-method": (
        Command.DEVICE_FEATURE,
        m.DeviceFeature(16, 0x1_0001),
        m.DeviceFeature(16, 0x2_0001),
    ),
}


@pytest.mark.parametrize(
    ("command", "request_", "reply"), NOT_ANSWERING.values(), ids=NOT_ANSWERING
)
def test_reply_that_echoes_something_else_is_invalid(
    command: Command, request_: m.Request, reply: m.Message, pair: ConnectionPair
) -> None:
    event = pair.answer(pair.ask(command, request_, token="token"), reply)
    assert isinstance(event, ReplyInvalid)
    assert event.token == "token"


SHORTER = {
    "read": (READ, m.RegionRead(8, 1, 4), m.RegionData(8, 1, b"123")),
    "read-of-nothing": (READ, m.RegionRead(8, 1, 4), m.RegionData(0, 0, b"")),
    "write": (Command.REGION_WRITE, m.RegionWrite(8, 1, b"12"), m.RegionWritten(8, 1, 1)),
    "write-of-nothing": (
        Command.REGION_WRITE,
        m.RegionWrite(8, 1, b"12"),
        m.RegionWritten(8, 1, 0),
    ),
    "multi": (
        Command.REGION_WRITE_MULTI,
        m.RegionWriteMulti((m.RegionWrite(0, 0, b"1"),)),
        m.RegionWriteMultiDone(0),
    ),
    "migration": (Command.MIG_DATA_READ, m.MigDataRead(4), m.MigData(b"123")),
}


@pytest.mark.parametrize(("command", "request_", "reply"), SHORTER.values(), ids=SHORTER)
def test_reply_may_say_that_less_was_done(
    command: Command, request_: m.Request, reply: m.Message, pair: ConnectionPair
) -> None:
    event = pair.answer(pair.ask(command, request_, token="token"), reply)
    assert event == ReplyReceived("token", reply)


def test_stream_is_in_step_behind_an_invalid_reply(client: Connection) -> None:
    client.request(READ, m.RegionRead(0, 0, 4), "first")
    client.request(RESET, m.Empty(), "second")
    invalid = frame(0, READ, b"short", flags=REPLY)
    events = client.receive_data(invalid + frame(1, RESET, flags=REPLY))
    assert isinstance(events[0], ReplyInvalid)
    assert events[1:] == [ReplyReceived("second", m.Empty())]


def test_invalid_reply_ends_the_wait_for_one(client: Connection) -> None:
    client.request(READ, m.RegionRead(0, 0, 4))
    client.receive_data(frame(0, READ, b"short", flags=REPLY))
    assert not client.has_pending()


# Requests that were given up


def test_late_reply_is_dropped(client: Connection) -> None:
    number, _ = client.request(READ, m.RegionRead(0, 0, 4))
    client.abandon(number)
    reply = frame(number, READ, bytes(20), flags=REPLY)
    assert client.receive_data(reply, [7]) == [ReplyDropped(number, (7,))]


def test_stream_is_in_step_behind_a_late_reply(client: Connection) -> None:
    client.abandon(client.request(READ, m.RegionRead(0, 0, 4))[0])
    client.request(RESET, m.Empty(), "token")
    late = frame(0, READ, bytes(20), flags=REPLY)
    events = client.receive_data(late + frame(1, RESET, flags=REPLY))
    assert events == [ReplyDropped(0), ReplyReceived("token", m.Empty())]


@pytest.mark.parametrize(
    "late",
    [
        frame(0, READ, b"short", flags=REPLY),
        frame(0, READ, flags=ERROR, error=errno.EIO),
        frame(0, READ, b"payload", flags=ERROR, error=errno.EIO),
    ],
    ids=["invalid", "error", "error-with-payload"],
)
def test_late_reply_of_any_kind_is_dropped(late: bytes, client: Connection) -> None:
    client.abandon(client.request(READ, m.RegionRead(0, 0, 4))[0])
    assert client.receive_data(late) == [ReplyDropped(0)]


def test_reply_may_be_given_up_in_the_midst_of_its_arrival(client: Connection) -> None:
    reply = frame(0, READ, bytes(20), flags=REPLY)
    client.request(READ, m.RegionRead(0, 0, 4))
    client.receive_data(reply[:20])
    client.abandon(0)
    assert client.receive_data(reply[20:]) == [ReplyDropped(0)]


def test_late_reply_is_dropped_once(client: Connection) -> None:
    client.abandon(number_of(client))
    client.receive_data(frame(0, RESET, flags=REPLY))
    assert "never asked" in broken_by(client, frame(0, RESET, flags=REPLY))


def test_abandon_tells_whether_the_reply_was_still_awaited(client: Connection) -> None:
    number = number_of(client)
    assert client.abandon(number)
    client.receive_data(frame(number, RESET, flags=REPLY))
    assert not client.abandon(number)


# What waits for a reply


def test_request_waits_until_its_reply_comes(client: Connection) -> None:
    number_of(client)
    assert client.has_pending()
    client.receive_data(frame(0, RESET, flags=REPLY))
    assert not client.has_pending()


def test_request_that_wants_no_reply_does_not_wait(client: Connection) -> None:
    number_of(client, no_reply=True)
    assert not client.has_pending()


def test_request_that_was_given_up_does_not_wait(client: Connection) -> None:
    client.abandon(number_of(client))
    assert not client.has_pending()


def test_take_pending_gives_the_tokens_of_all_that_wait(client: Connection) -> None:
    for token in ("first", "given up", "last"):
        client.request(RESET, m.Empty(), token)
    client.abandon(1)
    assert client.take_pending() == ["first", "last"]


def test_take_pending_leaves_nothing_waiting(client: Connection) -> None:
    number_of(client)
    client.take_pending()
    assert client.take_pending() == []


# Headers


@pytest.mark.parametrize("size", [0, 1, 15])
def test_message_smaller_than_its_header_breaks_the_stream(size: int, server: Connection) -> None:
    assert f"{size} bytes" in broken_by(server, frame(0, RESET, size=size))


@pytest.mark.parametrize("kind", [2, 3, 15])
def test_message_of_unknown_type_breaks_the_stream(kind: int, server: Connection) -> None:
    assert f"type {kind}" in broken_by(server, frame(0, RESET, flags=kind))


def test_unknown_type_is_not_hidden_by_the_other_flags(server: Connection) -> None:
    assert "type 2" in broken_by(server, frame(0, RESET, flags=0x32))


NO_COMMANDS = (0, 14, 19, 255, 65535)


@pytest.mark.parametrize("number", NO_COMMANDS)
def test_unknown_command_is_invalid(number: int, server: Connection) -> None:
    [event] = server.receive_data(frame(5, number, b"payload", flags=NO_REPLY))
    assert isinstance(event, RequestInvalid)
    assert (event.id, event.command, event.errno) == (5, number, errno.ENOSYS)
    assert event.no_reply


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_command_that_this_end_sends_itself_is_invalid(
    command: Command, pair: ConnectionPair
) -> None:
    payload = joined(EXAMPLES[command].request.encode())
    [event] = pair.sender(command).receive_data(frame(5, command, payload))
    assert isinstance(event, RequestInvalid)
    assert event.errno == errno.ENOSYS


def test_stream_is_in_step_behind_an_invalid_request(server: Connection) -> None:
    events = server.receive_data(frame(4, 14, b"payload") + frame(5, READ, b"") + RESET_REQUEST)
    assert [type(event) for event in events] == [RequestInvalid, RequestInvalid, RequestReceived]


# Bounds


MOST = 16 + MAX_OVERHEAD + MAX_DATA


def test_request_at_the_bound_is_awaited(server: Connection) -> None:
    server.receive_data(frame(0, Command.REGION_WRITE, size=MOST))
    assert len(server.receive_buffer()) == MOST - 16


@pytest.mark.parametrize("command", [Command.REGION_WRITE, 14], ids=["known", "unknown"])
@pytest.mark.parametrize("size", [MOST + 1, 1 << 30, (1 << 32) - 1])
def test_request_beyond_the_bound_breaks_the_stream(
    size: int, command: int, server: Connection
) -> None:
    assert f"{size} bytes" in broken_by(server, frame(0, command, size=size))


def memory_taken(job: Callable[[], object]) -> int:
    """The most bytes that Python objects took while ``job`` ran."""
    tracemalloc.start()
    try:
        job()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_nothing_is_allocated_for_a_request_beyond_the_bound(server: Connection) -> None:
    header = frame(0, Command.REGION_WRITE, size=1 << 30)
    assert memory_taken(lambda: broken_by(server, header)) < 1 << 20


def test_nothing_is_allocated_for_a_reply_beyond_its_limit(client: Connection) -> None:
    client.request(READ, m.RegionRead(0, 0, 4))
    header = frame(0, READ, flags=REPLY, size=1 << 30)
    assert memory_taken(lambda: broken_by(client, header)) < 1 << 20


# Behind the end of a broken stream


@pytest.mark.parametrize(
    "data",
    [b"x", RESET_REQUEST, frame(0, RESET, size=3)],
    ids=["a-byte", "a-valid-request", "the-same-again"],
)
def test_broken_stream_stays_broken(data: bytes, server: Connection) -> None:
    broken_by(server, frame(0, RESET, size=3))
    for _ in range(2):
        broken_by(server, data)


def test_broken_stream_takes_nothing_into_its_buffer_either(server: Connection) -> None:
    broken_by(server, frame(0, RESET, size=3))
    with pytest.raises(RemoteProtocolError):
        server.received(0)


# In pieces


def expected(role: Role, script: Iterable[Turn]) -> list[Event]:
    """The events of an end of ``role``, told from what its peer was made to send."""
    events: list[Event] = []
    number = 0  # the peer counts its own requests up
    for token, turn in enumerate(script):
        if COMMANDS[turn.command].sender is role:
            events.append(ReplyReceived(token, turn.reply, turn.fds))
            continue
        events.append(
            RequestReceived(
                id=number,
                command=turn.command,
                message=turn.request,
                no_reply=turn.no_reply,
                fds=turn.fds,
            )
        )
        number += 1
    return events


@pytest.mark.parametrize("role", ROLES)
@given(data=st.data())
@MODERATE
def test_events_are_the_messages_that_were_sent(role: Role, data: st.DataObject) -> None:
    script = data.draw(turns(role))
    chunks = written(role, script)
    assert fed(asked(role, script)[0], chunks) == expected(role, script)


@pytest.mark.parametrize("role", ROLES)
@given(data=st.data())
@MODERATE
def test_messages_that_arrive_at_once_give_the_same_events(role: Role, data: st.DataObject) -> None:
    script = data.draw(turns(role))
    chunks = written(role, script)
    assert fed(asked(role, script)[0], glued(chunks)) == expected(role, script)


@pytest.mark.parametrize("role", ROLES)
@given(data=st.data())
@MODERATE
def test_messages_that_arrive_byte_by_byte_give_the_same_events(
    role: Role, data: st.DataObject
) -> None:
    script = data.draw(turns(role))
    chunks = written(role, script)
    assert fed(asked(role, script)[0], cut(chunks, [1])) == expected(role, script)


@pytest.mark.parametrize("role", ROLES)
@given(data=st.data(), sizes=st.lists(st.integers(1, 50), min_size=1, max_size=8))
@MODERATE
def test_messages_that_arrive_in_any_pieces_give_the_same_events(
    role: Role, data: st.DataObject, sizes: list[int]
) -> None:
    script = data.draw(turns(role))
    chunks = written(role, script)
    assert fed(asked(role, script)[0], cut(glued(chunks), sizes)) == expected(role, script)


def test_no_bytes_are_no_event(server: Connection) -> None:
    assert server.receive_data(b"") == []


def test_unfinished_message_is_no_event(server: Connection) -> None:
    assert server.receive_data(RESET_REQUEST[:-1]) == []


# Straight into place


def received(connection: Connection, data: bytes, fds: Iterable[int] = ()) -> Event | None:
    """Read ``data``, which must fit, into the connection's own buffer."""
    connection.receive_buffer()[: len(data)] = data
    return connection.received(len(data), list(fds))


def test_buffer_is_first_for_a_header(server: Connection) -> None:
    assert len(server.receive_buffer()) == 16


def test_buffer_is_then_for_the_body_alone(server: Connection) -> None:
    received(server, frame(0, READ, size=32))
    assert len(server.receive_buffer()) == 16


def test_buffer_is_for_what_is_missing(server: Connection) -> None:
    received(server, RESET_REQUEST[:10])
    assert len(server.receive_buffer()) == 6


def test_buffer_is_for_a_header_again_behind_a_message(server: Connection) -> None:
    received(server, RESET_REQUEST)
    assert len(server.receive_buffer()) == 16


def test_in_body_tells_a_body_that_is_awaited(server: Connection) -> None:
    states = []
    request = frame(0, READ, bytes(16))
    for piece in (request[:8], request[8:16], request[16:20], request[20:]):
        received(server, piece)
        states.append(server.in_body())
    assert states == [False, True, True, False]


def test_last_bytes_of_a_message_give_its_event(server: Connection) -> None:
    request = frame(0, READ, bytes(16))
    assert received(server, request[:16]) is None
    event = received(server, request[16:])
    assert isinstance(event, RequestReceived)
    assert event.message == m.RegionRead(0, 0, 0)


# Descriptors


REQUEST_FDS = {Command.DMA_MAP: 1, Command.DEVICE_SET_IRQS: MAX_FDS}
REPLY_FDS = {
    Command.VERSION: MAX_FDS,
    Command.DEVICE_GET_REGION_INFO: 1,
    Command.DEVICE_GET_REGION_IO_FDS: MAX_FDS,
}
"""The most descriptors with a message; all others have none."""


def some(count: int) -> tuple[int, ...]:
    """That many descriptors."""
    return tuple(range(1000, 1000 + count))


def bounded(most: dict[Command, int]) -> list[Any]:
    """The commands whose messages may have fewer descriptors than can be sent at once."""
    commands = (command for command in Command if most.get(command, 0) < MAX_FDS)
    return [pytest.param(command, id=command.name.lower()) for command in commands]


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_request_has_as_many_descriptors_as_belong_there(
    command: Command, pair: ConnectionPair
) -> None:
    fds = some(REQUEST_FDS.get(command, 0))
    assert pair.ask(command, EXAMPLES[command].request, fds).fds == fds


@pytest.mark.parametrize("command", bounded(REQUEST_FDS))
def test_request_with_a_descriptor_too_many_is_invalid_and_hands_them_over(
    command: Command, pair: ConnectionPair
) -> None:
    fds = some(REQUEST_FDS.get(command, 0) + 1)
    payload = joined(EXAMPLES[command].request.encode())
    [event] = pair.receiver(command).receive_data(frame(5, command, payload), fds)
    assert isinstance(event, RequestInvalid)
    assert (event.errno, event.fds) == (errno.EINVAL, fds)


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_reply_has_as_many_descriptors_as_belong_there(
    command: Command, pair: ConnectionPair
) -> None:
    fds = some(REPLY_FDS.get(command, 0))
    request = pair.ask(command, EXAMPLES[command].request, token="token")
    event = pair.answer(request, EXAMPLES[command].reply, fds)
    assert event == ReplyReceived("token", EXAMPLES[command].reply, fds)


@pytest.mark.parametrize("command", bounded(REPLY_FDS))
def test_reply_with_a_descriptor_too_many_is_invalid_and_hands_them_over(
    command: Command, pair: ConnectionPair
) -> None:
    fds = some(REPLY_FDS.get(command, 0) + 1)
    request = pair.ask(command, EXAMPLES[command].request, token="token")
    event = pair.answer(request, EXAMPLES[command].reply, fds)
    assert isinstance(event, ReplyInvalid)
    assert (event.token, event.fds) == ("token", fds)


def test_unknown_command_hands_its_descriptors_over(server: Connection) -> None:
    [event] = server.receive_data(frame(5, 14), [7, 8])
    assert event.fds == (7, 8)


def test_error_reply_hands_its_descriptors_over(client: Connection) -> None:
    client.request(RESET, m.Empty(), "token")
    events = client.receive_data(frame(0, RESET, flags=ERROR, error=errno.EPERM), [7])
    assert events == [ErrorReceived("token", errno.EPERM, (7,))]


def test_descriptors_belong_to_the_first_message_of_their_chunk(server: Connection) -> None:
    events = server.receive_data(RESET_REQUEST * 2, [7])
    assert [event.fds for event in events] == [(7,), ()]


def test_descriptors_that_come_with_the_body_belong_to_its_message(server: Connection) -> None:
    irqs = joined(EXAMPLES[Command.DEVICE_SET_IRQS].request.encode())
    request = frame(5, Command.DEVICE_SET_IRQS, irqs)
    server.receive_data(request[:20], [7])
    [event] = server.receive_data(request[20:], [8])
    assert event.fds == (7, 8)


def test_descriptors_of_an_unfinished_message_can_be_taken_back(server: Connection) -> None:
    server.receive_data(RESET_REQUEST[:4], [7])
    server.receive_data(RESET_REQUEST[4:8], [8])
    assert server.take_fds() == [7, 8]


def test_descriptors_are_taken_back_once(server: Connection) -> None:
    server.receive_data(RESET_REQUEST[:4], [7])
    server.take_fds()
    assert server.take_fds() == []


def test_descriptors_of_a_finished_message_are_not_given_twice(server: Connection) -> None:
    server.receive_data(RESET_REQUEST, [7])
    assert server.take_fds() == []


def test_descriptors_of_a_message_that_broke_the_stream_can_be_taken_back(
    server: Connection,
) -> None:
    with pytest.raises(RemoteProtocolError):
        server.receive_data(frame(0, RESET, size=3), [7])
    assert server.take_fds() == [7]


def test_no_descriptor_is_lost_where_a_later_message_breaks_the_stream(
    server: Connection,
) -> None:
    handed_over: list[int] = []
    try:
        for event in server.receive_data(RESET_REQUEST + frame(0, RESET, size=3), [7]):
            handed_over.extend(event.fds)
    except RemoteProtocolError:
        pass
    assert [*handed_over, *server.take_fds()] == [7]


def test_message_that_gathers_more_descriptors_than_can_be_sent_breaks_the_stream(
    server: Connection,
) -> None:
    server.receive_data(RESET_REQUEST[:1], some(MAX_FDS))
    with pytest.raises(RemoteProtocolError):
        server.receive_data(RESET_REQUEST[1:2], some(1))


# Whatever arrives


def survived(connection: Connection, chunks: Iterable[Chunk]) -> list[Event]:
    """Feed ``chunks`` until the stream breaks; whatever else is raised fails the test.

    No descriptor of them may be lost, and a broken stream must stay so.
    """
    events: list[Event] = []
    given_over: Counter[int] = Counter()
    for data, fds in chunks:
        given_over.update(fds)
        try:
            events += connection.receive_data(data, fds)
        except RemoteProtocolError:
            broken_by(connection, RESET_REQUEST)
            break
    handed_over = [fd for event in events for fd in event.fds]
    assert Counter([*handed_over, *connection.take_fds()]) == given_over
    return events


@st.composite
def streams(draw: st.DrawFn) -> list[Chunk]:
    """Bytes of all kinds, one at a time, some of them with a descriptor."""
    header = st.builds(
        frame,
        st.integers(0, 3),
        st.sampled_from([*Command, *NO_COMMANDS]),
        st.binary(max_size=48),
        flags=st.sampled_from([0, REPLY, NO_REPLY, ERROR, 2, 0xFFFF_FFFF]),
        error=st.integers(0, (1 << 32) - 1),
        size=st.none() | st.integers(0, 200),
    )
    data = b"".join(draw(st.lists(header | st.binary(max_size=32), max_size=6)))
    fds = draw(st.lists(st.integers(0, 255), max_size=4))
    chunks = [Chunk(bytes([byte])) for byte in data]
    for fd in fds:
        if chunks:
            position = fd % len(chunks)
            chunks[position] = Chunk(chunks[position].data, (*chunks[position].fds, fd))
    return chunks


@pytest.mark.parametrize("role", ROLES)
@given(data=st.data(), chunks=streams())
@MODERATE
def test_any_bytes_give_events_or_break_the_stream(
    role: Role, data: st.DataObject, chunks: list[Chunk]
) -> None:
    connection, _ = asked(role, data.draw(turns(role)))
    assert all(isinstance(event, EVENTS) for event in survived(connection, chunks))


@pytest.mark.parametrize("role", ROLES)
@given(
    data=st.data(),
    spots=st.lists(
        st.tuples(st.integers(0), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=4
    ),
)
@MODERATE
def test_damaged_messages_give_events_or_break_the_stream(
    role: Role, data: st.DataObject, spots: list[tuple[int, bytes, int]]
) -> None:
    script = data.draw(turns(role))
    stream = bytearray(b"".join(chunk.data for chunk in written(role, script)))
    for spot, put, removed in spots:
        position = spot % (len(stream) + 1)
        stream[position : position + removed] = put
    chunks = cut([Chunk(bytes(stream), (7,))], [1])
    events = survived(asked(role, script)[0], chunks)
    assert all(isinstance(event, EVENTS) for event in events)


@pytest.mark.parametrize("role", ROLES)
@given(data=st.data())
@MODERATE
def test_messages_before_a_violation_are_received_however_they_arrive(
    role: Role, data: st.DataObject
) -> None:
    script = [turn._replace(fds=()) for turn in data.draw(turns(role))]
    chunks = [*written(role, script), Chunk(frame(0, RESET, size=3))]
    one_by_one = survived(asked(role, script)[0], cut(chunks, [1]))
    at_once = survived(asked(role, script)[0], glued(chunks))
    assert at_once == one_by_one
