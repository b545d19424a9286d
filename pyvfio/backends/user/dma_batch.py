# SPDX-License-Identifier: BSD-3-Clause
"""DMA_MAP and DMA_UNMAP that need not be through when they return."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyvfio.errors import VFIOTimeout
from pyvfio.native.channel import ITEM
from pyvfio.transport.channel import Channel
from pyvfio.transport.exchange import WINDOW
from pyvfio.transport.flight import Flight
from pyvfio.transport.sockets import close_fds
from pyvfio.vectors import BatchFailure, DMASource
from pyvfio.wire.header import HEADER, Command, HeaderFlags
from pyvfio.wire.messages import DMAMap, DMAUnmap


class _Load:
    """Some maps and unmaps; owns duplicates of their descriptors, one of each memory."""

    def __init__(self) -> None:
        self._requests: list[tuple[Command, DMAMap | DMAUnmap]] = []
        self._memories: dict[int, tuple[DMASource, int]] = {}
        self._items: list[tuple[int, int, int]] = []
        self._frames: list[bytes] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, at: int, /) -> tuple[Command, DMAMap | DMAUnmap]:
        return self._requests[at]

    def add(self, command: Command, request: DMAMap | DMAUnmap, memory: DMASource | None) -> None:
        """Take one more; its memory's descriptor may be closed from here on."""
        fd = -1 if memory is None else self._duplicate(memory)
        payload = b"".join(request.encode())
        frame = (
            HEADER.pack(0, command, HEADER.size + len(payload), HeaderFlags.COMMAND, 0) + payload
        )
        self._items.append((len(frame), request.reply_limit(), fd))
        self._frames.append(frame)
        self._requests.append((command, request))

    def _duplicate(self, memory: DMASource) -> int:
        found = self._memories.get(id(memory))
        if found is None:
            self._memories[id(memory)] = found = (memory, os.dup(memory.fd))
        return found[1]

    def fd(self, at: int) -> int:
        return self._items[at][2]

    def frames(self, first: int) -> tuple[bytearray, npt.NDArray[Any]]:
        return bytearray(b"".join(self._frames[first:])), np.array(self._items[first:], ITEM)

    def check(self, at: int, reply: Any) -> None:
        """The codec has compared it."""

    def close(self) -> None:
        """Close the duplicates."""
        close_fds(fd for _, fd in self._memories.values())
        self._memories.clear()


class DMABatch:
    """Maps and unmaps in flight together, with the error of each kept."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._load = _Load()
        self._done = 0
        self._failures: list[BatchFailure] = []
        self._stalled = False

    def add(
        self, command: Command, request: DMAMap | DMAUnmap, memory: DMASource | None = None
    ) -> None:
        """Take one more, to be sent with others; raises OSError where there is no descriptor."""
        if len(self._load) == WINDOW:
            self._send()
        if self._stalled:
            raise VFIOTimeout("not sent: the server does not answer those before", op=command.name)
        self._load.add(command, request, memory)

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
