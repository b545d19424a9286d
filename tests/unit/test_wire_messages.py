# SPDX-License-Identifier: BSD-3-Clause
"""Every payload of vfio-user: its bytes, its sizes, and what is refused of each.

The bytes are those of a little-endian host, as the specification's tables lay them out.
"""

from __future__ import annotations

import errno
import struct
import sys
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio.wire import messages as m
from pyvfio.wire.commands import COMMANDS, Role
from pyvfio.wire.connection import (
    Connection,
    ErrorReceived,
    Event,
    ReplyInvalid,
    ReplyReceived,
    RequestInvalid,
    RequestReceived,
)
from pyvfio.wire.header import HEADER, Command
from pyvfio.wire.messages import PayloadError
from pyvfio.wire.version import Capabilities
from tests.unit.wire_examples import (
    ANSWERS,
    BY_COMMAND,
    EXAMPLES,
    MAX_DATA,
    MESSAGES,
    MODERATE,
    NO_REPLY,
    REPLY,
    advance,
    frame,
    joined,
)

little_endian = pytest.mark.skipif(
    sys.byteorder == "big", reason="the bytes are those of a little-endian host"
)

BY_CLASS = [pytest.param(kind, id=kind.__name__) for kind in MESSAGES]
EVERY_COMMAND = [pytest.param(command, id=name) for command, name in BY_COMMAND]


def decoded(kind: type[m.Message], payload: bytes) -> Any:
    """The message of class ``kind`` in ``payload``."""
    return kind.decode(memoryview(payload))


def payload_of(message: m.Message) -> bytes:
    return joined(message.encode())


# Coverage of this file


def test_commands_are_1_to_13_and_15_to_18() -> None:
    assert set(Command) == {*range(1, 14), *range(15, 19)}


def test_every_command_has_its_row_in_the_table() -> None:
    rows = {number: spec.command for number, spec in COMMANDS.items()}
    assert rows == {command: command for command in Command}


def test_every_payload_class_of_the_table_is_tested_here() -> None:
    used = {kind for spec in COMMANDS.values() for kind in (spec.request, spec.reply)}
    assert used == set(MESSAGES)


@pytest.mark.parametrize("table", [EXAMPLES, ANSWERS], ids=["examples", "answers"])
def test_every_command_has_its_example(table: dict[Command, Any]) -> None:
    assert set(table) == set(COMMANDS)


def test_only_dma_read_and_dma_write_are_sent_by_the_server() -> None:
    assert {command for command, spec in COMMANDS.items() if spec.sender is Role.SERVER} == {
        Command.DMA_READ,
        Command.DMA_WRITE,
    }


def test_header_is_16_bytes_with_size_flags_and_error_behind_the_ids() -> None:
    assert HEADER.offsets == {"id": 0, "command": 2, "size": 4, "flags": 8, "error": 12}
    assert HEADER.size == 16


# Whole messages, byte by byte


class Golden(NamedTuple):
    """A request with its bytes, and the bytes of its replies."""

    number: int
    command: Command
    request: m.Request
    sent: str
    fds: tuple[int, ...] = ()
    no_reply: bool = False


VERSION_JSON = b'{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576}}\0'.hex()

