# SPDX-License-Identifier: BSD-3-Clause
"""Memory of a device, to be given to another device."""

from __future__ import annotations

from typing import Protocol

from pyvfio.errors import DeviceClosed
from pyvfio.memory import View
from pyvfio.vectors import RegionInfo


class MappedRegion(Protocol):
    """What memory of a device needs to know of its region."""

    info: RegionInfo

    @property
    def name(self) -> str:
        """How errors call the region."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""


class DeviceMemory:
    """Mapped bytes of a device's region as a DMA source, for another device (peer to peer).

    Byte 0 is that of the descriptor, so that address and descriptor agree: the bytes start at
    ``start``.  They stay mapped in this process as long as this object lives, even where the
    region is closed.

    :param region: the region; made by its ``device_memory()``.
    :param view: the mapping that holds the bytes.
    :param address: where their first byte is in this process.
    :ivar start: offset of the first byte in the descriptor.
    """

    def __init__(self, region: MappedRegion, view: View, offset: int, address: int) -> None:
        self.start = region.info.fd_offset + offset
        self._mapping = view.memory
        self._first = address
        self._region = region
        self._info = region.info

    @property
    def current(self) -> bool:
        """Whether it is what the region maps now; not once the device is reached again."""
        return not self._region.closed and self._region.info is self._info

    @property
    def address(self) -> int:
        """Virtual address that the descriptor's byte 0 would have."""
        return self._first - self.start

    @property
    def fd(self) -> int:
        """The device's descriptor.

        :raises DeviceClosed: the device is closed, or was reached again since.
        """
        fd = self._info.fd
        if fd is None or not self.current:
            raise DeviceClosed("closed, or reached again", op=f"memory of {self._region.name}")
        return fd
