# SPDX-License-Identifier: BSD-3-Clause
"""Many requests that are carried out together, with several in flight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from pyvfio.errors import VFIOError, VFIOTimeout
from pyvfio.transport.call import Call
from pyvfio.transport.channel import Channel
from pyvfio.transport.exchange import WINDOW
from pyvfio.wire.header import Command
from pyvfio.wire.messages import Request


class Load(Protocol):
    """Requests; each is made a message object only where something is not usual."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: int, /) -> tuple[Command, Request]: ...

    def fd(self, at: int) -> int:
        """The descriptor that goes with a request; -1 for none."""

    def frames(self, first: int) -> tuple[bytearray, npt.NDArray[Any]]:
        """Some messages from ``first`` on, with headers whose ids are still to be filled in, and
        what C has to know of each (:data:`pyvfio.native.channel.ITEM`)."""

    def check(self, at: int, reply: Any) -> None:
        """Raise OSError where a reply says that not all was done."""


class Failure(NamedTuple):
    """A request that was refused, or not answered in time, or not sent.

    :ivar position: which, from 0.
    """

    position: int
    error: Exception


class _Rest:
    """The requests of a load from one on."""

    def __init__(self, load: Load, first: int) -> None:
        self._load, self._first = load, first

    def __getitem__(self, at: int, /) -> tuple[Command, Request]:
        return self._load[self._first + at]


class Flight:
    """Carries out a load.

    Where one request was not answered in time no more are sent, and the others are not given the
    time.

    :ivar failures: what was not done, by ascending position.
    :ivar stalled: whether something was not answered in time.
    """

    def __init__(self, channel: Channel, load: Load) -> None:
        self._channel = channel
        self._load = load
        self._known = 0  # what is before that is done, or a failure
        self.stalled = False
        self.failures: list[Failure] = []

    def run(self) -> Sequence[Failure]:
        """Send all requests, and take all replies; returns the failures.

        What a signal handler raises comes through; then :attr:`failures` has also those requests
        of which it is not known what becomes of them.
        """
        at = 0
        try:
            while at < len(self._load) and not self.stalled:
                at += self._send(at)
        except BaseException:
            self._fail_rest("interrupted")
            raise
        self._fail_rest("not sent: the server does not answer those before")
        return self.failures

    def _fail_rest(self, reason: str) -> None:
        for position in range(self._known, len(self._load)):
            command, _ = self._load[position]
            self._fail(position, VFIOTimeout(reason, op=command.name))

    def _send(self, first: int) -> int:
        frames, items = self._load.frames(first)
        sent, calls = self._channel.exchange.pipeline(frames, items, _Rest(self._load, first))
        if sent:
            self._take([(first + at, call) for at, call in calls.items()], first + sent)
            return sent
        end = min(first + WINDOW, len(self._load))
        self._take([(at, self._submit(at)) for at in range(first, end)], end)
        return end - first

    def _submit(self, at: int) -> Call | Exception:
        command, request = self._load[at]
        fd = self._load.fd(at)
        try:
            return self._channel.submit(command, request, [fd] if fd >= 0 else [])
        except VFIOError as error:
            return error
        except OSError as error:
            if error.errno is None:  # a signal handler's, such as a TimeoutError
                raise
            return error

    def _take(self, waiting: list[tuple[int, Call | Exception]], end: int) -> None:
        """Take the replies that are missing of those before ``end``."""
        while waiting:
            self._known, call = waiting.pop(0)
            try:
                self._take_one(call)
            except BaseException:  # a signal handler's, of whatever kind
                for _, call in waiting:
                    if isinstance(call, Call):
                        self._channel.forget(call)
                raise
        self._known = end

    def _take_one(self, call: Call | Exception) -> None:
        if isinstance(call, Exception):
            self._fail(self._known, call)
            return
        try:
            reply = call.result(0.0 if self.stalled else None)
        except VFIOError as error:
            self._fail(self._known, error)
            return
        try:
            self._load.check(self._known, reply.message)
        except OSError as error:
            self._fail(self._known, error)

    def _fail(self, position: int, error: Exception) -> None:
        self.stalled = self.stalled or isinstance(error, VFIOTimeout)
        self.failures.append(Failure(position, error))
