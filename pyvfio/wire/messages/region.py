# SPDX-License-Identifier: BSD-3-Clause
"""Payloads about regions: info, descriptors, reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Self

from pyvfio.uapi import vfio
from pyvfio.uapi.layout import Buffer
from pyvfio.wire.messages.payload import exact, head, require, room, with_data

REGION_RANGE = Struct("=QII")
"""REGION_READ, REGION_WRITE and their replies: offset, region, count."""
IO_FDS = Struct("=IIII")
"""DEVICE_GET_REGION_IO_FDS and its reply: argsz, flags, index, count."""
IO_FD = Struct("=QQIIIIQ")
"""A sub-region in that reply: offset, size, fd_index, type, flags, padding, datamatch."""
LONG_IO_FD = Struct("=QQIIIIQQ")
"""The same as libvfio-user sends it, with a shadow offset before the datamatch."""
WRITE_COUNT = Struct("=Q")
"""REGION_WRITE_MULTI and its reply: number of writes."""
WRITE_ENTRY = Struct("=QII8s")
"""One write of REGION_WRITE_MULTI: offset, region, count, data padded to 8 bytes."""
MAX_WRITE_ENTRY = 8
"""Bytes in one write of REGION_WRITE_MULTI."""

_REGION_INFO = vfio.REGION_INFO.struct


@dataclass(frozen=True, slots=True)
class GetRegionInfo:
    """DEVICE_GET_REGION_INFO."""

    index: int
    argsz: int = _REGION_INFO.size

    def encode(self) -> list[Buffer]:
        return [_REGION_INFO.pack(self.argsz, 0, self.index, 0, 0, 0)]

    @classmethod
    def decode(cls, payload: memoryview) -> GetRegionInfo:
        argsz, _, index, *_ = head(_REGION_INFO, payload)
        room(argsz, _REGION_INFO.size)
        return cls(index, argsz)

    def reply_limit(self) -> int:
        return self.argsz

    def check_reply(self, reply: RegionInfo) -> None:
        require(reply.index == self.index, f"info of region {reply.index}")


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """The reply to DEVICE_GET_REGION_INFO; ``chain`` is the raw capability chain behind it."""

    argsz: int
    flags: int
    index: int
    cap_offset: int
    size: int
    offset: int
    chain: bytes = b""

    def encode(self) -> list[Buffer]:
        head = _REGION_INFO.pack(
            self.argsz, self.flags, self.index, self.cap_offset, self.size, self.offset
        )
        return [head + self.chain]

    @classmethod
    def decode(cls, payload: memoryview) -> RegionInfo:
        argsz, flags, index, cap_offset, size, offset = head(_REGION_INFO, payload)
        capabilities = bytes(payload[_REGION_INFO.size :])
        return cls(argsz, flags, index, cap_offset, size, offset, capabilities)


@dataclass(frozen=True, slots=True)
class GetRegionIOFDs:
    """DEVICE_GET_REGION_IO_FDS."""

    index: int
    argsz: int

    def encode(self) -> list[Buffer]:
        return [IO_FDS.pack(self.argsz, 0, self.index, 0)]

    @classmethod
    def decode(cls, payload: memoryview) -> GetRegionIOFDs:
        argsz, flags, index, count = exact(IO_FDS, payload)
        room(argsz, IO_FDS.size)
        require(not flags and not count, "flags and count must be 0")
        return cls(index, argsz)

    def reply_limit(self) -> int:
        return self.argsz

    def check_reply(self, reply: RegionIOFDs) -> None:
        require(reply.index == self.index, f"io fds of region {reply.index}")


class IOFDType(IntEnum):
    """How the descriptor of a sub-region is to be used (``VFIO_USER_IO_FD_TYPE_*``)."""

    IOEVENTFD = 0
    IOREGIONFD = 1
    SHADOW_IOEVENTFD = 2


class IOEventFDFlags(IntFlag):
    """``KVM_IOEVENTFD_FLAG_*``."""

    DATAMATCH = 1
    PIO = 2
    VIRTIO_CCW_NOTIFY = 8


@dataclass(frozen=True, slots=True)
class IOSubRegion:
    """A part of a region whose accesses may go through a descriptor.

    :ivar offset: where it starts in the region.
    :ivar size: its bytes; 0 is an access of any width at ``offset``.
    :ivar fd_index: which descriptor of the reply serves it.
    :ivar type: an :class:`IOFDType`, or a number that nobody knows yet.
    :ivar datamatch: the value of a write that signals an ioeventfd; ``user_data`` of an ioregionfd.
    """

    offset: int
    size: int
    fd_index: int
    type: int
    flags: int
    datamatch: int


@dataclass(frozen=True, slots=True)
class RegionIOFDs:
    """The reply to DEVICE_GET_REGION_IO_FDS.

    The size of one entry is ``(argsz - 16) / count``: 40 bytes in the specification, 48 in the
    field; 40 are sent.  Where the request had no room for all, ``sub_regions`` is empty and
    ``argsz`` says what is needed.
    """

    argsz: int
    index: int
    count: int
    sub_regions: tuple[IOSubRegion, ...] = ()

    @classmethod
    def of(cls, index: int, sub_regions: Sequence[IOSubRegion], argsz: int) -> RegionIOFDs:
        """The reply that lists ``sub_regions``, as far as a request's ``argsz`` has room."""
        needed = IO_FDS.size + len(sub_regions) * IO_FD.size
        return cls(needed, index, len(sub_regions), tuple(sub_regions) if needed <= argsz else ())

    def encode(self) -> list[Buffer]:
        entries = (
            IO_FD.pack(sub.offset, sub.size, sub.fd_index, sub.type, sub.flags, 0, sub.datamatch)
            for sub in self.sub_regions
        )
        return [IO_FDS.pack(self.argsz, 0, self.index, self.count) + b"".join(entries)]

    @classmethod
    def decode(cls, payload: memoryview) -> RegionIOFDs:
        argsz, _, index, count = head(IO_FDS, payload)
        entries = payload[IO_FDS.size :]
        return cls(argsz, index, count, _sub_regions(argsz, count, entries) if entries else ())