GOLDEN = {
    "version": Golden(
        1,
        Command.VERSION,
        m.Version(0, 1, Capabilities(max_msg_fds=8, max_data_xfer_size=1048576)),
        "01000100 54000000 00000000 0000000000000100" + VERSION_JSON,
    ),
    "get_info": Golden(
        2,
        Command.DEVICE_GET_INFO,
        m.GetDeviceInfo(),
        "02000400 20000000 00000000 0000000010000000 00000000 00000000 00000000",
    ),
    "dma_map": Golden(
        3,
        Command.DMA_MAP,
        m.DMAMap(flags=3, offset=0x1000, iova=0x10_0000, size=0x20_0000),
        "03000200 30000000 00000000 00000000"
        "20000000 03000000 00100000 00000000 00001000 00000000 00002000 00000000",
        fds=(7,),
    ),
    "posted_write": Golden(
        4,
        Command.REGION_WRITE,
        m.RegionWrite(offset=0x10, region=0, data=b"\xde\xad\xbe\xef"),
        "04000a00 24000000 10000000 0000000010000000 00000000 00000000 04000000 deadbeef",
        no_reply=True,
    ),
    "set_irqs_with_two_eventfds": Golden(
        5,
        Command.DEVICE_SET_IRQS,
        m.SetIRQs(flags=0x24, index=2, start=0, count=2),
        "05000800 24000000 00000000 0000000014000000 24000000 02000000 00000000 02000000",
        fds=(7, 8),
    ),
    "set_irqs_disable": Golden(
        6,
        Command.DEVICE_SET_IRQS,
        m.SetIRQs(flags=0x21, index=2, start=0, count=0),
        "06000800 24000000 00000000 0000000014000000 21000000 02000000 00000000 00000000",
    ),
    "write_multi": Golden(
        7,
        Command.REGION_WRITE_MULTI,
        m.RegionWriteMulti((m.RegionWrite(offset=0x20, region=2, data=b"\x34\x12"),)),
        "07000f00 30000000 10000000 00000000"
        "01000000 00000000 20000000 00000000 02000000 02000000 34120000 00000000",
        no_reply=True,
    ),
    "dma_read": Golden(
        8,
        Command.DMA_READ,
        m.DMARead(address=0x10_0000, count=8),
        "08000b00 20000000 00000000 0000000000001000 00000000 08000000 00000000",
    ),
    "feature_get_migration": Golden(
        9,
        Command.DEVICE_FEATURE,
        m.DeviceFeature(argsz=16, flags=0x1_0001),
        "09001000 18000000 00000000 0000000010000000 01000100",
    ),
}

GOLDEN_REPLIES = {
    "get_info": (
        GOLDEN["get_info"],
        m.DeviceInfo(flags=3, num_regions=9, num_irqs=5),
        "02000400 20000000 01000000 0000000010000000 03000000 09000000 05000000",
    ),
    "dma_map": (GOLDEN["dma_map"], m.Empty(), "03000200 10000000 01000000 00000000"),
    "dma_read": (
        GOLDEN["dma_read"],
        m.DMAData(address=0x10_0000, data=bytes(range(8))),
        "08000b00 28000000 01000000 0000000000001000 00000000 08000000 00000000 0001020304050607",
    ),
}

EEXIST_REPLY = "03000200 10000000 21000000 11000000"


def asking(golden: Golden) -> tuple[Connection, bytes]:
    """An end that has sent the request, with its command's name as token, and what it sent."""
    connection = Connection(COMMANDS[golden.command].sender, MAX_DATA)
    advance(connection, golden.number)
    _, buffers = connection.request(
        golden.command, golden.request, golden.command.name, no_reply=golden.no_reply
    )
    return connection, joined(buffers)


def received(golden: Golden) -> RequestReceived:
    """The request as the other end receives it."""
    return RequestReceived(
        id=golden.number,
        command=golden.command,
        message=golden.request,
        no_reply=golden.no_reply,
        fds=golden.fds,
    )


def answering(golden: Golden) -> Connection:
    """The end that answers the request."""
    return Connection(COMMANDS[golden.command].sender.peer, MAX_DATA)


@little_endian
@pytest.mark.parametrize("golden", GOLDEN.values(), ids=GOLDEN)
def test_request_is_written_as_these_bytes(golden: Golden) -> None:
    assert asking(golden)[1].hex() == golden.sent.replace(" ", "")


@little_endian
@pytest.mark.parametrize("golden", GOLDEN.values(), ids=GOLDEN)
def test_request_is_read_from_these_bytes(golden: Golden) -> None:
    events = answering(golden).receive_data(bytes.fromhex(golden.sent), golden.fds)
    assert events == [received(golden)]


@little_endian
@pytest.mark.parametrize(("golden", "reply", "sent"), GOLDEN_REPLIES.values(), ids=GOLDEN_REPLIES)
def test_reply_is_written_as_these_bytes(golden: Golden, reply: m.Message, sent: str) -> None:
    buffers = answering(golden).reply(received(golden), reply)
    assert joined(buffers).hex() == sent.replace(" ", "")


@little_endian
@pytest.mark.parametrize(("golden", "reply", "sent"), GOLDEN_REPLIES.values(), ids=GOLDEN_REPLIES)
def test_reply_is_read_from_these_bytes(golden: Golden, reply: m.Message, sent: str) -> None:
    events = asking(golden)[0].receive_data(bytes.fromhex(sent))
    assert events == [ReplyReceived(golden.command.name, reply)]


