# SPDX-License-Identifier: BSD-3-Clause
"""Memory that devices can reach: RAM of the guest, and mapped areas of a device's BARs."""

from __future__ import annotations

import errno
import logging
from abc import abstractmethod

from pyvfio.closing import Closing
from pyvfio.device_memory import DeviceMemory
from pyvfio.dirty_bitmap import DirtyBitmap
from pyvfio.emulator.memory.discard import RAMDiscardManager
from pyvfio.emulator.memory.terminal import TerminalRegion, all_ones
from pyvfio.errors import DeviceClosed, VFIOError
from pyvfio.memory import PAGE_SIZE, ByteArray, SharedMemory
from pyvfio.native import mmio
from pyvfio.region import Region
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import RegionFlags
from pyvfio.vectors import DMASource, MmapArea

log = logging.getLogger(__name__)


class MemoryBackedRegion(TerminalRegion):
    """A region with memory behind it, which the DMA of devices can reach."""

    is_ram = True

    @property
    @abstractmethod
    def dma_source(self) -> DMASource:
        """The memory, as a container takes it."""

    @property
    @abstractmethod
    def dma_offset(self) -> int:
        """The byte of the memory that is the region's first."""

    @property
    def address(self) -> int:
        """Virtual address of the region's first byte in this process."""
        return self.dma_source.address + self.dma_offset

    @property
    def fd(self) -> int:
        """Descriptor of the memory; the region's first byte is its byte ``dma_offset``."""
        return self.dma_source.fd

    def _check_size(self, size: int) -> None:
        raise ValueError(f"{self!r} is as large as its memory")


class RAMRegion(MemoryBackedRegion, Closing):
    """RAM of the guest.

    :param size: bytes.
    :param memory: what is behind it; by default memory of its own, which :meth:`close` releases.
    :param memory_offset: the byte of ``memory`` that is the region's first.
    :param readonly: writes of the guest are dropped, and devices may only read it.
    :raises ValueError: the memory is too short.
    :raises VFIOError: there is no memory left.
    """

    def __init__(
        self,
        name: str,
        size: int,
        memory: SharedMemory | None = None,
        memory_offset: int = 0,
        readonly: bool = False,
    ) -> None:
        super().__init__(name, size)
        if memory_offset < 0 or (memory is not None and memory_offset + size > memory.size):
            raise ValueError(f"RAM {name} of {size} bytes at {memory_offset:#x} of {memory!r}")
        self._owned = memory is None
        self.memory = memory or SharedMemory(memory_offset + size)
        self.memory_offset = memory_offset
        self._readonly = readonly
        self.discard_manager: RAMDiscardManager | None = None
        self._dirty = DirtyBitmap(0, size, PAGE_SIZE)

    def mark_dirty(self, offset: int, size: int) -> None:
        """Bytes were written by somebody of whom the emulator would not know, such as a device.

        :raises ValueError: they are not in the region.
        """
        self._check_range(offset, size)
        self._dirty.mark(offset, size)

    def take_dirty(self) -> DirtyBitmap:
        """The pages that were marked since the last time, by offset in the region.

        :meth:`Topology.log_sync` has devices mark theirs, between ``log_start`` and ``log_stop``.
        """
        found, self._dirty = self._dirty, DirtyBitmap(0, self.size, PAGE_SIZE)
        return found

    @property
    def kind(self) -> str:
        return "rom" if self.readonly else "ram"

    @property
    def dma_source(self) -> SharedMemory:
        return self.memory

    @property
    def dma_offset(self) -> int:
        return self.memory_offset

    @property
    def array(self) -> ByteArray:
        """The RAM as bytes, shape (size,)."""
        return self.memory.array[self.memory_offset : self.memory_offset + self.size]

    def read_bytes(self, offset: int, size: int) -> bytes:
        """A copy of any number of bytes.

        :raises VFIOError: the memory's file was truncated.
        """
        self._check_range(offset, size)
        data = mmio.copy_out(self.address + offset, size)
        if data is None:
            raise self._fault("read", offset)
        return bytes(data)

    def write_bytes(self, offset: int, data: Buffer) -> None:
        """Fill any number of bytes; read-only RAM as well.

        :raises VFIOError: the memory's file was truncated.
        """
        view = memoryview(data).cast("B")
        self._check_range(offset, len(view))
        if not mmio.copy_in(self.address + offset, view):
            raise self._fault("write", offset)

    def _load(self, offset: int, width: int) -> int:
        self._check_range(offset, width)
        value = mmio.READ[width](self.address + offset)
        if value == mmio.ALL_ONES[width] and mmio.faulted():
            raise self._fault("read", offset)
        return value

    def _store(self, offset: int, width: int, value: int) -> None:
        self._check_range(offset, width)
        if mmio.WRITE[width](self.address + offset, value):
            raise self._fault("write", offset)

    def _fault(self, verb: str, offset: int) -> VFIOError:
        return VFIOError(
            "no memory is behind the address",
            op=f"{verb} {self.name}+{offset:#x}",
            errno=errno.EFAULT,
            hint="was the file of the memory truncated by who has its descriptor?",
        )

    def _check_range(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"{size} bytes at {offset:#x} of {self!r}")

    def close(self) -> None:
        """Release memory of its own; take the region out of every map first.  May be repeated.

        :raises BufferInUse: a numpy view of it is alive; nothing was released.
        """
        if self._owned:
            self.memory.close()


class RAMDeviceRegion(MemoryBackedRegion):
    """A mapped area of a device's region; other devices' DMA can reach it (peer to peer).

    The guest's accesses are made one by one, with their width.  Where the device does not answer,
    a read gives all ones and a write is dropped, as on a bus.

    :param region: the device's region.
    :param area: the part of it, inside of one that can be mapped.
    :raises UnsupportedError: it cannot be mapped, or not in one piece.
    """

    def __init__(self, name: str, region: Region, area: MmapArea) -> None:
        super().__init__(name, area.size)
        self._region = region
        self._area = area
        self._memory: DeviceMemory | None = region.device_memory(area.offset, area.size)
        self._readonly = not region.info.flags & RegionFlags.WRITE

    @property
    def kind(self) -> str:
        return "ramd"

    @property
    def dma_source(self) -> DeviceMemory:
        memory = self._memory
        if memory is None or (not memory.current and not self._region.closed):  # reached again
            memory = self._memory = self._region.device_memory(self._area.offset, self._area.size)
        return memory

    def release(self) -> None:
        """Let go of the mapping, which keeps a closed device busy; made again if asked for."""
        self._memory = None

    @property
    def dma_offset(self) -> int:
        return self.dma_source.start

    def _load(self, offset: int, width: int) -> int:
        try:
            return self._region.read(self._area.offset + offset, width)
        except DeviceClosed:
            raise
        except VFIOError as error:
            log.warning("a read of the guest: %s", error)
            return all_ones(width)

    def _store(self, offset: int, width: int, value: int) -> None:
        try:
            self._region.write(self._area.offset + offset, width, value)
        except DeviceClosed:
            raise
        except VFIOError as error:
            log.warning("a write of the guest: %s", error)
