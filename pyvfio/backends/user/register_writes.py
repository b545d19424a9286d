# SPDX-License-Identifier: BSD-3-Clause
"""Many writes of registers as messages, encoded by numpy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvfio.native.channel import ITEM
from pyvfio.transport.exchange import FIRST_POSTED_ID, IDS
from pyvfio.transport.send_queue import WriteCollection
from pyvfio.vectors import ShortAccess
from pyvfio.wire.header import Command, HeaderFlags
from pyvfio.wire.messages import RegionWrite
from pyvfio.wire.messages.region import REGION_RANGE

_HEADER = [("id", "=u2"), ("command", "=u2"), ("size", "=u4"), ("flags", "=u4"), ("error", "=u4")]
_RANGE = [("offset", "=u8"), ("region", "=u4"), ("count", "=u4")]
_ENTRY = np.dtype([*_RANGE, ("data", "<u8")])

TOGETHER = 1000
"""Writes that are encoded at one time."""


class RegisterWrites:
    """Writes of one region and width, in order.

    :param offsets: bytes from the start of the region.
    :param values: as many; each fits into ``width`` bytes.
    """

    def __init__(
        self,
        region: int,
        width: int,
        offsets: npt.NDArray[np.uint64],
        values: npt.NDArray[np.uint64],
    ) -> None:
        self._region, self._width = region, width
        self._offsets, self._values = offsets, values

    # As requests that are answered (a Load of a Flight)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, at: int, /) -> tuple[Command, RegionWrite]:
        data = int(self._values[at]).to_bytes(self._width, "little")
        return Command.REGION_WRITE, RegionWrite(int(self._offsets[at]), self._region, data)

    def __iter__(self) -> Iterator[tuple[Command, RegionWrite]]:
        return (self[at] for at in range(len(self)))

    def fd(self, at: int) -> int:
        return -1

    def frames(self, first: int) -> tuple[bytearray, npt.NDArray[Any]]:
        frames = self._encode(first, HeaderFlags.COMMAND)
        item, size = _item(self._width), _message(self._width).itemsize
        return frames, np.frombuffer(item * (len(frames) // size), ITEM)

    def check(self, at: int, reply: Any) -> None:
        if reply.count != self._width:
            raise ShortAccess(reply.count)

    # As messages that are not

    def posted(self) -> Iterator[bytes]:
        """Some messages at a time, each a REGION_WRITE."""
        for first in range(0, len(self), TOGETHER):
            frames = self._encode(first, HeaderFlags.NO_REPLY)
            messages = np.frombuffer(frames, _message(self._width))
            messages["id"] = _posted_ids(len(messages))
            yield bytes(frames)

    def collected(self) -> Iterator[bytes]:
        """Messages, each a REGION_WRITE_MULTI with as many writes as there may be."""
        for first in range(0, len(self), WriteCollection.MAX_WRITES):
            end = min(first + WriteCollection.MAX_WRITES, len(self))
            message = np.zeros(1, np.dtype([*_HEADER, ("writes", "=u8")]))
            message["id"] = FIRST_POSTED_ID
            message["command"], message["flags"] = Command.REGION_WRITE_MULTI, HeaderFlags.NO_REPLY
            message["writes"] = end - first
            entries = np.empty(end - first, _ENTRY)
            entries["offset"], entries["data"] = self._offsets[first:end], self._values[first:end]
            entries["region"], entries["count"] = self._region, self._width
            message["size"] = message.nbytes + entries.nbytes
            yield message.tobytes() + entries.tobytes()

    def _encode(self, first: int, flags: HeaderFlags) -> bytearray:
        end = min(first + TOGETHER, len(self))
        frames = bytearray(_template(self._region, self._width, flags) * (end - first))
        messages = np.frombuffer(frames, _message(self._width))
        messages["offset"], messages["data"] = self._offsets[first:end], self._values[first:end]
        return frames


def _posted_ids(count: int) -> npt.NDArray[Any]:
    return FIRST_POSTED_ID + np.arange(count) % IDS


@cache
def _message(width: int) -> np.dtype[Any]:
    """A REGION_WRITE of some bytes."""
    return np.dtype([*_HEADER, *_RANGE, ("data", f"<u{width}")])


@lru_cache
def _template(region: int, width: int, flags: HeaderFlags) -> bytes:
    """One as it is but for its id, its offset and its data."""
    message = np.zeros(1, _message(width))
    message["command"], message["flags"] = Command.REGION_WRITE, flags
    message["size"] = message.itemsize
    message["region"], message["count"] = region, width
    return message.tobytes()


@cache
def _item(width: int) -> bytes:
    """What C has to know of one that is answered."""
    return np.array([(_message(width).itemsize, REGION_RANGE.size, -1)], ITEM).tobytes()
