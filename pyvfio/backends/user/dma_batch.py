# SPDX-License-Identifier: BSD-3-Clause
"""DMA_MAP and DMA_UNMAP that need not be through when they return."""

from __future__ import annotations

import os
from collections.abc import Sequence
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvfio.errors import VFIOTimeout
from pyvfio.native.channel import ITEM
from pyvfio.transport.channel import Channel
from pyvfio.transport.exchange import WINDOW
from pyvfio.transport.flight import Flight
from pyvfio.transport.sockets import close_fds
from pyvfio.uapi import vfio
from pyvfio.uapi.layout import Buffer, Layout
from pyvfio.vectors import BatchFailure, DMASource
from pyvfio.wire.header import HEADER, Command, HeaderFlags
from pyvfio.wire.messages import DMAMap, DMAUnmap

TOGETHER = 1000
"""Requests that are sent at one time; also before the end of a batch, if they come one by one."""

_COMMAND = int(HeaderFlags.COMMAND)
_REQUESTS: dict[int, type[DMAMap | DMAUnmap]] = {
    Command.DMA_MAP: DMAMap,
    Command.DMA_UNMAP: DMAUnmap,
}


class _Frame:
    """A request with its header: made one by one, or many at a time.

    :param payload: what it carries.
    :param echo: bytes of it that the reply consists of.
    """

    def __init__(self, command: Command, payload: Layout[Any], echo: int) -> None:
        layout = Struct(HEADER.struct.format + payload.struct.format[1:])
        self._many = np.dtype(
            {
                "names": payload.fields,
                "formats": [f"={code}" for code in payload.struct.format[1:]],
                "offsets": [HEADER.size + offset for offset in payload.offsets.values()],
                "itemsize": layout.size,
            }
        )
        self._one = layout.pack
        self._head = (0, int(command), layout.size, _COMMAND, 0, payload.size)
        self._zeros = (len(payload.fields) - 2) * (0,)
        self._echo = echo

    def one(self, *members: int) -> bytes:
        """One request, of the members of the payload behind its size."""
        return self._one(*self._head, *members)

    def many(self, count: int, flags: int, **members: npt.NDArray[np.uint64]) -> bytearray:
        """``count`` requests, one behind the other; of the payload's members those that differ."""
        frames = bytearray(self.one(flags, *self._zeros) * count)
        requests = np.frombuffer(frames, self._many)
        for name, values in members.items():
            requests[name] = values
        return frames

    def item(self, fd: int) -> bytes:
        """What C has to know of one."""
        return np.array([(self._many.itemsize, self._echo, fd)], ITEM).tobytes()


_MAP = _Frame(Command.DMA_MAP, vfio.DMA_MAP, 0)
_UNMAP = _Frame(Command.DMA_UNMAP, vfio.DMA_UNMAP, vfio.DMA_UNMAP.size)
_UNMAP_ITEM = _UNMAP.item(-1)


