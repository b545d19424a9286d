# SPDX-License-Identifier: BSD-3-Clause
"""The file of a saved device: which device it is of, and all that it needs to go on elsewhere.

A head, pieces of the device's own state, its configuration registers, an end.  Numbers are
little-endian.

======  =======================================================================
bytes   head
======  =======================================================================
8       ``pyvfioMS``
4       version of this layout
4       bytes of contents that follow: ids (vendor, device, subsystem vendor, subsystem: 2
        each; class: 4; revision: 1), and what wrote the file, as UTF-8
4       CRC-32 of all before, behind the contents
======  =======================================================================

======  =======================================================================
bytes   record, as many as there are
======  =======================================================================
4       kind: 1 state of the device, 2 configuration registers, 3 the end
4       bytes of contents
4       CRC-32 of both numbers and the contents
...     contents; of the end: bytes of all pieces of state (8), and SHA-256 of the file
        before this record
======  =======================================================================

A file that is cut off, damaged, of another kind, or goes on behind its end is no such file.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from pyvfio.errors import StateError
from pyvfio.uapi.layout import Buffer

PIECE = 1 << 20
"""Bytes of state in one record, at most."""

_MAGIC, _VERSION = b"pyvfioMS", 1
_HEAD = Struct("<8sII")
_IDS = Struct("<HHHHIB")
_MAX_WRITER = 255
_CRC = Struct("<I")
_RECORD = Struct("<III")
_KEY = Struct("<II")
_END = Struct("<Q32s")
_MAX_CONFIG = 4096


class _Kind(IntEnum):
    """What a record holds."""

    STATE = 1
    CONFIG = 2
    END = 3


_BOUNDS = {
    _Kind.STATE: (1, PIECE),
    _Kind.CONFIG: (1, _MAX_CONFIG),
    _Kind.END: (_END.size, _END.size),
}
"""Fewest and most bytes of each record."""


class DeviceIDs(NamedTuple):
    """What tells one kind of PCI device from another."""

    vendor: int
    device: int
    subsystem_vendor: int
    subsystem: int
    class_code: int
    revision: int

    def check(self, other: DeviceIDs, name: str) -> None:
        """Compare with the device that a state is to be for.

        :raises StateError: that is another kind of device.
        """
        for field, saved, there in zip(self._fields, self, other, strict=True):
            if saved != there:
                what = field.replace("_", " ")
                raise _refused(name, f"it is of another device: {what} {saved:#x}, not {there:#x}")


class StateWriter:
    """Writes a file from its beginning to its end.

    :param write: takes all that it is given, or raises.
    :param ids: what device it is.
    :param writer: the program that writes, for whoever looks at the file.
    """

    def __init__(self, write: Callable[[Buffer], object], ids: DeviceIDs, writer: str) -> None:
        self._write = write
        self._digest = hashlib.sha256()
        self._state = 0
        contents = _IDS.pack(*ids) + writer.encode()[:_MAX_WRITER]
        head = _HEAD.pack(_MAGIC, _VERSION, len(contents)) + contents
        self._put(head + _CRC.pack(zlib.crc32(head)))

    def write(self, data: Buffer) -> None:
        """The next bytes of the device's state."""
        view = memoryview(data)
        for at in range(0, len(view), PIECE):
            self._record(_Kind.STATE, view[at : at + PIECE])
        self._state += len(view)

    def finish(self, config: bytes) -> None:
        """The end of the file.

        :param config: its configuration registers.
        """
        self._record(_Kind.CONFIG, config)
        self._record(_Kind.END, _END.pack(self._state, self._digest.digest()))

    def _record(self, kind: _Kind, contents: Buffer) -> None:
        key = _KEY.pack(kind, len(contents))
        self._put(key + _CRC.pack(zlib.crc32(contents, zlib.crc32(key))))
        self._put(contents)

    def _put(self, data: Buffer) -> None:
        self._digest.update(data)
        self._write(data)


