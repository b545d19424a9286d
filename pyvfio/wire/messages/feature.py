# SPDX-License-Identifier: BSD-3-Clause
"""Payloads about optional features and migration data."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from pyvfio.uapi import vfio
from pyvfio.uapi.layout import Buffer
from pyvfio.wire.messages.payload import Empty, exact, head, require, room, with_data

MIG_DATA = Struct("=II")
"""MIG_DATA_READ, MIG_DATA_WRITE and the former's reply: argsz, size."""

_FEATURE = vfio.DEVICE_FEATURE.struct


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
        argsz, flags = head(_FEATURE, payload)
        room(argsz, _FEATURE.size)
        return cls(argsz, flags, bytes(payload[_FEATURE.size :]))

    def reply_limit(self) -> int:
        return max(self.argsz, _FEATURE.size + len(self.data))

    def check_reply(self, reply: DeviceFeature) -> None:
        require(reply.flags == self.flags, f"answer for feature flags {reply.flags:#x}")


@dataclass(frozen=True, slots=True)
class MigDataRead:
    """MIG_DATA_READ: the next ``size`` bytes of the device's migration data."""

    size: int

    def encode(self) -> list[Buffer]:
        return [MIG_DATA.pack(MIG_DATA.size + self.size, self.size)]

    @classmethod
    def decode(cls, payload: memoryview) -> MigDataRead:
        argsz, size = exact(MIG_DATA, payload)
        room(argsz, MIG_DATA.size + size)
        return cls(size)

    def reply_limit(self) -> int:
        return MIG_DATA.size + self.size

    def check_reply(self, reply: MigData) -> None:
        require(len(reply.data) <= self.size, f"{len(reply.data)} bytes answer {self.size}")


@dataclass(frozen=True, slots=True)
class MigData:
    """The reply to MIG_DATA_READ; servers may pad, so ``size`` counts, not the message."""

    data: Buffer

    def encode(self) -> list[Buffer]:
        size = len(self.data)
        return [MIG_DATA.pack(MIG_DATA.size + size, size), self.data]

    @classmethod
    def decode(cls, payload: memoryview) -> MigData:
        _, size = head(MIG_DATA, payload)
        data = payload[MIG_DATA.size :]
        require(size <= len(data), f"size {size} but {len(data)} bytes of data")
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
        _, _, data = with_data(MIG_DATA, payload)
        return cls(data)

    def reply_limit(self) -> int:
        return 0

    def check_reply(self, reply: Empty) -> None:
        """Nothing is echoed."""
