# SPDX-License-Identifier: BSD-3-Clause
"""The migration data of a hosted model: records of which one device is put together again.

A stream is START, then MEMORY and PRECOPY as often as there is something new, then CONFIG,
INTERRUPTS, MSIX (of a device that has it) and MODEL once each, and END with a digest of all before.
Each record is a head (kind, bytes) and its contents; numbers are little-endian.  MEMORY is a piece
of a backed BAR, which is zero where no piece says otherwise; the last one for a place counts.

Whatever comes in a stream is checked here, and kept; the device is not touched before all is there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct

import numpy as np

from pyvfio.memory import ByteArray
from pyvfio.uapi.layout import Buffer

PIECE = 1 << 20
"""Bytes of memory in one record, at most; pieces begin at multiples of it, or behind."""

_HEAD = Struct("<II")
_START = Struct("<8sII16s")
_MEMORY = Struct("<IIQ")
_MAGIC, _FORMAT = b"pyvfiodm", 1
_DIGEST = 16
"""Bytes of a digest."""


class Kind(IntEnum):
    """What a record holds, in the order of the stream."""

    START = 1
    MEMORY = 2
    PRECOPY = 3
    CONFIG = 4
    INTERRUPTS = 5
    MSIX = 6
    MODEL = 7
    END = 8


ONCE = (Kind.CONFIG, Kind.INTERRUPTS, Kind.MSIX, Kind.MODEL)
"""The records of a device that is stopped."""


@dataclass(frozen=True)
class Declared:
    """What a device is, for a stream to be its own.

    :ivar version: the model's ``migration_version``.
    :ivar layout: what two devices of one kind have in common, of any length.
    :ivar precopy: the model has something to save while it runs.
    :ivar memory: BAR -> bytes, of the backed ones.
    :ivar sizes: bytes of the records that have a fixed size; those that are not there do not exist.
    """

    version: int
    layout: bytes
    precopy: bool
    memory: dict[int, int]
    sizes: dict[Kind, int]

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that stand for the layout."""
        return hashlib.blake2b(self.layout, digest_size=16).digest()

    @property
    def parts(self) -> tuple[Kind, ...]:
        """The records that a stopped device gives, in order."""
        return tuple(kind for kind in ONCE if kind in self.sizes or kind is Kind.MODEL)


class RecordWriter:
    """Makes the records of one stream."""

    def __init__(self, declared: Declared) -> None:
        self._declared = declared
        self._digest = hashlib.blake2b(digest_size=_DIGEST)

    def start(self) -> bytes:
        """The first record."""
        declared = self._declared
        return self.record(
            Kind.START, _START.pack(_MAGIC, _FORMAT, declared.version, declared.fingerprint)
        )

    def memory(self, bar: int, offset: int, data: Buffer) -> bytes:
        """A piece of a BAR's memory."""
        return self.record(Kind.MEMORY, _MEMORY.pack(bar, 0, offset) + data)

    def record(self, kind: Kind, contents: Buffer) -> bytes:
        """Any record."""
        made = _HEAD.pack(kind, len(contents)) + contents
        self._digest.update(made)
        return made

    def end(self) -> bytes:
        """The last record."""
        return self.record(Kind.END, self._digest.digest())