class StateReader:
    """Reads a file and checks all of it.

    ::

        reader = StateReader(file.read, "a.state")
        for piece in reader.pieces():  # StateError where the file is not whole
            ...
        reader.config

    :param read: gives as many bytes as it is asked for, fewer at the end only.
    :param name: what errors call the file.
    :ivar ids: what device it is of.
    :ivar writer: the program that wrote it.
    :ivar config: configuration registers, when the pieces are through.
    :ivar state_size: bytes of the device's state so far.
    :ivar digest: SHA-256 of the file but for its last record, when the pieces are through.
    :raises StateError: it is no such file, or newer than this program.
    """

    def __init__(self, read: Callable[[int], bytes], name: str) -> None:
        self.config = self.digest = b""
        self.state_size = 0
        self._read = read
        self._name = name
        self._running = hashlib.sha256()
        self.ids, self.writer = self._read_head()

    def _read_head(self) -> tuple[DeviceIDs, str]:
        head = self._read(_HEAD.size)
        if head[: len(_MAGIC)] != _MAGIC[: len(head)] or not head:
            raise self._refused("it is no saved state of pyvfio")
        _, version, size = _HEAD.unpack(self._whole(head, _HEAD.size))
        if version != _VERSION:
            newer = "it is newer than this program" if version > _VERSION else "it is damaged"
            raise self._refused(f"{newer}: format {version}, {_VERSION} is known")
        if not _IDS.size <= size <= _IDS.size + _MAX_WRITER:
            raise self._refused("it is damaged: the head's length")
        contents, checksum = self._take(size), self._take(_CRC.size)
        if _CRC.pack(zlib.crc32(head + contents)) != checksum:
            raise self._refused("it is damaged: the head's checksum is wrong")
        self._running.update(head + contents + checksum)
        writer = contents[_IDS.size :].decode(errors="replace")
        return DeviceIDs(*_IDS.unpack_from(contents)), writer

    def pieces(self) -> Iterator[bytes]:
        """The device's state, piece by piece; whether all is right is known at their end.

        :raises StateError: the file is damaged, cut off, or goes on behind its end.
        """
        expected = {_Kind.STATE, _Kind.CONFIG}
        while expected:
            kind, contents, digest = self._next(expected)
            if kind is _Kind.STATE:
                self.state_size += len(contents)
                yield contents
            elif kind is _Kind.CONFIG:
                self.config, expected = contents, {_Kind.END}
            else:
                self._check_end(contents, digest)
                expected = set()

    def _next(self, expected: set[_Kind]) -> tuple[_Kind, bytes, bytes]:
        """The next record, and the digest of all before it."""
        digest = self._running.digest()
        head = self._take(_RECORD.size)
        number, size, checksum = _RECORD.unpack(head)
        kind = next((kind for kind in expected if kind == number), None)
        if kind is None:
            raise self._refused(f"it is damaged: record {number} out of place")
        fewest, most = _BOUNDS[kind]
        if not fewest <= size <= most:
            raise self._refused(f"it is damaged: {size} bytes of {kind.name}")
        contents = self._take(size)
        if zlib.crc32(contents, zlib.crc32(head[: _KEY.size])) != checksum:
            raise self._refused(f"it is damaged: a checksum of {kind.name} is wrong")
        self._running.update(head + contents)
        return kind, contents, digest

    def _check_end(self, contents: bytes, digest: bytes) -> None:
        size, wanted = _END.unpack(contents)
        if wanted != digest or size != self.state_size:
            raise self._refused("it is damaged: records are missing, or in another order")
        if self._read(1):
            raise self._refused("it goes on behind its end")
        self.digest = digest

    def _take(self, size: int) -> bytes:
        return self._whole(self._read(size), size)

    def _whole(self, data: bytes, size: int) -> bytes:
        if len(data) != size:
            raise self._refused("it is cut off")
        return data

    def _refused(self, reason: str) -> StateError:
        return _refused(self._name, reason)


def _refused(name: str, reason: str) -> StateError:
    return StateError(reason, op="read saved state", uri=name)
