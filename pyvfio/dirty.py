# SPDX-License-Identifier: BSD-3-Clause
"""Which memory devices have written: ``dev.dma.dirty``."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from enum import Enum
from typing import Protocol

from pyvfio.device_access import DeviceAccess
from pyvfio.dirty_bitmap import MAX_PAGES, DirtyBitmap
from pyvfio.dirty_sources import (
    MAX_PAGE,
    MIN_PAGE,
    ContainerLog,
    DeviceLog,
    DirtySource,
    Everything,
    LoggingDevice,
    stop_quietly,
)
from pyvfio.errors import ConnectionLost, DeviceClosed, DMAError, VFIOError
from pyvfio.map_table import MapEntry, MapTable
from pyvfio.vectors import ContainerIO

log = logging.getLogger(__name__)


class DirtyKind(Enum):
    """How a tracker knows what was written, best first."""

    WRITES = "every write passes through this process"
    """Exact: the server was given no descriptor of memory, so it writes by messages."""
    DEVICE = "the devices log what they write"
    """Exact, in the pages that they chose, if they are to be trusted."""
    PINNED = "every pinned page"
    """A type1 container without hardware that tells: each page it has pinned, at each report."""
    EVERYTHING = "everything that devices may write"
    """Nobody can tell: all that is mapped for writing, at each report."""


class AddressSpace(Protocol):
    """What a tracker needs of its container."""

    @property
    def uri(self) -> str:
        """For errors."""

    @property
    def page_size(self) -> int:
        """The smallest that can be mapped."""

    def changing(self, what: str) -> AbstractContextManager[None]:
        """Nobody maps or unmaps meanwhile."""


class DirtyTracker:
    """What devices write to the memory that is mapped for them.

    ::

        dev.dma.dirty.start()
        ...
        for address, size in dev.dma.dirty.report(buf.iova, buf.size).ranges():
            ...  # copy it
        dev.dma.dirty.stop()

    What was written before :meth:`start`, and what this program writes itself, is not told.  Writes
    that a server makes by messages are told in any case, with what others tell.

    :param space: the container.
    :param maps: what is mapped.
    :param access: passes the writes of a server.
    :param io: gives the container's vector.
    """

    def __init__(
        self,
        space: AddressSpace,
        maps: MapTable,
        access: DeviceAccess,
        io: Callable[[], ContainerIO],
    ) -> None:
        self._space = space
        self._maps = maps
        self._access = access
        self._io = io
        self._devices: list[LoggingDevice] = []
        self._kind: DirtyKind | None = None
        self._page_size = 0
        self._sources: list[DirtySource] = []
        # What is known and was not reported, by address; guarded by the table's lock.
        self._known: dict[int, tuple[MapEntry, DirtyBitmap]] = {}

    @property
    def kind(self) -> DirtyKind | None:
        """How it knows; None while it does not track.

        It becomes EVERYTHING where a device joins that was not there at the start, or a server that
        was started again cannot log any more; where that one takes descriptors and the one before
        did not, WRITES becomes DEVICE, or EVERYTHING.
        """
        return self._kind

    @property
    def page_size(self) -> int:
        """Bytes of the pages of a report; 0 while it does not track."""
        return self._page_size

    # Start and stop

    def start(self, page_size: int | None = None) -> DirtyKind:
        """Begin to track, by the best of the ways that there are.

        Memory is mapped first where it can be: a device of the kernel logs what is mapped now, and
        all else counts as written at each report.

        :param page_size: bytes, a power of two; by default the smallest that can be mapped.  A
            device may choose larger ones.
        :raises ValueError: the page size is none, smaller than what can be mapped or 4,096, above 1
            GiB, or so small that a map has too many; or within a batch.
        :raises DMAError: tracking is on, or a device or the kernel refused; nothing is tracked.
        :raises RemoteProtocolError: a device chose pages that make no sense.
        """
        with self._space.changing("dirty.start()"):
            if self._kind is not None:
                raise self._error("dirty tracking is on already", errno.EBUSY)
            wanted = self._checked(page_size)
            with ExitStack() as undo:
                kind = self._begin(wanted, undo)
                undo.pop_all()
            self._page_size = max([wanted, *(source.page_size for source in self._sources)])
            self._kind = kind
            return kind

    def _checked(self, page_size: int | None) -> int:
        smallest = max(self._space.page_size, MIN_PAGE)
        wanted = smallest if page_size is None else page_size
        if not smallest <= wanted <= MAX_PAGE or wanted & (wanted - 1):
            raise ValueError(
                f"dirty pages of {wanted} bytes: a power of two from {smallest} to {MAX_PAGE}"
            )
        for entry in self._maps.all():
            if entry.size > MAX_PAGES * wanted:
                raise ValueError(f"{entry.size} bytes at {entry.iova:#x} have too many dirty pages")
        return wanted

    def _begin(self, page_size: int, undo: ExitStack) -> DirtyKind:
        """Start the sources; ``undo`` stops them, and whatever else was begun."""
        self._sources = []
        undo.callback(self._reset)
        self._access.on_write = self._written
        io = self._io()
        if not io.shares_memory:
            return DirtyKind.WRITES
        if self._devices and all(DeviceLog.supported_by(device) for device in self._devices):
            for device in self._devices:
                self._log(device, page_size, undo)
            return DirtyKind.DEVICE
        if io.dirty_page_sizes:
            self._sources.append(ContainerLog(io, self._space.uri))
            return DirtyKind.PINNED
        self._sources.append(Everything(page_size))
        return DirtyKind.EVERYTHING

    def _log(self, device: LoggingDevice, page_size: int, undo: ExitStack) -> None:
        source = DeviceLog(device, page_size, self._maps.all(), self._space.uri)
        undo.callback(stop_quietly, source)
        self._sources.append(source)

    def stop(self) -> None:
        """Track no more; what was not reported is forgotten.  May be repeated.

        :raises DMAError: a device or the kernel refused; the others are stopped.
        :raises ValueError: within a batch.
        """
        with self._space.changing("dirty.stop()"):
            sources = self._sources
            self._reset()
            failures = []
            for source in reversed(sources):
                try:
                    source.stop()
                except (ConnectionLost, DeviceClosed):
                    pass  # its log is gone with it
                except VFIOError as error:
                    failures.append(error)
            if failures:
                raise failures[0]

    def _reset(self) -> None:
        self._access.on_write = None
        self._sources = []
        self._kind, self._page_size = None, 0
        with self._maps.lock:
            self._known.clear()

    # Reports

    def report(self, iova: int, size: int) -> DirtyBitmap:
        """What was written in a range since it was reported last.

        Each map in the range is asked for as a whole; what lies outside is kept for later.  A page
        that is only partly within the range is told, and is told again.

        :param iova: first address; nothing needs to be mapped there.
        :param size: bytes.
        :raises DMAError: tracking is off, or a device or the kernel refused.  What was written in
            the map it was about counts as everything then, at the next report.
        :raises ConnectionLost: the server is gone.
        :raises ValueError: the range is none, or has too many pages; or within a batch.
        """
        with self._space.changing("dirty.report()"):
            self._check_started()
            found = DirtyBitmap(iova, size, self._page_size)
            entries = [
                entry
                for entry in self._maps.all()
                if entry.iova < iova + size and iova <= entry.last
            ]
            for entry in entries:
                self._collect(entry)
            with self._maps.lock:
                self._known = {
                    at: known for at, known in self._known.items() if self._is_mapped(known[0])
                }
                for entry in entries:
                    self._take(entry, found)
            return found

    def _collect(self, entry: MapEntry) -> None:
        """Ask everybody about a map, and keep what they say."""
        if not entry.writable:
            return
        try:
            for source in self._sources:
                for part in source.report(entry):
                    with self._maps.lock:
                        self._of(entry).merge(part)
        except BaseException:  # a log that was read is cleared: what it said may be lost
            self._fill(entry)
            raise

    def _take(self, entry: MapEntry, found: DirtyBitmap) -> None:
        """Move what is known of a map into a report; with the table locked."""
        known = self._of(entry)
        found.merge(known)
        first = max(found.iova, entry.iova)
        end = min(found.iova + found.size, entry.last + 1)
        known.clear(first - entry.iova, end - first)

    def _of(self, entry: MapEntry) -> DirtyBitmap:
        """What is known of a map, in pages from its start; with the table locked."""
        known = self._known.get(entry.iova)
        if known is None or known[0] is not entry:
            page_size = self._page_size or MIN_PAGE
            while entry.size > MAX_PAGES * page_size:  # mapped since the start
                page_size *= 2
            known = self._known[entry.iova] = entry, DirtyBitmap(entry.iova, entry.size, page_size)
        return known[1]

    def _is_mapped(self, entry: MapEntry) -> bool:
        return self._maps.holder(entry.iova) is entry

    def _fill(self, entry: MapEntry) -> None:
        if entry.writable:
            with self._maps.lock:
                self._of(entry).fill()

    def _written(self, mapping: MapEntry, offset: int, size: int) -> None:
        """A server has written by a message; called with the table locked."""
        self._of(mapping).mark(offset, size)

    # Unmapping

    def unmap(
        self, entry: MapEntry, unmap: Callable[[MapEntry, Callable[[int, int], None]], None]
    ) -> DirtyBitmap:
        """Unmap memory, and tell what was written until then; called by the container.

        A type1 container does both at once.  A device of the kernel is asked after the unmap, as in
        QEMU's ``vfio_legacy_dma_unmap_one``: it writes no more, and its log outlives the map.  A
        server keeps the log with the map, so it is asked before: what a device writes in between is
        not told, and who unmaps memory that a device still writes to must take all of it for
        written.

        :param unmap: unmaps an entry with a vector's operation; raises where that fails.
        :raises DMAError: tracking is off, or the unmap or the report was refused; it stays mapped.
        """
        self._check_started()
        found = DirtyBitmap(entry.iova, entry.size, self._page_size)
        container = next((s for s in self._sources if isinstance(s, ContainerLog)), None)
        if container is not None:
            unmap(entry, lambda iova, size: found.merge(container.unmap(iova, size)))
        elif self._log_outlives_maps():
            unmap(entry, self._io().dma_unmap)
            self._collect_late(entry)
        else:
            self._collect(entry)
            unmap(entry, self._io().dma_unmap)
        with self._maps.lock:
            found.merge(self._of(entry))
            del self._known[entry.iova]
        return found

    def _log_outlives_maps(self) -> bool:
        logs = [source for source in self._sources if isinstance(source, DeviceLog)]
        return bool(logs) and all(source.outlives_maps for source in logs)

    def _collect_late(self, entry: MapEntry) -> None:
        """Ask about a map that is gone: a failure cannot be told any more, but is no harm."""
        try:
            self._collect(entry)
        except VFIOError as error:
            log.warning("%s; all of it counts as written", error)

    # Devices that come and go; called by them and by the container

    def join(self, device: LoggingDevice) -> None:
        """A device uses the container."""
        self._devices.append(device)
        if self._kind is DirtyKind.DEVICE:
            log.warning("%s: a device joins, all counts as written from now", self._space.uri)
            self._give_up()

    def leave(self, device: LoggingDevice) -> None:
        """A device is closed, and its log with it: what it has written last is not known."""
        self._devices.remove(device)
        left = [s for s in self._sources if not (isinstance(s, DeviceLog) and s.device is device)]
        if len(left) < len(self._sources):
            self._sources = left
            self._fill_all()

    def renew(self) -> None:
        """The server was reached again: whatever it had logged is lost.

        :raises ConnectionLost: it is gone again.
        """
        shared_now = self._kind is DirtyKind.WRITES and self._io().shares_memory
        if self._kind is not DirtyKind.DEVICE and not shared_now:
            return
        self._fill_all()
        before, self._sources = self._sources, []
        try:
            with ExitStack() as undo:
                for device in self._devices:
                    self._log(device, self._page_size, undo)
                undo.pop_all()
            self._kind = DirtyKind.DEVICE
        except ConnectionLost:
            self._sources = before  # which say so
            raise
        except VFIOError as error:
            log.warning("%s; all counts as written from now", error)
            self._sources = []
            self._give_up()

    def forget(self) -> None:
        """The container is closed."""
        self._reset()

    def _give_up(self) -> None:
        self._sources = [*self._sources, Everything(self._page_size)]
        self._kind = DirtyKind.EVERYTHING

    def _fill_all(self) -> None:
        for entry in self._maps.all():
            self._fill(entry)

    def _check_started(self) -> None:
        if self._kind is None:
            raise self._error("dirty tracking is off", errno.EINVAL)

    def _error(self, reason: str, number: int) -> DMAError:
        return DMAError(reason, op="dirty tracking", uri=self._space.uri, errno=number)
