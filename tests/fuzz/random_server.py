# SPDX-License-Identifier: BSD-3-Clause
"""A server that answers whatever comes to its mind, and asks for memory in between."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pyvfio.wire import messages as m
from pyvfio.wire.commands import COMMANDS, Role
from pyvfio.wire.header import Command
from tests.fuzz import messages, values
from tests.fuzz.answers import outcome
from tests.fuzz.descriptors import Descriptors
from tests.fuzz.device import Device
from tests.fuzz.messages import (
    ERROR_REPLY,
    NO_REPLY,
    REPLY,
    Wire,
    damaged,
    encoded,
    frame,
    lying,
    pieces,
    request,
)
from tests.fuzz.stream import Received, Stream
from tests.fuzz.subject import MARK, MEMORY_SIZE
from tests.fuzz.watch import Finding, Tally

OPENING = 16
"""Requests that are answered rightly for the client to open the device."""


class RandomServer:
    """One connection, seen from the server.

    :ivar in_step: the client can still tell where a message of ours begins.
    :ivar honest: the client has asked for good manners.
    """

    def __init__(
        self,
        sock: socket.socket,
        device: Device,
        stock: Descriptors,
        rng: random.Random,
        tally: Tally,
    ) -> None:
        self.rng = rng
        self.in_step = True
        self.honest = False
        self._stock = stock
        self._tally = tally
        self._device = device
        self._main = Stream(sock, tally)
        self._twin: Stream | None = None
        self._asked: defaultdict[tuple[int, int], deque[Wire]] = defaultdict(deque)
        self._number = rng.randrange(1 << 16)
        self._wildness = rng.choice((0.0, 0.02, 0.1, 0.4))
        self._patience = rng.choice((0, OPENING, OPENING, OPENING))
        self._mapped: list[m.DMAMap] = []
        self._sent_away: list[socket.socket] = []

    def streams(self) -> list[Stream]:
        """The sockets of this connection."""
        return [self._main] if self._twin is None else [self._main, self._twin]

    @property
    def deaf(self) -> bool:
        """Whether nothing more is read of the client."""
        return self._main.deaf

    def take(self, stream: Stream, got: Received) -> None:
        """Do something about a message of the client."""
        for fd in got.fds:
            if os.fstat(fd).st_size != MEMORY_SIZE and self.rng.random() < self._wildness / 4:
                with suppress(OSError):  # a memfd of the client's may be sealed
                    os.ftruncate(fd, 0)
            os.close(fd)
        if not self.in_step:
            self._main.close()  # the client may wait for bytes that will never come
        elif got.flags & 0xF == REPLY:
            self._check_answer(stream, got)
        else:
            self._serve(got)

    def unanswered(self) -> list[tuple[int, int]]:
        """Our requests on the main socket that a client in step has not answered."""
        return [key for key, wires in self._asked.items() if wires] if self.in_step else []

    def close(self) -> None:
        """Let go of the sockets."""
        for stream in self.streams():
            stream.close()
        for end in self._sent_away:
            end.close()

    # Answers

    def _serve(self, got: Received) -> None:
        asked = _decoded(got)
        command = Command(got.command)
        if isinstance(asked, m.DMAMap):
            self._mapped.append(asked)
        if isinstance(asked, m.RegionWrite) and bytes(asked.data) == MARK:
            self.honest = True
            self._ask(frame(self._next(), Command.DMA_READ, encoded(m.DMARead(1 << 63, 8))))
        self._patience -= 1
        wild = 0.0 if self._patience >= 0 else self._wildness
        if not self.honest and self.rng.random() < 0.3:
            self._bother(wild / 2)
        if got.flags & NO_REPLY:
            return
        if command is Command.VERSION:
            self._answer_version(got, asked, wild)
        else:
            answer, fds = self._device.answer(command, asked)
            if self.honest or self.rng.random() >= wild:
                self._send(frame(got.number, command, encoded(answer), REPLY), fds)
            else:
                self._answer_wildly(got, answer, fds)

    def _answer_version(self, got: Received, asked: m.Version, wild: float) -> None:
        answer, client_end = self._device.version(asked)
        fds = [client_end.fileno()] if client_end else []
        if self._device.twin is not None and self._twin is None:
            self._twin = Stream(self._device.twin, self._tally)
            self._device.twin = None
        if self.rng.random() >= wild:
            self._send(frame(got.number, got.command, encoded(answer), REPLY), fds)
        elif self.rng.random() < 0.5:
            self._send(frame(got.number, got.command, messages.json(self.rng), REPLY), fds)
        else:
            self._answer_wildly(got, answer, fds)
        if client_end is not None:
            self._sent_away.append(client_end)

    def _answer_wildly(self, got: Received, answer: m.Message, fds: Sequence[int]) -> None:
        rng, kind = self.rng, self.rng.random()
        payload = encoded(answer)
        right = frame(got.number, got.command, payload, REPLY)
        if kind < 0.3:
            self._send(frame(got.number, got.command, damaged(rng, payload), REPLY), fds)
        elif kind < 0.45:
            made = encoded(values.message(rng, COMMANDS[got.command].reply))
            self._send(frame(got.number, got.command, made, REPLY), fds)
        elif kind < 0.65:
            error = rng.choice((1, 2, 5, 19, 22, 95, values.edge(rng, 0xFFFF_FFFF)))
            behind = rng.choice((b"", b"", b"", bytes(16)))
            self._send(frame(got.number, got.command, behind, ERROR_REPLY, error))
        elif kind < 0.8:
            self._send(right, self._stock.any(rng))
        elif kind < 0.83:
            pass  # no answer
        elif kind < 0.84:
            self._main.deaf, self.in_step = True, False
        elif kind < 0.88:
            self._send(right, fds)
            self._send(right)
            self.in_step = False
        elif kind < 0.92:
            self._send(lying(rng, got.number, got.command, payload))
            self.in_step = False
        elif kind < 0.96:
            other = rng.choice([*COMMANDS, *messages.UNKNOWN])
            number = rng.choice((got.number, values.edge(rng, 0xFFFF)))
            self._send(frame(number, other, payload, REPLY), fds)
            self.in_step = False
        else:
            self._main.send([right[: rng.randrange(len(right))]], fds)
            self._main.flush()
            self._main.close()

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        self._main.send(pieces(self.rng, data), fds)

    # Requests of ours

    def _bother(self, wildness: float) -> None:
        for _ in range(self.rng.choice((1, 2, 5, 20, 60))):
            wire = request(self.rng, Role.SERVER, self._next(), wildness=wildness)
            data = wire.data
            if wire.message is not None and self._mapped and self.rng.random() < 0.6:
                data = self._aimed(wire)
            fds = self._stock.any(self.rng) if self.rng.random() < wildness / 2 else ()
            if self._twin is not None and self.rng.random() < 0.6:
                self._twin.send(pieces(self.rng, data), fds)
                continue
            self._ask(data, fds, answered=wire.answered)
            self.in_step = self.in_step and wire.in_step

    def _aimed(self, wire: Wire) -> bytes:
        """The same request, for memory that is mapped."""
        mapping = self.rng.choice(self._mapped)
        address = mapping.iova + self.rng.randrange(-8, mapping.size + 8)
        address = max(0, min(address, (1 << 64) - 1))
        head = wire.data[: len(wire.data) - len(wire.payload)]
        return head + address.to_bytes(8, sys.byteorder) + wire.payload[8:]

    def _ask(self, data: bytes, fds: Sequence[int] = (), *, answered: bool = True) -> None:
        number, command = (int.from_bytes(data[at : at + 2], sys.byteorder) for at in (0, 2))
        if answered and self.in_step:
            self._asked[number, command].append(Wire(data, number, command, True, True))
        self._main.send(pieces(self.rng, data), fds)

    def _next(self) -> int:
        if self.rng.random() < 0.98:
            self._number = (self._number + 1) & 0xFFFF
        return self._number

    def _check_answer(self, stream: Stream, got: Received) -> None:
        if stream is not self._main:
            self._tally.served += 1
            return
        wires = self._asked[got.number, got.command]
        if not wires:
            raise Finding("wrong answer", f"to what was not asked: {got}")
        self._tally.served += 1
        self._tally.errors[f"to us: {outcome(wires.popleft(), got)}"] += 1


def _decoded(got: Received) -> Any:
    """A client's request, which must be right."""
    spec = COMMANDS.get(got.command)
    if spec is None or spec.sender is not Role.CLIENT or got.flags not in (0, NO_REPLY):
        raise Finding("malformed", f"a client's command: {got}")
    if got.error:  # descriptors may have come with the chunk of another message
        raise Finding("malformed", f"a client's command: {got}")
    try:
        return spec.request.decode(memoryview(got.payload))
    except m.PayloadError as error:
        raise Finding("malformed", f"{error}: {got}") from error
