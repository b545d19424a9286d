# SPDX-License-Identifier: BSD-3-Clause
"""The container vector on a vfio-user socket: the server is the IOMMU."""

from __future__ import annotations

from collections.abc import Sequence

from pyvfio.backends.user.dma_batch import DMABatch
from pyvfio.transport.channel import Channel
from pyvfio.uapi.vfio import DMAMapFlags, DMAUnmapFlags
from pyvfio.vectors import BatchFailure, ContainerIO, DMASource
from pyvfio.wire import messages
from pyvfio.wire.header import Command
from pyvfio.wire.version import Limits


class UserContainerIO(ContainerIO):
    """Maps by passing the memory's descriptor to the server.

    :param secure: pass none, so that the server reaches memory by DMA_READ and DMA_WRITE only.
    """

    def __init__(self, channel: Channel, limits: Limits, secure: bool) -> None:
        self._channel = channel
        self._limits = limits
        self._secure = secure
        self._batch: DMABatch | None = None

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
        self._ask(Command.DMA_MAP, request, memory if by_fd else None)

    def dma_unmap(self, iova: int, size: int) -> None:
        self._ask(Command.DMA_UNMAP, messages.DMAUnmap(0, iova, size))

    def _ask(
        self,
        command: Command,
        request: messages.DMAMap | messages.DMAUnmap,
        memory: DMASource | None = None,
    ) -> None:
        if self._batch is None:
            self._channel.call(command, request, [] if memory is None else [memory.fd])
        else:
            self._batch.add(command, request, memory)

    def begin(self) -> None:
        self._batch = DMABatch(self._channel)

    def commit(self) -> Sequence[BatchFailure]:
        assert self._batch is not None
        failures = self._batch.drain()
        self._batch = None
        return failures

    def dma_unmap_all(self) -> None:
        self._channel.call(Command.DMA_UNMAP, messages.DMAUnmap(DMAUnmapFlags.ALL, 0, 0))

    def close(self) -> None:
        """Nothing is owned here: the server drops its maps when the socket closes."""