@little_endian
def test_error_reply_is_written_as_these_bytes() -> None:
    golden = GOLDEN["dma_map"]
    buffers = answering(golden).error(received(golden), errno.EEXIST)
    assert joined(buffers).hex() == EEXIST_REPLY.replace(" ", "")


@little_endian
def test_error_reply_is_read_from_these_bytes() -> None:
    events = asking(GOLDEN["dma_map"])[0].receive_data(bytes.fromhex(EEXIST_REPLY))
    assert events == [ErrorReceived("DMA_MAP", errno.EEXIST)]


# Payloads, byte by byte: those that no whole message above shows


AREA = "01000100 00000000 01000000 00000000 00100000 00000000 00200000 00000000"
PAYLOADS: dict[str, tuple[m.Message, str]] = {
    "version-without-json": (m.Version(1, 2, None), "0100 0200"),
    "dma_unmap-all": (
        m.DMAUnmap(flags=2, iova=0, size=0),
        "18000000 02000000 00000000 00000000 00000000 00000000",
    ),
    "dma_unmap": (
        m.DMAUnmap(flags=0, iova=0x1122_3344_5566_7788, size=0x1000),
        "18000000 00000000 88776655 44332211 00100000 00000000",
    ),
    "get_region_info": (
        m.GetRegionInfo(index=7, argsz=64),
        "40000000 00000000 07000000 00000000 00000000 00000000 00000000 00000000",
    ),
    "region_info-with-sparse-area": (
        m.RegionInfo(64, 0xF, 2, 32, size=0x4000, offset=0x8000, chain=bytes.fromhex(AREA)),
        "40000000 0f000000 02000000 20000000 00400000 00000000 00800000 00000000" + AREA,
    ),
    "get_region_io_fds": (
        m.GetRegionIOFDs(index=2, argsz=4096),
        "00100000 00000000 02000000 00000000",
    ),
    "region_io_fds": (
        m.RegionIOFDs(56, 2, 1, (m.IOSubRegion(0x100, 4, 3, 0, flags=1, datamatch=0x1234),)),
        "38000000 00000000 02000000 01000000"
        " 00010000 00000000 04000000 00000000 03000000 00000000 01000000 00000000"
        " 34120000 00000000",
    ),
    "region_io_fds-without-room": (
        m.RegionIOFDs(argsz=96, index=2, count=2),
        "60000000 00000000 02000000 02000000",
    ),
    "get_irq_info": (m.GetIRQInfo(index=2), "10000000 00000000 02000000 00000000"),
    "irq_info": (m.IRQInfo(flags=9, index=2, count=32), "10000000 09000000 02000000 20000000"),
    "set_irqs-with-bools": (
        m.SetIRQs(flags=0x22, index=1, start=4, count=3, data=b"\1\0\1"),
        "17000000 22000000 01000000 04000000 03000000 010001",
    ),
    "region_read": (
        m.RegionRead(offset=0x1122_3344_5566_7788, region=7, count=4),
        "88776655 44332211 07000000 04000000",
    ),
    "region_data": (
        m.RegionData(offset=0x10, region=7, data=b"\xde\xad"),
        "10000000 00000000 07000000 02000000 dead",
    ),
    "region_written": (
        m.RegionWritten(offset=0x10, region=7, count=4),
        "10000000 00000000 07000000 04000000",
    ),
    "dma_write": (
        m.DMAWrite(address=0x10_0000, data=b"\xde\xad"),
        "00001000 00000000 02000000 00000000 dead",
    ),
    "dma_written": (
        m.DMAWritten(address=0x10_0000, count=2),
        "00001000 00000000 02000000 00000000",
    ),
    "write_multi-done": (m.RegionWriteMultiDone(200), "c8000000 00000000"),
    "write_multi-two-entries": (
        m.RegionWriteMulti((m.RegionWrite(0x20, 2, b"\1"), m.RegionWrite(8, 0, b"12345678"))),
        "02000000 00000000"
        "20000000 00000000 02000000 01000000 01000000 00000000"
        "08000000 00000000 00000000 08000000 31323334 35363738",
    ),
    "feature-with-data": (
        m.DeviceFeature(argsz=16, flags=0x2_0002, data=b"\3\0\0\0\0\0\0\0"),
        "10000000 02000200 03000000 00000000",
    ),
    "mig_data_read": (m.MigDataRead(size=0x1000), "08100000 00100000"),
    "mig_data": (m.MigData(b"\xde\xad"), "0a000000 02000000 dead"),
    "mig_data_write": (m.MigDataWrite(b"\xde\xad\xbe"), "0b000000 03000000 deadbe"),
    "nothing": (m.Empty(), ""),
}


