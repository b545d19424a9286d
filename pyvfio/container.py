# SPDX-License-Identifier: BSD-3-Clause
"""The IO address space of a device: DMA memory, the table of what is mapped, free addresses."""

from __future__ import annotations

import errno
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, cast, overload

from pyvfio.device_access import DeviceAccess
from pyvfio.dirty import DirtyTracker
from pyvfio.dirty_bitmap import DirtyBitmap
from pyvfio.dma_batch import Batch, Operation
from pyvfio.errors import (
    ConnectionLost,
    DeviceClosed,
    DMABatchError,
    DMAError,
    VFIOError,
    VFIOTimeout,
    operation_error,
)
from pyvfio.map_table import MapEntry, MapTable
from pyvfio.memory import DMABuffer, MemoryKind, SharedMemory
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import DMAMapFlags
from pyvfio.vectors import ContainerIO, DMASource

READ_WRITE = DMAMapFlags.READ | DMAMapFlags.WRITE
ALIGNED_TRIES = 64
"""Free ranges of a buffer's size that are looked at for a better alignment than a page's."""


class Container:
    """DMA for a device.

    :param io: the vector that maps and unmaps.
    :param uri: the device, for errors.
    :ivar dirty: tells what devices have written.

    Two locks: one makes changes happen one after the other and is held while the backend works;
    the table's is held for moments, or for the copying of a server's DMA.  So DMA is never kept
    waiting by a map or unmap of ours that waits for the server.
    """

    def __init__(self, io: ContainerIO, uri: str) -> None:
        self._io = io
        self._uri = uri
        self._change = threading.RLock()
        self._maps = MapTable(io.iova_ranges)
        self._access = DeviceAccess(self._maps, uri)
        self.dirty = DirtyTracker(self, self._maps, self._access, lambda: self._io)
        self._batch: Batch | None = None
        self._buffers: set[DMABuffer] = set()
        self._unanswered: set[int] = set()
        self._closed = False

    @property
    def uri(self) -> str:
        """The device, for errors."""
        return self._uri

    @contextmanager
    def changing(self, what: str) -> Iterator[None]:
        """Nobody maps or unmaps meanwhile.

        :raises DeviceClosed: it is closed.
        :raises ValueError: within a batch.
        """
        with self._change:
            self._check_open(None, 0)
            self.check_no_batch(what)
            yield

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
    def max_maps(self) -> int:
        """How many ranges may be mapped at one time."""
        return self._io.max_maps

    @property
    def mappings(self) -> tuple[MapEntry, ...]:
        """What is mapped now, by ascending address."""
        return self._maps.all()

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
        :raises DMAError: the address is used, not allowed, not aligned, the memory is shorter, or
            the backend refused.
        """
        if size is None:
            size = cast(SharedMemory, memory).size - offset
        with self._change:
            self._check_open(iova, size)
            if iova is None:
                iova = self._find(size, address_bits)
            self._check_new(iova, size, offset, address_bits)
            self._check_memory(memory, iova, size, offset)
            mapping = MapEntry(iova, size, memory, offset, flags)
            operation = Operation(mapping, is_map=True)
            self._maps.insert(mapping)  # before the server knows it, which may use it at once
            try:
                self._io.dma_map(iova, size, memory, offset, flags)
            except BaseException as error:
                self._refused(operation, error)
            else:
                self._accepted(operation)
            return iova

    @overload
    def unmap(self, iova: int, size: int, *, dirty: Literal[False] = ...) -> None: ...

    @overload
    def unmap(self, iova: int, size: int, *, dirty: Literal[True]) -> DirtyBitmap: ...

    def unmap(self, iova: int, size: int, *, dirty: bool = False) -> DirtyBitmap | None:
        """Take back exactly what one :meth:`map` gave; quietly, where the device is gone.

        :param dirty: return what was written since the last report, until it was unmapped; see
            :meth:`~pyvfio.dirty.DirtyTracker.unmap`.
        :raises DMAError: no such map, or the backend refused; it stays mapped.
        :raises ValueError: ``dirty`` within a batch.
        """
        with self._change:
            self._check_open(iova, size)
            mapping = self._exact(iova, size)
            if dirty:
                self.check_no_batch("unmap(dirty=True)")
                return self.dirty.unmap(mapping, self._unmap)
            self._unmap(mapping, self._io.dma_unmap)
            return None

    def _unmap(self, mapping: MapEntry, unmap: Callable[[int, int], None]) -> None:
        operation = Operation(mapping, is_map=False)
        if self._batch is not None:
            self._maps.remove(mapping)  # what follows in the batch may map the addresses
        try:
            unmap(mapping.iova, mapping.size)
        except BaseException as error:
            self._refused(operation, error)
        else:
            self._accepted(operation)

    def unmap_all(self) -> None:
        """Take back every map at once; buffers of :meth:`alloc` are released.

        :raises BufferInUse: a numpy view of a buffer is alive; nothing was unmapped.
        :raises DMAError: the backend refused; everything stays mapped.
        :raises VFIOTimeout: it did not answer; what is unmapped again later may be gone already.
        :raises ValueError: within a batch.
        """
        with self._change:
            self._check_open(None, 0)
            self.check_no_batch("unmap_all()")
            for buffer in self._buffers:
                buffer.check_unused()
            try:
                self._io.dma_unmap_all()
            except ConnectionLost:
                pass  # the server that held the memory is gone, and its maps with it
            except OSError as error:
                if isinstance(error, VFIOTimeout):
                    self._unanswered.update(entry.iova for entry in self.mappings)
                op = "dma unmap of everything"
                raise operation_error(error, DMAError, op=op, uri=self._uri) from error
            self._unanswered.clear()
            for mapping in self.mappings:
                self._maps.remove(mapping)
            self._maps.renew()  # maps that were never answered are gone as well
            for buffer in list(self._buffers):
                buffer.release()

    def retire(self, buffer: DMABuffer) -> None:
        """Unmap a buffer and release it, when its batch ends if there is one; called by it."""
        with self._change:
            self.unmap(buffer.iova, buffer.size)
            if self._batch is None:
                buffer.release()
            else:
                self._batch.retire(buffer)
                buffer.withdraw()

    # Batches

    def check_no_batch(self, what: str) -> None:
        """Raise ValueError within a batch, where ``what`` cannot be done."""
        if self._batch is not None:
            raise ValueError(f"{what} within a batch")

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Have the maps and unmaps of a ``with`` block carried out together.

        None of them waits for the one before it; at the end of the block all are through.  What
        the backend refuses is told then, and is as if it had not been asked for; an address that
        :meth:`map` has returned counts from then on.  What a block has asked for before it raises
        is done as well.  Another thread's maps and unmaps wait for the end of the block.

        :raises DMABatchError: some were refused; the others are done.
        :raises ConnectionLost: the device is gone.
        """
        with self._change:
            self._check_open(None, 0)
            if self._batch is not None:  # it ends with the outer block
                yield
                return
            self._batch = Batch()
            self._io.begin()
            try:
                yield
            except BaseException as error:
                failure = self._end_batch()
                if failure is not None:
                    error.add_note(str(failure))
                raise
            failure = self._end_batch()
            if failure is not None:
                raise failure

    def _end_batch(self) -> VFIOError | None:
        """Wait for a batch; says what failed, and has the table say what is mapped."""
        batch, self._batch = self._batch, None
        assert batch is not None
        interrupt: BaseException | None = None
        try:
            failures = self._io.commit()
        except BaseException as raised:  # a signal handler's; the table must be right all the same
            interrupt, failures = raised, self._io.commit()
        batch.settle(failures)
        error = self._result_of(batch)
        if interrupt is not None:
            raise interrupt
        return error

    def _result_of(self, batch: Batch) -> VFIOError | None:
        if self._closed:
            return None
        failed = [op for op in batch.operations if op.error and not self._was_unmapped(op)]
        self._keep_what_is_mapped(batch, failed)
        for buffer in batch.retired():
            if not buffer.open:
                buffer.release()
        errors = [self._failure(operation) for operation in failed]
        return self._batch_error(errors, len(batch.operations)) if errors else None

    def _keep_what_is_mapped(self, batch: Batch, failed: Sequence[Operation]) -> None:
        """Have table and buffers say what a batch has left of which some operations failed."""
        if not failed:
            return
        left = batch.left(self.mappings, failed)
        self._maps.change_to(left, [op.mapping for op in failed if op.unanswered])
        for buffer in list(self._buffers):
            entry = left.at(buffer.iova)
            if entry is not None and buffer.consists_of(entry.memory):
                buffer.withdraw(False)  # its unmap was refused, if it was closed
            else:
                buffer.release()

    def _batch_error(self, errors: Sequence[VFIOError], total: int) -> VFIOError:
        op = f"dma batch of {total} operations"
        for error in errors:
            if isinstance(error, ConnectionLost):
                return ConnectionLost(error.reason, op=op, uri=self._uri)
        first = errors[0]
        return DMABatchError(
            f"{len(errors)} failed: {first}",
            failures=errors,
            iova=getattr(first, "iova", None),
            size=getattr(first, "size", None),
            op=op,
            uri=self._uri,
            errno=first.errno,
        )

    def move_to(self, io: ContainerIO) -> tuple[VFIOError, ...]:
        """Map everything again through another vector; called when the device is reached again.

        :returns: the error of each range that is not mapped any more.
        :raises ConnectionLost: the device is gone again; the table stays, for the next try.
        """
        with self._change:
            self._io = io
            self._unanswered.clear()
            self._maps.renew()
            batch = Batch()
            io.begin()
            try:
                self._map_all(batch)
                batch.settle(io.commit())
            except BaseException:  # a signal handler's; nothing is left under way
                io.commit()
                raise
            failed = [operation for operation in batch.operations if operation.error]
            errors = tuple(self._failure(operation) for operation in failed)
            for found in errors:
                if isinstance(found, ConnectionLost):
                    raise found
            self._keep_what_is_mapped(batch, failed)
            self.dirty.renew()
            return errors

    def _map_all(self, batch: Batch) -> None:
        for entry in self.mappings:
            operation = Operation(entry, is_map=True)
            try:
                self._io.dma_map(entry.iova, entry.size, entry.memory, entry.offset, entry.flags)
            except (OSError, DeviceClosed) as error:  # memory of a device that is gone, too
                batch.refused(operation, error)
            else:
                batch.sent(operation)

    # What became of an operation

    def _accepted(self, operation: Operation) -> None:
        if self._batch is not None:
            self._batch.sent(operation)
        elif not operation.is_map:
            self._unanswered.discard(operation.mapping.iova)
            self._maps.remove(operation.mapping)

    def _refused(self, operation: Operation, error: BaseException) -> None:
        """The backend raised: tell now, or at the end of the batch."""
        mapping, operation.error = operation.mapping, error
        if self._batch is not None and isinstance(error, OSError):
            self._batch.refused(operation, error)
            return
        if operation.is_map:
            # A server that did not answer in time may map it yet: the address stays taken.
            self._maps.remove(mapping, reuse=not operation.unanswered)
        elif self._batch is not None:
            self._maps.insert(mapping)
        if not isinstance(error, OSError):
            raise error
        if self._was_unmapped(operation):
            self._maps.remove(mapping)
        else:
            raise self._failure(operation) from error

    def _was_unmapped(self, operation: Operation) -> bool:
        """Whether nothing is mapped after an unmap, in spite of its error."""
        error, iova = operation.error, operation.mapping.iova
        if operation.is_map:
            return False
        if operation.unanswered:
            self._unanswered.add(iova)
            return False
        # The server that held the memory is gone, and its maps with it; or an earlier try was not
        # answered in time, and was carried out all the same.
        answered_late = getattr(error, "errno", None) == errno.ENOENT and iova in self._unanswered
        gone = isinstance(error, ConnectionLost) or answered_late
        if gone:
            self._unanswered.discard(iova)
        return gone

    def _failure(self, operation: Operation) -> VFIOError:
        error, mapping = operation.error, operation.mapping
        if not isinstance(error, OSError):
            assert isinstance(error, VFIOError)
            return error
        op = f"dma {operation.verb} of {mapping.size} bytes at iova {mapping.iova:#x}"
        found = operation_error(error, DMAError, op=op, uri=self._uri)
        if isinstance(found, DMAError):
            found.iova, found.size = mapping.iova, mapping.size
        return found

    # What a server may ask of our memory

    def device_read(self, iova: int, size: int) -> bytearray:
        """Bytes of mapped memory, as the device sees them; raises as :class:`DeviceAccess` does."""
        return self._access.read(iova, size)

    def device_write(self, iova: int, data: Buffer) -> None:
        """Write mapped memory for the device; raises as :class:`DeviceAccess` does."""
        self._access.write(iova, data)

    def _exact(self, iova: int, size: int) -> MapEntry:
        mapping = self._maps.holder(iova)
        if mapping is None or (mapping.iova, mapping.size) != (iova, size):
            raise self._refuse("unmap", iova, size, errno.ENOENT, "not mapped as such")
        return mapping

    # Checks

    def _find(self, size: int, address_bits: int) -> int:
        # A buffer of whole huge pages is put where the IOMMU can use huge pages as well.
        alignment = max(self.page_size, min(1 << (size.bit_length() - 1), 1 << 30))
        found = self._maps.find(size, alignment, address_bits, ALIGNED_TRIES)
        if found is None:
            found = self._maps.find(size, self.page_size, address_bits)
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
        if not self._maps.allowed(iova, last):
            ranges = ", ".join(f"{low:#x}-{high:#x}" for low, high in self._io.iova_ranges)
            reason = f"outside of the addresses that can be mapped ({ranges})"
            raise self._refuse("map", iova, size, errno.EINVAL, reason)
        other = self._maps.overlapping(iova, last)
        if other is not None:
            reason = f"overlaps the map at {other.iova:#x}, {other.size} bytes"
            raise self._refuse("map", iova, size, errno.EEXIST, reason)
        if not self._maps.is_free(iova, last):
            reason = "an earlier map of these addresses was not answered, and may yet be made"
            raise self._refuse("map", iova, size, errno.EBUSY, reason)
        if len(self._maps) >= self._io.max_maps:
            reason = f"all {self._io.max_maps} maps are in use"
            raise self._refuse("map", iova, size, errno.ENOSPC, reason)

    def _check_memory(self, memory: DMASource, iova: int, size: int, offset: int) -> None:
        """What is behind the memory would be reached by the device as well."""
        available = _size_of(memory)
        if available is not None and offset + size > available:
            reason = f"the memory has {available} bytes, {offset + size} are asked for"
            raise self._refuse("map", iova, size, errno.EINVAL, reason)

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

    # Life

    def forget(self, buffer: DMABuffer) -> None:
        """A buffer was released; called by it."""
        with self._change:
            self._buffers.discard(buffer)

    def close(self) -> None:
        """Release all buffers; called when the device has lost its maps.  May be repeated."""
        with self._change:
            self._closed = True
            self.dirty.forget()
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


def _size_of(memory: DMASource) -> int | None:
    """Bytes that there are; None where neither the memory nor its file tells."""
    size = getattr(memory, "size", None)
    if isinstance(size, int):
        return size
    try:
        status = os.fstat(memory.fd)
    except OSError:
        return None  # no descriptor: the owner vouches for the address
    return status.st_size if stat.S_ISREG(status.st_mode) else None