def _sub_regions(argsz: int, count: int, entries: memoryview) -> tuple[IOSubRegion, ...]:
    require(count > 0, f"{len(entries)} bytes of no entries")
    stride = len(entries) // count
    require(
        argsz == IO_FDS.size + len(entries) and stride * count == len(entries),
        f"argsz {argsz} and {len(entries)} bytes of {count} entries",
    )
    require(stride >= IO_FD.size, f"entries of {stride} bytes")
    return tuple(_sub_region(entries[at : at + stride]) for at in range(0, len(entries), stride))


def _sub_region(entry: memoryview) -> IOSubRegion:
    layout = LONG_IO_FD if len(entry) == LONG_IO_FD.size else IO_FD
    offset, size, fd_index, kind, flags, *_, datamatch = layout.unpack_from(entry)
    return IOSubRegion(offset, size, fd_index, kind, flags, datamatch)


@dataclass(frozen=True, slots=True)
class _RegionRange:
    """``count`` bytes at ``offset`` of a region."""

    offset: int
    region: int
    count: int

    def encode(self) -> list[Buffer]:
        return [REGION_RANGE.pack(self.offset, self.region, self.count)]

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        return cls(*exact(REGION_RANGE, payload))


@dataclass(frozen=True, slots=True)
class _RegionBytes:
    """``data`` of, or for, ``offset`` of a region."""

    offset: int
    region: int
    data: Buffer

    def encode(self) -> list[Buffer]:
        head = REGION_RANGE.pack(self.offset, self.region, len(self.data))
        return [head, self.data]

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        offset, region, _, data = with_data(REGION_RANGE, payload)
        return cls(offset, region, data)


