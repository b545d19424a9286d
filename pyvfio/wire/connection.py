# SPDX-License-Identifier: BSD-3-Clause
"""The state machine of one vfio-user stream, for either role, without a socket.

Feed it what arrives (:meth:`Connection.receive_data`, or :meth:`Connection.receive_buffer` with
:meth:`Connection.received` to read straight into place) and it returns events.  Ask it to encode
requests and replies and it returns buffers to send.  Whatever bytes arrive, the outcome is an
event or :class:`~pyvfio.errors.RemoteProtocolError`; after the latter the stream cannot be read on.

Descriptors belong to the message that holds the first byte of the chunk they came with.  The codec
never closes one: events hand them over, and :meth:`Connection.take_fds` gives back those of a
message that was not finished.

The object is not locked; its owner calls it from one thread at a time.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pyvfio.errors import LocalProtocolError, RemoteProtocolError
from pyvfio.uapi.layout import Buffer
from pyvfio.wire.commands import COMMANDS, CommandSpec, Role
from pyvfio.wire.header import (
    HEADER,
    TYPE_MASK,
    Command,
    Header,
    HeaderFlags,
    command_name,
)
from pyvfio.wire.messages import Message, PayloadError, Request, payload_size
from pyvfio.wire.version import MAX_FDS

MAX_OVERHEAD = 64 * 1024
"""Bytes that a command may have beyond its data: VERSION's JSON is the longest."""

MAX_ERRNO = 4095
"""Largest error number of Linux; another in a reply is taken for EIO."""

IDS = 1 << 15
"""Ids that :meth:`Connection.request` gives, from 0; those above are for who encodes by itself."""

# Plain integers: an IntFlag costs a microsecond wherever it meets an operator.
_COMMAND_TYPE, _REPLY_TYPE = int(HeaderFlags.COMMAND), int(HeaderFlags.REPLY)
_NO_REPLY_BIT, _ERROR_BIT = int(HeaderFlags.NO_REPLY), int(HeaderFlags.ERROR)


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """The peer asks for something; answer with :meth:`Connection.reply` unless ``no_reply``.

    ``size`` is that of the whole message in bytes.
    """

    id: int
    command: Command
    message: Any
    no_reply: bool
    fds: tuple[int, ...] = ()
    size: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class RequestInvalid:
    """A well-framed request that makes no sense; answer with :meth:`Connection.error`."""

    id: int
    command: int
    no_reply: bool
    errno: int
    reason: str
    fds: tuple[int, ...] = ()
    size: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class ReplyReceived:
    """The peer answered; ``token`` is what the request was sent with."""

    token: Any
    message: Any
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ErrorReceived:
    """The peer refused a request with an error number (EIO where it gave none that exists)."""

    token: Any
    errno: int
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplyInvalid:
    """A well-framed reply that does not answer its request."""

    token: Any
    reason: str
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplyDropped:
    """The late answer to a request that was given up; it has been drained."""

    id: int
    fds: tuple[int, ...] = ()


Event: TypeAlias = (
    RequestReceived | RequestInvalid | ReplyReceived | ErrorReceived | ReplyInvalid | ReplyDropped
)


Observer: TypeAlias = Callable[[Header, memoryview, Sequence[int]], None]
"""Told the header, the payload and the descriptors of a message as they came."""


@dataclass(slots=True)
class _Pending:
    """A request that waits for its reply; without a token after it was given up."""

    command: Command
    request: Request
    token: Any
    abandoned: bool = False


@dataclass(slots=True)
class _Incoming:
    """The message being received."""

    fds: list[int] = field(default_factory=list)
    header: Header | None = None
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(HEADER.size)))
    filled: int = 0


