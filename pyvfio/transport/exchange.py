# SPDX-License-Identifier: BSD-3-Clause
"""The usual exchange, in one call of C: a request goes out, exactly its reply comes in.

That is possible where nobody reads the socket, nothing is queued or unanswered, and the stream is
at the border of a message.  Whatever else comes up in C - no reply yet, another message, an error,
descriptors, the end of the stream, a signal - is gone on with here: the request becomes a
:class:`Call` of the channel, and the bytes that were read are given to its codec.  So all that is
not usual is done in one place, the channel's, whether C was tried before or not.

The environment variable :data:`VARIABLE` set to 0 has nothing tried.  Neither is it where messages
are traced.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import Any, Protocol

import numpy.typing as npt

from pyvfio.errors import ConnectionLost, RemoteProtocolError, VFIOError
from pyvfio.native.channel import WIDE, Stream
from pyvfio.native.status import Status
from pyvfio.transport.call import Call, CallOwner
from pyvfio.transport.send_queue import SendQueue
from pyvfio.transport.sockets import GONE, LOST_FDS, LOST_FDS_HINT, close_fds, limit_waits
from pyvfio.transport.turn import Turn
from pyvfio.transport.unread import Unread
from pyvfio.uapi.layout import Buffer
from pyvfio.wire.connection import Connection
from pyvfio.wire.header import Command
from pyvfio.wire.messages import RegionRead, RegionWrite, Request

VARIABLE = "PYVFIO_NATIVE_CHANNEL"
"""The environment variable that switches C off."""

PATIENCE = 0.01
"""Seconds that C waits for an answer.  Nobody can wake it meanwhile: neither who closes the channel
nor who has queued something."""

SENDING = 0.0002
"""Seconds after which somebody who wants to send looks again whether C still does."""

WINDOW = 32
"""Requests of a pipeline that may be unanswered at one time; half of what may be at all, since
others need room as well."""

FIRST_ID, FIRST_POSTED_ID, IDS = 0x8000, 0xC000, 0x4000
"""Of the ids in C; those of the codec are below."""

_NOTHING = memoryview(b"")
_MISFITS = (OverflowError, TypeError)
"""What C is not given: the general way says which value does not fit."""


class Requests(Protocol):
    """Some requests; made when they are asked for."""

    def __getitem__(self, at: int, /) -> tuple[Command, Request]: ...


class ExchangeOwner(CallOwner, Protocol):
    """What an exchange needs of its channel; but for ``submit`` and ``lose`` with its lock held."""

    in_flight: int
    paused: bool
    unread: Unread

    def submit(self, command: Command, message: Request) -> Call:
        """Send a request the general way."""

    def over(self) -> bool:
        """Whether the peer is gone, or the channel is closed."""

    def end_of(self, call: Call) -> VFIOError:
        """What a call ends with that is not answered any more."""

    def lose(self, kind: type[VFIOError], reason: str, hint: str = "") -> None:
        """Take the peer for gone."""

    def wake(self) -> None:
        """Have who reads see what is queued."""

    def interrupted(self) -> None:
        """A signal handler raised where the books could not be kept."""


def register_write(region: int, offset: int, width: int, value: int) -> RegionWrite:
    """REGION_WRITE of a little-endian register."""
    return RegionWrite(offset, region, value.to_bytes(width, "little"))


def wanted() -> bool:
    """Whether C is to be tried."""
    return os.environ.get(VARIABLE) != "0"


class Exchange:
    """The usual exchanges of a channel.

    :param owner: the channel.
    :param lock: the channel's, held by who sends.
    :param is_open: whether there may be exchanges at all; they end with :meth:`close`.
    :ivar is_open: whether there may be exchanges.
    :ivar active: whether C has the socket, for both directions while ``sending``.
    """

    def __init__(
        self,
        owner: ExchangeOwner,
        sock: socket.socket,
        *,
        lock: threading.Lock,
        turn: Turn,
        connection: Connection,
        queue: SendQueue,
        is_open: bool,
    ) -> None:
        self._owner = owner
        self._lock = lock
        self._turn = turn
        self._connection = connection
        self._queue = queue
        self._pending, self._queued = connection.pending, queue.messages  # whether there are some
        self.is_open = is_open
        self.active = False
        many_cpus = (os.cpu_count() or 1) > 1
        self._stream = Stream(sock.fileno(), FIRST_ID, may_spin=many_cpus)
        self._posts = Stream(sock.fileno(), FIRST_POSTED_ID)
        self._state = self._stream.state
        self._read_register = self._stream.read_register
        self._write_register = self._stream.write_register
        self._post_register = self._posts.post_register
        if is_open:
            limit_waits(sock, PATIENCE)

    def close(self) -> None:
        """No more exchanges; one that is under way ends soon."""
        self.is_open = False

    @property
    def sending(self) -> bool:
        """Whether nobody else may send."""
        return self.active and bool(self._state.sending)

    # The exchanges

    def read_register(self, region: int, offset: int, width: int) -> int | Call:
        """REGION_READ of 1 to 8 bytes; their value, or the call that goes on with it."""
        try:
            if self._enter():
                value = self._read_register(region, offset, width)
                if value == WIDE:
                    value = int(self._state.value)
                if value >= 0:
                    self._leave()
                    return value
            return self._go_on(Command.REGION_READ, RegionRead(offset, region, width))
        except BaseException as error:
            self._recover(error, [(Command.REGION_READ, RegionRead(offset, region, width))])
        return self._owner.submit(Command.REGION_READ, RegionRead(offset, region, width))

    def write_register(self, region: int, offset: int, width: int, value: int) -> Call | None:
        """REGION_WRITE of 1 to 8 bytes; the call that goes on with it, if that is necessary."""
        try:
            if self._enter() and not self._write_register(region, offset, width, value):
                self._leave()
                return None
            return self._go_on(Command.REGION_WRITE, register_write(region, offset, width, value))
        except BaseException as error:
            request = register_write(region, offset, width, value)
            self._recover(error, [(Command.REGION_WRITE, request)])
        return self._owner.submit(Command.REGION_WRITE, request)

    def read_region(self, region: int, offset: int, target: memoryview) -> Call | None:
        """REGION_READ that fills ``target``; the call that goes on with it, if necessary."""
        request = RegionRead(offset, region, len(target))
        try:
            if self._enter() and not self._stream.read_region(region, offset, target):
                self._leave()
                return None
            return self._go_on(Command.REGION_READ, request, target)
        except BaseException as error:
            self._recover(error, [(Command.REGION_READ, request)], target)
        return self._owner.submit(Command.REGION_READ, request)

    def post_register(self, region: int, offset: int, width: int, value: int) -> bool:
        """REGION_WRITE of 1 to 8 bytes that is not answered.

        :returns: False where it must go the general way, since the socket does not take it now.
        """
        if not self.is_open:  # before the lock, which is not to be had in the child of a fork
            return False
        try:
            with self._lock:
                if not self.is_open or self._queued or self.active:
                    return False
                if not self._post_register(region, offset, width, value):
                    return True
                write = register_write(region, offset, width, value)
                frame = self._connection.frame(
                    self._posts.state.first_id, Command.REGION_WRITE, write, no_reply=True
                )
                return self._queue_rest(b"".join(frame))
        except BaseException as error:
            self._recover_post(error)
            return False

    def post(self, messages: Buffer) -> bool:
        """Messages that are not answered, with ids from :data:`FIRST_POSTED_ID` on.

        :returns: False where they must go the general way.
        """
        if not self.is_open:  # before the lock, which is not to be had in the child of a fork
            return False
        try:
            with self._lock:
                if not self.is_open or self._queued or self.active:
                    return False
                return not self._posts.post(messages) or self._queue_rest(messages)
        except BaseException as error:
            self._recover_post(error)
            return False

    def _queue_rest(self, messages: Buffer) -> bool:
        """Queue what the socket has not taken; False where it has taken nothing."""
        state = self._posts.state
        sent, state.status = state.sent, Status.DONE
        if sent:
            self._queue.append(bytes(memoryview(messages)[sent:]))
            self._owner.wake()
        return bool(sent)

    def _recover_post(self, error: BaseException) -> None:
        if self._posts.state.status and self._posts.state.sent:
            self._owner.lose(ConnectionLost, "interrupted while sending")
        if not isinstance(error, _MISFITS):
            raise error

    def pipeline(
        self, frames: bytearray, items: npt.NDArray[Any], requests: Requests
    ) -> tuple[int, dict[int, Call]]:
        """Send requests with several in flight, and take their replies.

        :param frames: the messages with their headers; the ids are filled in.
        :param items: what C has to know of each; an array of :data:`pyvfio.native.channel.ITEM`.
        :param requests: the same, for what is not usual.
        :returns: how many were sent, 0 where now is not the time; and the calls of those, by
            position, that were not answered the usual way.
        """
        sent, calls = 0, dict[int, Call]()
        try:
            if self._enter():
                self._stream.pipeline(frames, items, WINDOW, PATIENCE)
                sent = self._state.begun
                calls = self._settle(requests)
        except BaseException as error:
            self._recover(error, requests)
        return sent, calls

    # Before and after

    def _enter(self) -> bool:
        """Take the turn and the right to send, unless something is under way."""
        if not self.is_open:  # before the lock, see post_register()
            return False
        turn = self._turn
        with self._lock:
            if (
                not self.is_open
                or turn.holder is not None
                or self._pending
                or self._queued
                or self._connection.in_message
                or self._owner.unread.left
                or self._owner.paused
            ):
                return False
            turn.holder = threading.get_ident()
            turn.waits += 1
            self.active = True
        return True

    def _leave(self) -> None:
        """The usual end.

        No lock is needed: who begins to wait is in the list before it looks who has the turn.
        """
        self.active = False
        turn = self._turn
        turn.holder = None
        if turn.waiters or turn.standby or not self.is_open:
            turn.pass_on()

    def _go_on(self, command: Command, request: Request, target: memoryview = _NOTHING) -> Call:
        """The call that waits for what C has not received; all of it, where C had no turn."""
        if self._turn.holder == threading.get_ident():
            call = self._settle([(command, request)], target).get(0)
            if call is not None:
                return call
        return self._owner.submit(command, request)

    def _recover(
        self,
        error: BaseException,
        requests: Requests,
        target: memoryview = _NOTHING,
    ) -> None:
        """Leave in good order, and raise what came in between, unless C did not take a value."""
        if self._turn.holder == threading.get_ident():
            try:
                self._settle(requests, target, abandoned=True)
            except BaseException:
                self.active = False
                self._turn.drop()
                self._owner.interrupted()
                raise
        if not isinstance(error, _MISFITS):
            raise error

    def _settle(
        self,
        requests: Requests,
        target: memoryview = _NOTHING,
        abandoned: bool = False,
    ) -> dict[int, Call]:
        """Have the channel know what C has left, and leave.

        :param abandoned: nobody waits for the replies.
        :returns: the calls of those that were sent and not answered, by position.
        """
        calls: dict[int, Call] = {}
        failure: tuple[type[VFIOError], str, str] | None = None
        with self._lock:
            if self._state.status:
                failure = self._failure()
                calls = self._adopt(requests, abandoned)
                self._keep(*self._stream.take_unread(target))
                self._state.status = Status.DONE
                self._state.sending = True
            self.active = False
            self._turn.drop()
        if failure is not None:
            self._owner.lose(*failure)
        self._turn.pass_on()
        return calls

    def _adopt(self, requests: Requests, abandoned: bool) -> dict[int, Call]:
        state, owner = self._state, self._owner
        calls = {}
        for at in range(state.answered, state.begun):
            command, request = requests[at]
            calls[at] = call = Call(owner, command)
            call.number = FIRST_ID + (state.first_id - FIRST_ID + at) % IDS
            if owner.over():
                call.complete(owner.end_of(call))
                continue
            owner.in_flight += 1
            frame = self._connection.adopt(call.number, command, request, call)
            if abandoned:
                self._connection.abandon(call.number)
            if state.partial and at == state.begun - 1:
                self._queue.append(b"".join(frame)[state.partial :])
        return calls

    def _keep(self, unread: bytes, fds: list[int]) -> None:
        if self._owner.over() or not unread:
            close_fds(fds)
        else:
            self._owner.unread = Unread(unread, fds)

    def _failure(self) -> tuple[type[VFIOError], str, str] | None:
        """What has ended the connection, if anything has, but for its plain end."""
        state = self._state
        if state.fds_lost:
            return RemoteProtocolError, LOST_FDS, LOST_FDS_HINT
        if state.error in GONE or (state.error and state.status == Status.FAILED):
            return ConnectionLost, str(OSError(state.error, os.strerror(state.error))), ""
        return None
