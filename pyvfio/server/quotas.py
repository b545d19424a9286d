# SPDX-License-Identifier: BSD-3-Clause
"""How much of a server one client may take."""

from __future__ import annotations

from dataclasses import dataclass

from pyvfio.wire.connection import MAX_OVERHEAD
from pyvfio.wire.version import (
    DEFAULT_MAX_DATA_XFER_SIZE,
    DEFAULT_MAX_DMA_MAPS,
    DEFAULT_PGSIZES,
    Capabilities,
)

MAX_DATA = 64 << 20
"""The largest ``max_data`` that every client takes; QEMU refuses a server with more."""

_MAX_MSG_FDS = 16
"""Descriptors that this server takes in one message; QEMU refuses a server with more."""
_MIN_DATA = 8
_LIMITS = {
    "max_maps": (1, DEFAULT_MAX_DMA_MAPS),
    "max_mapped": (0, 1 << 64),
    "max_descriptors": (1, 1 << 20),
    "max_data": (_MIN_DATA, MAX_DATA),
    "max_queued": (1, 1 << 40),
    "max_state": (0, 1 << 31),
}


@dataclass(frozen=True, slots=True)
class Quotas:
    """What a client is refused more of.

    :param max_maps: DMA maps at one time; announced in VERSION, more are refused with ENOSPC.  So
        are maps with a descriptor that would use up ``vm.max_map_count`` of the process.
    :param max_mapped: bytes of the client's files mapped at one time; more are refused with EDQUOT.
        Maps without a descriptor take none.
    :param max_descriptors: eventfds that are kept; more are refused with EMFILE.
    :param max_data: data bytes in one message; announced in VERSION, more are refused with EINVAL.
    :param max_queued: bytes of requests queued while the model waits for the client's memory.  A
        client that sends still more is cut off; at other times its socket is left unread instead.
    :param max_state: bytes of a model's own state in the migration data that it loads; more are
        refused with EINVAL.  What the server keeps of the device is as much as there is of it.
    :raises ValueError: out of range, or there is not room for two messages in the queue.
    """

    max_maps: int = DEFAULT_MAX_DMA_MAPS
    max_mapped: int = 1 << 46
    max_descriptors: int = 4096
    max_data: int = DEFAULT_MAX_DATA_XFER_SIZE
    max_queued: int = 256 << 20
    max_state: int = 256 << 20

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, outside of {low} to {high}")
        least = 2 * (self.max_data + MAX_OVERHEAD)
        if self.max_queued < least:
            raise ValueError(f"max_queued is {self.max_queued}, two messages need {least}")

    def capabilities(self) -> Capabilities:
        """What this server can do, as VERSION says it."""
        return Capabilities(
            max_msg_fds=_MAX_MSG_FDS,
            max_data_xfer_size=self.max_data,
            max_dma_maps=self.max_maps,
            pgsizes=DEFAULT_PGSIZES,
            twin_socket=True,
            write_multiple=True,
            long_writes=True,
        )
