# SPDX-License-Identifier: BSD-3-Clause
"""What a trace says of a payload and of descriptors, whatever bytes they are."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import tempfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio.transport.fields import SHOWN_BYTES, SHOWN_ENTRIES, bits, decode, descriptors
from pyvfio.uapi.vfio import DMAMapFlags
from pyvfio.wire import messages as m
from pyvfio.wire.commands import COMMANDS
from pyvfio.wire.header import HEADER, Command, Header
from tests.unit.wire_examples import (
    BY_COMMAND,
    EXAMPLES,
    MESSAGES,
    MODERATE,
    NO_REPLY,
    REPLY,
    U16,
    U32,
    joined,
)


def decoded(command: int, payload: bytes, flags: int = 0, *, unread: int = 0) -> dict[str, Any]:
    """What a line says of a payload, having been through JSON."""
    header = Header(0, command, HEADER.size + len(payload) + unread, flags, 0)
    found: dict[str, Any] = json.loads(json.dumps(decode(header, memoryview(payload))))
    return found


def fields(command: Command, message: m.Message, flags: int = 0) -> dict[str, Any]:
    """The fields that a line shows of a message."""
    found: dict[str, Any] = decoded(command, joined(message.encode()), flags)["fields"]
    return found


# Every command, both ways

REQUEST_FIELDS: dict[Command, Any] = {
    Command.VERSION: {"major": 0, "minor": 1, "capabilities": {"max_msg_fds": 8}},
    Command.DMA_MAP: {
        "flags": "READ|WRITE",
        "offset": 0x1000,
        "iova": 0x10_0000,
        "size": 0x20_0000,
    },
    Command.DMA_UNMAP: {"flags": "0x0", "iova": 0x10_0000, "size": 0x20_0000},
    Command.DEVICE_GET_INFO: {"argsz": 16},
    Command.DEVICE_GET_REGION_INFO: {"index": 2, "argsz": 64},
    Command.DEVICE_GET_REGION_IO_FDS: {"index": 2, "argsz": 56},
    Command.DEVICE_GET_IRQ_INFO: {"index": 2, "argsz": 16},
    Command.DEVICE_SET_IRQS: {
        "flags": "DATA_BOOL|TRIGGER",
        "index": 2,
        "start": 0,
        "count": 2,
        "data": {"bytes": 2, "hex": "0001"},
    },
    Command.REGION_READ: {"offset": 0x10, "region": 7, "count": 4},
    Command.REGION_WRITE: {
        "offset": 0x10,
        "region": 7,
        "data": {"bytes": 4, "hex": "01020304"},
    },
    Command.DMA_READ: {"address": 0x10_0000, "count": 4},
    Command.DMA_WRITE: {"address": 0x10_0000, "data": {"bytes": 4, "hex": "01020304"}},
    Command.DEVICE_RESET: None,
    Command.REGION_WRITE_MULTI: {
        "writes": [
            {"offset": 0x20, "region": 2, "data": {"bytes": 2, "hex": "3412"}},
            {"offset": 0x28, "region": 2, "data": {"bytes": 8, "hex": "3132333435363738"}},
        ]
    },
    Command.DEVICE_FEATURE: {
        "argsz": 16,
        "feature": 1,
        "methods": "GET",
        "data": {"bytes": 8, "hex": "00" * 8},
    },
    Command.MIG_DATA_READ: {"size": 4},
    Command.MIG_DATA_WRITE: {"data": {"bytes": 4, "hex": "01020304"}},
}

REPLY_FIELDS: dict[Command, Any] = {
    Command.VERSION: {
        "major": 0,
        "minor": 1,
        "capabilities": {"max_msg_fds": 16, "write_multiple": True},
    },
    Command.DMA_MAP: None,
    Command.DMA_UNMAP: REQUEST_FIELDS[Command.DMA_UNMAP],
    Command.DEVICE_GET_INFO: {
        "flags": "RESET|PCI",
        "num_regions": 9,
        "num_irqs": 5,
        "argsz": 16,
    },
    Command.DEVICE_GET_REGION_INFO: {
        "argsz": 64,
        "flags": "READ|WRITE|MMAP|CAPS",
        "index": 2,
        "cap_offset": 32,
        "size": 0x4000,
        "offset": 0x8000,
        "chain": {
            "bytes": 32,
            "hex": "0100010000000000010000000000000000100000000000000010000000000000",
        },
    },
    Command.DEVICE_GET_REGION_IO_FDS: {
        "argsz": 56,
        "index": 2,
        "count": 1,
        "sub_regions": [
            {"offset": 0, "size": 4, "fd_index": 0, "type": 0, "flags": "0x0", "datamatch": 0}
        ],
    },
    Command.DEVICE_GET_IRQ_INFO: {"flags": "EVENTFD|NORESIZE", "index": 2, "count": 32},
    Command.DEVICE_SET_IRQS: None,
    Command.REGION_READ: REQUEST_FIELDS[Command.REGION_WRITE],
    Command.REGION_WRITE: REQUEST_FIELDS[Command.REGION_READ],
    Command.DMA_READ: REQUEST_FIELDS[Command.DMA_WRITE],
    Command.DMA_WRITE: REQUEST_FIELDS[Command.DMA_READ],
    Command.DEVICE_RESET: None,
    Command.REGION_WRITE_MULTI: {"count": 2},
    Command.DEVICE_FEATURE: REQUEST_FIELDS[Command.DEVICE_FEATURE],
    Command.MIG_DATA_READ: {"data": {"bytes": 4, "hex": "01020304"}},
    Command.MIG_DATA_WRITE: None,
}


@pytest.mark.parametrize("command", [pytest.param(c, id=name) for c, name in BY_COMMAND])
def test_a_request_is_shown_by_its_fields(command: Command) -> None:
    payload = joined(EXAMPLES[command].request.encode())
    expected = REQUEST_FIELDS[command]
    assert decoded(command, payload) == ({} if expected is None else {"fields": expected})


@pytest.mark.parametrize("command", [pytest.param(c, id=name) for c, name in BY_COMMAND])
def test_a_reply_is_shown_by_its_fields(command: Command) -> None:
    payload = joined(EXAMPLES[command].reply.encode())
    expected = REPLY_FIELDS[command]
    assert decoded(command, payload, REPLY) == ({} if expected is None else {"fields": expected})


def shown_names(message: m.Message) -> set[str]:
    """The members that a message of this class has in a line."""
    names = {field.name for field in dataclasses.fields(message)}  # type: ignore[arg-type]
    if isinstance(message, m.DeviceFeature):
        names = names - {"flags"} | {"feature", "methods"}
    return names


@pytest.mark.parametrize("command", [pytest.param(c, id=name) for c, name in BY_COMMAND])
@given(data=st.data())
@settings(MODERATE, max_examples=15)
def test_every_message_is_decoded_with_all_members(command: Command, data: st.DataObject) -> None:
    spec = COMMANDS[command]
    for kind, flags in ((spec.request, 0), (spec.reply, REPLY)):
        message = data.draw(MESSAGES[kind])
        found = decoded(command, joined(message.encode()), flags)
        assert set(found.get("fields", {})) == shown_names(message)


def test_a_request_that_wants_no_reply_is_decoded_like_any() -> None:
    payload = joined(m.RegionRead(0, 1, 4).encode())
    assert decoded(Command.REGION_READ, payload, NO_REPLY) == decoded(Command.REGION_READ, payload)


# Short, however long the message is


def test_of_data_the_first_bytes_and_the_length_are_shown() -> None:
    data = bytes(range(256)) * 4096
    found = fields(Command.REGION_WRITE, m.RegionWrite(0, 2, data))
    assert found["data"] == {"bytes": 1 << 20, "hex": bytes(range(SHOWN_BYTES)).hex()}


def test_of_a_list_the_first_entries_and_how_many_more_are_shown() -> None:
    writes = tuple(m.RegionWrite(4 * i, 2, bytes(4)) for i in range(200))
    found = fields(Command.REGION_WRITE_MULTI, m.RegionWriteMulti(writes))["writes"]
    assert [write["offset"] for write in found[:-1]] == [4 * i for i in range(SHOWN_ENTRIES)]
    assert found[-1] == f"{200 - SHOWN_ENTRIES} more"


# Bytes that make no sense


@pytest.mark.parametrize(
    ("command", "payload", "flags", "reason"),
    [
        (Command.DMA_MAP, bytes(31), 0, "payload of 31 bytes, 32 needed"),
        (Command.REGION_WRITE, bytes(20), 0, "count 0 but 4 bytes of data"),
        (Command.VERSION, b"\0\0\1\0{}", 0, "version data: the text does not end with NUL"),
        (Command.DEVICE_RESET, b"x", REPLY, "1 bytes where no payload belongs"),
        (Command.REGION_READ, bytes(16), 0x21, "what came behind an error"),
        (Command.REGION_READ, bytes(16), 0x02, "no such message type"),
        (14, bytes(16), 0, "no such command"),
        (0xFFFF, b"", REPLY, "no such command"),
    ],
)
def test_what_cannot_be_decoded_is_shown_as_bytes_with_the_reason(
    command: int, payload: bytes, flags: int, reason: str
) -> None:
    assert decoded(command, payload, flags) == {
        "undecoded": {
            "reason": reason,
            "bytes": len(payload),
            "hex": payload[:SHOWN_BYTES].hex(),
        }
    }


@pytest.mark.parametrize(("announced", "unread"), [(1 << 30, 1 << 30), (-16, 0)])
def test_a_header_that_was_refused_is_shown_without_its_payload(
    announced: int, unread: int
) -> None:
    found = decoded(Command.REGION_WRITE, b"", unread=announced)["undecoded"]
    assert found == {"reason": "refused for its header", "unread": unread, "bytes": 0, "hex": ""}


@given(
    command=st.sampled_from(sorted(COMMANDS)) | U16,
    flags=st.sampled_from([0, REPLY, NO_REPLY, 0x21]) | U32,
    payload=st.binary(max_size=200),
)
@MODERATE
def test_whatever_bytes_they_are_a_line_can_be_written(
    command: int, flags: int, payload: bytes
) -> None:
    assert decoded(command, payload, flags).keys() <= {"fields", "undecoded"}


@given(data=st.data())
@MODERATE
def test_a_message_with_damage_can_be_written(data: st.DataObject) -> None:
    command = data.draw(st.sampled_from(sorted(COMMANDS)))
    spec = COMMANDS[command]
    kind, flags = data.draw(st.sampled_from([(spec.request, 0), (spec.reply, REPLY)]))
    payload = bytearray(joined(data.draw(MESSAGES[kind]).encode()))
    for _ in range(data.draw(st.integers(1, 4))):
        if payload:
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(payload)))
    assert decoded(command, bytes(payload[:end]), flags).keys() <= {"fields", "undecoded"}


# Flags


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0x0"), (1, "READ"), (3, "READ|WRITE"), (0x41, "READ|0x40"), (1 << 31, "0x80000000")],
)
def test_flags_are_shown_by_name_and_unknown_bits_as_numbers(value: int, shown: str) -> None:
    assert bits(DMAMapFlags, value) == shown


# Descriptors


def kind(fd: int) -> str:
    """What a trace says that a descriptor is."""
    [found] = descriptors([fd])
    assert found["fd"] == fd
    shown: str = found["is"]
    return shown


def test_descriptors_are_told_apart() -> None:
    event, memory = os.eventfd(0), os.memfd_create("ram")
    readable, writable = os.pipe()
    left, right = socket.socketpair()
    try:
        kinds = [kind(fd) for fd in (event, memory, readable, left.fileno())]
    finally:
        for fd in (event, memory, readable, writable):
            os.close(fd)
        left.close()
        right.close()
    assert kinds == ["eventfd", "memfd:ram", "pipe", "socket"]


def test_a_file_is_shown_by_its_path() -> None:
    with tempfile.NamedTemporaryFile() as file:
        assert kind(file.fileno()) == file.name


def test_a_descriptor_that_is_closed_is_unknown() -> None:
    fd = os.eventfd(0)
    os.close(fd)
    assert kind(fd) == "unknown"
