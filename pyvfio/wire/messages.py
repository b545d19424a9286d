# SPDX-License-Identifier: BSD-3-Clause
"""The payload of every message, one class each, for requests and for replies.

``encode()`` gives the payload as a list of buffers, so that bulk data is never copied to be sent;
``decode()`` takes a payload and checks every size in it.  A request also knows what it may be
answered with: ``reply_limit()`` bounds the reply's payload before anything is allocated for it, and
``check_reply()`` compares what a reply must echo.

``argsz`` is the largest reply payload that a client takes, and in a reply the payload needed
(specification, "Message sizes").
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, Protocol

from pyvfio.uapi import vfio
from pyvfio.uapi.layout import Buffer
from pyvfio.wire.version import Capabilities


class PayloadError(Exception):
    """A payload that does not say what its command demands; the framing is intact.

    :param errno: what a server answers with.
    """

    def __init__(self, reason: str, errno: int = errno.EINVAL) -> None:
        super().__init__(reason)
        self.errno = errno


class Message(Protocol):
    """What every payload class offers."""

    def encode(self) -> list[Buffer]:
        """The payload as buffers to send one after the other."""

    @classmethod
    def decode(cls, payload: memoryview) -> Message:
        """The message in ``payload``; raises :class:`PayloadError`."""


class Request(Message, Protocol):
    """A payload that asks for a reply."""

    def reply_limit(self) -> int:
        """The largest payload in bytes that the reply may have."""

    def check_reply(self, reply: Any) -> None:
        """Raise :class:`PayloadError` where ``reply`` does not answer this request."""


# Heads that the kernel has no struct for.
VERSION = Struct("=HH")
"""major, minor; JSON follows."""
DMA_RANGE = Struct("=QQ")
"""DMA_READ, DMA_WRITE and their replies: address, count."""
REGION_RANGE = Struct("=QII")
"""REGION_READ, REGION_WRITE and their replies: offset, region, count."""
IO_FDS = Struct("=IIII")
"""DEVICE_GET_REGION_IO_FDS and its reply: argsz, flags, index, count."""
WRITE_COUNT = Struct("=Q")
"""REGION_WRITE_MULTI and its reply: number of writes."""
WRITE_ENTRY = Struct("=QII8s")
"""One write of REGION_WRITE_MULTI: offset, region, count, data padded to 8 bytes."""
MIG_DATA = Struct("=II")
"""MIG_DATA_READ, MIG_DATA_WRITE and the former's reply: argsz, size."""

_DMA_MAP = vfio.DMA_MAP.struct
_DMA_UNMAP = vfio.DMA_UNMAP.struct
_DEVICE_INFO = vfio.DEVICE_INFO.struct
_REGION_INFO = vfio.REGION_INFO.struct
_IRQ_INFO = vfio.IRQ_INFO.struct
_IRQ_SET = vfio.IRQ_SET.struct
_FEATURE = vfio.DEVICE_FEATURE.struct

MAX_VERSION_PAYLOAD = 64 * 1024
MAX_WRITE_ENTRY = 8


def _head(layout: Struct, payload: memoryview) -> tuple[Any, ...]:
    if len(payload) < layout.size:
        raise PayloadError(f"payload of {len(payload)} bytes, {layout.size} needed")
    return layout.unpack_from(payload)


def _exact(layout: Struct, payload: memoryview) -> tuple[Any, ...]:
    members = _head(layout, payload)
    if len(payload) != layout.size:
        raise PayloadError(f"payload of {len(payload)} bytes, {layout.size} expected")
    return members


def _with_data(layout: Struct, payload: memoryview) -> tuple[Any, ...]:
    """The members of a head that ends with a count, and the data that it counts."""
    members = _head(layout, payload)
    data = payload[layout.size :]
    if len(data) != members[-1]:
        raise PayloadError(f"count {members[-1]} but {len(data)} bytes of data")
    return (*members, data)


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise PayloadError(reason)


def _room(argsz: int, fixed: int) -> None:
    _require(argsz >= fixed, f"argsz {argsz} is smaller than the {fixed} bytes of the struct")


