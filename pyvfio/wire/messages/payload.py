# SPDX-License-Identifier: BSD-3-Clause
"""What all payload classes share: their interface, and checked unpacking."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, Protocol

from pyvfio.uapi.layout import Buffer


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


def head(layout: Struct, payload: memoryview) -> tuple[Any, ...]:
    """The members at the start of a payload, which may be longer."""
    if len(payload) < layout.size:
        raise PayloadError(f"payload of {len(payload)} bytes, {layout.size} needed")
    return layout.unpack_from(payload)


def exact(layout: Struct, payload: memoryview) -> tuple[Any, ...]:
    """The members of a payload that has nothing else."""
    members = head(layout, payload)
    if len(payload) != layout.size:
        raise PayloadError(f"payload of {len(payload)} bytes, {layout.size} expected")
    return members


def with_data(layout: Struct, payload: memoryview) -> tuple[Any, ...]:
    """The members of a head that ends with a count, and the data that it counts."""
    members = head(layout, payload)
    data = payload[layout.size :]
    if len(data) != members[-1]:
        raise PayloadError(f"count {members[-1]} but {len(data)} bytes of data")
    return (*members, data)


def require(condition: bool, reason: str) -> None:
    """Raise :class:`PayloadError` unless ``condition`` holds."""
    if not condition:
        raise PayloadError(reason)


def room(argsz: int, fixed: int) -> None:
    """Raise where ``argsz`` has no room for the fixed part of a struct."""
    require(argsz >= fixed, f"argsz {argsz} is smaller than the {fixed} bytes of the struct")


@dataclass(frozen=True, slots=True)
class Empty:
    """No payload: DEVICE_RESET and its reply, the replies to DMA_MAP, SET_IRQS, MIG_DATA_WRITE."""

    def encode(self) -> list[Buffer]:
        return []

    @classmethod
    def decode(cls, payload: memoryview) -> Empty:
        require(not payload, f"{len(payload)} bytes where no payload belongs")
        return cls()

    def reply_limit(self) -> int:
        return 0

    def check_reply(self, reply: Empty) -> None:
        """Nothing is echoed."""


def payload_size(buffers: Sequence[Buffer]) -> int:
    """Bytes in a list of buffers."""
    return sum(len(buffer) for buffer in buffers)
