# SPDX-License-Identifier: BSD-3-Clause
"""The IO address space of a device: DMA memory, the table of what is mapped, free addresses."""

from __future__ import annotations

import errno
import threading
import warnings
from bisect import bisect_right
from dataclasses import dataclass
from typing import cast

from pyvfio.errors import (
    ConnectionLost,
    DeviceClosed,
    DMAError,
    VFIOTimeout,
    operation_error,
)
from pyvfio.iova import IOVAAllocator
from pyvfio.memory import DMABuffer, MemoryKind, SharedMemory
from pyvfio.native import mmio
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import DMAMapFlags
from pyvfio.vectors import ContainerIO, DMASource

READ_WRITE = DMAMapFlags.READ | DMAMapFlags.WRITE


@dataclass(frozen=True, slots=True)
class Mapping:
    """One entry of the map table: ``size`` bytes at ``offset`` of ``memory`` are at ``iova``."""

    iova: int
    size: int
    memory: DMASource
    offset: int
    flags: DMAMapFlags

    @property
    def last(self) -> int:
        """The last address that is mapped."""
        return self.iova + self.size - 1


class Container:
    """DMA for a device.

    :param io: the vector that maps and unmaps.
    :param uri: the device, for errors.

    Two locks: one makes changes happen one after the other and is held while the backend works;
    the other guards the table, and is held for moments, or for the copying of a server's DMA. So
    DMA is never kept waiting by a map or unmap of ours that waits for the server.
    """

    def __init__(self, io: ContainerIO, uri: str) -> None:
        self._io = io
        self._uri = uri
        self._change = threading.RLock()
        self._table = threading.Lock()
        self._maps: list[Mapping] = []
        self._iova = IOVAAllocator(io.iova_ranges)
        self._buffers: set[DMABuffer] = set()
        self._unanswered: set[int] = set()
        self._closed = False

    @property
    def page_size(self) -> int:
        """Smallest size and alignment in bytes that can be mapped."""
        sizes = self._io.page_sizes
        return sizes & -sizes

    @property
    def iova_ranges(self) -> list[tuple[int, int]]:
        """Addresses that can be mapped, as (first, last) pairs."""
        return list(self._io.iova_ranges)

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """What is mapped now, by ascending address."""
        with self._table:
            return tuple(self._maps)

    def alloc(
        self,
        size: int,
        *,
        address_bits: int = 64,
        flags: DMAMapFlags = READ_WRITE,
        kind: MemoryKind = MemoryKind.POSIX,
        huge_page_size: int | None = None,
    ) -> DMABuffer:
        """Shared memory that the device can reach, zeroed.

        :param size: bytes; rounded up to whole pages of the device.
        :param address_bits: width of the device's DMA addresses; the IOVA stays below.
        :param flags: whether the device may READ it, WRITE it, or both.
        :param kind: where the memory comes from.  With a server that is not trusted take memfd,
            which it cannot truncate: touching an array whose file was truncated ends the process.
        :param huge_page_size: back it with huge pages of so many bytes (memfd only).
        :raises DMAError: no address is free, or the backend refused.
        """
        if size <= 0:
            raise ValueError(f"a DMA buffer of {size} bytes")
        page = max(self.page_size, huge_page_size or 0)
        memory = SharedMemory(-(-size // page) * page, kind, huge_page_size)
        try:
            with self._change:
                iova = self.map(memory, address_bits=address_bits, flags=flags)
                buffer = DMABuffer(self, memory, iova)
                self._buffers.add(buffer)
        except BaseException:
            memory.release()
            raise
        return buffer

    def map(
        self,
        memory: DMASource,
        *,
        iova: int | None = None,
        offset: int = 0,
        size: int | None = None,
        address_bits: int = 64,
        flags: DMAMapFlags = READ_WRITE,
    ) -> int:
        """Let the device reach memory of the caller, who keeps it alive until :meth:`unmap`.

        :param memory: has an ``address``, an ``fd``, and a ``size`` if ``size`` is not given.
        :param iova: where the device shall find it; any free address by default.
        :param offset: first byte of ``memory`` to map.
        :param size: bytes to map; to the end of ``memory`` by default.
        :returns: the address for the device.
        :raises DMAError: the address is used, not allowed, not aligned, or the backend refused.
        """
        if size is None:
            size = cast(SharedMemory, memory).size - offset
        with self._change:
            self._check_open(iova, size)
            if iova is None:
                iova = self._find(size, address_bits)
            self._check_new(iova, size, offset, address_bits)
            mapping = Mapping(iova, size, memory, offset, flags)
            self._insert(mapping)  # before the server knows it, which may use it at once
            try:
                self._io.dma_map(iova, size, memory, offset, flags)
            except BaseException as error:
                # A server that did not answer in time may map it yet: the address stays taken.
                self._remove(mapping, reuse=not isinstance(error, VFIOTimeout))
                if isinstance(error, OSError):
                    raise self._failure("map", iova, size, error) from error
                raise
            return iova

    def unmap(self, iova: int, size: int) -> None:
        """Take back exactly what one :meth:`map` gave; quietly, where the device is gone.

        :raises DMAError: no such map, or the backend refused; it stays mapped.
        """
        with self._change:
            self._check_open(iova, size)
            mapping = self._exact(iova, size)
            try:
                self._io.dma_unmap(iova, size)
            except ConnectionLost:
                pass  # the server that held the memory is gone, and its maps with it
            except OSError as error:
                if isinstance(error, VFIOTimeout):
                    self._unanswered.add(iova)
                # Where an earlier try was not answered in time, it was carried out all the same.
                if error.errno != errno.ENOENT or iova not in self._unanswered:
                    raise self._failure("unmap", iova, size, error) from error
            self._unanswered.discard(iova)
            self._remove(mapping)

    def unmap_all(self) -> None:
        """Take back every map at once; buffers of :meth:`alloc` are released.

        :raises BufferInUse: a numpy view of a buffer is alive; nothing was unmapped.
        :raises DMAError: the backend refused; everything stays mapped.
        """
        with self._change:
            self._check_open(None, 0)
            for buffer in self._buffers:
                buffer.check_unused()
            try:
                self._io.dma_unmap_all()
            except ConnectionLost:
                pass  # as above
            except OSError as error:
                op = "dma unmap of everything"
                raise operation_error(error, DMAError, op=op, uri=self._uri) from error
            for mapping in self.mappings:
                self._remove(mapping)
            for buffer in list(self._buffers):
                buffer.release()

    # What a server may ask of our memory

    def device_read(self, iova: int, size: int) -> bytearray:
        """Bytes of mapped memory, as the device sees them.

        :raises DMAError: EFAULT where not all of it is mapped or backed, EPERM where it may not be
            read.
        """
        data = bytearray()
        with self._table:  # held while copying: what is unmapped may be gone at once
            for address, length in self._pieces(iova, size, DMAMapFlags.READ):
                part = mmio.copy_out(address, length)
                if part is None:
                    raise self._unreachable(iova, size)
                data += part
        return data

    def device_write(self, iova: int, data: Buffer) -> None:
        """Write mapped memory for the device; raises as :meth:`device_read` does."""
        rest = memoryview(data)
        with self._table:
            for address, length in self._pieces(iova, len(rest), DMAMapFlags.WRITE):
                if not mmio.copy_in(address, rest[:length]):
                    raise self._unreachable(iova, len(data))
                rest = rest[length:]

    def _pieces(self, iova: int, size: int, need: DMAMapFlags) -> list[tuple[int, int]]:
        """(virtual address, bytes) of each piece of a range, which may span several maps."""
        pieces: list[tuple[int, int]] = []
        at, end = iova, iova + size
        while at < end:
            mapping = self._holder(at)
            if mapping is None:
                raise self._unreachable(iova, size)
            if not mapping.flags & need:
                raise DMAError(
                    f"mapped without permission to {need.name}",
                    iova=iova,
                    size=size,
                    op=f"DMA at iova {iova:#x}",
                    uri=self._uri,
                    errno=errno.EPERM,
                )
            length = min(end, mapping.last + 1) - at
            try:
                address = mapping.memory.address
            except DeviceClosed as error:  # its owner has let it go while it was mapped
                raise self._unreachable(iova, size) from error
            pieces.append((address + mapping.offset + at - mapping.iova, length))
            at += length
        return pieces

    def _unreachable(self, iova: int, size: int) -> DMAError:
        return DMAError(
            f"{size} bytes that are not all mapped",
            iova=iova,
            size=size,
            op=f"DMA at iova {iova:#x}",
            uri=self._uri,
            errno=errno.EFAULT,
        )

    # The table

    def _holder(self, iova: int) -> Mapping | None:
        position = bisect_right(self._maps, iova, key=_start) - 1
        if position < 0 or self._maps[position].last < iova:
            return None
        return self._maps[position]

    def _insert(self, mapping: Mapping) -> None:
        with self._table:
            position = bisect_right(self._maps, mapping.iova, key=_start)
            self._maps.insert(position, mapping)
        self._iova.take(mapping.iova, mapping.last)

    def _remove(self, mapping: Mapping, reuse: bool = True) -> None:
        with self._table:
            del self._maps[bisect_right(self._maps, mapping.iova, key=_start) - 1]
        if reuse:
            self._iova.give(mapping.iova, mapping.last)

    def _exact(self, iova: int, size: int) -> Mapping:
        mapping = self._holder(iova)
        if mapping is None or (mapping.iova, mapping.size) != (iova, size):
            raise self._refuse("unmap", iova, size, errno.ENOENT, "not mapped as such")
        return mapping

    # Checks

    def _find(self, size: int, address_bits: int) -> int:
        # A buffer of whole huge pages is put where the IOMMU can use huge pages as well.
        alignment = max(self.page_size, min(1 << (size.bit_length() - 1), 1 << 30))
        found = self._iova.find(size, alignment, address_bits)
        if found is None:
            found = self._iova.find(size, self.page_size, address_bits)
        if found is None:
            reason = f"no {size} bytes are free below 2^{address_bits}"
            raise self._refuse("map", None, size, errno.ENOSPC, reason)
        return found

    def _check_new(self, iova: int, size: int, offset: int, address_bits: int) -> None:
        page = self.page_size
        if size <= 0 or iova % page or size % page or offset % page or offset < 0:
            reason = f"address, size and offset must be multiples of {page} bytes"
            raise self._refuse("map", iova, size, errno.EINVAL, reason)
        last = iova + size - 1
        if last >> address_bits:
            reason = f"beyond the device's {address_bits} address bits"
            raise self._refuse("map", iova, size, errno.EINVAL, reason)
        if not self._iova.allowed(iova, last):
            ranges = ", ".join(f"{low:#x}-{high:#x}" for low, high in self._io.iova_ranges)
            reason = f"outside of the addresses that can be mapped ({ranges})"
            raise self._refuse("map", iova, size, errno.EINVAL, reason)
        position = bisect_right(self._maps, last, key=_start) - 1
        if position >= 0 and self._maps[position].last >= iova:
            other = self._maps[position]
            reason = f"overlaps the map at {other.iova:#x}, {other.size} bytes"
            raise self._refuse("map", iova, size, errno.EEXIST, reason)
        if len(self._maps) >= self._io.max_maps:
            reason = f"all {self._io.max_maps} maps are in use"
            raise self._refuse("map", iova, size, errno.ENOSPC, reason)

    def _check_open(self, iova: int | None, size: int) -> None:
        if self._closed:
            where = "dma" if iova is None else f"dma at iova {iova:#x}"
            raise DeviceClosed(f"closed ({size} bytes)", op=where, uri=self._uri)

    def _refuse(self, verb: str, iova: int | None, size: int, number: int, reason: str) -> DMAError:
        where = "" if iova is None else f" at iova {iova:#x}"
        return DMAError(
            reason,
            iova=iova,
            size=size,
            op=f"dma {verb} of {size} bytes{where}",
            uri=self._uri,
            errno=number,
        )

    def _failure(self, verb: str, iova: int, size: int, error: OSError) -> Exception:
        op = f"dma {verb} of {size} bytes at iova {iova:#x}"
        found = operation_error(error, DMAError, op=op, uri=self._uri)
        if isinstance(found, DMAError):
            found.iova, found.size = iova, size
        return found

    # Life

    def forget(self, buffer: DMABuffer) -> None:
        """A buffer was released; called by it."""
        with self._change:
            self._buffers.discard(buffer)

    def close(self) -> None:
        """Release all buffers; called when the device has lost its maps.  May be repeated."""
        with self._change:
            self._closed = True
            with self._table:
                self._maps.clear()
            in_use = [f"{buffer.iova:#x}" for buffer in self._buffers if buffer.in_use]
            for buffer in list(self._buffers):
                buffer.release()
        if in_use:
            warnings.warn(
                f"{self._uri}: numpy views of the DMA buffers at iova {', '.join(in_use)} live on;"
                " their memory is released when they are deleted",
                ResourceWarning,
                stacklevel=2,
            )


def _start(mapping: Mapping) -> int:
    return mapping.iova