@dataclass(frozen=True, slots=True)
class Empty:
    """No payload: DEVICE_RESET and its reply, the replies to DMA_MAP, SET_IRQS, MIG_DATA_WRITE."""

    def encode(self) -> list[Buffer]:
        return []

    @classmethod
    def decode(cls, payload: memoryview) -> Empty:
        _require(not payload, f"{len(payload)} bytes where no payload belongs")
        return cls()

    def reply_limit(self) -> int:
        return 0

    def check_reply(self, reply: Empty) -> None:
        """Nothing is echoed."""


@dataclass(frozen=True, slots=True)
class Version:
    """VERSION and its reply; ``capabilities`` is None where no JSON was sent."""

    major: int
    minor: int
    capabilities: Capabilities | None

    def encode(self) -> list[Buffer]:
        text = b"" if self.capabilities is None else self.capabilities.encode()
        return [VERSION.pack(self.major, self.minor) + text]

    @classmethod
    def decode(cls, payload: memoryview) -> Version:
        major, minor = _head(VERSION, payload)
        text = bytes(payload[VERSION.size :])
        try:
            return cls(major, minor, Capabilities.decode(text) if text else None)
        except ValueError as error:
            raise PayloadError(f"version data: {error}") from error

    def reply_limit(self) -> int:
        return MAX_VERSION_PAYLOAD

    def check_reply(self, reply: Version) -> None:
        """The caller negotiates."""


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
        argsz, flags, offset, iova, size = _exact(_DMA_MAP, payload)
        _room(argsz, _DMA_MAP.size)
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
        argsz, flags, iova, size = _head(_DMA_UNMAP, payload)
        _room(argsz, _DMA_UNMAP.size)
        return cls(flags, iova, size)

    def reply_limit(self) -> int:
        return _DMA_UNMAP.size

    def check_reply(self, reply: DMAUnmap) -> None:
        _require(
            (reply.iova, reply.size) == (self.iova, self.size),
            f"unmap of another range: {reply.iova:#x}+{reply.size:#x}",
        )