@little_endian
@pytest.mark.parametrize(("message", "expected"), PAYLOADS.values(), ids=PAYLOADS)
def test_payload_is_written_as_these_bytes(message: m.Message, expected: str) -> None:
    assert payload_of(message).hex() == expected.replace(" ", "")


@little_endian
@pytest.mark.parametrize(("message", "sent"), PAYLOADS.values(), ids=PAYLOADS)
def test_payload_is_read_from_these_bytes(message: m.Message, sent: str) -> None:
    assert decoded(type(message), bytes.fromhex(sent)) == message


# Round trips


@pytest.mark.parametrize("command", EVERY_COMMAND)
@given(data=st.data())
@MODERATE
def test_request_survives_the_wire(command: Command, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[COMMANDS[command].request])
    assert decoded(COMMANDS[command].request, payload_of(message)) == message


@pytest.mark.parametrize("command", EVERY_COMMAND)
@given(data=st.data())
@MODERATE
def test_reply_survives_the_wire(command: Command, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[COMMANDS[command].reply])
    assert decoded(COMMANDS[command].reply, payload_of(message)) == message


@pytest.mark.parametrize("kind", BY_CLASS)
@given(data=st.data())
@MODERATE
def test_any_payload_is_understood_for_good_or_refused(
    kind: type[m.Message], data: st.DataObject
) -> None:
    valid = payload_of(data.draw(MESSAGES[kind]))
    start = data.draw(st.integers(0, len(valid)))
    payload = data.draw(st.binary(max_size=80)) + valid[start:]
    try:
        message = decoded(kind, payload)
    except PayloadError:
        return
    assert decoded(kind, payload_of(message)) == message


def test_bulk_data_is_not_copied_to_be_sent() -> None:
    data = bytearray(64)
    assert m.RegionWrite(0, 0, data).encode()[-1] is data


# Sizes of requests


REQUEST_SIZES = {
    Command.VERSION: 4,
    Command.DMA_MAP: 32,
    Command.DMA_UNMAP: 24,
    Command.DEVICE_GET_INFO: 16,
    Command.DEVICE_GET_REGION_INFO: 32,
    Command.DEVICE_GET_REGION_IO_FDS: 16,
    Command.DEVICE_GET_IRQ_INFO: 16,
    Command.DEVICE_SET_IRQS: 20,
    Command.REGION_READ: 16,
    Command.REGION_WRITE: 16,
    Command.DMA_READ: 16,
    Command.DMA_WRITE: 16,
    Command.DEVICE_RESET: 0,
    Command.REGION_WRITE_MULTI: 8,
    Command.DEVICE_FEATURE: 8,
    Command.MIG_DATA_READ: 8,
    Command.MIG_DATA_WRITE: 8,
}
"""Bytes of the fixed part of each request."""

COUNTED_REQUESTS = (
    Command.VERSION,
    Command.REGION_WRITE,
    Command.DMA_WRITE,
    Command.REGION_WRITE_MULTI,
    Command.MIG_DATA_WRITE,
)
"""Those whose data says where it ends."""

EXACT_REQUESTS = (
    *COUNTED_REQUESTS,
    Command.DMA_MAP,
    Command.DEVICE_GET_REGION_IO_FDS,
    Command.REGION_READ,
    Command.DMA_READ,
    Command.DEVICE_RESET,
    Command.MIG_DATA_READ,
)
GROWING_REQUESTS = (
    Command.DMA_UNMAP,
    Command.DEVICE_GET_INFO,
    Command.DEVICE_GET_REGION_INFO,
    Command.DEVICE_GET_IRQ_INFO,
)
"""Info structs may become longer; what lies behind the known part is ignored."""


