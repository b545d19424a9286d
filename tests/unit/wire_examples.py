# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of the codec share: a joined pair, an example of every message, strategies.

Descriptors here are plain numbers that stand for open files; the codec never touches one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from pyvfio.uapi.layout import Buffer
from pyvfio.wire import messages as m
from pyvfio.wire.commands import COMMANDS, Role
from pyvfio.wire.connection import Connection, Event, RequestInvalid, RequestReceived
from pyvfio.wire.header import Command
from pyvfio.wire.version import Capabilities

MAX_DATA = 4096
"""What the connections of these tests take in a request."""

MODERATE = settings(deadline=None, max_examples=60)

REPLY = 0x01
NO_REPLY = 0x10
ERROR = 0x21

BY_COMMAND = [(spec.command, spec.command.name.lower()) for spec in COMMANDS.values()]
"""Every command with the id that a parametrized test gives it."""


def frame(
    number: int,
    command: int,
    payload: bytes = b"",
    *,
    flags: int = 0,
    error: int = 0,
    size: int | None = None,
) -> bytes:
    """A message as a peer may write it, right or wrong; ``size`` lies about its length."""
    total = 16 + len(payload) if size is None else size
    return struct.pack("=HHIII", number, command, total, flags, error) + payload


def joined(buffers: Sequence[Buffer]) -> bytes:
    """What a socket sends for a list of buffers."""
    return b"".join(buffers)


def advance(connection: Connection, number: int) -> None:
    """Use up ids until the next request of ``connection`` gets id ``number``."""
    server = connection.role is Role.SERVER
    command = Command.DMA_READ if server else Command.DEVICE_RESET
    message = m.DMARead(0, 0) if server else m.Empty()
    for _ in range(number):
        connection.request(command, message, no_reply=True)


class ConnectionPair:
    """A client and a server, joined by bytes."""

    def __init__(self) -> None:
        self.client = Connection(Role.CLIENT, MAX_DATA)
        self.server = Connection(Role.SERVER, MAX_DATA)

    def sender(self, command: Command) -> Connection:
        """The end that sends ``command``."""
        return self.client if COMMANDS[command].sender is Role.CLIENT else self.server

    def receiver(self, command: Command) -> Connection:
        """The end that ``command`` is sent to."""
        return self.server if COMMANDS[command].sender is Role.CLIENT else self.client

    def ask(
        self,
        command: Command,
        message: m.Request,
        fds: Sequence[int] = (),
        *,
        token: Any = None,
        no_reply: bool = False,
    ) -> RequestReceived:
        """Send a request; returns what the other end makes of it."""
        _, buffers = self.sender(command).request(command, message, token, no_reply=no_reply)
        [event] = self.receiver(command).receive_data(joined(buffers), fds)
        assert isinstance(event, RequestReceived)
        return event

    def answer(
        self, request: RequestReceived, message: m.Message, fds: Sequence[int] = ()
    ) -> Event:
        """Answer a request; returns what the end that asked makes of it."""
        buffers = self.receiver(request.command).reply(request, message)
        [event] = self.sender(request.command).receive_data(joined(buffers), fds)
        return event

    def refuse(self, request: RequestReceived | RequestInvalid, number: int) -> Event:
        """Answer a request with an error number; returns what the end that asked makes of it."""
        command = Command(request.command)
        buffers = self.receiver(command).error(request, number)
        [event] = self.sender(command).receive_data(joined(buffers))
        return event


class Example(NamedTuple):
    """A request and the reply to it."""

    request: m.Request
    reply: m.Message


_RANGE = m.DMAUnmap(flags=0, iova=0x10_0000, size=0x20_0000)
_FEATURE = m.DeviceFeature(argsz=16, flags=0x1_0001, data=bytes(8))
_AREA = bytes.fromhex("0100010000000000 0100000000000000 0010000000000000 0010000000000000")
_WRITES = (m.RegionWrite(0x20, 2, b"\x34\x12"), m.RegionWrite(0x28, 2, b"12345678"))

