# SPDX-License-Identifier: BSD-3-Clause
"""Bytes of a stream that were read before anybody knew whose they are."""

from __future__ import annotations

from collections.abc import Sequence

from pyvfio.native.serve import Service
from pyvfio.transport.sockets import check_fds, close_fds
from pyvfio.wire.header import HEADER


class Unread:
    """What has been read ahead, to be taken in place of the socket's bytes.

    It begins where a message does.  A read of the socket ends behind the bytes that descriptors
    come with, so these are of the last message that begins in it.

    :param data: the bytes.
    :param fds: the descriptors that came with them; owned until they are taken.
    :ivar left: bytes that nobody has taken yet.
    """

    def __init__(self, data: bytes = b"", fds: Sequence[int] = ()) -> None:
        self._data = memoryview(data)
        self.left = len(data)
        self._fds = list(fds)
        self._fds_at = _last_message(self._data) if fds else 0

    def __bool__(self) -> bool:
        return self.left > 0

    def take(self, space: memoryview) -> tuple[int, list[int]]:
        """Move bytes into ``space``, which reaches into no further message.

        :returns: how many, and the descriptors that came with them, which are the caller's.
        """
        at = len(self._data) - self.left
        count = min(len(space), self.left)
        space[:count] = self._data[at : at + count]
        self.left -= count
        fds: list[int] = []
        if at == self._fds_at:
            fds, self._fds = self._fds, []
        return count, fds

    def drop(self) -> None:
        """Close the descriptors of what nobody takes."""
        self.left = 0
        fds, self._fds = self._fds, []
        close_fds(fds)


class UnreadByService(Unread):
    """What a service has received and not carried out."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service

    def __bool__(self) -> bool:
        return self._service.has_unread

    def take(self, space: memoryview) -> tuple[int, list[int]]:
        """As :meth:`Unread.take`; raises as :func:`~pyvfio.transport.sockets.receive` does."""
        data, fds, lost = self._service.take_unread(len(space))
        check_fds(fds, lost)
        space[: len(data)] = data
        return len(data), fds

    def drop(self) -> None:
        close_fds(self._service.take_fds()[0])


def _last_message(data: memoryview) -> int:
    """Where the last message begins, as far as the bytes tell."""
    at = 0
    while len(data) - at >= HEADER.size:
        size = HEADER.unpack_from(data, at).size
        if size < HEADER.size or at + size >= len(data):
            break
        at += size
    return at