@dataclass(frozen=True, slots=True)
class RegionRead(_RegionRange):
    """REGION_READ: ``count`` bytes at ``offset`` of a region."""

    def reply_limit(self) -> int:
        return REGION_RANGE.size + self.count

    def check_reply(self, reply: RegionData) -> None:
        _check_region_echo(self, reply.offset, reply.region, len(reply.data))


@dataclass(frozen=True, slots=True)
class RegionData(_RegionBytes):
    """The reply to REGION_READ; fewer bytes than asked for are a short read."""

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        if not payload:  # some servers answer a read of 0 bytes with the bare header
            return cls(0, 0, b"")
        offset, region, _, data = with_data(REGION_RANGE, payload)
        return cls(offset, region, data)


@dataclass(frozen=True, slots=True)
class RegionWrite(_RegionBytes):
    """REGION_WRITE: ``data`` goes to ``offset`` of a region."""

    @property
    def count(self) -> int:
        """Bytes to write."""
        return len(self.data)

    def reply_limit(self) -> int:
        return REGION_RANGE.size

    def check_reply(self, reply: RegionWritten) -> None:
        _check_region_echo(self, reply.offset, reply.region, reply.count)


def _check_region_echo(
    request: RegionRead | RegionWrite, offset: int, region: int, count: int
) -> None:
    require(count <= request.count, f"{count} bytes answer a request for {request.count}")
    require(
        count == 0 or (offset, region) == (request.offset, request.region),
        f"answer for region {region} offset {offset:#x}",
    )


@dataclass(frozen=True, slots=True)
class RegionWritten(_RegionRange):
    """The reply to REGION_WRITE; ``count`` bytes were written."""


@dataclass(frozen=True, slots=True)
class RegionWriteMulti:
    """REGION_WRITE_MULTI: writes of at most 8 bytes each, applied in order."""

    writes: tuple[RegionWrite, ...]

    def encode(self) -> list[Buffer]:
        if not all(1 <= len(write.data) <= MAX_WRITE_ENTRY for write in self.writes):
            raise ValueError(f"a write that has not 1 to {MAX_WRITE_ENTRY} bytes")
        entries = (
            WRITE_ENTRY.pack(w.offset, w.region, len(w.data), bytes(w.data)) for w in self.writes
        )
        return [WRITE_COUNT.pack(len(self.writes)) + b"".join(entries)]

    @classmethod
    def decode(cls, payload: memoryview) -> RegionWriteMulti:
        (count,) = head(WRITE_COUNT, payload)
        body = payload[WRITE_COUNT.size :]
        require(
            count * WRITE_ENTRY.size == len(body),
            f"{count} writes announced in {len(body)} bytes",
        )
        offsets = range(0, len(body), WRITE_ENTRY.size)
        return cls(tuple(cls._write(*WRITE_ENTRY.unpack_from(body, at)) for at in offsets))

    @staticmethod
    def _write(offset: int, region: int, count: int, data: bytes) -> RegionWrite:
        require(1 <= count <= MAX_WRITE_ENTRY, f"a write of {count} bytes")
        return RegionWrite(offset, region, data[:count])

    def reply_limit(self) -> int:
        return WRITE_COUNT.size

    def check_reply(self, reply: RegionWriteMultiDone) -> None:
        require(
            reply.count <= len(self.writes),
            f"{reply.count} writes done of {len(self.writes)}",
        )


@dataclass(frozen=True, slots=True)
class RegionWriteMultiDone:
    """The reply to REGION_WRITE_MULTI: how many writes were done."""

    count: int

    def encode(self) -> list[Buffer]:
        return [WRITE_COUNT.pack(self.count)]

    @classmethod
    def decode(cls, payload: memoryview) -> RegionWriteMultiDone:
        return cls(*exact(WRITE_COUNT, payload))
