# SPDX-License-Identifier: BSD-3-Clause
"""Fuzz targets of the codec: each takes bytes and raises where something other than a result or the
documented error comes of them.

They run under any engine: :mod:`tests.fuzz.guided` has coverage guide the inputs,
:mod:`tests.fuzz.blind` makes them up from a seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterator

from pyvfio.errors import RemoteProtocolError
from pyvfio.uapi import chain, vfio
from pyvfio.vectors import RegionInfo
from pyvfio.wire import messages as m
from pyvfio.wire.commands import COMMANDS, Role
from pyvfio.wire.connection import (
    Connection,
    ErrorReceived,
    Event,
    ReplyDropped,
    ReplyInvalid,
    ReplyReceived,
    RequestReceived,
)
from pyvfio.wire.version import DEFAULT_MAX_DATA_XFER_SIZE, Capabilities, Limits
from tests.fuzz import values
from tests.fuzz.messages import MAX_REQUEST, encoded

PAYLOADS: tuple[type[m.Message], ...] = tuple(
    dict.fromkeys(kind for spec in COMMANDS.values() for kind in (spec.request, spec.reply))
)
"""Every payload class of the table."""

OWN = Capabilities(max_msg_fds=16, max_data_xfer_size=1 << 20, max_dma_maps=65535, pgsizes=4096)

_CHUNKS = (None, 1, 3, 17)
"""How many bytes arrive at one time; None is all of them."""


def stream(data: bytes) -> None:
    """Two bytes say which end reads, in what pieces and with which descriptors; a stream follows.

    The end waits for the answer to each command that it can send, id by position in the table, and
    has given up the last.
    """
    if len(data) < 2:
        return
    role = (Role.CLIENT, Role.SERVER)[data[0] & 1]
    chunk, fds = _CHUNKS[data[0] >> 1 & 3], data[1]
    pieces = list(_cut(data[2:], chunk, fds))
    events, broken = _fed(role, pieces)
    again, broken_again = _fed(role, [(data[2:], tuple(fd for _, fds in pieces for fd in fds))])
    if not fds:
        # However the bytes arrive, they mean the same.
        assert (again, broken_again) == (events, broken), (events, again)


def _cut(data: bytes, chunk: int | None, fds: int) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """Pieces of a stream; with every ``fds``-th comes a descriptor, which is a mere number here."""
    size = max(chunk, len(data) // 256) if chunk else len(data) or 1
    for number, at in enumerate(range(0, len(data), size)):
        yield data[at : at + size], (1000 + number,) if fds and not number % fds else ()


def _fed(role: Role, pieces: list[tuple[bytes, tuple[int, ...]]]) -> tuple[list[Event], str]:
    connection, tokens = waiting(role)
    events: list[Event] = []
    given: Counter[int] = Counter()
    broken = ""
    for data, fds in pieces:
        given.update(fds)
        try:
            events += connection.receive_data(data, fds)
        except RemoteProtocolError as error:
            broken = error.reason
            break
        assert len(connection.receive_buffer()) <= MAX_REQUEST
    handed_over = [fd for event in events for fd in event.fds]
    assert Counter([*handed_over, *connection.take_fds()]) == given
    _check(connection, events, tokens)
    if not broken:
        broken = _silence(connection)
    else:
        assert _silence(connection) == broken, "the stream went on"
    return events, broken


def _silence(connection: Connection) -> str:
    """Why the stream is broken, if it is: nothing more can be put in then."""
    try:
        connection.received(0)
    except RemoteProtocolError as error:
        return error.reason
    return ""


def waiting(role: Role) -> tuple[Connection, set[int]]:
    """An end that waits for the answer to each of its commands; the tokens that it waits with."""
    connection = Connection(role, DEFAULT_MAX_DATA_XFER_SIZE)
    own = [spec for spec in COMMANDS.values() if spec.sender is role]
    for position, spec in enumerate(own):
        request = values.message(random.Random(spec.command), spec.request, edges=0.0)
        assert isinstance(request, spec.request)
        connection.request(spec.command, request, position)
    connection.abandon(len(own) - 1)
    return connection, set(range(len(own) - 1))


def _check(connection: Connection, events: list[Event], tokens: set[int]) -> None:
    """Each request is answered once or still waits; what was understood can be written again."""
    answers = [e for e in events if isinstance(e, ReplyReceived | ErrorReceived | ReplyInvalid)]
    ended = [event.token for event in answers]
    assert Counter([*ended, *connection.take_pending()]) == Counter(tokens)
    assert sum(isinstance(event, ReplyDropped) for event in events) <= 1
    for event in events:
        if isinstance(event, ErrorReceived):
            assert 0 < event.errno < 4096
        elif isinstance(event, RequestReceived):
            assert COMMANDS[event.command].sender is connection.role.peer
            _survives(event.message)
            assert event.message.reply_limit() >= 0
        elif isinstance(event, ReplyReceived):
            _survives(event.message)


def _survives(message: m.Message) -> None:
    """What was read from the wire is read again from what it is written as."""
    if isinstance(message, m.RegionIOFDs) and message.sub_regions:
        # Entries of another size than ours are read, but not written.
        size = encoded(m.RegionIOFDs.of(message.index, message.sub_regions, 1 << 32))
        message = dataclasses.replace(message, argsz=len(size))
    try:
        again = type(message).decode(memoryview(encoded(message)))
    except m.PayloadError as error:
        raise AssertionError(f"{message} is not read again") from error
    assert again == message, (again, message)


def payload(data: bytes) -> None:
    """A byte says of which class; its payload follows."""
    with contextlib.suppress(m.PayloadError):
        if data:
            _survives(PAYLOADS[data[0] % len(PAYLOADS)].decode(memoryview(data)[1:]))


def version(data: bytes) -> None:
    """The text behind a VERSION."""
    try:
        found = Capabilities.decode(data)
    except ValueError:
        return
    assert Capabilities.decode(found.encode()) == found
    limits = Limits.of(found, OWN)
    assert 0 <= limits.max_msg_fds <= 253
    assert 8 <= limits.max_data_xfer_size <= 1 << 20
    assert 1 <= limits.max_dma_maps <= 65535
    assert limits.pgsizes


def capability_chain(data: bytes) -> None:
    """Two bytes say where the first node stands; an info struct with its chain follows."""
    if len(data) < 2:
        return
    first, info = int.from_bytes(data[:2], "little"), data[2:]
    start = vfio.REGION_INFO.size
    with contextlib.suppress(chain.ChainError):
        for capability in chain.walk(info, start, first):
            assert len(capability.data) <= len(info) - start
            _read(chain.sparse_areas, capability)
            _read(chain.region_type, capability)


def _read(part: Callable[[chain.InfoCapability], object], capability: chain.InfoCapability) -> None:
    with contextlib.suppress(chain.ChainError):
        part(capability)


def region_info(data: bytes) -> None:
    """An info struct with its chain, as the reply to DEVICE_GET_REGION_INFO carries it."""
    if len(data) < vfio.REGION_INFO.size:
        return
    try:
        found = RegionInfo.from_struct(vfio.REGION_INFO.unpack_from(data), data, fd=3)
    except ValueError:
        return
    assert 0 <= found.size < 1 << 64
    assert found.fd_offset + found.size < 1 << 64
    end = 0
    for area in found.areas:
        assert end <= area.offset, f"areas out of order, or one over another: {found.areas}"
        end = area.offset + area.size
        assert area.size > 0
        assert end <= found.size


TARGETS: dict[str, Callable[[bytes], None]] = {
    "stream": stream,
    "payload": payload,
    "version": version,
    "chain": capability_chain,
    "region-info": region_info,
}
