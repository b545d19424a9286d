# SPDX-License-Identifier: BSD-3-Clause
"""The container vector on a vfio-user socket: the server is the IOMMU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

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
        passed = memory if self.shares_memory else None
        if passed is None:
            offset = 0
        if self._batch is not None:
            self._batch.add_map(passed, flags, offset, iova, size)
            return
        request = messages.DMAMap(flags, offset, iova, size)
        self._channel.call(Command.DMA_MAP, request, [] if passed is None else [passed.fd])

    def dma_unmap(self, iova: int, size: int) -> None:
        if self._batch is not None:
            self._batch.add_unmap(iova, size)
        else:
            self._channel.call(Command.DMA_UNMAP, messages.DMAUnmap(0, iova, size))

    def dma_map_many(
        self,
        memory: DMASource,
        iovas: npt.NDArray[np.uint64],
        offsets: npt.NDArray[np.uint64],
        sizes: npt.NDArray[np.uint64],
        flags: DMAMapFlags,
    ) -> bool:
        assert self._batch is not None
        if self.shares_memory:
            self._batch.add_maps(memory, flags, offsets, iovas, sizes)
        else:
            self._batch.add_maps(None, flags, np.zeros_like(offsets), iovas, sizes)
        return True

    def dma_unmap_many(self, iovas: npt.NDArray[np.uint64], sizes: npt.NDArray[np.uint64]) -> bool:
        assert self._batch is not None
        self._batch.add_unmaps(iovas, sizes)
        return True

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
