# SPDX-License-Identifier: BSD-3-Clause
"""Payloads about the device as a whole: version, info, interrupts."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from pyvfio.uapi import vfio
from pyvfio.uapi.layout import Buffer
from pyvfio.wire.messages.payload import Empty, PayloadError, head, require, room
from pyvfio.wire.version import Capabilities

VERSION = Struct("=HH")
"""major, minor; JSON follows."""
MAX_VERSION_PAYLOAD = 64 * 1024
"""Bytes that the JSON of a VERSION reply may have."""

_DEVICE_INFO = vfio.DEVICE_INFO.struct
_IRQ_INFO = vfio.IRQ_INFO.struct
_IRQ_SET = vfio.IRQ_SET.struct


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
        major, minor = head(VERSION, payload)
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
class GetDeviceInfo:
    """DEVICE_GET_INFO."""

    argsz: int = _DEVICE_INFO.size

    def encode(self) -> list[Buffer]:
        return [_DEVICE_INFO.pack(self.argsz, 0, 0, 0)]

    @classmethod
    def decode(cls, payload: memoryview) -> GetDeviceInfo:
        argsz, *_ = head(_DEVICE_INFO, payload)
        room(argsz, _DEVICE_INFO.size)
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
        argsz, flags, num_regions, num_irqs = head(_DEVICE_INFO, payload)
        return cls(flags, num_regions, num_irqs, argsz)


@dataclass(frozen=True, slots=True)
class GetIRQInfo:
    """DEVICE_GET_IRQ_INFO."""

    index: int
    argsz: int = _IRQ_INFO.size

    def encode(self) -> list[Buffer]:
        return [_IRQ_INFO.pack(self.argsz, 0, self.index, 0)]

    @classmethod
    def decode(cls, payload: memoryview) -> GetIRQInfo:
        argsz, _, index, _ = head(_IRQ_INFO, payload)
        room(argsz, _IRQ_INFO.size)
        return cls(index, argsz)

    def reply_limit(self) -> int:
        return self.argsz

    def check_reply(self, reply: IRQInfo) -> None:
        require(reply.index == self.index, f"info of irq {reply.index}")


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
        _, flags, index, count = head(_IRQ_INFO, payload)
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
        argsz, flags, index, start, count = head(_IRQ_SET, payload)
        room(argsz, _IRQ_SET.size)
        return cls(flags, index, start, count, bytes(payload[_IRQ_SET.size :]))

    def reply_limit(self) -> int:
        return 0

    def check_reply(self, reply: Empty) -> None:
        """Nothing is echoed."""
