# SPDX-License-Identifier: BSD-3-Clause
"""The usual exchange, in one call of C: a request goes out, exactly its reply comes in.

That is possible where nobody reads the socket, nothing is queued or unanswered, and the stream is
at the border of a message; C claims it then (:mod:`pyvfio.native.claims`).  Whatever else comes up
in C - no reply yet, another message, an error, descriptors, the end of the stream, a signal - is
gone on with here: the request becomes a :class:`Call` of the channel, and the bytes that were read
are given to its codec.  So all that is not usual is done in one place, the channel's, whether C was
tried before or not.

Registers are asked for by the region's window (native/registers.c), which comes here only for what
is not usual, and where others wait.

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
from pyvfio.native.channel import Stream
from pyvfio.native.claims import Claims
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

WINDOW = 64
"""Requests of a pipeline that may be unanswered at one time."""

FIRST_ID, FIRST_POSTED_ID, IDS = 0x8000, 0xC000, 0x4000
"""Of the ids in C; those of the codec are below."""

_NOTHING = memoryview(b"")


class Requests(Protocol):
    """Some requests; made when they are asked for."""

    def __getitem__(self, at: int, /) -> tuple[Command, Request]: ...


class ExchangeOwner(CallOwner, Protocol):
    """What an exchange needs of its channel; but for ``submit`` and ``lose`` with its lock held."""

    in_flight: int
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
    :param claims: of C on the socket.
    :param is_open: whether there may be exchanges at all; they end with :meth:`close`.
    :ivar is_open: whether there may be exchanges.
    :ivar stream: requests of C.
    :ivar posts: what C sends without an answer.
    :ivar flushed: how many of the posts are known to be carried out.
    """

    def __init__(
        self,
        owner: ExchangeOwner,
        sock: socket.socket,
        *,
        lock: threading.Lock,
        turn: Turn,
        claims: Claims,
        connection: Connection,
        queue: SendQueue,
        is_open: bool,
    ) -> None:
        self._owner = owner
        self._lock = lock
        self._turn = turn
        self._claims = claims
        self._connection = connection
        self._queue = queue
        self.is_open = is_open
        many_cpus = len(os.sched_getaffinity(0)) > 1
        self.stream = Stream(sock.fileno(), claims, FIRST_ID, may_spin=many_cpus)
        self.posts = Stream(sock.fileno(), claims, FIRST_POSTED_ID)
        self._state = self.stream.state
        self.flushed = 0
        if is_open:
            limit_waits(sock, PATIENCE)
            claims.unblock(sending=True, reading=True)

    def close(self) -> None:
        """No more exchanges; one that is under way ends soon."""
        self.is_open = False
        self._claims.block()

    def after_fork(self, lock: threading.Lock) -> None:
        """In the child of a fork: no exchanges, and nobody is here who goes on with one."""
        self._lock = lock
        self.close()
        self._claims.forget()
        for stream in (self.stream, self.posts):
            stream.state.claimed = 0

    @property
    def posted(self) -> int:
        """How often something was sent that is not answered."""
        return self._claims.posts

    def count_post(self) -> None:
        """That was so once more, though not in C."""
        self._claims.count_post()

    # The exchanges

    def read_region(self, region: int, offset: int, target: memoryview) -> Call | None:
        """REGION_READ that fills ``target``; the call that goes on with it, if necessary."""
        request = RegionRead(offset, region, len(target))
        try:
            status = self.stream.read_region(region, offset, target)
            if status == Status.DONE:
                return None
            if status == Status.CROWDED:
                self.tell_others()
                return None
            if status != Status.BUSY:
                return self.go_on(Command.REGION_READ, request, target)
        except BaseException:
            self.abandon([(Command.REGION_READ, request)], target)
            raise
        return self._owner.submit(Command.REGION_READ, request)

    def post(self, messages: Buffer) -> bool:
        """Messages that are not answered, with ids from :data:`FIRST_POSTED_ID` on.

        :returns: False where they must go the general way.
        """
        try:
            status = self.posts.post(messages)
            if status == Status.DONE:
                return True
            if status == Status.CROWDED:
                self.tell_others()
                return True
            return status != Status.BUSY and self.queue_rest(messages)
        except BaseException:
            self.abandon_post()
            raise

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
        try:
            status = self.stream.pipeline(frames, items, WINDOW, PATIENCE)
            if status == Status.BUSY:
                return 0, {}
            if status == Status.CROWDED:
                self.tell_others()
            if status in (Status.DONE, Status.CROWDED):
                return len(items), {}
            sent = int(self._state.begun)
            return sent, self._settle(requests)
        except BaseException:
            self.abandon(requests)
            raise

    # What is not usual

    def tell_others(self) -> None:
        """C has done all, and others wait for the socket."""
        self._turn.pass_on()

    def go_on(self, command: Command, request: Request, target: memoryview = _NOTHING) -> Call:
        """The call that waits for what C has not received; all of it, where C has sent nothing.

        :param target: what was to be filled.
        """
        call = self._settle([(command, request)], target).get(0)
        return self._owner.submit(command, request) if call is None else call

    def post_on(self, command: Command, request: Request) -> bool:
        """Go on with a message that C has posted in part; False where it has sent nothing."""
        number = self.posts.state.first_id
        return self.queue_rest(
            b"".join(self._connection.frame(number, command, request, no_reply=True))
        )

    def queue_rest(self, messages: Buffer) -> bool:
        """Queue what the socket has not taken of ``messages``; False where it took nothing."""
        with self._lock:
            self._claims.block()
            sent = int(self.posts.state.sent)
            if sent:
                self._queue.append(bytes(memoryview(messages)[sent:]))
                self._owner.wake()
            self.posts.leave()
        self.tell_others()
        return bool(sent)

    def abandon(self, requests: Requests, target: memoryview = _NOTHING) -> None:
        """A signal handler has raised: leave what C may have begun in good order."""
        if self.stream.left_by_me:
            self._settle(requests, target, abandoned=True)
        else:
            self.tell_others()

    def abandon_post(self) -> None:
        """The same for what is not answered: what was sent of it cannot be taken back."""
        if self.posts.left_by_me:
            self._break_off(self.posts)
        self.tell_others()

    def break_off_own(self) -> None:
        """Give up what this thread has never gone on with: handlers raised one after the other."""
        for stream in (self.stream, self.posts):
            if stream.left_by_me:
                self._break_off(stream)

    def _break_off(self, stream: Stream) -> None:
        """How far a call has come is not known any more: if it has sent, nobody goes on with it."""
        interrupt: BaseException | None = None
        while stream.left_by_me:
            try:
                if stream.state.sent:
                    self._owner.interrupted()
                close_fds(stream.take_unread(_NOTHING)[1])
                # Not before: whoever sends next would go on in the middle of a message.
                stream.leave()
            except BaseException as error:  # a further handler's
                interrupt = error
        if interrupt is not None:
            raise interrupt

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
        try:
            with self._lock:
                self._claims.block()
                failure = self._failure()
                calls = self._adopt(requests, abandoned)
                self._keep(*self.stream.take_unread(target))
                self.stream.leave()
        except BaseException:  # a signal handler's
            if self.stream.left_by_me:
                self._break_off(self.stream)
            self.tell_others()
            raise
        if failure is not None:
            self._owner.lose(*failure)
        if abandoned or self._queue:
            self._owner.wake()  # nobody else may see what there is to read or to send
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
        if state.rights.lost:
            return RemoteProtocolError, LOST_FDS, LOST_FDS_HINT
        if state.error in GONE or (state.error and state.status == Status.FAILED):
            return ConnectionLost, str(OSError(state.error, os.strerror(state.error))), ""
        return None
