# SPDX-License-Identifier: BSD-3-Clause
"""A client that sends whatever comes to its mind, and knows what it must be answered."""

from __future__ import annotations

import os
import random
import socket
from collections import defaultdict, deque
from contextlib import suppress
from pathlib import Path

from pyvfio.wire import messages as m
from pyvfio.wire.commands import COMMANDS, Role
from pyvfio.wire.header import Command
from tests.fuzz import messages, scenes, values
from tests.fuzz.answers import outcome
from tests.fuzz.descriptors import Descriptors
from tests.fuzz.messages import REPLY, Wire, damaged, encoded, frame, lying, pieces, request
from tests.fuzz.stream import Received, Stream, pump
from tests.fuzz.watch import PATIENCE, Finding, Tally

EVENTFD = 4
"""Bit of SET_IRQS that says that descriptors come along."""

MANY_FDS = 500
"""Descriptors after which a server may have hung up because it has no room for more."""


def connect(path: Path, tally: Tally) -> Stream:
    """A client's end; the server takes it when it is its turn."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise Finding("hang", f"no connection: {error}") from error
    tally.connections += 1
    return Stream(sock, tally)


class RandomClient:
    """One connection.

    :ivar in_step: the server can still tell where a message begins.
    :ivar agreed: VERSION was answered, so that the server may not hang up.
    """

    def __init__(
        self, path: Path, model: str, stock: Descriptors, rng: random.Random, tally: Tally
    ) -> None:
        self.rng = rng
        self.in_step = True
        self.agreed = False
        self._model = model
        self._stock = stock
        self._tally = tally
        # Requests with one id and command are answered in the order in which they were sent.
        self._unanswered: defaultdict[tuple[int, int], deque[Wire]] = defaultdict(deque)
        self._fds_sent = 0
        self._withheld = False
        self._main = connect(path, tally)
        self._twin: Stream | None = None
        self._number = rng.randrange(1 << 16)
        self._wildness = rng.choice((0.0, 0.05, 0.2, 0.5))

    def run(self) -> None:
        """Talk to the server, and leave."""
        try:
            if self.rng.random() < 0.97 and self._negotiate():
                for _ in range(self.rng.randrange(1, 20)):
                    self._burst()
                    if self._main.over or not self.in_step or self._withheld:
                        break
            self._leave()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the sockets."""
        for stream in self._streams():
            stream.close()

    def _streams(self) -> list[Stream]:
        return [self._main] if self._twin is None else [self._main, self._twin]

    # What is sent

    def _negotiate(self) -> bool:
        wild = 0.1 if self.rng.random() < 0.2 else 0.0
        self._send(request(self.rng, Role.CLIENT, self._next(), wildness=wild, command=1))
        self._settle()
        return self.in_step and not self._main.over

    def _burst(self) -> None:
        if self.rng.random() < 0.1:
            for data, fds in scenes.scene(self.rng, self._model, self._next, self._stock):
                command = int.from_bytes(data[2:4], "little")
                self._send(Wire(data, self._number, command, True, True), fds)
            if self.rng.random() < 0.5:
                pump(self._streams, self._take, lambda: False, 0.003)  # time for the model
        if self.rng.random() < 0.02:
            self._stock.truncate(self.rng)
        for _ in range(self.rng.randrange(1, 40)):
            wire = request(self.rng, Role.CLIENT, self._next(), wildness=self._wildness)
            self._send(wire, self._fds(wire))
            if not self.in_step:
                break
        if self.rng.random() < 0.05:
            self._push()  # the server has no chance to send its answers for a while
        if not self.in_step or self.rng.random() < 0.7:
            self._settle()

    def _next(self) -> int:
        if self.rng.random() < 0.98:
            self._number = (self._number + 1) & 0xFFFF
        return self._number

    def _fds(self, wire: Wire) -> list[int]:
        if self.rng.random() < self._wildness / 4:
            return list(self._stock.any(self.rng))
        if isinstance(wire.message, m.DMAMap):
            return [self._stock.file] if self.rng.random() < 0.7 else []
        if isinstance(wire.message, m.SetIRQs) and wire.message.flags & EVENTFD:
            return list(self._stock.events(wire.message.count)) if self.rng.random() < 0.8 else []
        return []

    def _send(self, wire: Wire, fds: list[int] | None = None) -> None:
        if wire.answered and self.in_step:
            self._unanswered[wire.number, wire.command].append(wire)
        self._fds_sent += len(fds or ())
        self.in_step = self.in_step and wire.in_step
        self._main.send(pieces(self.rng, wire.data), fds or ())

    def _push(self) -> None:
        self._main.deaf = True
        pump(self._streams, self._take, lambda: not self._main.queued, 0.05)
        self._main.deaf = False

    def _settle(self) -> None:
        """Wait for what must come: every answer, as long as the server is in step."""
        if not self.in_step:
            pump(self._streams, self._take, lambda: False, 0.02)
            return
        settled = pump(self._streams, self._take, self._settled, PATIENCE)
        if self._withheld or not self.in_step:
            return
        if self._main.over:
            if self.agreed and self._fds_sent < MANY_FDS:
                raise Finding("hung up", "on a client that kept to the rules")
        elif not settled:
            raise Finding("hang", f"unanswered after {PATIENCE} s: {self._waiting()}")

    def _settled(self) -> bool:
        if self._main.over or self._withheld or not self.in_step:
            return True
        return not self._main.queued and not self._waiting()

    def _waiting(self) -> list[tuple[int, int]]:
        return [key for key, wires in self._unanswered.items() if wires]

    # What is received

    def _take(self, stream: Stream, got: Received) -> None:
        if got.flags & 0xF == REPLY:
            self._take_answer(stream, got)
        else:
            self._serve(stream, got)

    def _take_answer(self, stream: Stream, got: Received) -> None:
        if not self.in_step or stream is not self._main:
            close_fds(got.fds)
            return
        wires = self._unanswered[got.number, got.command]
        try:
            if not wires:
                raise Finding("wrong answer", f"to what was not asked: {got}")
            self._tally.errors[outcome(wires.popleft(), got)] += 1
            self.agreed = self.agreed or (got.command, got.error) == (Command.VERSION, 0)
        except Finding:
            close_fds(got.fds)
            raise
        if got.command == Command.DEVICE_GET_REGION_IO_FDS:
            self._kick(got.fds)
        if (got.command, got.flags) == (Command.VERSION, REPLY) and self._twin is None:
            self._keep(got)
        else:
            close_fds(got.fds)

    def _kick(self, fds: tuple[int, ...]) -> None:
        for fd in fds:
            if self.rng.random() < 0.5:
                with suppress(OSError):  # it may be full
                    os.eventfd_write(fd, self.rng.choice((1, 3, 1 << 63)))

    def _keep(self, got: Received) -> None:
        """The twin socket comes with the answer to VERSION."""
        close_fds(got.fds[1:])
        if got.fds:
            self._twin = Stream(socket.socket(fileno=got.fds[0]), self._tally)

    def _serve(self, stream: Stream, got: Received) -> None:
        """The server asks for our memory."""
        close_fds(got.fds)
        self._tally.served += 1
        if got.command not in (Command.DMA_READ, Command.DMA_WRITE) or got.fds or got.error:
            raise Finding("malformed", f"a server's command: {got}")
        asked = COMMANDS[got.command].request.decode(memoryview(got.payload))
        kind = self.rng.random()
        if kind < 0.02:
            self._withheld = True
        elif kind < 0.04:
            stream.send([lying(self.rng, got.number, got.command, got.payload)])
            self.in_step = self.in_step and stream is not self._main
            self._withheld = True
        elif kind < 0.1:
            error = values.edge(self.rng, 0xFFFF_FFFF)
            stream.send([frame(got.number, got.command, b"", messages.ERROR_REPLY, error)])
        else:
            payload = _memory(asked)
            if self.rng.random() < 0.1:
                payload = damaged(self.rng, payload)[: len(payload)]
            stream.send(pieces(self.rng, frame(got.number, got.command, payload, REPLY)))

    # The end

    def _leave(self) -> None:
        """Go in one of the ways in which clients go."""
        kind = self.rng.randrange(6)
        if kind == 0 or self._main.over:
            return
        if kind == 1:
            self._main.sock.shutdown(self.rng.choice((socket.SHUT_WR, socket.SHUT_RDWR)))
        elif kind == 2 and self._twin is not None:
            self._twin.close()
        elif kind == 3:
            wire = request(self.rng, Role.CLIENT, self._next(), wildness=0.0)
            self._main.send([wire.data[: self.rng.randrange(len(wire.data))]], self._fds(wire))
            self._push()
        elif kind == 4:
            for _ in range(self.rng.randrange(500)):  # and it has no room for the answers
                self._send(request(self.rng, Role.CLIENT, self._next(), wildness=0.0))
            self._push()
        elif self.in_step and not self._withheld:
            # In step to the last: one more question is answered rightly.
            data = frame(self._next(), Command.DEVICE_GET_INFO, encoded(m.GetDeviceInfo()))
            self._send(Wire(data, self._number, Command.DEVICE_GET_INFO, True, True))
            self._settle()


def _memory(asked: m.Message) -> bytes:
    if isinstance(asked, m.DMARead):
        return encoded(m.DMAData(asked.address, bytes(asked.count)))
    assert isinstance(asked, m.DMAWrite)
    return encoded(m.DMAWritten(asked.address, len(asked.data)))


def close_fds(fds: tuple[int, ...]) -> None:
    """Close what came with a message."""
    for fd in fds:
        os.close(fd)