EXAMPLES: dict[Command, Example] = {
    Command.VERSION: Example(
        m.Version(0, 1, Capabilities(max_msg_fds=8)),
        m.Version(0, 1, Capabilities(max_msg_fds=16, write_multiple=True)),
    ),
    Command.DMA_MAP: Example(m.DMAMap(3, 0x1000, 0x10_0000, 0x20_0000), m.Empty()),
    Command.DMA_UNMAP: Example(_RANGE, _RANGE),
    Command.DEVICE_GET_INFO: Example(m.GetDeviceInfo(), m.DeviceInfo(3, 9, 5)),
    Command.DEVICE_GET_REGION_INFO: Example(
        m.GetRegionInfo(index=2, argsz=64),
        m.RegionInfo(64, 0xF, 2, cap_offset=32, size=0x4000, offset=0x8000, chain=_AREA),
    ),
    Command.DEVICE_GET_REGION_IO_FDS: Example(
        m.GetRegionIOFDs(index=2, argsz=56),
        m.RegionIOFDs(56, 2, 1, (m.IOSubRegion(0, 4, 0, 0, 0, 0),)),
    ),
    Command.DEVICE_GET_IRQ_INFO: Example(m.GetIRQInfo(index=2), m.IRQInfo(9, 2, 32)),
    Command.DEVICE_SET_IRQS: Example(m.SetIRQs(0x22, 2, 0, 2, b"\x00\x01"), m.Empty()),
    Command.REGION_READ: Example(m.RegionRead(0x10, 7, 4), m.RegionData(0x10, 7, b"\1\2\3\4")),
    Command.REGION_WRITE: Example(m.RegionWrite(0x10, 7, b"\1\2\3\4"), m.RegionWritten(0x10, 7, 4)),
    Command.DMA_READ: Example(m.DMARead(0x10_0000, 4), m.DMAData(0x10_0000, b"\1\2\3\4")),
    Command.DMA_WRITE: Example(m.DMAWrite(0x10_0000, b"\1\2\3\4"), m.DMAWritten(0x10_0000, 4)),
    Command.DEVICE_RESET: Example(m.Empty(), m.Empty()),
    Command.REGION_WRITE_MULTI: Example(m.RegionWriteMulti(_WRITES), m.RegionWriteMultiDone(2)),
    Command.DEVICE_FEATURE: Example(_FEATURE, _FEATURE),
    Command.MIG_DATA_READ: Example(m.MigDataRead(4), m.MigData(b"\1\2\3\4")),
    Command.MIG_DATA_WRITE: Example(m.MigDataWrite(b"\1\2\3\4"), m.Empty()),
}

U16 = st.integers(0, (1 << 16) - 1)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
DATA = st.binary(max_size=64)
_COUNT = st.integers(0, 64)


