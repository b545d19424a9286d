# SPDX-License-Identifier: BSD-3-Clause
"""Migration by hand-written bytes: states, the stream, and the log of dirty pages."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fault import raw
from tests.fault.raw import RawClient
from tests.fault.raw_migration import (
    GET,
    LOGGING_REPORT,
    LOGGING_START,
    RESUMING,
    SET,
    STATE,
    STOP,
    STOP_COPY,
)
from tests.support import ServerProcess

ROOM = 1 << 16
"""An argsz with room for any feature."""
CHUNK = 1 << 20
"""Bytes of migration data in one message."""


def feature(flags: int, data: bytes = b"", argsz: int = ROOM) -> bytes:
    """Payload of DEVICE_FEATURE."""
    return struct.pack("<II", argsz, flags) + data


def to_state(state: int) -> bytes:
    """Payload of DEVICE_FEATURE that asks for a state."""
    return feature(SET | STATE, struct.pack("<II", state, 0))


def data_read(size: int) -> bytes:
    """Payload of MIG_DATA_READ."""
    return struct.pack("<II", 8 + size, size)


def data_write(data: bytes) -> bytes:
    """Payload of MIG_DATA_WRITE."""
    return struct.pack("<II", 8 + len(data), len(data)) + data


def state(client: RawClient) -> int:
    """The state that the device is in."""
    return client.done(raw.DEVICE_FEATURE, feature(GET | STATE)).words("IIII")[2]


def go(client: RawClient, *states: int) -> None:
    """Have the device go through states."""
    for wanted in states:
        request = to_state(wanted)
        assert client.done(raw.DEVICE_FEATURE, request).payload == request


def refuses(client: RawClient, wanted: int) -> int:
    """Ask for a state that must be refused; returns the errno."""
    return client.refused(raw.DEVICE_FEATURE, to_state(wanted))


def read_some(client: RawClient, size: int = CHUNK) -> bytes:
    """One piece of the stream."""
    reply = client.done(raw.MIG_DATA_READ, data_read(size))
    argsz, count = reply.words("II")
    assert (argsz, len(reply.payload)) == (8 + count, 8 + count)
    assert count <= size
    return reply.payload[8:]


def read_all(client: RawClient, size: int = CHUNK) -> bytes:
    """The stream up to a piece that is short."""
    found = bytearray()
    while len(piece := read_some(client, size)) == size:
        found += piece
    return bytes(found + piece)


def write_all(client: RawClient, stream: bytes, size: int = CHUNK) -> None:
    """The stream in pieces."""
    for at in range(0, len(stream), size):
        assert not client.done(raw.MIG_DATA_WRITE, data_write(stream[at : at + size])).payload


def save(client: RawClient) -> bytes:
    """Stop the device and read its state; it is in STOP_COPY then."""
    go(client, STOP_COPY)
    return read_all(client)


def load(client: RawClient, stream: bytes) -> None:
    """Have the device take on a state; it is in STOP then."""
    go(client, RESUMING)
    write_all(client, stream)
    go(client, STOP)


@contextmanager
def connected(server: ServerProcess, *, reset: bool = True) -> Iterator[RawClient]:
    """A client, of a device that was reset."""
    with RawClient(server.path) as client:
        client.negotiate()
        if reset:
            client.done(raw.RESET)
        yield client


# The log of dirty pages


def start_logging(page_size: int, *ranges: tuple[int, int]) -> bytes:
    """Payload that starts the log of (iova, length) ranges, or of everything."""
    listed = b"".join(struct.pack("<QQ", *entry) for entry in ranges)
    return feature(SET | LOGGING_START, struct.pack("<QII", page_size, len(ranges), 0) + listed)


def report(client: RawClient, iova: int, length: int, page_size: int = 4096) -> set[int]:
    """The numbers of the dirty pages, counted from ``iova``; they are clean then."""
    asked = struct.pack("<QQQ", iova, length, page_size)
    reply = client.done(raw.DEVICE_FEATURE, feature(GET | LOGGING_REPORT, asked, 1 << 20))
    argsz, flags = reply.words("II")
    assert (argsz, flags) == (len(reply.payload), GET | LOGGING_REPORT)
    assert reply.payload[8:32] == asked
    words = struct.iter_unpack("<Q", reply.payload[32:])
    return {64 * n + bit for n, (word,) in enumerate(words) for bit in range(64) if word >> bit & 1}