@dataclass(frozen=True, slots=True)
class GetDeviceInfo:
    """DEVICE_GET_INFO."""

    argsz: int = _DEVICE_INFO.size

    def encode(self) -> list[Buffer]:
        return [_DEVICE_INFO.pack(self.argsz, 0, 0, 0)]

    @classmethod
    def decode(cls, payload: memoryview) -> GetDeviceInfo:
        argsz, *_ = _head(_DEVICE_INFO, payload)
        _room(argsz, _DEVICE_INFO.size)
        return cls(argsz)

    def reply_limit(self) -> int:
        return self.argsz

    def check_reply(self, reply: DeviceInfo) -> None:
        """The caller bounds the numbers."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """The reply to DEVICE_GET_INFO."""

    flags: int
    num_regions: int
    num_irqs: int
    argsz: int = _DEVICE_INFO.size

    def encode(self) -> list[Buffer]:
        return [_DEVICE_INFO.pack(self.argsz, self.flags, self.num_regions, self.num_irqs)]

    @classmethod
    def decode(cls, payload: memoryview) -> DeviceInfo:
        argsz, flags, num_regions, num_irqs = _head(_DEVICE_INFO, payload)
        return cls(flags, num_regions, num_irqs, argsz)


@dataclass(frozen=True, slots=True)
class GetRegionInfo:
    """DEVICE_GET_REGION_INFO."""

    index: int
    argsz: int = _REGION_INFO.size

    def encode(self) -> list[Buffer]:
        return [_REGION_INFO.pack(self.argsz, 0, self.index, 0, 0, 0)]

    @classmethod
    def decode(cls, payload: memoryview) -> GetRegionInfo:
        argsz, _, index, *_ = _head(_REGION_INFO, payload)
        _room(argsz, _REGION_INFO.size)
        return cls(index, argsz)

    def reply_limit(self) -> int:
        return self.argsz

    def check_reply(self, reply: RegionInfo) -> None:
        _require(reply.index == self.index, f"info of region {reply.index}")


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
        argsz, flags, index, cap_offset, size, offset = _head(_REGION_INFO, payload)
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
        argsz, flags, index, count = _exact(IO_FDS, payload)
        _room(argsz, IO_FDS.size)
        _require(not flags and not count, "flags and count must be 0")
        return cls(index, argsz)

    def reply_limit(self) -> int:
        return self.argsz

    def check_reply(self, reply: RegionIOFDs) -> None:
        _require(reply.index == self.index, f"io fds of region {reply.index}")


@dataclass(frozen=True, slots=True)
class RegionIOFDs:
    """The reply to DEVICE_GET_REGION_IO_FDS; ``entries`` is the raw array behind the head.

    The size of one entry is ``(argsz - 16) / count``: 40 bytes in the specification, 48 in the
    field.
    """

    argsz: int
    index: int
    count: int
    entries: bytes = b""

    def encode(self) -> list[Buffer]:
        return [IO_FDS.pack(self.argsz, 0, self.index, self.count) + self.entries]

    @classmethod
    def decode(cls, payload: memoryview) -> RegionIOFDs:
        argsz, _, index, count = _head(IO_FDS, payload)
        return cls(argsz, index, count, bytes(payload[IO_FDS.size :]))


@dataclass(frozen=True, slots=True)
class GetIRQInfo:
    """DEVICE_GET_IRQ_INFO."""

    index: int
    argsz: int = _IRQ_INFO.size

    def encode(self) -> list[Buffer]:
        return [_IRQ_INFO.pack(self.argsz, 0, self.index, 0)]

    @classmethod
    def decode(cls, payload: memoryview) -> GetIRQInfo:
        argsz, _, index, _ = _head(_IRQ_INFO, payload)
        _room(argsz, _IRQ_INFO.size)
        return cls(index, argsz)

    def reply_limit(self) -> int:
        return self.argsz

    def check_reply(self, reply: IRQInfo) -> None:
        _require(reply.index == self.index, f"info of irq {reply.index}")


@dataclass(frozen=True, slots=True)
class IRQInfo:
    """The reply to DEVICE_GET_IRQ_INFO."""

    flags: int
    index: int
    count: int

    def encode(self) -> list[Buffer]:
        return [_IRQ_INFO.pack(_IRQ_INFO.size, self.flags, self.index, self.count)]

    @classmethod
    def decode(cls, payload: memoryview) -> IRQInfo:
        _, flags, index, count = _head(_IRQ_INFO, payload)
        return cls(flags, index, count)


@dataclass(frozen=True, slots=True)
class SetIRQs:
    """DEVICE_SET_IRQS; ``data`` holds the bools of DATA_BOOL, eventfds come as descriptors."""

    flags: int
    index: int
    start: int
    count: int
    data: bytes = b""

    def encode(self) -> list[Buffer]:
        argsz = _IRQ_SET.size + len(self.data)
        return [_IRQ_SET.pack(argsz, self.flags, self.index, self.start, self.count) + self.data]

    @classmethod
    def decode(cls, payload: memoryview) -> SetIRQs:
        argsz, flags, index, start, count = _head(_IRQ_SET, payload)
        _room(argsz, _IRQ_SET.size)
        return cls(flags, index, start, count, bytes(payload[_IRQ_SET.size :]))

    def reply_limit(self) -> int:
        return 0

    def check_reply(self, reply: Empty) -> None:
        """Nothing is echoed."""


@dataclass(frozen=True, slots=True)
class RegionRead:
    """REGION_READ: ``count`` bytes at ``offset`` of a region."""

    offset: int
    region: int
    count: int

    def encode(self) -> list[Buffer]:
        return [REGION_RANGE.pack(self.offset, self.region, self.count)]

    @classmethod
    def decode(cls, payload: memoryview) -> RegionRead:
        return cls(*_exact(REGION_RANGE, payload))

    def reply_limit(self) -> int:
        return REGION_RANGE.size + self.count

    def check_reply(self, reply: RegionData) -> None:
        _check_region_echo(self, reply.offset, reply.region, len(reply.data))


@dataclass(frozen=True, slots=True)
class RegionData:
    """The reply to REGION_READ; fewer bytes than asked for are a short read."""

    offset: int
    region: int
    data: Buffer

    def encode(self) -> list[Buffer]:
        head = REGION_RANGE.pack(self.offset, self.region, len(self.data))
        return [head, self.data]

    @classmethod
    def decode(cls, payload: memoryview) -> RegionData:
        if not payload:  # some servers answer a read of 0 bytes with the bare header
            return cls(0, 0, b"")
        offset, region, _, data = _with_data(REGION_RANGE, payload)
        return cls(offset, region, data)


@dataclass(frozen=True, slots=True)
class RegionWrite:
    """REGION_WRITE: ``data`` goes to ``offset`` of a region."""

    offset: int
    region: int
    data: Buffer

    def encode(self) -> list[Buffer]:
        head = REGION_RANGE.pack(self.offset, self.region, len(self.data))
        return [head, self.data]

    @classmethod
    def decode(cls, payload: memoryview) -> RegionWrite:
        offset, region, _, data = _with_data(REGION_RANGE, payload)
        return cls(offset, region, data)

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
    _require(count <= request.count, f"{count} bytes answer a request for {request.count}")
    _require(
        count == 0 or (offset, region) == (request.offset, request.region),
        f"answer for region {region} offset {offset:#x}",
    )


@dataclass(frozen=True, slots=True)
class RegionWritten:
    """The reply to REGION_WRITE; ``count`` bytes were written."""

    offset: int
    region: int
    count: int

    def encode(self) -> list[Buffer]:
        return [REGION_RANGE.pack(self.offset, self.region, self.count)]

    @classmethod
    def decode(cls, payload: memoryview) -> RegionWritten:
        return cls(*_exact(REGION_RANGE, payload))


@dataclass(frozen=True, slots=True)
class RegionWriteMulti:
    """REGION_WRITE_MULTI: writes of at most 8 bytes each, applied in order."""

    writes: tuple[RegionWrite, ...]

    def encode(self) -> list[Buffer]:
        entries = (
            WRITE_ENTRY.pack(w.offset, w.region, len(w.data), bytes(w.data)) for w in self.writes
        )
        return [WRITE_COUNT.pack(len(self.writes)) + b"".join(entries)]

    @classmethod
    def decode(cls, payload: memoryview) -> RegionWriteMulti:
        (count,) = _head(WRITE_COUNT, payload)
        body = payload[WRITE_COUNT.size :]
        _require(
            count * WRITE_ENTRY.size == len(body),
            f"{count} writes announced in {len(body)} bytes",
        )
        offsets = range(0, len(body), WRITE_ENTRY.size)
        return cls(tuple(cls._write(*WRITE_ENTRY.unpack_from(body, at)) for at in offsets))

    @staticmethod
    def _write(offset: int, region: int, count: int, data: bytes) -> RegionWrite:
        _require(1 <= count <= MAX_WRITE_ENTRY, f"a write of {count} bytes")
        return RegionWrite(offset, region, data[:count])

    def reply_limit(self) -> int:
        return WRITE_COUNT.size

    def check_reply(self, reply: RegionWriteMultiDone) -> None:
        _require(
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
        return cls(*_exact(WRITE_COUNT, payload))


@dataclass(frozen=True, slots=True)
class DMARead:
    """DMA_READ: the server asks for ``count`` bytes of the client's memory."""

    address: int
    count: int

    def encode(self) -> list[Buffer]:
        return [DMA_RANGE.pack(self.address, self.count)]

    @classmethod
    def decode(cls, payload: memoryview) -> DMARead:
        return cls(*_exact(DMA_RANGE, payload))

    def reply_limit(self) -> int:
        return DMA_RANGE.size + self.count

    def check_reply(self, reply: DMAData) -> None:
        _require(
            (reply.address, len(reply.data)) == (self.address, self.count),
            f"{len(reply.data)} bytes of {reply.address:#x} answer"
            f" {self.count} bytes of {self.address:#x}",
        )