class _Load:
    """Some maps and unmaps; owns duplicates of their descriptors, one of each memory."""

    def __init__(self) -> None:
        self._memories: dict[int, tuple[DMASource | None, int, bytes]] = {}
        # Requests and their items; one list, since a signal handler may raise between two.
        self._parts: list[tuple[Buffer, bytes]] = []
        self._count = 0
        self._joined: tuple[bytes, npt.NDArray[Any], npt.NDArray[np.uint64]] | None = None

    # Until it is sent

    @property
    def is_full(self) -> bool:
        """Whether it is time to send it."""
        return self._count >= TOGETHER or len(self._memories) >= WINDOW

    def add_map(
        self, memory: DMASource | None, flags: int, offset: int, iova: int, size: int
    ) -> None:
        """Take a map; its memory's descriptor may be closed from here on."""
        found = self._memories.get(id(memory)) or self._note(memory)
        self._parts.append((_MAP.one(flags, offset, iova, size), found[2]))
        self._count += 1

    def add_unmap(self, iova: int, size: int) -> None:
        """Take an unmap."""
        self._parts.append((_UNMAP.one(0, iova, size), _UNMAP_ITEM))
        self._count += 1

    def add_many(self, frames: Buffer, item: bytes, count: int) -> None:
        """Take requests of one kind."""
        self._parts.append((frames, item * count))
        self._count += count

    def item(self, memory: DMASource | None) -> bytes:
        """What C has to know of a map of some memory."""
        return (self._memories.get(id(memory)) or self._note(memory))[2]

    def _note(self, memory: DMASource | None) -> tuple[DMASource | None, int, bytes]:
        fd = -1 if memory is None else os.dup(memory.fd)
        # With the memory, whose id is not another's as long as it is here.
        self._memories[id(memory)] = found = memory, fd, _MAP.item(fd)
        return found

    # As a load of a flight

    def __len__(self) -> int:
        return len(self._all()[1])

    def __getitem__(self, at: int, /) -> tuple[Command, DMAMap | DMAUnmap]:
        frames, items, starts = self._all()
        start = int(starts[at])
        frame = memoryview(frames)[start : start + int(items["size"][at])]
        command = Command(HEADER.unpack_from(frame).command)
        return command, _REQUESTS[command].decode(frame[HEADER.size :])

    def fd(self, at: int) -> int:
        return int(self._all()[1]["fd"][at])

    def frames(self, first: int) -> tuple[bytearray, npt.NDArray[Any]]:
        frames, items, starts = self._all()
        end = min(first + TOGETHER, len(items))
        wanted = memoryview(frames)[int(starts[first]) : int(starts[end])]
        return bytearray(wanted), items[first:end]

    def _all(self) -> tuple[bytes, npt.NDArray[Any], npt.NDArray[np.uint64]]:
        """All requests, what C has to know of each, and where each begins, and the last ends."""
        if self._joined is None:
            items = np.frombuffer(b"".join(items for _, items in self._parts), ITEM)
            starts = np.zeros(len(items) + 1, np.uint64)
            np.cumsum(items["size"], out=starts[1:])
            self._joined = b"".join(frames for frames, _ in self._parts), items, starts
        return self._joined

    def check(self, at: int, reply: Any) -> None:
        """The codec has compared it."""

    def close(self) -> None:
        """Close the duplicates."""
        close_fds(fd for _, fd, _ in self._memories.values() if fd >= 0)
        self._memories.clear()


class DMABatch:
    """Maps and unmaps in flight together, with the error of each kept."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._load = _Load()
        self._done = 0
        self._failures: list[BatchFailure] = []
        self._stalled = False

    def add_map(
        self, memory: DMASource | None, flags: int, offset: int, iova: int, size: int
    ) -> None:
        """Take a map, to be sent with others.

        :param memory: whose descriptor is passed; None for no descriptor.
        :raises OSError: it has none.
        :raises VFIOTimeout: the server does not answer those before.
        """
        self._make_room("DMA_MAP").add_map(memory, flags, offset, iova, size)

    def add_unmap(self, iova: int, size: int) -> None:
        """Take an unmap; see :meth:`add_map`."""
        self._make_room("DMA_UNMAP").add_unmap(iova, size)

    def add_maps(
        self,
        memory: DMASource | None,
        flags: int,
        offsets: npt.NDArray[np.uint64],
        iovas: npt.NDArray[np.uint64],
        sizes: npt.NDArray[np.uint64],
    ) -> None:
        """Take many maps, all or none; see :meth:`add_map`."""
        load, count = self._make_room("DMA_MAP"), len(iovas)
        frames = _MAP.many(count, flags, source=offsets, iova=iovas, size=sizes)
        load.add_many(frames, load.item(memory), count)

    def add_unmaps(self, iovas: npt.NDArray[np.uint64], sizes: npt.NDArray[np.uint64]) -> None:
        """Take many unmaps; see :meth:`add_map`."""
        load, count = self._make_room("DMA_UNMAP"), len(iovas)
        load.add_many(_UNMAP.many(count, 0, iova=iovas, size=sizes), _UNMAP_ITEM, count)

    def _make_room(self, what: str) -> _Load:
        if self._load.is_full:
            self._send()
        if self._stalled:
            raise VFIOTimeout("not sent: the server does not answer those before", op=what)
        return self._load

    def drain(self) -> Sequence[BatchFailure]:
        """Wait for all of them; returns what failed.

        Where it is interrupted it is called again, and waits no more.
        """
        self._send()
        return self._failures

    def _send(self) -> None:
        load, self._load = self._load, _Load()
        flight = Flight(self._channel, load)
        try:
            flight.run()
        finally:
            self._stalled = self._stalled or flight.stalled
            for position, error in flight.failures:
                self._failures.append(BatchFailure(self._done + position, error))
            self._done += len(load)
            load.close()