def names(commands: tuple[Command, ...]) -> list[Any]:
    return [pytest.param(command, id=command.name.lower()) for command in commands]


def asked_with(command: Command, payload: bytes) -> Event:
    """What the other end makes of a request with ``payload``."""
    peer = Connection(COMMANDS[command].sender.peer, MAX_DATA)
    [event] = peer.receive_data(frame(5, command, payload))
    return event


def assert_invalid(event: Event, command: Command) -> None:
    assert isinstance(event, RequestInvalid)
    assert (event.id, event.command, event.errno) == (5, command, errno.EINVAL)
    assert event.reason.startswith(f"{command.name}: ")


@pytest.mark.parametrize("command", names(tuple(c for c, size in REQUEST_SIZES.items() if size)))
def test_request_that_ends_within_its_struct_is_invalid(command: Command) -> None:
    valid = payload_of(EXAMPLES[command].request)
    for size in range(REQUEST_SIZES[command]):
        assert_invalid(asked_with(command, valid[:size]), command)


@pytest.mark.parametrize("command", names(COUNTED_REQUESTS))
def test_request_that_ends_within_its_data_is_invalid(command: Command) -> None:
    valid = payload_of(EXAMPLES[command].request)
    shortest = REQUEST_SIZES[command] + (1 if command is Command.VERSION else 0)
    for size in range(shortest, len(valid)):
        assert_invalid(asked_with(command, valid[:size]), command)


@pytest.mark.parametrize("command", names(EXACT_REQUESTS))
def test_request_that_is_too_long_is_invalid(command: Command) -> None:
    valid = payload_of(EXAMPLES[command].request)
    for extra in (1, 8, 24):
        assert_invalid(asked_with(command, valid + bytes(extra)), command)


@pytest.mark.parametrize("command", names(GROWING_REQUESTS))
def test_request_whose_struct_has_grown_is_understood(command: Command) -> None:
    request = EXAMPLES[command].request
    event = asked_with(command, payload_of(request) + bytes(8))
    assert isinstance(event, RequestReceived)
    assert event.message == request


def test_sizes_of_all_requests_are_tested() -> None:
    open_ended = {Command.DEVICE_SET_IRQS, Command.DEVICE_FEATURE}
    assert {*EXACT_REQUESTS, *GROWING_REQUESTS, *open_ended} == set(COMMANDS)
    assert set(REQUEST_SIZES) == set(COMMANDS)


def test_invalid_request_that_wants_no_reply_says_so() -> None:
    server = Connection(Role.SERVER, MAX_DATA)
    [event] = server.receive_data(frame(5, Command.REGION_WRITE, b"", flags=NO_REPLY))
    assert isinstance(event, RequestInvalid)
    assert event.no_reply


# Sizes of replies


REPLY_SIZES = {
    Command.VERSION: 4,
    Command.DMA_MAP: 0,
    Command.DMA_UNMAP: 24,
    Command.DEVICE_GET_INFO: 16,
    Command.DEVICE_GET_REGION_INFO: 32,
    Command.DEVICE_GET_REGION_IO_FDS: 16,
    Command.DEVICE_GET_IRQ_INFO: 16,
    Command.DEVICE_SET_IRQS: 0,
    Command.REGION_READ: 16,
    Command.REGION_WRITE: 16,
    Command.DMA_READ: 16,
    Command.DMA_WRITE: 16,
    Command.DEVICE_RESET: 0,
    Command.REGION_WRITE_MULTI: 8,
    Command.DEVICE_FEATURE: 8,
    Command.MIG_DATA_READ: 8,
    Command.MIG_DATA_WRITE: 0,
}
"""Bytes of the fixed part of each reply."""

SHORT_FORMS = {Command.REGION_READ: {0}, Command.DMA_WRITE: {0, 12}}
"""Sizes below the fixed part that peers in the field send, and that are understood."""

COUNTED_REPLIES = (Command.VERSION, Command.REGION_READ, Command.DMA_READ, Command.MIG_DATA_READ)