def _optional(strategy: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.none() | strategy


_pgsizes = st.integers(1, (1 << 64) - 1).filter(lambda sizes: sizes & -sizes <= 1 << 30)
"""Page sizes of which one is small enough to be taken."""


@st.composite
def _capabilities(draw: st.DrawFn) -> Capabilities:
    twin = draw(_optional(st.booleans()))
    return Capabilities(
        max_msg_fds=draw(_optional(st.integers(0, 1 << 32))),
        max_data_xfer_size=draw(_optional(st.integers(8, 1 << 32))),
        max_dma_maps=draw(_optional(st.integers(1, 1 << 32))),
        pgsizes=draw(_optional(_pgsizes)),
        twin_socket=twin,
        twin_fd_index=None if twin is None else draw(_optional(st.integers(0, 252))),
        write_multiple=draw(_optional(st.booleans())),
        long_writes=draw(_optional(st.booleans())),
    )


CAPABILITIES = _capabilities()
_IO_FD = st.builds(m.IOSubRegion, U64, U64, U32, U32, U32, U64)
_WRITE = st.builds(m.RegionWrite, U64, U32, st.binary(min_size=1, max_size=8))

MESSAGES: dict[type[m.Message], SearchStrategy[Any]] = {
    m.Empty: st.builds(m.Empty),
    m.Version: st.builds(m.Version, U16, U16, _optional(CAPABILITIES)),
    m.DMAMap: st.builds(m.DMAMap, U32, U64, U64, U64),
    m.DMAUnmap: st.builds(m.DMAUnmap, U32, U64, U64),
    m.GetDeviceInfo: st.builds(m.GetDeviceInfo, st.integers(16, (1 << 32) - 1)),
    m.DeviceInfo: st.builds(m.DeviceInfo, U32, U32, U32, U32),
    m.GetRegionInfo: st.builds(m.GetRegionInfo, U32, st.integers(32, (1 << 32) - 1)),
    m.RegionInfo: st.builds(m.RegionInfo, U32, U32, U32, U32, U64, U64, DATA),
    m.GetRegionIOFDs: st.builds(m.GetRegionIOFDs, U32, st.integers(16, (1 << 32) - 1)),
    m.RegionIOFDs: st.builds(m.RegionIOFDs.of, U32, st.lists(_IO_FD, max_size=4), U32),
    m.GetIRQInfo: st.builds(m.GetIRQInfo, U32, st.integers(16, (1 << 32) - 1)),
    m.IRQInfo: st.builds(m.IRQInfo, U32, U32, U32),
    m.SetIRQs: st.builds(m.SetIRQs, U32, U32, U32, U32, DATA),
    m.RegionRead: st.builds(m.RegionRead, U64, U32, U32),
    m.RegionData: st.builds(m.RegionData, U64, U32, DATA),
    m.RegionWrite: st.builds(m.RegionWrite, U64, U32, DATA),
    m.RegionWritten: st.builds(m.RegionWritten, U64, U32, U32),
    m.DMARead: st.builds(m.DMARead, U64, U64),
    m.DMAData: st.builds(m.DMAData, U64, DATA),
    m.DMAWrite: st.builds(m.DMAWrite, U64, DATA),
    m.DMAWritten: st.builds(m.DMAWritten, U64, U64),
    m.RegionWriteMulti: st.builds(m.RegionWriteMulti, st.lists(_WRITE, max_size=4).map(tuple)),
    m.RegionWriteMultiDone: st.builds(m.RegionWriteMultiDone, U64),
    m.DeviceFeature: st.builds(m.DeviceFeature, st.integers(8, (1 << 32) - 1), U32, DATA),
    m.MigDataRead: st.builds(m.MigDataRead, st.integers(0, (1 << 32) - 9)),
    m.MigData: st.builds(m.MigData, DATA),
    m.MigDataWrite: st.builds(m.MigDataWrite, DATA),
}
"""Every payload class with all the values that its members can take."""

_SMALL: dict[type[m.Message], SearchStrategy[Any]] = {
    m.GetDeviceInfo: st.builds(m.GetDeviceInfo, st.integers(16, 64)),
    m.GetRegionInfo: st.builds(m.GetRegionInfo, U32, st.integers(32, 64)),
    m.GetRegionIOFDs: st.builds(m.GetRegionIOFDs, U32, st.integers(16, 64)),
    m.GetIRQInfo: st.builds(m.GetIRQInfo, U32, st.integers(16, 64)),
    m.RegionRead: st.builds(m.RegionRead, U64, U32, _COUNT),
    m.DMARead: st.builds(m.DMARead, U64, _COUNT),
    m.DeviceFeature: st.builds(m.DeviceFeature, st.integers(8, 64), U32, DATA),
    m.MigDataRead: st.builds(m.MigDataRead, _COUNT),
}
"""The requests that say how large their reply may be, with replies that a test can afford."""

ANSWERS: dict[Command, Callable[[Any], m.Message]] = {
    Command.VERSION: lambda request: request,
    Command.DMA_MAP: lambda _: m.Empty(),
    Command.DMA_UNMAP: lambda request: request,
    Command.DEVICE_GET_INFO: lambda _: m.DeviceInfo(3, 9, 5),
    Command.DEVICE_GET_REGION_INFO: lambda ask: m.RegionInfo(32, 3, ask.index, 0, 0x1000, 0),
    Command.DEVICE_GET_REGION_IO_FDS: lambda request: m.RegionIOFDs(16, request.index, 0),
    Command.DEVICE_GET_IRQ_INFO: lambda request: m.IRQInfo(1, request.index, 4),
    Command.DEVICE_SET_IRQS: lambda _: m.Empty(),
    Command.REGION_READ: lambda ask: m.RegionData(ask.offset, ask.region, bytes(ask.count)),
    Command.REGION_WRITE: lambda ask: m.RegionWritten(ask.offset, ask.region, ask.count),
    Command.DMA_READ: lambda request: m.DMAData(request.address, bytes(request.count)),
    Command.DMA_WRITE: lambda request: m.DMAWritten(request.address, len(request.data)),
    Command.DEVICE_RESET: lambda _: m.Empty(),
    Command.REGION_WRITE_MULTI: lambda request: m.RegionWriteMultiDone(len(request.writes)),
    Command.DEVICE_FEATURE: lambda request: request,
    Command.MIG_DATA_READ: lambda request: m.MigData(bytes(request.size)),
    Command.MIG_DATA_WRITE: lambda _: m.Empty(),
}
"""How a peer that does its work answers each request."""


class Turn(NamedTuple):
    """One message that an end receives: a request of the peer, or the answer to its own."""

    command: Command
    request: m.Request
    fds: tuple[int, ...]
    no_reply: bool

    @property
    def reply(self) -> m.Message:
        """The answer to the request."""
        return ANSWERS[self.command](self.request)


class Chunk(NamedTuple):
    """Bytes that arrive at once, and the descriptors that come with the first of them."""

    data: bytes
    fds: tuple[int, ...] = ()


@st.composite
def _turn(draw: st.DrawFn, role: Role) -> Turn:
    spec = draw(st.sampled_from(list(COMMANDS.values())))
    request = draw(_SMALL.get(spec.request, MESSAGES[spec.request]))
    own = spec.sender is role
    most = min(3, spec.reply_fds if own else spec.request_fds)
    fds = draw(st.lists(st.integers(3, 1023), max_size=most, unique=True))
    return Turn(spec.command, request, tuple(fds), not own and draw(st.booleans()))


def turns(role: Role) -> SearchStrategy[list[Turn]]:
    """What an end of ``role`` receives: messages of every kind, in any order."""
    return st.lists(_turn(role), max_size=5)


def asked(role: Role, script: Iterable[Turn]) -> tuple[Connection, list[bytes]]:
    """An end that has sent its own requests of ``script``, each with its position as token."""
    connection = Connection(role, MAX_DATA)
    sent = []
    for token, turn in enumerate(script):
        if COMMANDS[turn.command].sender is role:
            _, buffers = connection.request(turn.command, turn.request, token)
            sent.append(joined(buffers))
    return connection, sent


def written(role: Role, script: Iterable[Turn]) -> list[Chunk]:
    """What the peer of an end of ``role`` writes, one chunk for each message of ``script``."""
    script = list(script)
    peer = Connection(role.peer, MAX_DATA)
    requests = iter(asked(role, script)[1])
    chunks = []
    for turn in script:
        if COMMANDS[turn.command].sender is role:
            [request] = peer.receive_data(next(requests))
            assert isinstance(request, RequestReceived)
            buffers = peer.reply(request, turn.reply)
        else:
            _, buffers = peer.request(turn.command, turn.request, no_reply=turn.no_reply)
        chunks.append(Chunk(joined(buffers), turn.fds))
    return chunks


def glued(chunks: Iterable[Chunk]) -> list[Chunk]:
    """As few chunks as a socket may make of these: one ends where the next has descriptors."""
    found: list[Chunk] = []
    for chunk in chunks:
        if found and not chunk.fds:
            found[-1] = Chunk(found[-1].data + chunk.data, found[-1].fds)
        else:
            found.append(chunk)
    return found


def cut(chunks: Iterable[Chunk], sizes: Sequence[int]) -> list[Chunk]:
    """The same stream in pieces of ``sizes`` bytes, used in turn."""
    found: list[Chunk] = []
    for chunk in chunks:
        rest, fds = chunk.data, chunk.fds
        while rest:
            size = sizes[len(found) % len(sizes)]
            found.append(Chunk(rest[:size], fds))
            rest, fds = rest[size:], ()
    return found


def fed(connection: Connection, chunks: Iterable[Chunk]) -> list[Event]:
    """The events that ``chunks`` complete."""
    return [event for data, fds in chunks for event in connection.receive_data(data, fds)]
