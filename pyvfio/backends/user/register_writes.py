# SPDX-License-Identifier: BSD-3-Clause
"""Many writes of registers as messages, encoded by numpy."""

from __future__ import annotations

from collections.abc import Iterator
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
        data = ("data", f"<u{width}")
        self._write = np.dtype([*_HEADER, *_RANGE, data])

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
        items = np.empty(len(frames), ITEM)
        items["size"], items["echo"], items["fd"] = self._write.itemsize, REGION_RANGE.size, -1
        return bytearray(frames.tobytes()), items

    def check(self, at: int, reply: Any) -> None:
        if reply.count != self._width:
            raise ShortAccess(reply.count)

    # As messages that are not

    def posted(self) -> Iterator[bytes]:
        """Some messages at a time, each a REGION_WRITE."""
        for first in range(0, len(self), TOGETHER):
            frames = self._encode(first, HeaderFlags.NO_REPLY)
            frames["id"] = _posted_ids(len(frames))
            yield frames.tobytes()

    def collected(self) -> Iterator[bytes]:
        """Messages, each a REGION_WRITE_MULTI with as many writes as there may be."""
        for first in range(0, len(self), WriteCollection.MAX_WRITES):
            end = min(first + WriteCollection.MAX_WRITES, len(self))
            message = np.zeros(1, np.dtype([*_HEADER, ("writes", "=u8")]))
            message["id"] = FIRST_POSTED_ID
            message["command"], message["flags"] = Command.REGION_WRITE_MULTI, HeaderFlags.NO_REPLY
            message["writes"] = end - first
            entries = np.empty(end - first, _ENTRY)
            self._fill(entries, first)
            message["size"] = message.nbytes + entries.nbytes
            yield message.tobytes() + entries.tobytes()

    def _encode(self, first: int, flags: HeaderFlags) -> npt.NDArray[Any]:
        frames = np.zeros(min(TOGETHER, len(self) - first), self._write)
        frames["command"], frames["flags"] = Command.REGION_WRITE, flags
        frames["size"] = self._write.itemsize
        self._fill(frames, first)
        return frames

    def _fill(self, entries: npt.NDArray[Any], first: int) -> None:
        end = first + len(entries)
        entries["offset"], entries["data"] = self._offsets[first:end], self._values[first:end]
        entries["region"], entries["count"] = self._region, self._width


def _posted_ids(count: int) -> npt.NDArray[Any]:
    return FIRST_POSTED_ID + np.arange(count) % IDS
