# SPDX-License-Identifier: BSD-3-Clause
"""Mapped memory as a device sees it, for a server that asks for it by messages."""

from __future__ import annotations

import errno
from typing import NamedTuple, Protocol

from pyvfio.errors import DeviceClosed, DMAError
from pyvfio.map_table import MapEntry, MapTable
from pyvfio.native import mmio
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import DMAMapFlags


class WriteListener(Protocol):
    """Is told what a device writes."""

    def __call__(self, mapping: MapEntry, offset: int, size: int) -> None:
        """Bytes of a map were written."""


class _Piece(NamedTuple):
    """Bytes of one map, and where they are in this process."""

    mapping: MapEntry
    offset: int
    address: int
    length: int


class DeviceAccess:
    """Reads and writes that are checked against the maps and their permissions.

    :param maps: what is mapped.
    :param uri: the device, for errors.
    :ivar on_write: called for each part that was written, with the table locked.
    """

    def __init__(self, maps: MapTable, uri: str) -> None:
        self._maps = maps
        self._uri = uri
        self.on_write: WriteListener | None = None

    def read(self, iova: int, size: int) -> bytearray:
        """Bytes of mapped memory, as the device sees them.

        :raises DMAError: EFAULT where not all of it is mapped or backed, EPERM where it may not be
            read.
        """
        data = bytearray()
        with self._maps.lock:  # held while copying: what is unmapped may be gone at once
            for piece in self._pieces(iova, size, DMAMapFlags.READ):
                part = mmio.copy_out(piece.address, piece.length)
                if part is None:
                    raise self._unreachable(iova, size)
                data += part
        return data

    def write(self, iova: int, data: Buffer) -> None:
        """Write mapped memory for the device; raises as :meth:`read` does."""
        rest = memoryview(data)
        with self._maps.lock:
            for piece in self._pieces(iova, len(rest), DMAMapFlags.WRITE):
                done = mmio.copy_in(piece.address, rest[: piece.length])
                if self.on_write is not None:  # a copy that failed may have begun
                    self.on_write(piece.mapping, piece.offset, piece.length)
                if not done:
                    raise self._unreachable(iova, len(data))
                rest = rest[piece.length :]

    def _pieces(self, iova: int, size: int, need: DMAMapFlags) -> list[_Piece]:
        """The pieces of a range, which may span several maps."""
        pieces: list[_Piece] = []
        at, end = iova, iova + size
        while at < end:
            mapping = self._maps.holder(at)
            if mapping is None:
                raise self._unreachable(iova, size)
            if not mapping.flags & need:
                reason = f"mapped without permission to {need.name}"
                raise self._refused(iova, size, errno.EPERM, reason)
            length = min(end, mapping.last + 1) - at
            try:
                address = mapping.memory.address
            except DeviceClosed as error:  # its owner has let it go while it was mapped
                raise self._unreachable(iova, size) from error
            offset = at - mapping.iova
            pieces.append(_Piece(mapping, offset, address + mapping.offset + offset, length))
            at += length
        return pieces

    def _unreachable(self, iova: int, size: int) -> DMAError:
        return self._refused(iova, size, errno.EFAULT, f"{size} bytes that are not all mapped")

    def _refused(self, iova: int, size: int, number: int, reason: str) -> DMAError:
        op = f"DMA at iova {iova:#x}"
        return DMAError(reason, iova=iova, size=size, op=op, uri=self._uri, errno=number)