@dataclass(frozen=True, slots=True)
class DMAData:
    """The reply to DMA_READ."""

    address: int
    data: Buffer

    def encode(self) -> list[Buffer]:
        return [DMA_RANGE.pack(self.address, len(self.data)), self.data]

    @classmethod
    def decode(cls, payload: memoryview) -> DMAData:
        address, _, data = _with_data(DMA_RANGE, payload)
        return cls(address, data)


@dataclass(frozen=True, slots=True)
class DMAWrite:
    """DMA_WRITE: the server writes to the client's memory."""

    address: int
    data: Buffer

    def encode(self) -> list[Buffer]:
        return [DMA_RANGE.pack(self.address, len(self.data)), self.data]

    @classmethod
    def decode(cls, payload: memoryview) -> DMAWrite:
        address, _, data = _with_data(DMA_RANGE, payload)
        return cls(address, data)

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
        _require(len(payload) in (0, 12, 16), f"{len(payload)} bytes answer a DMA write")
        return cls(*DMA_RANGE.unpack_from(bytes(payload).ljust(DMA_RANGE.size, b"\0")))


@dataclass(frozen=True, slots=True)
class DeviceFeature:
    """DEVICE_FEATURE and its reply: ``flags`` is the feature's number with GET, SET, PROBE."""

    argsz: int
    flags: int
    data: Buffer = b""

    def encode(self) -> list[Buffer]:
        return [_FEATURE.pack(self.argsz, self.flags), self.data]

    @classmethod
    def decode(cls, payload: memoryview) -> DeviceFeature:
        argsz, flags = _head(_FEATURE, payload)
        _room(argsz, _FEATURE.size)
        return cls(argsz, flags, bytes(payload[_FEATURE.size :]))

    def reply_limit(self) -> int:
        return max(self.argsz, _FEATURE.size + len(self.data))

    def check_reply(self, reply: DeviceFeature) -> None:
        _require(reply.flags == self.flags, f"answer for feature flags {reply.flags:#x}")