EXACT_REPLIES = (
    Command.VERSION,
    Command.DMA_MAP,
    Command.DEVICE_SET_IRQS,
    Command.REGION_READ,
    Command.REGION_WRITE,
    Command.DMA_READ,
    Command.DMA_WRITE,
    Command.DEVICE_RESET,
    Command.REGION_WRITE_MULTI,
    Command.MIG_DATA_WRITE,
)
GROWING_REPLIES = (Command.DMA_UNMAP, Command.DEVICE_GET_INFO, Command.DEVICE_GET_IRQ_INFO)


def answered_with(command: Command, payload: bytes) -> Event:
    """What the end that asked makes of a reply with ``payload``."""
    connection = Connection(COMMANDS[command].sender, MAX_DATA)
    connection.request(command, EXAMPLES[command].request, "token")
    [event] = connection.receive_data(frame(0, command, payload, flags=REPLY))
    return event


def assert_invalid_reply(event: Event, command: Command) -> None:
    assert isinstance(event, ReplyInvalid)
    assert event.token == "token"
    assert event.reason.startswith(f"{command.name} reply: ")


@pytest.mark.parametrize("command", names(tuple(c for c, size in REPLY_SIZES.items() if size)))
def test_reply_that_ends_within_its_struct_is_invalid(command: Command) -> None:
    valid = payload_of(EXAMPLES[command].reply)
    for size in set(range(REPLY_SIZES[command])) - SHORT_FORMS.get(command, set()):
        assert_invalid_reply(answered_with(command, valid[:size]), command)


@pytest.mark.parametrize("command", names(COUNTED_REPLIES))
def test_reply_that_ends_within_its_data_is_invalid(command: Command) -> None:
    valid = payload_of(EXAMPLES[command].reply)
    shortest = REPLY_SIZES[command] + (1 if command is Command.VERSION else 0)
    for size in range(shortest, len(valid)):
        assert_invalid_reply(answered_with(command, valid[:size]), command)


@pytest.mark.parametrize("command", names(EXACT_REPLIES))
def test_reply_that_is_too_long_is_refused(command: Command) -> None:
    valid = payload_of(EXAMPLES[command].reply)
    for extra in (1, 8, 24):
        with pytest.raises(PayloadError):
            decoded(COMMANDS[command].reply, valid + bytes(extra))


@pytest.mark.parametrize("command", names(GROWING_REPLIES))
def test_reply_whose_struct_has_grown_is_understood(command: Command) -> None:
    reply = EXAMPLES[command].reply
    assert decoded(COMMANDS[command].reply, payload_of(reply) + bytes(8)) == reply


def test_sizes_of_all_replies_are_tested() -> None:
    open_ended = {
        Command.DEVICE_GET_REGION_INFO,  # a capability chain
        Command.DEVICE_GET_REGION_IO_FDS,  # an array of entries
        Command.DEVICE_FEATURE,
        Command.MIG_DATA_READ,  # padding
    }
    assert {*EXACT_REPLIES, *GROWING_REPLIES, *open_ended} == set(COMMANDS)
    assert set(REPLY_SIZES) == set(COMMANDS)


def test_bare_header_answers_a_region_read_as_a_short_read() -> None:
    event = answered_with(Command.REGION_READ, b"")
    assert event == ReplyReceived("token", m.RegionData(0, 0, b""))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, m.DMAWritten(0, 0)),
        (12, m.DMAWritten(0x10_0000, 4)),
        (16, m.DMAWritten(0x10_0000, 4)),
    ],
    ids=["bare-header", "count-of-4-bytes", "count-of-8-bytes"],
)
@little_endian
def test_dma_write_is_answered_in_three_sizes(size: int, expected: m.DMAWritten) -> None:
    valid = payload_of(m.DMAWritten(0x10_0000, 4))
    assert answered_with(Command.DMA_WRITE, valid[:size]) == ReplyReceived("token", expected)


def test_io_fds_of_48_bytes_have_their_datamatch_at_the_end() -> None:
    payload = struct.pack("<IIII", 64, 0, 2, 1)
    payload += struct.pack("<QQIIIIQQ", 0x100, 4, 3, 2, 1, 5, 0x7000, 0x1234)
    assert decoded(m.RegionIOFDs, payload) == m.RegionIOFDs(
        64, 2, 1, (m.IOSubRegion(0x100, 4, 3, type=2, flags=1, datamatch=0x1234),)
    )