class RecordReader:
    """Takes a stream in pieces of any size and checks it.

    :param declared: the device that it is to be for.
    :param max_model: bytes that the model's own records may have in all.
    :ivar version: the version of the model that has saved.
    :ivar parts: the records that came once each.
    :ivar precopy: the model's own records from before the device was stopped.
    :ivar memory: BAR -> contents, and the places of the pieces that came.
    """

    def __init__(self, declared: Declared, max_model: int) -> None:
        self.version = 0
        self.parts: dict[Kind, bytes] = {}
        self.precopy: list[bytes] = []
        self.memory = {bar: LoadedMemory(size) for bar, size in declared.memory.items()}
        self._declared = declared
        self._room = max_model
        self._digest = hashlib.blake2b(digest_size=_DIGEST)
        self._waiting = bytearray()
        self._expected = {Kind.START}
        self._failure: ValueError | None = None

    def feed(self, data: Buffer) -> None:
        """The next bytes of the stream.

        :raises ValueError: they are not those of a device like this one; so is every later call.
        """
        if self._failure is not None:
            raise self._failure
        self._waiting += data
        try:
            while self._take_record():
                pass
        except ValueError as error:
            self._failure = error
            self._waiting = bytearray()
            raise

    def finish(self) -> None:
        """The stream has ended; raises ValueError where it is not all there."""
        if self._failure is not None:
            raise self._failure
        if self._expected or self._waiting:
            raise ValueError("the saved state is cut off")

    def _take_record(self) -> bool:
        if len(self._waiting) < _HEAD.size:
            return False
        number, size = _HEAD.unpack_from(self._waiting)
        kind = self._check_head(number, size)
        end = _HEAD.size + size
        if len(self._waiting) < end:
            return False
        digest = self._digest.digest()
        with memoryview(self._waiting) as waiting:
            self._digest.update(waiting[:end])
            contents = bytes(waiting[_HEAD.size : end])
        del self._waiting[:end]
        if kind is Kind.END and contents != digest:
            raise ValueError("the saved state is corrupt: its digest differs")
        self._take(kind, contents)
        return True

    def _check_head(self, number: int, size: int) -> Kind:
        """Refuse a record before its contents are waited for, and kept."""
        kind = next((kind for kind in self._expected if kind == number), None)
        if kind is None:
            raise ValueError(_strange(number, self._expected))
        least, most = self._bounds(kind)
        if not least <= size <= most:
            raise ValueError(f"the saved state is corrupt: {size} bytes of {kind.name}")
        return kind

    def _bounds(self, kind: Kind) -> tuple[int, int]:
        if kind is Kind.MEMORY:
            return _MEMORY.size + 1, _MEMORY.size + PIECE
        if kind in (Kind.PRECOPY, Kind.MODEL):
            return int(kind is Kind.PRECOPY), self._room
        size = {Kind.START: _START.size, Kind.END: _DIGEST}.get(kind)
        size = self._declared.sizes[kind] if size is None else size
        return size, size

    def _take(self, kind: Kind, contents: bytes) -> None:
        if kind is Kind.START:
            self._check_start(contents)
        elif kind is Kind.MEMORY:
            self._take_memory(contents)
        elif kind is Kind.PRECOPY:
            self.precopy.append(contents)
            self._room = max(0, self._room - len(contents) - _HEAD.size)  # small ones cost as well
        elif kind is not Kind.END:
            self.parts[kind] = contents
        self._expected = self._following(kind)

    def _following(self, kind: Kind) -> set[Kind]:
        parts = self._declared.parts
        if kind <= Kind.PRECOPY:
            repeated = {Kind.MEMORY, Kind.PRECOPY} if self._declared.precopy else {Kind.MEMORY}
            return {*repeated, parts[0]}
        if kind is Kind.END:
            return set()
        at = parts.index(kind) + 1
        return {parts[at]} if at < len(parts) else {Kind.END}

    def _check_start(self, contents: bytes) -> None:
        magic, number, version, fingerprint = _START.unpack(contents)
        if magic != _MAGIC:
            raise ValueError("this is no saved state of a pyvfio server")
        if number != _FORMAT:
            raise ValueError(f"the saved state has format {number}, {_FORMAT} is known")
        if fingerprint != self._declared.fingerprint:
            raise ValueError("the saved state is of another device")
        if not 1 <= version <= self._declared.version:
            raise ValueError(
                f"the saved state is of version {version} of the model,"
                f" {self._declared.version} is here"
            )
        self.version = version

    def _take_memory(self, contents: bytes) -> None:
        bar, _, offset = _MEMORY.unpack_from(contents)
        memory = self.memory.get(bar)
        if memory is None:
            raise ValueError(f"the saved state is corrupt: memory of BAR {bar}")
        memory.put(offset, memoryview(contents)[_MEMORY.size :])


@dataclass
class LoadedMemory:
    """The memory of a BAR as it came.

    :ivar pieces: the multiples of :data:`PIECE` that something came for.
    """

    size: int
    contents: ByteArray = field(init=False)
    pieces: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.contents = np.zeros(self.size, np.uint8)  # takes no memory before it is written

    def put(self, offset: int, data: Buffer) -> None:
        """Keep a piece; raises ValueError where it is outside."""
        end = offset + len(data)
        if end > self.size:
            raise ValueError(f"the saved state is corrupt: memory up to {end:#x}")
        self.contents[offset:end] = np.frombuffer(data, np.uint8)
        self.pieces.update(range(offset // PIECE * PIECE, end, PIECE))


def _strange(number: int, expected: set[Kind]) -> str:
    if expected == {Kind.START}:
        return "this is no saved state of a pyvfio server"
    if not expected:
        return "the saved state goes on behind its end"
    return f"the saved state is corrupt: record {number}"
