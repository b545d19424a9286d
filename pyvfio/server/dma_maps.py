# SPDX-License-Identifier: BSD-3-Clause
"""The table of one client's DMA maps: what DMA_MAP announced and DMA_UNMAP takes away.

Whoever reaches for the memory of a map does so in :meth:`DMAMaps.using`; an unmap waits for them,
so that nothing refers to the memory when it is answered (specification, "VFIO_USER_DMA_UNMAP").
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pyvfio.errors import DMAError
from pyvfio.native import mmio
from pyvfio.native.dma import DirectDMA
from pyvfio.server.failures import FAILURES
from pyvfio.server.quotas import Quotas
from pyvfio.uapi.vfio import DMAMapFlags, DMAUnmapFlags
from pyvfio.wire import messages
from pyvfio.wire.version import DEFAULT_PGSIZES

log = logging.getLogger(__name__)

UNMAP_PATIENCE = 1.0
"""Seconds that an unmap waits for the client's answer to a DMA_READ or DMA_WRITE of that memory.

Some clients answer nothing while they wait for their unmap.  No further message is sent for the
map meanwhile, and nothing of it is used when the answer comes later."""

_PAGE = DEFAULT_PGSIZES & -DEFAULT_PGSIZES
_END = 1 << 64
# An integer: the inverse of an IntFlag leaves unknown bits out.
_MAP_FLAGS = int(DMAMapFlags.READ | DMAMapFlags.WRITE)


@dataclass(eq=False, slots=True)
class DMAMap:
    """One map.

    :ivar memory: the client's file, mapped; None where messages reach the memory.
    :ivar start: where that is in this process.
    :ivar sealed: the file cannot be made shorter, so that the memory is there as long as the map.
    :ivar users: how many reach for it now.
    :ivar gone: it is being unmapped, or was.
    """

    iova: int
    size: int
    flags: DMAMapFlags
    memory: mmio.MappedMemory | None
    start: int = 0
    sealed: bool = False
    users: int = 0
    gone: bool = False

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.iova + self.size


class _Mappings:
    """How many of the mappings that the kernel allows a process are clients' memory.

    Some are left for everything else, which could not allocate memory any more without them.
    """

    LEFT = 4096
    DEFAULT = 65530
    """``vm.max_map_count`` where it cannot be read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used = 0
        try:
            allowed = int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii"))
        except (OSError, ValueError):
            allowed = self.DEFAULT
        self._most = max(allowed - self.LEFT, allowed // 2)

    def take(self) -> None:
        """One more; raises OSError ENOSPC where there are too many."""
        with self._lock:
            if self._used >= self._most:
                raise OSError(errno.ENOSPC, f"{self._used} mappings (vm.max_map_count)")
            self._used += 1

    def give(self, count: int) -> None:
        """So many fewer."""
        with self._lock:
            self._used -= count


_mappings = _Mappings()


class MapObserver(Protocol):
    """Who is told of maps; any exception of :meth:`memory_mapped` refuses the map."""

    def memory_mapped(self, iova: int, size: int, flags: DMAMapFlags) -> None:
        """A map was added."""

    def memory_unmapped(self, iova: int, size: int) -> None:
        """A map is about to go."""


class DMAMaps:
    """The maps of one client; changed by one thread at a time, looked up by any.

    :param quotas: how many maps and mapped bytes there may be.
    :param observer: told of each map and unmap.
    :param direct: knows the same maps, those that are memory here; it finds most of what is
        reached for, without anything of this.
    """

    def __init__(self, quotas: Quotas, observer: MapObserver, direct: DirectDMA) -> None:
        self.direct = direct
        self._quotas = quotas
        self._observer = observer
        self._lock = threading.Lock()
        self._unused = threading.Condition(self._lock)  # which costs more to take than its lock
        self._maps: list[DMAMap] = []
        self._starts: list[int] = []  # their addresses, in the same order
        self._mapped = 0

    def map(self, request: messages.DMAMap, fd: int | None) -> None:
        """Add a map; the descriptor stays the caller's.

        :raises OSError: EINVAL, EEXIST for an overlap, ENOSPC or EDQUOT beyond a quota, or what
            mmap says.
        :raises Exception: the observer refused, or there is no memory; the map is undone.
        """
        _check_map(request)
        if self.inside(request.iova, request.iova + request.size):
            raise OSError(errno.EEXIST, "overlaps another map")
        flags, memory = DMAMapFlags(request.flags), self._memory_of(request, fd)
        sealed = fd is not None and _is_sealed(fd)
        start = 0 if memory is None else memory.address
        added = DMAMap(request.iova, request.size, flags, memory, start, sealed)
        self._insert(added)
        try:
            if memory is not None:
                self.direct.add(added.iova, added.size, start, request.flags)
            self._observer.memory_mapped(added.iova, added.size, flags)
        except BaseException:
            self._remove([added])
            raise

    def _memory_of(self, request: messages.DMAMap, fd: int | None) -> mmio.MappedMemory | None:
        if fd is None:
            self._check_quotas(0)
            return None
        _check_file(fd, request)
        self._check_quotas(request.size)
        writable = bool(request.flags & DMAMapFlags.WRITE)
        _mappings.take()
        try:
            return mmio.MappedMemory(fd, request.offset, request.size, writable=writable)
        except BaseException:
            _mappings.give(1)
            raise

    def _check_quotas(self, size: int) -> None:
        if len(self._maps) >= self._quotas.max_maps:
            raise OSError(errno.ENOSPC, f"{len(self._maps)} maps are in use")
        if self._mapped + size > self._quotas.max_mapped:
            raise OSError(errno.EDQUOT, f"{size} bytes, {self._mapped} are mapped already")

    def unmap(self, request: messages.DMAUnmap) -> None:
        """Remove a map, or every map that lies in the range; quietly where there is none.

        Clients that follow a guest's IOMMU send ranges that hold many maps, or none.

        :raises OSError: EINVAL where the range cuts a map, or for flags that do not exist.
        :raises Exception: the observer failed; the maps are gone all the same, since the client
            takes the memory away.
        """
        start, end = _unmap_range(request)
        found = self.inside(start, end)
        if any(entry.iova < start or entry.end > end for entry in found):
            raise OSError(errno.EINVAL, "the range cuts a map")
        failures = [error for entry in found if (error := self._announce_removal(entry))]
        self._remove(found)
        if failures:
            raise failures[0]

    def clear(self) -> None:
        """Remove every map: the client is gone."""
        for entry in self._maps:
            error = self._announce_removal(entry)
            if error is not None:
                log.error("the model failed when its client left", exc_info=error)
        self._remove(list(self._maps))

    def _announce_removal(self, entry: DMAMap) -> BaseException | None:
        try:
            self._observer.memory_unmapped(entry.iova, entry.size)
        except FAILURES as error:
            return error
        return None

    def _insert(self, added: DMAMap) -> None:
        with self._lock:
            at = bisect_right(self._starts, added.iova)
            self._maps.insert(at, added)
            self._starts.insert(at, added.iova)
            self._mapped += 0 if added.memory is None else added.size

    def _remove(self, entries: Sequence[DMAMap]) -> None:
        """Take neighbouring maps out, wait until nobody uses them, and release their memory."""
        if not entries:
            return
        with self._lock:
            # First: who is interrupted here leaves nothing there that is not here.
            self.direct.remove(entries[0].iova, entries[-1].end - entries[0].iova)
            first = bisect_left(self._starts, entries[0].iova)
            del self._maps[first : first + len(entries)]
            del self._starts[first : first + len(entries)]
            for entry in entries:
                entry.gone = True
            # A copy ends by itself; a message may wait for a client that waits for us.
            self._unused.wait_for(lambda: not _in_use(e for e in entries if e.memory is not None))
            self._unused.wait_for(lambda: not _in_use(entries), UNMAP_PATIENCE)
            self._mapped -= sum(e.size for e in entries if e.memory is not None)
            _mappings.give(sum(1 for entry in entries if entry.memory is not None))
            for entry in entries:
                entry.memory = None

    # Looked up by any thread

    def inside(self, start: int, end: int) -> list[DMAMap]:
        """The maps that share an address with a range, in order."""
        with self._lock:
            first = bisect_right(self._starts, start)
            if first and self._maps[first - 1].end > start:
                first -= 1
            return self._maps[first : bisect_right(self._starts, end - 1)]

    def hold(self, address: int, size: int, need: int) -> DMAMap | None:
        """Keep the memory behind a range where it is, until :meth:`let_go`.

        :param need: flags that the map must have (:class:`DMAMapFlags`).
        :returns: the map; None where the range is not in one map with such flags and a descriptor.
        """
        with self._lock:
            at = bisect_right(self._starts, address) - 1
            if at < 0 or size <= 0:
                return None
            entry = self._maps[at]
            if entry.memory is None or address + size > entry.iova + entry.size:
                return None
            if need & ~entry.flags.value:
                return None
            entry.users += 1
            return entry

    def let_go(self, entry: DMAMap) -> None:
        """The memory of a map is not reached for any more."""
        with self._lock:
            entry.users -= 1
            if entry.gone:
                self._unused.notify_all()

    @contextmanager
    def using(self, entry: DMAMap) -> Iterator[int]:
        """Keep a map's memory where it is; gives its address, 0 where messages reach it.

        :raises DMAError: EFAULT; it was unmapped.
        """
        with self._lock:
            if entry.gone:
                raise gone(entry.iova, entry.size)
            entry.users += 1
        try:
            yield entry.start
        finally:
            self.let_go(entry)


def gone(address: int, size: int) -> DMAError:
    """The error of DMA to memory that is there no more."""
    return DMAError(
        "the client took the memory away",
        iova=address,
        size=size,
        op=f"DMA at {address:#x}",
        errno=errno.EFAULT,
    )


def _in_use(entries: Iterator[DMAMap] | Sequence[DMAMap]) -> bool:
    return any(entry.users for entry in entries)


def _unmap_range(request: messages.DMAUnmap) -> tuple[int, int]:
    """(first address, first behind it) of what is to be unmapped."""
    if request.flags & ~int(DMAUnmapFlags.ALL):
        raise OSError(errno.EINVAL, f"flags {request.flags:#x}")
    if request.flags:
        if request.iova or request.size:
            raise OSError(errno.EINVAL, "an address or a size with the flag ALL")
        return 0, _END
    end = request.iova + request.size
    if not request.size or end > _END:
        raise OSError(errno.EINVAL, f"{request.size} bytes at {request.iova:#x}")
    return request.iova, end


def _check_map(request: messages.DMAMap) -> None:
    if request.flags & ~_MAP_FLAGS or not request.flags:
        raise OSError(errno.EINVAL, f"flags {request.flags:#x}")
    if not request.size or (request.iova | request.size | request.offset) % _PAGE:
        raise OSError(errno.EINVAL, "address, size and offset must be whole pages")
    if request.iova + request.size > _END:
        raise OSError(errno.EINVAL, "beyond the end of the address space")


def _is_sealed(fd: int) -> bool:
    """Whether a file cannot be made shorter; only some kinds of files can promise it."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:
        return False


def _check_file(fd: int, request: messages.DMAMap) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or request.offset + request.size > status.st_size:
        raise OSError(errno.EINVAL, "the descriptor is no file of that size")