BAD_IO_FDS = {
    "no-count": (56, 0, 40),
    "count-too-large": (56, 2, 40),
    "huge-count": (56, 0xFFFFFFFF, 40),
    "argsz-too-small": (55, 1, 40),
    "argsz-too-large": (96, 1, 40),
    "entries-too-short": (48, 1, 32),
    "entries-of-a-broken-size": (97, 2, 81),
}
"""What is claimed (argsz, count), and the bytes of entries that there are."""


@pytest.mark.parametrize(("argsz", "count", "size"), BAD_IO_FDS.values(), ids=BAD_IO_FDS)
def test_io_fds_that_contradict_themselves_are_invalid(argsz: int, count: int, size: int) -> None:
    with pytest.raises(m.PayloadError):
        decoded(m.RegionIOFDs, struct.pack("<IIII", argsz, 0, 2, count) + bytes(size))


@pytest.mark.parametrize(("argsz", "listed"), [(95, 0), (96, 2), (4096, 2)])
def test_io_fds_are_listed_where_there_is_room_for_all(argsz: int, listed: int) -> None:
    sub_regions = [m.IOSubRegion(at, 4, 0, 0, 0, 0) for at in (0, 4)]
    reply = m.RegionIOFDs.of(1, sub_regions, argsz)
    assert (reply.argsz, reply.count, len(reply.sub_regions)) == (96, 2, listed)


def test_padding_of_migration_data_is_dropped() -> None:
    payload = struct.pack("=II", 12, 2) + b"\1\2\0\0"
    assert answered_with(Command.MIG_DATA_READ, payload) == ReplyReceived(
        "token", m.MigData(b"\1\2")
    )


# Members that contradict each other


CONTRADICTIONS: dict[str, tuple[Command, bytes]] = {
    "dma_map-argsz": (Command.DMA_MAP, struct.pack("=IIQQQ", 31, 3, 0, 0, 4096)),
    "dma_unmap-argsz": (Command.DMA_UNMAP, struct.pack("=IIQQ", 23, 0, 0, 4096)),
    "get_info-argsz": (Command.DEVICE_GET_INFO, struct.pack("=IIII", 15, 0, 0, 0)),
    "get_region_info-argsz": (
        Command.DEVICE_GET_REGION_INFO,
        struct.pack("=IIIIQQ", 31, 0, 0, 0, 0, 0),
    ),
    "get_region_io_fds-argsz": (
        Command.DEVICE_GET_REGION_IO_FDS,
        struct.pack("=IIII", 15, 0, 0, 0),
    ),
    "get_region_io_fds-flags": (
        Command.DEVICE_GET_REGION_IO_FDS,
        struct.pack("=IIII", 16, 1, 0, 0),
    ),
    "get_region_io_fds-count": (
        Command.DEVICE_GET_REGION_IO_FDS,
        struct.pack("=IIII", 16, 0, 0, 1),
    ),
    "get_irq_info-argsz": (Command.DEVICE_GET_IRQ_INFO, struct.pack("=IIII", 15, 0, 0, 0)),
    "set_irqs-argsz": (Command.DEVICE_SET_IRQS, struct.pack("=IIIII", 19, 0x21, 0, 0, 0)),
    "region_write-count-too-large": (
        Command.REGION_WRITE,
        struct.pack("=QII", 0, 0, 5) + bytes(4),
    ),
    "region_write-count-too-small": (
        Command.REGION_WRITE,
        struct.pack("=QII", 0, 0, 3) + bytes(4),
    ),
    "region_write-count-of-4-gib": (
        Command.REGION_WRITE,
        struct.pack("=QII", 0, 0, 0xFFFF_FFFF) + bytes(4),
    ),
    "dma_write-count-beyond-32-bits": (
        Command.DMA_WRITE,
        struct.pack("=QQ", 0, (1 << 32) + 4) + bytes(4),
    ),
    "write_multi-count-too-large": (
        Command.REGION_WRITE_MULTI,
        struct.pack("=QQII8s", 2, 0, 0, 1, b""),
    ),
    "write_multi-count-too-small": (
        Command.REGION_WRITE_MULTI,
        struct.pack("=QQII8s", 0, 0, 0, 1, b""),
    ),
    "write_multi-count-that-wraps-64-bits": (
        Command.REGION_WRITE_MULTI,
        struct.pack("=QQII8s", (1 << 61) + 1, 0, 0, 1, b""),
    ),
    "write_multi-entry-of-0-bytes": (
        Command.REGION_WRITE_MULTI,
        struct.pack("=QQII8s", 1, 0, 0, 0, b""),
    ),
    "write_multi-entry-of-9-bytes": (
        Command.REGION_WRITE_MULTI,
        struct.pack("=QQII8s", 1, 0, 0, 9, b""),
    ),
    "feature-argsz": (Command.DEVICE_FEATURE, struct.pack("=II", 7, 0x1_0001)),
    "mig_data_read-argsz": (Command.MIG_DATA_READ, struct.pack("=II", 11, 4)),
    "mig_data_write-size-too-large": (
        Command.MIG_DATA_WRITE,
        struct.pack("=II", 13, 5) + bytes(4),
    ),
    "mig_data_write-size-too-small": (
        Command.MIG_DATA_WRITE,
        struct.pack("=II", 11, 3) + bytes(4),
    ),
    "version-json": (Command.VERSION, struct.pack("=HH", 0, 1) + b"[]\0"),
}


