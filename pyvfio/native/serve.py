# SPDX-License-Identifier: BSD-3-Clause
"""A server's usual requests in C, without the interpreter's lock; serve.c says how."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from pyvfio.native._native import ffi, lib


class Area(NamedTuple):
    """A part of a region, up to ``end``.

    :param memory: address of its first byte; 0 for registers, accesses of which are handed over.
    """

    region: int
    start: int
    end: int
    memory: int


class Service:
    """A connected socket that C code reads, sends on, and serves.

    One thread at a time may read: call :attr:`serve` and :meth:`take_unread`.  Several may send,
    each within ``with service:``.

    :param fd: a blocking stream socket with SO_RCVTIMEO, which stays its owner's.
    :param areas: what is served; the memory must stay where it is.
    :param max_data: data bytes in one message, at most.
    :ivar serve: serve until something else is to be done; returns the :class:`Status`.
    :ivar answer: (errno or 0, value): answer the access that was handed over.
    :ivar answer_and_serve: both.
    """

    def __init__(self, fd: int, areas: Sequence[Area], max_data: int) -> None:
        self._areas = ffi.new("struct pyvfio_backed[]", [tuple(area) for area in areas])
        self._state = state = ffi.new("struct pyvfio_service *")
        state.fd, state.max_data = fd, max_data
        state.area, state.areas = self._areas, len(areas)
        if lib.pyvfio_service_init(state):
            raise MemoryError
        self._in = memoryview(ffi.buffer(getattr(state, "in")))
        self.serve = partial(lib.pyvfio_serve, state)
        self.answer = partial(lib.pyvfio_answer, state)
        self.answer_and_serve = partial(lib.pyvfio_answer_and_serve, state)

    # Of any thread

    def hurry(self, hurried: bool) -> None:
        """Have :attr:`serve` return soon, now and whenever it is called, or not any more."""
        self._state.hurried = hurried

    def __enter__(self) -> None:
        """Begin to send: nothing else is sent until it ends."""
        lib.pyvfio_sending_begin(self._state)

    def __exit__(self, *_: object) -> None:
        lib.pyvfio_sending_end(self._state)

    def take_rest(self) -> bytes:
        """What the socket has not taken of replies, to be sent before anything else."""
        state = self._state
        if not state.rest:
            return b""
        rest = bytes(ffi.buffer(state.out)[state.out_start : state.out_end])
        if state.size:
            rest += bytes(ffi.buffer(state.data, state.size))
        state.rest = state.out_start = state.out_end = state.size = 0
        return rest

    def set_queued(self, queued: bool) -> None:
        """Whether something else is to be sent before any reply."""
        self._state.queued = queued

    # Of the one that reads

    def allow_writes(self, allowed: bool) -> None:
        """Whether memory may be written."""
        self._state.writable = allowed

    @property
    def has_unread(self) -> bool:
        """Whether something was received that is not carried out yet."""
        return bool(self._state.start < self._state.end)

    def take_unread(self, size: int) -> tuple[bytes, list[int], bool]:
        """Its first bytes, at most ``size`` and of one message; they are the caller's then.

        :returns: bytes, descriptors, and whether some of those were lost.
        """
        state, start = self._state, self._state.start
        end = min(start + size, state.end)
        fds, lost = self.take_fds() if start == state.fds_at else ([], False)
        state.start = end
        return bytes(self._in[start:end]), fds, lost

    def take_fds(self) -> tuple[list[int], bool]:
        """The descriptors that came, and whether some were lost; they are the caller's."""
        rights = self._state.rights
        found = [rights.fds[at] for at in range(rights.count)], bool(rights.lost)
        rights.count = rights.lost = 0
        return found

    def access(self) -> tuple[int, int, int, int]:
        """What was handed over: region, offset, bytes, and the value of a write."""
        state = self._state
        access = state.access
        return access.region, access.offset, access.count, state.value

    def posted(self) -> tuple[memoryview, int]:
        """The posted writes that were handed over, as they came, and the bytes of data in each."""
        state = self._state
        count = state.access.count
        end = state.run + state.posted * (lib.PYVFIO_REQUEST_SIZE + count)
        return self._in[state.run : end], count

    @property
    def error(self) -> int:
        """The errno of what has FAILED."""
        return int(self._state.error)