@dataclass(frozen=True, slots=True)
class MigDataRead:
    """MIG_DATA_READ: the next ``size`` bytes of the device's migration data."""

    size: int

    def encode(self) -> list[Buffer]:
        return [MIG_DATA.pack(MIG_DATA.size + self.size, self.size)]

    @classmethod
    def decode(cls, payload: memoryview) -> MigDataRead:
        argsz, size = _exact(MIG_DATA, payload)
        _room(argsz, MIG_DATA.size + size)
        return cls(size)

    def reply_limit(self) -> int:
        return MIG_DATA.size + self.size

    def check_reply(self, reply: MigData) -> None:
        _require(len(reply.data) <= self.size, f"{len(reply.data)} bytes answer {self.size}")


@dataclass(frozen=True, slots=True)
class MigData:
    """The reply to MIG_DATA_READ; servers may pad, so ``size`` counts, not the message."""

    data: Buffer

    def encode(self) -> list[Buffer]:
        size = len(self.data)
        return [MIG_DATA.pack(MIG_DATA.size + size, size), self.data]

    @classmethod
    def decode(cls, payload: memoryview) -> MigData:
        _, size = _head(MIG_DATA, payload)
        data = payload[MIG_DATA.size :]
        _require(size <= len(data), f"size {size} but {len(data)} bytes of data")
        return cls(data[:size])


@dataclass(frozen=True, slots=True)
class MigDataWrite:
    """MIG_DATA_WRITE: the next bytes of migration data for the device."""

    data: Buffer

    def encode(self) -> list[Buffer]:
        size = len(self.data)
        return [MIG_DATA.pack(MIG_DATA.size + size, size), self.data]

    @classmethod
    def decode(cls, payload: memoryview) -> MigDataWrite:
        _, _, data = _with_data(MIG_DATA, payload)
        return cls(data)

    def reply_limit(self) -> int:
        return 0

    def check_reply(self, reply: Empty) -> None:
        """Nothing is echoed."""


def payload_size(buffers: Sequence[Buffer]) -> int:
    """Bytes in a list of buffers."""
    return sum(len(buffer) for buffer in buffers)