@pytest.mark.parametrize(("command", "payload"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_request_that_contradicts_itself_is_invalid(command: Command, payload: bytes) -> None:
    assert_invalid(asked_with(command, payload), command)


def test_no_writes_at_all_are_a_valid_write_multi() -> None:
    event = asked_with(Command.REGION_WRITE_MULTI, bytes(8))
    assert isinstance(event, RequestReceived)
    assert event.message == m.RegionWriteMulti(())


@pytest.mark.parametrize("size", [0, 9], ids=["empty", "too-long"])
def test_write_that_does_not_fit_into_a_write_multi_is_not_written(size: int) -> None:
    message = m.RegionWriteMulti((m.RegionWrite(0, 0, bytes(size)),))
    with pytest.raises((struct.error, ValueError, PayloadError)):
        message.encode()


# What a reply may be


LIMITS: dict[str, tuple[m.Request, int]] = {
    "version": (m.Version(0, 1, None), 64 * 1024),
    "dma_map": (m.DMAMap(3, 0, 0, 4096), 0),
    "dma_unmap": (m.DMAUnmap(0, 0, 4096), 24),
    "get_info": (m.GetDeviceInfo(), 16),
    "get_info-argsz": (m.GetDeviceInfo(argsz=24), 24),
    "get_region_info": (m.GetRegionInfo(0), 32),
    "get_region_info-argsz": (m.GetRegionInfo(0, argsz=4096), 4096),
    "get_region_io_fds": (m.GetRegionIOFDs(0, argsz=56), 56),
    "get_irq_info": (m.GetIRQInfo(0), 16),
    "set_irqs": (m.SetIRQs(0x21, 0, 0, 0), 0),
    "region_read": (m.RegionRead(0, 0, 100), 116),
    "region_write": (m.RegionWrite(0, 0, bytes(100)), 16),
    "dma_read": (m.DMARead(0, 100), 116),
    "dma_write": (m.DMAWrite(0, bytes(100)), 16),
    "reset": (m.Empty(), 0),
    "write_multi": (m.RegionWriteMulti((m.RegionWrite(0, 0, b"1"),)), 8),
    "feature-argsz": (m.DeviceFeature(argsz=100, flags=0x1_0001), 100),
    "feature-echoes-its-data": (m.DeviceFeature(argsz=8, flags=0x2_0001, data=bytes(92)), 100),
    "mig_data_read": (m.MigDataRead(100), 108),
    "mig_data_write": (m.MigDataWrite(bytes(100)), 0),
}


@pytest.mark.parametrize(("request_", "limit"), LIMITS.values(), ids=LIMITS)
def test_request_bounds_the_payload_of_its_reply(request_: m.Request, limit: int) -> None:
    assert request_.reply_limit() == limit


def test_data_of_a_received_message_does_not_change_with_the_buffer_it_came_in() -> None:
    sent = bytearray(frame(0, Command.DMA_WRITE, payload_of(m.DMAWrite(0, b"1234"))))
    [event] = Connection(Role.CLIENT, MAX_DATA).receive_data(sent)
    sent[:] = bytes(len(sent))
    assert isinstance(event, RequestReceived)
    assert event.message.data == b"1234"