class Connection:
    """One end of a vfio-user stream.

    :param role: which end this is.
    :param max_data: largest ``count`` of data bytes that this side takes in a request; bounds what
        is allocated for a message.
    :ivar pending: the requests that wait for their replies, also those that were given up.
    :ivar in_message: whether a part of a message has been received.
    :ivar observer: told of each message that is complete, before it is decoded; also of a header
        that is refused, with nothing of the payload.  It must not raise, nor keep what it is told.
    """

    def __init__(self, role: Role, max_data: int) -> None:
        self.role = role
        self._max_request = HEADER.size + MAX_OVERHEAD + max_data
        self.pending: dict[int, _Pending] = {}
        self.in_message = False
        self._next_id = 0
        self._incoming = _Incoming()
        self._broken = ""
        self.observer: Observer | None = None

    # Sending

    def request(
        self, command: Command, message: Request, token: Any = None, *, no_reply: bool = False
    ) -> tuple[int, list[Buffer]]:
        """Encode a command; returns its id and the buffers to send.

        :raises LocalProtocolError: the command is not this role's, the payload is not of its
            class, or 32,768 requests are unanswered.
        """
        spec = COMMANDS[command]
        if spec.sender is not self.role:
            raise LocalProtocolError(f"{command.name} is not sent by a {self.role.value}")
        if not isinstance(message, spec.request):
            raise LocalProtocolError(f"{command.name} takes no {type(message).__name__}")
        number = self._take_id()
        flags = _NO_REPLY_BIT if no_reply else _COMMAND_TYPE
        buffers = _frame(number, command, flags, 0, message)
        if not no_reply:
            self.pending[number] = _Pending(command, message, token)
        return number, buffers

    def frame(
        self, number: int, command: Command, message: Request, no_reply: bool = False
    ) -> list[Buffer]:
        """A command as somebody else has encoded it, with an id that is not given here."""
        return _frame(number, command, _NO_REPLY_BIT if no_reply else _COMMAND_TYPE, 0, message)

    def adopt(self, number: int, command: Command, message: Request, token: Any) -> list[Buffer]:
        """Take note of a command that somebody else has encoded and sent; returns it encoded."""
        self.pending[number] = _Pending(command, message, token)
        return self.frame(number, command, message)

    def _take_id(self) -> int:
        if len(self.pending) >= IDS:
            raise LocalProtocolError("32,768 requests are unanswered")
        while self._next_id in self.pending:
            self._next_id = (self._next_id + 1) % IDS
        number = self._next_id
        self._next_id = (number + 1) % IDS
        return number

    def abandon(self, number: int) -> bool:
        """Give up waiting for the reply to a request; it is drained when it comes.

        :returns: False where the reply has come already.
        """
        pending = self.pending.get(number)
        if pending is None:
            return False
        pending.token, pending.abandoned = None, True
        return True

    def forget(self, number: int) -> None:
        """Take back a request of which nothing was sent."""
        del self.pending[number]

    def reply(self, request: RequestReceived, message: Message) -> list[Buffer]:
        """Encode the reply to ``request``.

        :raises LocalProtocolError: the payload is not of the class that the command is answered
            with, or the request wants no reply.
        """
        if request.no_reply:
            raise LocalProtocolError(f"{request.command.name} wants no reply")
        if not isinstance(message, COMMANDS[request.command].reply):
            raise LocalProtocolError(
                f"{request.command.name} is not answered with {type(message).__name__}"
            )
        return _frame(request.id, request.command, _REPLY_TYPE, 0, message)

    def error(self, request: RequestReceived | RequestInvalid, number: int) -> list[Buffer]:
        """Encode an error reply: a header with errno ``number`` and no payload."""
        if request.no_reply:
            raise LocalProtocolError("the command wants no reply")
        return [
            HEADER.pack(request.id, request.command, HEADER.size, _REPLY_TYPE | _ERROR_BIT, number)
        ]

    def take_pending(self) -> list[Any]:
        """The tokens of all requests that wait for a reply, for when none will come."""
        tokens = [entry.token for entry in self.pending.values() if not entry.abandoned]
        self.pending.clear()
        return tokens

    def has_pending(self) -> bool:
        """Whether a request waits for its reply."""
        return any(not entry.abandoned for entry in self.pending.values())

    # Receiving

    def in_body(self) -> bool:
        """Whether a header has been read and its body is awaited."""
        return self._incoming.header is not None

    def between_messages(self) -> bool:
        """Whether nothing of a message has been read, and the stream is understood."""
        return not (self._incoming.header or self._incoming.filled or self._broken)

    def receive_buffer(self) -> memoryview:
        """Where the next bytes of the stream belong; it never reaches into a further message."""
        return self._incoming.buffer[self._incoming.filled :]

    def received(self, count: int, fds: Sequence[int] = ()) -> Event | None:
        """Take note of ``count`` bytes read into :meth:`receive_buffer`.

        :returns: the event of the message that these bytes completed, if they did.
        :raises RemoteProtocolError: the stream cannot be understood; it must be closed.
        """
        incoming = self._incoming
        incoming.filled += count
        incoming.fds.extend(fds)
        self.in_message = True
        try:
            if self._broken:
                raise RemoteProtocolError(self._broken)
            if len(incoming.fds) > MAX_FDS:
                raise RemoteProtocolError(f"more than {MAX_FDS} descriptors in one message")
            return self._advance(incoming) if incoming.filled == len(incoming.buffer) else None
        except RemoteProtocolError as error:
            if self.observer and not self._broken and incoming.header is None:
                self._observe_refused(self.observer, incoming)
            self._broken = error.reason
            raise

    def receive_data(self, data: Buffer, fds: Sequence[int] = ()) -> list[Event]:
        """Take any piece of the stream; returns the events that it completed.

        Where a later message in the piece breaks the stream, the events before it are returned,
        and the next call raises :class:`RemoteProtocolError`.
        """
        events: list[Event] = []
        rest = memoryview(data)
        while rest:
            space = self.receive_buffer()
            count = min(len(space), len(rest))
            space[:count] = rest[:count]
            try:
                event = self.received(count, fds)
            except RemoteProtocolError:
                if events:
                    return events
                raise
            if event is not None:
                events.append(event)
            rest, fds = rest[count:], ()
        return events

    def take_fds(self) -> list[int]:
        """The descriptors of the unfinished message; they are the caller's to close."""
        fds, self._incoming.fds = self._incoming.fds, []
        return fds

    def _advance(self, incoming: _Incoming) -> Event | None:
        if incoming.header is None:
            header = HEADER.unpack_from(incoming.buffer)
            body = self._check_header(header)
            incoming.header = header
            if body:
                incoming.buffer, incoming.filled = memoryview(bytearray(body)), 0
                return None
            incoming.buffer = memoryview(b"")
        if self.observer is not None:
            self.observer(incoming.header, incoming.buffer, incoming.fds)
        event = self._event(incoming.header, incoming.buffer, incoming.fds)
        self._incoming = _Incoming()
        self.in_message = False
        return event

    @staticmethod
    def _observe_refused(observer: Observer, incoming: _Incoming) -> None:
        if incoming.filled == HEADER.size:
            observer(HEADER.unpack_from(incoming.buffer), memoryview(b""), incoming.fds)

    def _check_header(self, header: Header) -> int:
        """Size of the body that follows; raises before anything is allocated for it."""
        if header.size < HEADER.size:
            raise RemoteProtocolError(f"a message of {header.size} bytes, header included")
        kind = header.flags & TYPE_MASK
        if kind == _COMMAND_TYPE:
            limit = self._max_request
        elif kind == _REPLY_TYPE:
            limit = self._reply_limit(header)
        else:
            raise RemoteProtocolError(f"message type {kind}")
        if header.size > limit:
            raise RemoteProtocolError(
                f"{command_name(header.command)} of {header.size} bytes, at most {limit} expected"
            )
        return header.size - HEADER.size

    def _reply_limit(self, header: Header) -> int:
        pending = self.pending.get(header.id)
        if pending is None:
            raise RemoteProtocolError(
                f"reply {header.id} to {command_name(header.command)}, never asked"
            )
        if pending.command != header.command:
            raise RemoteProtocolError(
                f"{command_name(header.command)} answers request {header.id},"
                f" which is {pending.command.name}"
            )
        if header.flags & _ERROR_BIT:
            # Some servers send the request back behind an error; nothing else is to be expected.
            echo = payload_size(pending.request.encode())
            return HEADER.size + max(pending.request.reply_limit(), echo)
        return HEADER.size + pending.request.reply_limit()

    def _event(self, header: Header, payload: memoryview, fds: list[int]) -> Event:
        if header.flags & TYPE_MASK == _COMMAND_TYPE:
            return self._request_event(header, payload, tuple(fds))
        return self._reply_event(header, payload, tuple(fds))

    def _request_event(self, header: Header, payload: memoryview, fds: tuple[int, ...]) -> Event:
        no_reply = bool(header.flags & _NO_REPLY_BIT)
        try:
            spec = self._known_request(header.command)
            _check_fds(fds, spec.request_fds)
            message = spec.request.decode(payload)
        except PayloadError as error:
            reason = f"{command_name(header.command)}: {error}"
            return RequestInvalid(
                header.id, header.command, no_reply, error.errno, reason, fds, header.size
            )
        return RequestReceived(header.id, spec.command, message, no_reply, fds, header.size)

    def _known_request(self, number: int) -> CommandSpec:
        spec = COMMANDS.get(number)
        if spec is None or spec.sender is self.role:
            raise PayloadError("no such command", errno.ENOSYS)
        return spec

    def _reply_event(self, header: Header, payload: memoryview, fds: tuple[int, ...]) -> Event:
        pending = self.pending.pop(header.id)
        if pending.abandoned:
            return ReplyDropped(header.id, fds)
        if header.flags & _ERROR_BIT:
            known = 0 < header.error <= MAX_ERRNO
            return ErrorReceived(pending.token, header.error if known else errno.EIO, fds)
        spec = COMMANDS[pending.command]
        try:
            _check_fds(fds, spec.reply_fds)
            message = spec.reply.decode(payload)
            pending.request.check_reply(message)
        except PayloadError as error:
            return ReplyInvalid(pending.token, f"{pending.command.name} reply: {error}", fds)
        return ReplyReceived(pending.token, message, fds)


def _frame(number: int, command: int, flags: int, error: int, message: Message) -> list[Buffer]:
    payload = message.encode()
    size = HEADER.size + payload_size(payload)
    return [HEADER.pack(number, command, size, flags, error), *payload]


def _check_fds(fds: tuple[int, ...], most: int) -> None:
    if len(fds) > most:
        raise PayloadError(f"{len(fds)} descriptors, at most {most} belong there")
