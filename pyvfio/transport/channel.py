# SPDX-License-Identifier: BSD-3-Clause
"""One vfio-user socket in use: callers that wait for replies, and a peer that is served meanwhile.

One thread at a time has the turn to read the socket (:mod:`pyvfio.transport.turn`): it completes
everybody's requests, hands the peer's requests to ``on_request``, and finishes what the socket did
not take at once.  So the peer is served while a request of ours is outstanding, and while the
program does something else altogether.

Senders write directly while nothing is queued, so order is kept.  Time-outs leave the stream in
step: the late reply is drained.  Loss of the peer completes every waiting caller at once.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from pyvfio.errors import (
    ConnectionLost,
    DeviceClosed,
    LocalProtocolError,
    RemoteError,
    RemoteProtocolError,
    VFIOError,
    VFIOTimeout,
)
from pyvfio.native.claims import Claims
from pyvfio.native.serve import Area, Service
from pyvfio.polling import milliseconds
from pyvfio.transport import trace
from pyvfio.transport.call import Call, Reply, Waiter
from pyvfio.transport.exchange import PATIENCE, SENDING, WINDOW, Exchange, wanted
from pyvfio.transport.send_queue import SendQueue
from pyvfio.transport.serving import Serving
from pyvfio.transport.shared_queue import SharedSendQueue
from pyvfio.transport.sockets import GONE, close_fds, receive
from pyvfio.transport.turn import IDLE, Turn
from pyvfio.transport.unread import Unread, UnreadByService
from pyvfio.uapi.layout import Buffer
from pyvfio.wire.commands import Role
from pyvfio.wire.connection import (
    Connection,
    ErrorReceived,
    Event,
    ReplyDropped,
    ReplyInvalid,
    ReplyReceived,
    RequestInvalid,
    RequestReceived,
)
from pyvfio.wire.header import Command, command_name
from pyvfio.wire.messages import Message, RegionWrite, RegionWriteMulti, Request

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = WINDOW + 32
"""Requests that may be unanswered at one time, also those that nobody waits for any more, so that
others have room beside a pipeline; more can block both ends of a socket."""

LINGER = 1.0
"""Seconds that close() gives the peer to take what is queued."""

MOST_INTERRUPTS = 8
"""How often a step of close() is begun again where a signal handler has raised in it."""

PeerRequest: TypeAlias = RequestReceived | RequestInvalid

LEFT_TO_PARENT = "the connection is that of the process which forked; open one after the fork"

_Encode: TypeAlias = Callable[[], tuple[int | None, list[Buffer]]]
"""Makes a message: the id of a request that waits for its reply, and the buffers."""


class Channel:
    """A connected socket that speaks vfio-user.

    :param sock: the socket; the channel owns it from now on.
    :param role: which end this is.
    :param name: what errors call the peer, such as a URI.
    :param max_data: largest count of data bytes taken in a request.
    :param timeout: seconds that a request waits for its reply.
    :param on_request: called with the channel and each request of the peer, by the thread that
        reads; it must not wait, owns ``request.fds``, and answers with :meth:`reply` or
        :meth:`refuse`, then or later.
    :param on_lost: called once when the peer is gone, in whichever thread noticed; not on close().
    :param twin: whether this is the socket for the server's own commands.
    """

    def __init__(
        self,
        sock: socket.socket,
        role: Role,
        *,
        name: str,
        max_data: int,
        timeout: float,
        on_request: Callable[[Channel, PeerRequest], None],
        on_lost: Callable[[VFIOError], None],
        twin: bool = False,
    ) -> None:
        self.name = name
        self.timeout = timeout
        self._sock = sock
        self._sock.setblocking(True)  # what shall not wait says so
        self._connection = Connection(role, max_data)
        self._tracer: trace.Tracer | None = None
        self._on_request = on_request
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._queue = SendQueue(sock)
        self.in_flight = 0
        self._lost: VFIOError | None = None
        self._closing = False
        self.paused = False
        self._hurried = False
        self._claims = Claims()
        self._turn = Turn(self, self._room, self._lock, self._claims, f"vfio-user {name}")
        self._reader: int | None = None
        self.unread = Unread()
        self._service: Service | None = None
        self._by_service: UnreadByService | None = None
        self._poller = select.poll()
        self._registered = -1
        # The latter is for the turn's own thread while it waits without the turn: of the former
        # somebody else may have taken note.
        self._wake_fd = self._idle_fd = -1
        try:
            self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._idle_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._poller.register(self._wake_fd, select.POLLIN)
            self._tracer = trace.tracer(sock, role, name, twin)
            if self._tracer is not None:
                self._connection.observer = self._tracer.received
            self.exchange = self._make_exchange(role, twin)
            _open.add(self)
            self._turn.start()
        except BaseException:
            self._drop_descriptors()
            raise

    def _make_exchange(self, role: Role, twin: bool) -> Exchange:
        likely = role is Role.CLIENT and not twin and self.timeout >= 10 * PATIENCE
        is_open = likely and self._tracer is None and wanted()
        return Exchange(
            self,
            self._sock,
            lock=self._lock,
            turn=self._turn,
            claims=self._claims,
            connection=self._connection,
            queue=self._queue,
            is_open=is_open,
        )

    # Requests of ours

    def call(
        self,
        command: Command,
        message: Request,
        fds: Sequence[int] = (),
        timeout: float | None = None,
    ) -> Reply:
        """Send a command and wait for its reply; raises as :meth:`Call.result` does."""
        return self.submit(command, message, fds).result(timeout)

    def submit(self, command: Command, message: Request, fds: Sequence[int] = ()) -> Call:
        """Send a command without waiting; its :class:`Call` waits.

        ``fds`` stay the caller's, who may close them when this returns.

        :raises VFIOTimeout: the peer does not read and too much is queued for it already.
        """
        self._refuse_reader(command)
        call = Call(self, command)

        def encode() -> tuple[int | None, list[Buffer]]:
            call.number, buffers = self._encode(command, message, call)
            self.in_flight += 1
            return call.number, buffers

        try:
            self._transmit(command, encode, fds, room=self.timeout, slot=True)
        except ConnectionLost:
            if call.number < 0:  # otherwise it was pending, and losing the peer completes it
                raise
        return call

    def post(self, command: Command, message: Request) -> None:
        """Send a command that is not answered, not even with an error.

        :raises VFIOTimeout: the peer does not read and too much is queued for it already.
        """
        self._refuse_reader(command)

        def encode() -> tuple[int | None, list[Buffer]]:
            return None, self._encode_posted(command, message)

        self._transmit(command, encode, (), room=self.timeout)

    def post_encoded(self, command: Command, messages: bytes) -> None:
        """Send messages that are not answered, encoded by who calls; raises as :meth:`post` does.

        Not where they are traced, which would take them for one.
        """
        if not self.exchange.post(messages):
            self._transmit(command, lambda: (None, [messages]), (), room=self.timeout)

    def post_write(self, write: RegionWrite) -> None:
        """Post a REGION_WRITE of at most 8 bytes to a peer that takes REGION_WRITE_MULTI.

        While the socket takes nothing, such writes are collected into one message, which ends
        where another command follows; raises as :meth:`post` does.
        """
        if not self._collect(write):
            self.post(Command.REGION_WRITE, write)

    def _collect(self, write: RegionWrite) -> bool:
        with self._lock:
            self._check_usable(Command.REGION_WRITE)
            return self._queue.collect(write, self._encode_collected)

    def give_up(self, call: Call, seconds: float) -> None:
        """Stop waiting for ``call`` unless it completed just now; raises :class:`VFIOTimeout`."""
        with self._lock:
            abandoned = self._abandon(call)
            if self.over():  # whoever has its reply in hand may not get to it any more
                call.complete(self.end_of(call))
        if abandoned:
            raise self._timeout(call.command, seconds, "no reply", id=call.number)
        while not call.ready():  # it is being completed, unless that fails
            call.sleep(IDLE)
            with self._lock:
                if self.over():
                    call.complete(self.end_of(call))

    def forget(self, call: Call) -> None:
        """Nobody waits for ``call`` any more: its caller was interrupted."""
        with self._lock:
            if self._abandon(call):
                return
            call.complete(ConnectionLost("interrupted", op=call.command.name, uri=self.name))
        call.close_fds()

    def _abandon(self, call: Call) -> bool:
        """Have a reply drained if it still comes; False where it has come, or none can."""
        return not self.over() and self._connection.abandon(call.number)

    # Answers to the peer

    def reply(self, request: RequestReceived, message: Message, fds: Sequence[int] = ()) -> None:
        """Answer a request, unless it wants no answer.

        :raises ConnectionLost: the peer is gone.
        """
        if not request.no_reply:
            self._answer(
                request.command, lambda: (None, self._connection.reply(request, message)), fds
            )

    def refuse(self, request: PeerRequest, number: int) -> None:
        """Answer a request with errno ``number``, where an answer is wanted."""
        if not request.no_reply:
            self._answer(
                request.command, lambda: (None, self._connection.error(request, number)), ()
            )

    def _answer(self, command: int, encode: _Encode, fds: Sequence[int]) -> None:
        if self._reader != threading.get_ident():
            self._transmit(command, encode, fds, room=math.inf, is_answer=True)
        elif not self.over():
            with contextlib.suppress(DeviceClosed):  # another thread closes it just now
                self._transmit(command, encode, fds, is_answer=True)

    def serve_directly(self, areas: Sequence[Area], max_data: int) -> Serving | None:
        """Have the peer's usual requests carried out where they are read.

        :param areas: what is served.
        :param max_data: data bytes in a message, at most.
        :returns: None where that cannot be: a trace has to see every message.
        """
        if self._tracer is not None:
            return None
        service = Service(self._sock.fileno(), areas, max_data)
        with self._lock:
            self._queue = queue = SharedSendQueue(self._queue, service)
            self._by_service = UnreadByService(service)
            self._service = service
        return Serving(
            self,
            self._sock,
            service,
            lock=self._lock,
            turn=self._turn,
            connection=self._connection,
            queue=queue,
        )

    # Life

    @property
    def lost(self) -> bool:
        """Whether the peer is gone."""
        return self._lost is not None

    def pause_reading(self, paused: bool) -> None:
        """Take nothing more from the socket for now; replies to our requests wait as well."""
        if paused != self.paused:
            self._claims.block()
            self.paused = paused
            self.wake()

    def nudge(self) -> None:
        """Have whoever reads, or waits until the peer reads, look whether there is another reason.

        Takes no lock, so that a signal handler may call it.
        """
        self._hurried = True
        self.wake()

    def give_up_peer(self, reason: str) -> None:
        """Take the peer for gone, though it may be there; not in ``on_request``."""
        self.lose(ConnectionLost, reason)

    def close(self) -> None:
        """Send what is queued, for a second at most, and let go of the socket.  May be repeated.

        What a signal handler raises meanwhile cuts the first short, not the second; it is raised
        at the end.
        """
        steps: tuple[Callable[[], object], ...] = (
            self._linger,
            self._say_that_it_is_over,
            self._turn.step_back,
            self._turn.join,
            self.exchange.break_off_own,
            self._wait_for_users,
            self._finish_all,
            self._wake_waiters,
            self._drop_descriptors,
        )
        at = 0
        interrupts: list[BaseException] = []
        while at < len(steps):
            try:
                while at < len(steps):
                    steps[at]()  # any but the first may be done again
                    at += 1
            except BaseException as error:
                interrupts.append(error)
                if at == 0 or len(interrupts) > MOST_INTERRUPTS:
                    at += 1
        if interrupts:
            raise interrupts[0]

    def _linger(self) -> None:
        with self._lock:
            self._room.wait_for(lambda: not self._queue or self.over(), LINGER)

    def _say_that_it_is_over(self) -> None:
        with self._lock:
            if not self._closing:
                self._note("closed")
            self._closing = True
            self.exchange.close()
            self._room.notify_all()
            self.wake()

    def _wait_for_users(self) -> None:
        """Wait for who reads, and for C, who see soon that it is over."""
        # Not a wait of the condition: a signal handler that raises can leave it without the lock.
        while self._turn.holder is not None or self._claims.of_c:
            time.sleep(SENDING)

    def _wake_waiters(self) -> None:
        for waiter in list(self._turn.waiters):
            waiter.wake()

    def after_fork(self) -> None:
        """In the child of a fork: leave the connection to the parent.

        Two processes cannot share a stream; and a child that kept the socket would keep the peer
        from hearing of the parent's end.
        """
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self.exchange.after_fork(self._lock)
        self._turn.use(self._room, self._lock)
        self._drop_descriptors()
        if not self.over():
            self._lost = ConnectionLost(LEFT_TO_PARENT, uri=self.name)
            self._on_lost(self._lost)

    def _drop_descriptors(self) -> None:
        _open.discard(self)
        self._queue.drop()
        close_fds(self._connection.take_fds())
        self.unread.drop()
        self._drop_service()
        self._sock.close()
        # One by one: no signal handler runs between the two lines of each.
        fd, self._wake_fd = self._wake_fd, -1
        if fd >= 0:
            os.close(fd)
        fd, self._idle_fd = self._idle_fd, -1
        if fd >= 0:
            os.close(fd)

    def _drop_service(self) -> None:
        """Let go of its buffers, which are large for something to wait for a collection."""
        if self._by_service is not None:
            self._by_service.drop()
            self._queue = SendQueue(self._sock)
            self._by_service = self._service = None

    # Sending

    def _transmit(
        self,
        command: int,
        encode: _Encode,
        fds: Sequence[int],
        *,
        room: float | None = None,
        slot: bool = False,
        is_answer: bool = False,
    ) -> None:
        """Encode and send one message, in order with all others.

        :param room: seconds to wait until less is queued; not at all by default.
        :param slot: wait until fewer requests wait for their replies.
        :param is_answer: the peer has asked for it.
        :raises ConnectionLost: the peer is gone.
        :raises OSError: nothing was sent for another reason, such as a closed descriptor.
        """
        self.exchange.break_off_own()
        while True:
            with self._lock:
                self._check_usable(command)
                if room is not None:
                    self._wait_for_room(command, room)
                if slot:
                    self._wait_for_slot(command)
                if not (self.exchange.is_open and self._claims.block()):
                    failure = self._encode_and_send(command, encode, fds, is_answer)
                    self.review()
                    break
            # C has to send all that it has begun with.  Not a wait of the condition, which a signal
            # handler that raises can leave without the lock.
            time.sleep(SENDING)
        if failure is not None:
            self.lose(ConnectionLost, str(failure) or "interrupted while sending")
            if isinstance(failure, OSError) and failure.errno in GONE:
                raise self._lost_error(command) from failure
            raise failure  # a signal handler's, or there is no memory

    def _encode_and_send(
        self, command: int, encode: _Encode, fds: Sequence[int], is_answer: bool
    ) -> BaseException | None:
        """Send a message, with the lock held; returns what has cost the connection."""
        number: int | None = None
        try:
            number, buffers = encode()
            self._send(buffers, fds, is_answer)
        except VFIOError:
            raise  # it cannot be encoded
        except BaseException as error:
            if isinstance(error, OSError) and error.errno not in (None, *GONE):
                self._note("not sent", command=command_name(command), reason=str(error))
                self._take_back(number)
                raise
            return error  # what is left of the message may be lost, and the step with it
        return None

    def _take_back(self, number: int | None) -> None:
        """Forget a request of which nothing was sent."""
        if number is not None:
            self._connection.forget(number)
            self._free_slot()

    def _encode(
        self, command: Command, message: Request, call: Call | None, no_reply: bool = False
    ) -> tuple[int, list[Buffer]]:
        try:
            return self._connection.request(command, message, call, no_reply=no_reply)
        except (struct.error, ValueError) as error:
            raise LocalProtocolError(
                f"a value does not fit into the message: {error}", op=command.name, uri=self.name
            ) from error

    def _encode_posted(self, command: Command, message: Request) -> list[Buffer]:
        return self._encode(command, message, None, no_reply=True)[1]

    def _encode_collected(self, writes: RegionWriteMulti) -> list[Buffer]:
        buffers = self._encode_posted(Command.REGION_WRITE_MULTI, writes)
        if self._tracer is not None:
            self._tracer.sent(buffers, ())
        return buffers

    def _send(self, buffers: Sequence[Buffer], fds: Sequence[int], is_answer: bool) -> None:
        """Send or queue, with the lock held; where it raises OSError, nothing was sent."""
        self._queue.seal()  # so that a trace has the messages in the order of the stream
        if self._tracer is not None:
            self._tracer.sent(buffers, fds)
        if self._queue.send(buffers, fds, is_answer):
            self.wake()

    def _wait_for_room(self, command: int, seconds: float) -> None:
        timeout = None if seconds == math.inf else seconds
        if not self._room.wait_for(self._has_room, timeout):
            raise self._timeout(command, seconds, "the peer does not read")
        self._check_usable(command)
        if self._queue.is_full:
            raise DeviceClosed("closing", op=command_name(command), uri=self.name)

    def _wait_for_slot(self, command: int) -> None:
        def has_slot() -> bool:
            return self.in_flight < MAX_IN_FLIGHT or self.over()

        if not has_slot() and not self._room.wait_for(has_slot, self.timeout):
            reason = f"{MAX_IN_FLIGHT} requests are unanswered"
            raise self._timeout(command, self.timeout, reason)
        self._check_usable(command)

    def _has_room(self) -> bool:
        return not self._queue.is_full or self._hurried or self.over()

    def _check_usable(self, command: int) -> None:
        if self._lost is not None:
            raise self._lost_error(command)
        if self._closing:
            raise DeviceClosed("closed", op=command_name(command), uri=self.name)

    def _refuse_reader(self, command: Command) -> None:
        if self._reader == threading.get_ident():
            raise LocalProtocolError(
                "a request from the thread that serves the peer would never be answered",
                op=command.name,
                uri=self.name,
            )

    # Reading

    def wait_for(self, waiter: Waiter, seconds: float | None) -> bool:
        """Wait until ``waiter`` is ready; see :meth:`Turn.wait_for`."""
        return self._turn.wait_for(waiter, seconds)

    def over(self) -> bool:
        """Whether the peer is gone, or the channel is closed."""
        return self._closing or self._lost is not None

    def review(self) -> None:
        """Let C have the socket where nothing is in its way; with the lock held."""
        if self.exchange.is_open:
            idle = not (self._connection.pending or self._connection.in_message)
            reading = idle and self._turn.is_free and not self.unread.left and not self.paused
            self._claims.unblock(not self._queue, reading)

    def interrupted(self) -> None:
        """A signal handler raised where the books could not be kept."""
        self.lose(ConnectionLost, "interrupted")

    def read_once(self, seconds: float | None) -> bool:
        """Wait for the socket and do what it is ready for; only with the turn.

        :returns: whether there was something to do.
        """
        # Who is interrupted here has not touched anything.
        ahead = self._ahead() is not None
        ready = [] if ahead else self.await_event(seconds)
        self._reader = threading.get_ident()
        try:
            while self.unread:
                self._read()
            if self._by_service:
                self._read()
            for fd, events in ready:
                self._attend_to(fd, events)
        except RemoteProtocolError as error:
            self.lose(RemoteProtocolError, error.reason, error.hint)
        except BaseException as error:
            if self._fail(error):
                raise
        finally:
            self._reader = None
        return ahead or bool(ready)

    def _fail(self, error: BaseException) -> bool:
        """Lose the connection; called where ``error`` is handled.

        :returns: whether it is a signal handler's, and goes on.
        """
        if isinstance(error, ConnectionError) or (isinstance(error, OSError) and error.errno):
            self.lose(ConnectionLost, str(error))
        elif threading.current_thread() is threading.main_thread():
            # A signal handler's: part of a message may be lost, and the step with it.
            self.lose(ConnectionLost, str(error) or "interrupted while reading")
            return True
        else:
            log.exception("%s: cannot go on", self.name)
            self.lose(ConnectionLost, "an internal error, see the log")
        return False

    def await_event(self, seconds: float | None) -> list[tuple[int, int]]:
        """Wait for the socket, or to be woken; (descriptor, events) of what is to be attended to.

        Only with the turn.
        """
        interest = self._interest()
        if interest != self._registered:
            self._poller.register(self._sock, interest)
            self._registered = interest
        return self._poller.poll(milliseconds(seconds))

    def await_work(self) -> None:
        """Wait, without the turn, until there may be something to do with it."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._idle_fd)
        if self._ahead() is not None or self.over():
            return
        poller = select.poll()
        poller.register(self._idle_fd, select.POLLIN)
        poller.register(self._wake_fd, select.POLLIN)
        poller.register(self._sock, self._interest())
        poller.poll()

    def attend_to_wake(self, events: Sequence[tuple[int, int]]) -> None:
        """Take note of having been woken, of all that :meth:`await_event` has told."""
        for fd, what in events:
            if fd == self._wake_fd:
                self._attend_to(fd, what)

    def _attend_to(self, fd: int, events: int) -> None:
        if fd == self._wake_fd:
            os.eventfd_read(self._wake_fd)
            with self._lock:
                self._room.notify_all()
            return
        if events & select.POLLOUT:
            self._flush()
        if events & ~select.POLLOUT:
            self._read()

    def _interest(self) -> int:
        with self._lock:
            reading = not self._queue.is_flooded and not self.paused
            return (select.POLLIN if reading else 0) | (select.POLLOUT if self._queue else 0)

    def _read(self) -> None:
        # The body usually follows its header at once: try it before polling again.
        for _ in ("header", "body"):
            if not self._read_piece():
                return

    def _read_piece(self) -> bool:
        """Read what is missing of a header or a body; returns whether a body is to follow."""
        space, ahead = self._connection.receive_buffer(), self._ahead()
        got = receive(self._sock, space) if ahead is None else ahead.take(space)
        if got is None:
            return False
        count, fds = got
        if not count:
            raise ConnectionResetError("the peer closed the connection")
        with self._lock:
            if self.over():  # meanwhile, so that nobody waits for it
                close_fds(fds)
                return False
            event = self._connection.received(count, fds)
        if event is not None:
            self._dispatch(event)
        return self._connection.in_body()

    def _ahead(self) -> Unread | None:
        """What C has read and nobody has taken."""
        return self.unread if self.unread else (self._by_service or None)

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, RequestReceived | RequestInvalid):
            self._on_request(self, event)
        elif isinstance(event, ReplyReceived):
            self._complete(event.token, Reply(event.message, event.fds))
        elif isinstance(event, ErrorReceived):
            close_fds(event.fds)
            error = RemoteError(
                os.strerror(event.errno),
                op=event.token.command.name,
                uri=self.name,
                errno=event.errno,
            )
            self._complete(event.token, error)
        elif isinstance(event, ReplyInvalid):
            close_fds(event.fds)
            self._complete(event.token, RemoteProtocolError(event.reason, uri=self.name))
        elif isinstance(event, ReplyDropped):
            close_fds(event.fds)
            with self._lock:
                self._free_slot()
            log.info("%s: reply %d came too late", self.name, event.id)
            self._note("late reply", id=event.id)

    def _flush(self) -> None:
        with self._lock:
            self._queue.flush()
            self.review()
            self._room.notify_all()

    def wake(self) -> None:
        """Have whoever reads look at everything again."""
        service = self._service
        if service is not None:
            service.hurry(True)
        for fd in (self._wake_fd, self._idle_fd):
            # Without a lock, since signal handlers call it: it may be closed just now.
            with contextlib.suppress(OSError):
                if fd >= 0:
                    os.eventfd_write(fd, 1)

    # Completion and loss

    def _complete(self, call: Call, outcome: Reply | VFIOError) -> None:
        with self._lock:
            taken = call.complete(outcome)
            self._free_slot()
        if not taken and isinstance(outcome, Reply):
            close_fds(outcome.fds)

    def _free_slot(self) -> None:
        if self.in_flight == MAX_IN_FLIGHT:
            self._room.notify_all()
        self.in_flight -= 1

    def lose(self, kind: type[VFIOError], reason: str, hint: str = "") -> None:
        with self._lock:
            if self._lost is not None or self._closing:
                return
            self._lost = kind(reason, uri=self.name, hint=hint)
            self.exchange.close()
            self._note("protocol error" if kind is RemoteProtocolError else "lost", reason=reason)
            self._room.notify_all()
            self.wake()
            waiting = list(self._turn.waiters)
            with contextlib.suppress(OSError):  # so that the peer knows, though we noticed
                self._sock.shutdown(socket.SHUT_RDWR)
        try:
            self._finish_all()
        finally:  # a signal handler may raise in between
            try:
                # Also those whose replies are lost with who had them in hand.
                for waiter in waiting:
                    waiter.wake()
            finally:
                self._on_lost(self._lost)

    def _finish_all(self) -> None:
        with self._lock:
            calls: list[Call] = self._connection.take_pending()
        for call in calls:
            self._complete(call, self.end_of(call))

    def end_of(self, call: Call) -> VFIOError:
        """What a call ends with that is not answered any more."""
        op, uri, lost = call.command.name, self.name, self._lost
        if lost is None:
            return DeviceClosed("closed", op=op, uri=uri)
        return type(lost)(lost.reason, op=op, uri=uri, hint=lost.hint)

    def _lost_error(self, command: int) -> ConnectionLost:
        reason = self._lost.reason if self._lost is not None else "the connection is lost"
        return ConnectionLost(reason, op=command_name(command), uri=self.name)

    def _timeout(
        self, command: int, seconds: float | None, reason: str, **details: int
    ) -> VFIOTimeout:
        name, reason = command_name(command), f"{reason} within {seconds} s"
        self._note("time-out", command=name, reason=reason, **details)
        return VFIOTimeout(reason, op=name, uri=self.name)

    def _note(self, event: str, **details: Any) -> None:
        if self._tracer is not None:
            self._tracer.event(event, **details)


_open: set[Channel] = set()


def _after_fork() -> None:
    for channel in list(_open):
        channel.after_fork()


os.register_at_fork(after_in_child=_after_fork)
