# SPDX-License-Identifier: BSD-3-Clause
"""The client's memory as the model sees it: what DMA_MAP announced.

A range that came with a descriptor is mapped and copied directly; one without is reached by
DMA_READ and DMA_WRITE.  A copy that faults, because the client truncated its file, is an error and
not the end of the server.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyvfio.errors import ConnectionLost, DeviceClosed, DMAError, VFIOError, VFIOTimeout
from pyvfio.native import mmio
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import DMAMapFlags, DMAUnmapFlags
from pyvfio.wire import messages
from pyvfio.wire.header import Command
from pyvfio.wire.version import DEFAULT_MAX_DMA_MAPS, DEFAULT_PGSIZES

MAX_MESSAGE = 64 * 1024
"""Bytes in one DMA_READ or DMA_WRITE; some clients do not finish sending long replies."""

_PAGE = DEFAULT_PGSIZES & -DEFAULT_PGSIZES
_END = 1 << 64
_ERRNO = {
    VFIOTimeout: errno.ETIMEDOUT,
    ConnectionLost: errno.ENOTCONN,
    DeviceClosed: errno.ENOTCONN,
}
# An integer: the inverse of an IntFlag leaves unknown bits out.
_MAP_FLAGS = int(DMAMapFlags.READ | DMAMapFlags.WRITE)


@dataclass(frozen=True, slots=True)
class _Map:
    iova: int
    size: int
    flags: DMAMapFlags
    memory: mmio.MappedMemory | None

    @property
    def end(self) -> int:
        return self.iova + self.size


class GuestMemory:
    """The DMA maps of one client.

    :param ask: sends DMA_READ or DMA_WRITE to the client and returns the reply's payload.
    :param max_data: bytes that the client takes in one of them.
    """

    def __init__(
        self, ask: Callable[[Command, messages.DMARead | messages.DMAWrite], object], max_data: int
    ) -> None:
        self._ask = ask
        self._chunk = min(MAX_MESSAGE, max_data)
        # Held during a direct copy, so that an unmap is answered after the last one is through.
        self._lock = threading.Lock()
        self._maps: list[_Map] = []

    # DMA_MAP and DMA_UNMAP

    def map(self, request: messages.DMAMap, fd: int | None) -> None:
        """Add a map; the descriptor stays the caller's.

        :raises OSError: EINVAL, EEXIST for an overlap, ENOSPC, or what mmap says.
        """
        if request.flags & ~_MAP_FLAGS or not request.flags:
            raise OSError(errno.EINVAL, f"flags {request.flags:#x}")
        if not request.size or (request.iova | request.size | request.offset) % _PAGE:
            raise OSError(errno.EINVAL, "address, size and offset must be whole pages")
        if request.iova + request.size > _END:
            raise OSError(errno.EINVAL, "beyond the end of the address space")
        flags = DMAMapFlags(request.flags)
        with self._lock:
            if self._inside(request.iova, request.iova + request.size):
                raise OSError(errno.EEXIST, "overlaps another map")
            if len(self._maps) >= DEFAULT_MAX_DMA_MAPS:
                raise OSError(errno.ENOSPC, f"{DEFAULT_MAX_DMA_MAPS} maps are in use")
            memory = None if fd is None else _map_file(fd, request, flags)
            position = bisect_right(self._maps, request.iova, key=_start)
            self._maps.insert(position, _Map(request.iova, request.size, flags, memory))

    def unmap(self, request: messages.DMAUnmap) -> None:
        """Remove a map, or every map that lies in the range; quietly where there is none.

        Clients that follow a guest's IOMMU send ranges that hold many maps, or none.

        :raises OSError: EINVAL where the range cuts a map, or for flags that do not exist.
        """
        if request.flags & ~int(DMAUnmapFlags.ALL):
            raise OSError(errno.EINVAL, f"flags {request.flags:#x}")
        everything = bool(request.flags & DMAUnmapFlags.ALL)
        if everything and (request.iova or request.size):
            raise OSError(errno.EINVAL, "an address or a size with the flag ALL")
        end = _END if everything else request.iova + request.size
        if end > _END or (not everything and not request.size):
            raise OSError(errno.EINVAL, f"{request.size} bytes at {request.iova:#x}")
        with self._lock:
            found = self._inside(request.iova, end)
            if any(entry.iova < request.iova or entry.end > end for entry in found):
                raise OSError(errno.EINVAL, "the range cuts a map")
            self._maps = [entry for entry in self._maps if entry not in found]

    def clear(self) -> None:
        """Drop every map: the client is gone."""
        with self._lock:
            self._maps.clear()

    def _inside(self, start: int, end: int) -> list[_Map]:
        """The maps that share an address with a range."""
        first = bisect_right(self._maps, start, key=_start)
        if first and self._maps[first - 1].end > start:
            first -= 1
        last = bisect_right(self._maps, end - 1, key=_start)
        return self._maps[first:last]

    # The model's DMA

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the client's memory; raises :class:`DMAError`."""
        data = bytearray()
        for entry, at, length in self._spans(address, size, DMAMapFlags.READ):
            if entry.memory is None:
                data += self._ask_to_read(at, length)
            else:
                data += self._copy_out(entry, entry.memory, at, length)
        return bytes(data)

    def write(self, address: int, data: Buffer) -> None:
        """Write the client's memory; raises :class:`DMAError`."""
        rest = memoryview(data).cast("B")
        for entry, at, length in self._spans(address, len(rest), DMAMapFlags.WRITE):
            if entry.memory is None:
                self._ask_to_write(at, rest[:length])
            else:
                self._copy_in(entry, entry.memory, at, rest[:length])
            rest = rest[length:]

    def _spans(self, address: int, size: int, need: DMAMapFlags) -> Iterator[tuple[_Map, int, int]]:
        """(map, address, bytes) of each piece, all of them checked before the first is given."""
        with self._lock:
            found = self._inside(address, address + size) if size > 0 else []
        at, spans = address, []
        for entry in found:
            if entry.iova > at:
                break
            if not entry.flags & need:
                raise _denied(address, size, f"mapped without permission to {need.name}")
            length = min(entry.end, address + size) - at
            spans.append((entry, at, length))
            at += length
        if at != address + size:
            raise DMAError(
                f"{size} bytes that are not all mapped",
                iova=address,
                size=size,
                op=f"DMA at {address:#x}",
                errno=errno.EFAULT,
            )
        return iter(spans)

    def _copy_out(self, entry: _Map, memory: mmio.MappedMemory, at: int, length: int) -> bytearray:
        with self._lock:
            self._check_mapped(entry, at, length)
            data = mmio.copy_out(memory.address + at - entry.iova, length)
        if data is None:
            raise _gone(at, length)
        return data

    def _copy_in(self, entry: _Map, memory: mmio.MappedMemory, at: int, data: memoryview) -> None:
        with self._lock:
            self._check_mapped(entry, at, len(data))
            done = mmio.copy_in(memory.address + at - entry.iova, data)
        if not done:
            raise _gone(at, len(data))

    def _check_mapped(self, entry: _Map, at: int, length: int) -> None:
        if not any(found is entry for found in self._inside(at, at + length)):
            raise _gone(at, length)

    def _ask_to_read(self, at: int, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            count = min(self._chunk, length - len(data))
            reply = self._ask_client(Command.DMA_READ, messages.DMARead(at + len(data), count))
            assert isinstance(reply, messages.DMAData)
            data += reply.data
        return bytes(data)

    def _ask_to_write(self, at: int, data: memoryview) -> None:
        for done in range(0, len(data), self._chunk):
            chunk = data[done : done + self._chunk]
            self._ask_client(Command.DMA_WRITE, messages.DMAWrite(at + done, chunk))

    def _ask_client(
        self, command: Command, message: messages.DMARead | messages.DMAWrite
    ) -> object:
        try:
            return self._ask(command, message)
        except VFIOError as error:
            number = error.errno or _ERRNO.get(type(error), errno.EIO)
            raise DMAError(
                f"the client did not do it: {error.reason}",
                iova=message.address,
                op=command.name,
                errno=number,
            ) from error


def _start(entry: _Map) -> int:
    return entry.iova


def _map_file(fd: int, request: messages.DMAMap, flags: DMAMapFlags) -> mmio.MappedMemory:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or request.offset + request.size > status.st_size:
        raise OSError(errno.EINVAL, "the descriptor is no file of that size")
    writable = bool(flags & DMAMapFlags.WRITE)
    return mmio.MappedMemory(fd, request.offset, request.size, writable=writable)


def _denied(address: int, size: int, reason: str) -> DMAError:
    return DMAError(reason, iova=address, size=size, op=f"DMA at {address:#x}", errno=errno.EPERM)


def _gone(address: int, size: int) -> DMAError:
    return DMAError(
        "the client took the memory away",
        iova=address,
        size=size,
        op=f"DMA at {address:#x}",
        errno=errno.EFAULT,
    )
