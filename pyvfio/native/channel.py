# SPDX-License-Identifier: BSD-3-Clause
"""The usual exchanges on a vfio-user socket, each one call of C without the interpreter's lock."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pyvfio.native._native import ffi, lib
from pyvfio.native.claims import Claims
from pyvfio.uapi.layout import Buffer

ITEM = np.dtype([("size", "=u4"), ("echo", "=u4"), ("fd", "=i4")])
"""``struct pyvfio_item``: bytes of a request, bytes of its payload that its reply consists of, and
the descriptor that goes with it, or -1."""


class Stream:
    """A connected socket in C; how far the last call came is in :attr:`state`.

    For one call at a time, which claims what it needs; where that is not free,
    :attr:`Status.BUSY` is returned and nothing was done.

    :param fd: a blocking socket with SO_RCVTIMEO, which stays its owner's.
    :param claims: of the socket.
    :param first_id: requests have this id and the 16,383 behind it, in turn.
    :param may_spin: whether waiting without sleeping may be tried.
    :ivar state: ``struct pyvfio_stream``.
    """

    def __init__(self, fd: int, claims: Claims, first_id: int, may_spin: bool = False) -> None:
        self.state = ffi.new("struct pyvfio_stream *")
        self.state.fd = fd
        self.state.claims = claims.state
        self.state.id_base = first_id
        self.state.may_spin = may_spin
        self._claims = claims  # the struct refers to it

    @property
    def left_by_me(self) -> bool:
        """Whether this thread's last call has ended half way, and nobody has gone on from there."""
        return bool(lib.pyvfio_left_by_me(self.state))

    def leave(self) -> None:
        """Somebody has gone on from there: give up what the call has claimed.  May be repeated."""
        lib.pyvfio_leave(self.state)

    def read_region(self, region: int, offset: int, target: memoryview) -> int:
        """REGION_READ into ``target``; returns the status."""
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(target)))
        return lib.pyvfio_read_region(self.state, region, offset, len(target), address)

    def post(self, messages: Buffer) -> int:
        """Send messages that are not answered; returns the status."""
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(messages)))
        return lib.pyvfio_post(self.state, address, len(messages))

    def pipeline(
        self, requests: bytearray, items: npt.NDArray[Any], window: int, seconds: float
    ) -> int:
        """Send requests with several in flight and take their replies; returns the status.

        :param requests: one behind the other; their ids are filled in.
        :param items: what each is, an array of :data:`ITEM`.
        :param window: requests that may be unanswered at one time.
        :param seconds: how long to go on sending; others cannot meanwhile.
        """
        return lib.pyvfio_pipeline(
            self.state,
            int(ffi.cast("uintptr_t", ffi.from_buffer(requests))),
            items.ctypes.data,
            len(items),
            window,
            int(1e9 * seconds),
        )

    def take_unread(self, data: memoryview) -> tuple[bytes, list[int]]:
        """The bytes that the last call has read and not understood, and the descriptors with them.

        The latter are the caller's from now on.

        :param data: what was to be filled; some of the bytes may be there.
        """
        state = self.state
        head = bytes(ffi.buffer(state.received, state.unread))
        fds = [state.rights.fds[at] for at in range(state.rights.count)]
        state.rights.count = 0
        return head + bytes(data[: state.unread_data]), fds
