# SPDX-License-Identifier: BSD-3-Clause
"""Payloads about the client's memory: maps of the client, accesses of the server."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Self

from pyvfio.uapi import vfio
from pyvfio.uapi.layout import Buffer
from pyvfio.wire.messages.payload import Empty, exact, head, require, room, with_data

DMA_RANGE = Struct("=QQ")
"""DMA_READ, DMA_WRITE and their replies: address, count."""

_DMA_MAP = vfio.DMA_MAP.struct
_DMA_UNMAP = vfio.DMA_UNMAP.struct


@dataclass(frozen=True, slots=True)
class DMAMap:
    """DMA_MAP: ``size`` bytes at ``offset`` of the fd that comes along, or without an fd."""

    flags: int
    offset: int
    iova: int
    size: int

    def encode(self) -> list[Buffer]:
        return [_DMA_MAP.pack(_DMA_MAP.size, self.flags, self.offset, self.iova, self.size)]

    @classmethod
    def decode(cls, payload: memoryview) -> DMAMap:
        argsz, flags, offset, iova, size = exact(_DMA_MAP, payload)
        room(argsz, _DMA_MAP.size)
        return cls(flags, offset, iova, size)

    def reply_limit(self) -> int:
        return 0

    def check_reply(self, reply: Empty) -> None:
        """Nothing is echoed."""


@dataclass(frozen=True, slots=True)
class DMAUnmap:
    """DMA_UNMAP and its reply, which echoes it."""

    flags: int
    iova: int
    size: int

    def encode(self) -> list[Buffer]:
        return [_DMA_UNMAP.pack(_DMA_UNMAP.size, self.flags, self.iova, self.size)]

    @classmethod
    def decode(cls, payload: memoryview) -> DMAUnmap:
        argsz, flags, iova, size = head(_DMA_UNMAP, payload)
        room(argsz, _DMA_UNMAP.size)
        return cls(flags, iova, size)

    def reply_limit(self) -> int:
        return _DMA_UNMAP.size

    def check_reply(self, reply: DMAUnmap) -> None:
        require(
            (reply.iova, reply.size) == (self.iova, self.size),
            f"unmap of another range: {reply.iova:#x}+{reply.size:#x}",
        )


@dataclass(frozen=True, slots=True)
class _DMABytes:
    """``data`` of, or for, the client's memory at ``address``."""

    address: int
    data: Buffer

    def encode(self) -> list[Buffer]:
        return [DMA_RANGE.pack(self.address, len(self.data)), self.data]

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        address, _, data = with_data(DMA_RANGE, payload)
        return cls(address, data)


@dataclass(frozen=True, slots=True)
class DMARead:
    """DMA_READ: the server asks for ``count`` bytes of the client's memory."""

    address: int
    count: int

    def encode(self) -> list[Buffer]:
        return [DMA_RANGE.pack(self.address, self.count)]

    @classmethod
    def decode(cls, payload: memoryview) -> DMARead:
        return cls(*exact(DMA_RANGE, payload))

    def reply_limit(self) -> int:
        return DMA_RANGE.size + self.count

    def check_reply(self, reply: DMAData) -> None:
        require(
            (reply.address, len(reply.data)) == (self.address, self.count),
            f"{len(reply.data)} bytes of {reply.address:#x} answer"
            f" {self.count} bytes of {self.address:#x}",
        )


@dataclass(frozen=True, slots=True)
class DMAData(_DMABytes):
    """The reply to DMA_READ."""


@dataclass(frozen=True, slots=True)
class DMAWrite(_DMABytes):
    """DMA_WRITE: the server writes to the client's memory."""

    def reply_limit(self) -> int:
        return DMA_RANGE.size

    def check_reply(self, reply: DMAWritten) -> None:
        """Clients answer with 16, 12 or 0 bytes; none of them says more than "done"."""


@dataclass(frozen=True, slots=True)
class DMAWritten:
    """The reply to DMA_WRITE; 16 bytes are sent, 16, 12 and 0 are taken."""

    address: int
    count: int

    def encode(self) -> list[Buffer]:
        return [DMA_RANGE.pack(self.address, self.count)]

    @classmethod
    def decode(cls, payload: memoryview) -> DMAWritten:
        require(len(payload) in (0, 12, 16), f"{len(payload)} bytes answer a DMA write")
        return cls(*DMA_RANGE.unpack_from(bytes(payload).ljust(DMA_RANGE.size, b"\0")))
