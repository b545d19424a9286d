# SPDX-License-Identifier: BSD-3-Clause
"""The IO address space of a device: DMA memory, the table of what is mapped, free addresses."""

from __future__ import annotations

import errno
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, cast, overload

import numpy.typing as npt

from pyvfio.device_access import DeviceAccess
from pyvfio.dirty import DirtyTracker
from pyvfio.dirty_bitmap import DirtyBitmap
from pyvfio.dma_batch import Batch, FailedOperation
from pyvfio.dma_ranges import DMARanges
from pyvfio.errors import (
    ConnectionLost,
    DeviceClosed,
    DMABatchError,
    DMAError,
    VFIOError,
    VFIOTimeout,
    operation_error,
)
from pyvfio.map_checks import MapChecks
from pyvfio.map_table import MapEntry, MapTable
from pyvfio.memory import DMABuffer, MemoryKind, SharedMemory
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import DMAMapFlags
from pyvfio.vectors import BatchFailure, ContainerIO, DMASource

READ_WRITE = DMAMapFlags.READ | DMAMapFlags.WRITE


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
        self._checks = MapChecks(self._maps, lambda: self._io, uri)
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
        return self._checks.page_size

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
                iova = self._checks.find(size, address_bits)
            self._checks.check_new(memory, iova, size, offset, address_bits)
            mapping = MapEntry(iova, size, memory, offset, flags)
            self._maps.insert(mapping)  # before the server knows it, which may use it at once
            try:
                self._io.dma_map(iova, size, memory, offset, flags)
            except BaseException as error:
                self._refused(mapping, True, error)
            else:
                if self._batch is not None:
                    self._batch.sent(mapping, True)
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
            mapping = self._checks.exact(iova, size)
            if dirty:
                self.check_no_batch("unmap(dirty=True)")
                return self.dirty.unmap(mapping, self._unmap)
            self._unmap(mapping, self._io.dma_unmap)
            return None

    def _unmap(self, mapping: MapEntry, unmap: Callable[[int, int], None]) -> None:
        if self._batch is not None:
            self._maps.remove(mapping)  # what follows in the batch may map the addresses
        try:
            unmap(mapping.iova, mapping.size)
        except BaseException as error:
            self._refused(mapping, False, error)
        else:
            if self._batch is not None:
                self._batch.sent(mapping, False)
            else:
                self._unanswered.discard(mapping.iova)
                self._maps.remove(mapping)

    # Many in a call

    def map_many(
        self,
        memory: DMASource,
        iovas: npt.ArrayLike,
        offsets: npt.ArrayLike,
        sizes: npt.ArrayLike,
        *,
        address_bits: int = 64,
        flags: DMAMapFlags = READ_WRITE,
    ) -> None:
        """Let the device reach many parts of memory of the caller: as many :meth:`map`, in a batch.

        That is one of its own, or the :meth:`batch` around it.

        :param memory: as for :meth:`map`.
        :param iovas: where the device shall find each part.
        :param offsets: first byte of each.
        :param sizes: bytes of each; one number for all, and so with the others.
        :raises DMAError: one of them cannot be mapped, as :meth:`map` says; nothing was asked for.
        :raises DMABatchError: the backend refused some; the others are mapped.  Within a batch,
            that tells it.
        :raises ValueError: not integers, or not as many of each.
        """
        ranges = DMARanges(iovas, sizes, offsets)
        with self.batch():
            self._checks.check_all_new(memory, ranges, address_bits)
            entries = ranges.entries(memory, flags)
            self._maps.insert_all(ranges.firsts, ranges.in_order(entries), ranges.runs())
            self._ask_all(
                entries,
                True,
                lambda: self._io.dma_map_many(
                    memory, ranges.iovas, ranges.offsets, ranges.sizes, flags
                ),
                lambda entry: self._io.dma_map(entry.iova, entry.size, memory, entry.offset, flags),
            )

    def unmap_many(self, iovas: npt.ArrayLike, sizes: npt.ArrayLike) -> None:
        """Take back exactly what as many maps gave: as many :meth:`unmap`, in a batch.

        :param iovas: where each begins.
        :param sizes: bytes of each; one number for all.
        :raises DMAError: no such map; nothing was unmapped.
        :raises DMABatchError: the backend refused some, which stay mapped; the others are unmapped.
            Within a batch, that tells it.
        :raises ValueError: not integers, or not as many of each.
        """
        ranges = DMARanges(iovas, sizes)
        with self.batch():
            entries = self._checks.all_exact(ranges)
            self._maps.remove_all(ranges.firsts, ranges.runs())
            self._ask_all(
                entries,
                False,
                lambda: self._io.dma_unmap_many(ranges.iovas, ranges.sizes),
                lambda entry: self._io.dma_unmap(entry.iova, entry.size),
            )

    def _ask_all(
        self,
        entries: Sequence[MapEntry],
        is_map: bool,
        together: Callable[[], bool],
        single: Callable[[MapEntry], None],
    ) -> None:
        """Have the backend map or unmap what the table says already."""
        batch = self._batch
        assert batch is not None
        before = len(batch)
        try:
            for entry in () if self._taken_together(entries, is_map, together) else entries:
                try:
                    single(entry)
                except OSError as error:
                    batch.refused(entry, is_map, error)
                else:
                    batch.sent(entry, is_map)
        except BaseException:  # what was not asked for is as it was
            for entry in entries[len(batch) - before :]:
                if is_map:
                    self._maps.remove(entry)
                else:
                    self._maps.insert(entry)
            raise

    def _taken_together(
        self, entries: Sequence[MapEntry], is_map: bool, together: Callable[[], bool]
    ) -> bool:
        batch = self._batch
        assert batch is not None
        try:
            taken = together()
        except OSError as error:
            for entry in entries:
                batch.refused(entry, is_map, error)
            return True
        if taken:
            batch.all_sent(entries, is_map)
        return taken

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
        error = self._result_of(batch, failures)
        if interrupt is not None:
            raise interrupt
        return error

    def _result_of(self, batch: Batch, failures: Sequence[BatchFailure]) -> VFIOError | None:
        if self._closed:
            return None
        failed = [op for op in batch.settle(failures) if not self._was_unmapped(op)]
        self._keep_what_is_mapped(batch, failed)
        for buffer in batch.retired():
            if not buffer.open:
                buffer.release()
        errors = [self._failure(operation) for operation in failed]
        return self._batch_error(errors, len(batch)) if errors else None

    def _keep_what_is_mapped(self, batch: Batch, failed: Sequence[FailedOperation]) -> None:
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
                failures = io.commit()
            except BaseException:  # a signal handler's; nothing is left under way
                io.commit()
                raise
            failed = batch.settle(failures)
            errors = tuple(self._failure(operation) for operation in failed)
            for found in errors:
                if isinstance(found, ConnectionLost):
                    raise found
            self._keep_what_is_mapped(batch, failed)
            self.dirty.renew()
            return errors

    def _map_all(self, batch: Batch) -> None:
        for entry in self.mappings:
            try:
                self._io.dma_map(entry.iova, entry.size, entry.memory, entry.offset, entry.flags)
            except (OSError, DeviceClosed) as error:  # memory of a device that is gone, too
                batch.refused(entry, True, error)
            else:
                batch.sent(entry, True)

    # What became of an operation

    def _refused(self, mapping: MapEntry, is_map: bool, error: BaseException) -> None:
        """The backend raised: tell now, or at the end of the batch."""
        if self._batch is not None and isinstance(error, OSError):
            self._batch.refused(mapping, is_map, error)
            return
        operation = FailedOperation(mapping, is_map, error)
        if is_map:
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

    def _was_unmapped(self, operation: FailedOperation) -> bool:
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

    def _failure(self, operation: FailedOperation) -> VFIOError:
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

    def _check_open(self, iova: int | None, size: int) -> None:
        if self._closed:
            where = "dma" if iova is None else f"dma at iova {iova:#x}"
            raise DeviceClosed(f"closed ({size} bytes)", op=where, uri=self._uri)

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
