# SPDX-License-Identifier: BSD-3-Clause
"""The container vector on a vfio-user socket: the server is the IOMMU."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from pyvfio.errors import VFIOError, VFIOTimeout
from pyvfio.transport.call import Call
from pyvfio.transport.channel import MAX_IN_FLIGHT, Channel
from pyvfio.uapi.vfio import DMAMapFlags, DMAUnmapFlags
from pyvfio.vectors import BatchFailure, ContainerIO, DMASource
from pyvfio.wire import messages
from pyvfio.wire.header import Command
from pyvfio.wire.version import Limits

WINDOW = MAX_IN_FLIGHT // 2
"""Maps and unmaps of a batch that wait for their replies at one time; others need room as well."""


class UserContainerIO(ContainerIO):
    """Maps by passing the memory's descriptor to the server.

    :param secure: pass none, so that the server reaches memory by DMA_READ and DMA_WRITE only.
    """

    def __init__(self, channel: Channel, limits: Limits, secure: bool) -> None:
        self._channel = channel
        self._limits = limits
        self._secure = secure
        self._pipeline: _Pipeline | None = None

    @property
    def iova_ranges(self) -> Sequence[tuple[int, int]]:
        return [(0, (1 << 64) - 1)]

    @property
    def page_sizes(self) -> int:
        return self._limits.pgsizes

    @property
    def max_maps(self) -> int:
        return self._limits.max_dma_maps

    @property
    def shares_memory(self) -> bool:
        # Without a descriptor the server reaches the memory by DMA_READ and DMA_WRITE.
        return not self._secure and self._limits.max_msg_fds > 0

    def dma_map(
        self, iova: int, size: int, memory: DMASource, offset: int, flags: DMAMapFlags
    ) -> None:
        by_fd = self.shares_memory
        request = messages.DMAMap(flags, offset if by_fd else 0, iova, size)
        self._ask(Command.DMA_MAP, request, [memory.fd] if by_fd else [])

    def dma_unmap(self, iova: int, size: int) -> None:
        self._ask(Command.DMA_UNMAP, messages.DMAUnmap(0, iova, size))

    def _ask(self, command: Command, request: messages.Request, fds: Sequence[int] = ()) -> None:
        if self._pipeline is None:
            self._channel.call(command, request, fds)
        else:
            self._pipeline.submit(command, request, fds)

    def begin(self) -> None:
        self._pipeline = _Pipeline(self._channel)

    def commit(self) -> Sequence[BatchFailure]:
        assert self._pipeline is not None
        failures = self._pipeline.drain()
        self._pipeline = None
        return failures

    def dma_unmap_all(self) -> None:
        self._channel.call(Command.DMA_UNMAP, messages.DMAUnmap(DMAUnmapFlags.ALL, 0, 0))

    def close(self) -> None:
        """Nothing is owned here: the server drops its maps when the socket closes."""


class _Pipeline:
    """Requests that wait for their replies together, with the error of each kept."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: deque[tuple[int, Call]] = deque()
        self._failures: list[BatchFailure] = []
        self._sent = 0
        self._stalled = False

    def submit(self, command: Command, request: messages.Request, fds: Sequence[int]) -> None:
        """Send one more, after the oldest has been answered if there are too many."""
        if len(self._waiting) == WINDOW:
            self._take_oldest()
        if self._stalled:
            raise VFIOTimeout("not sent: the server does not answer those before", op=command.name)
        call = self._channel.submit(command, request, fds)
        self._waiting.append((self._sent, call))
        self._sent += 1

    def drain(self) -> Sequence[BatchFailure]:
        """Wait for all of them; returns what failed.

        Where it is interrupted it is called again, and waits no more.
        """
        while self._waiting:
            self._take_oldest()
        return self._failures

    def _take_oldest(self) -> None:
        position, call = self._waiting.popleft()
        try:
            # Replies come in order: where one did not come in time, the next need not be given it.
            call.result(0.0 if self._stalled else None)
        except (OSError, VFIOError) as error:
            self._stalled = self._stalled or isinstance(error, VFIOTimeout)
            self._failures.append(BatchFailure(position, error))
        except BaseException:  # a signal handler's: it may be carried out yet, as those behind it
            self._stalled = True
            self._failures.append(BatchFailure(position, VFIOTimeout("interrupted")))
            raise
