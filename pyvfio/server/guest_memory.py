# SPDX-License-Identifier: BSD-3-Clause
"""The client's memory as the model reaches it.

A range that came with a descriptor is mapped and copied directly; one without is reached by
DMA_READ and DMA_WRITE.  A copy that faults, because the client truncated its file, is an error and
not the end of the server.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from pyvfio.errors import ConnectionLost, DeviceClosed, DMAError, VFIOError, VFIOTimeout
from pyvfio.memory import ByteArray
from pyvfio.native import mmio
from pyvfio.server.dirty_log import DirtyLog
from pyvfio.server.dma_maps import DMAMap, DMAMaps, gone
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import DMAMapFlags
from pyvfio.wire import messages
from pyvfio.wire.header import Command

MAX_MESSAGE = 64 * 1024
"""Bytes in one DMA_READ or DMA_WRITE; some clients do not finish sending long replies."""

# Plain integers: operators on them cost less.
_READ, _WRITE = int(DMAMapFlags.READ), int(DMAMapFlags.WRITE)

_ERRNO = {
    VFIOTimeout: errno.ETIMEDOUT,
    ConnectionLost: errno.ENOTCONN,
    DeviceClosed: errno.ENOTCONN,
}


class _Span(NamedTuple):
    """Part of a DMA that lies in one map: ``size`` bytes at ``address``."""

    entry: DMAMap
    address: int
    size: int


class GuestMemory:
    """DMA to and from one client.

    :param maps: what is mapped.
    :param ask: sends DMA_READ or DMA_WRITE to the client and returns the reply's payload.
    :param max_data: bytes that the client takes in one of them.
    :ivar log: which pages were written, where the client wants to know.
    """

    def __init__(
        self,
        maps: DMAMaps,
        ask: Callable[[Command, messages.DMARead | messages.DMAWrite], object],
        max_data: int,
    ) -> None:
        self.maps = maps
        self._ask = ask
        self._chunk = min(MAX_MESSAGE, max_data)
        self.log = DirtyLog(maps.direct)

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the client's memory; raises :class:`DMAError`."""
        entry = self.maps.hold(address, size, _READ)
        if entry is None:
            return self._read_spans(address, size)
        try:
            data = mmio.copy_bytes(entry.start + address - entry.iova, size)
        finally:
            self.maps.let_go(entry)
        if data is None:
            raise gone(address, size)
        return data

    def read_into(self, address: int, target: memoryview) -> None:
        """Fill memory of the caller's from the client's; raises :class:`DMAError`."""
        entry = self.maps.hold(address, len(target), _READ)
        if entry is None:
            target[:] = self._read_spans(address, len(target))
            return
        try:
            done = mmio.copy_into(target, entry.start + address - entry.iova)
        finally:
            self.maps.let_go(entry)
        if not done:
            raise gone(address, len(target))

    def write(self, address: int, data: Buffer) -> None:
        """Write the client's memory; raises :class:`DMAError`."""
        view = data if type(data) is bytes else memoryview(data).cast("B")
        entry = self.maps.hold(address, len(view), _WRITE)
        if entry is None:
            self._write_spans(address, memoryview(view))
            return
        try:
            done = mmio.copy_in(entry.start + address - entry.iova, view)
        finally:
            self.maps.let_go(entry)
            self.log.mark(address, len(view))  # what has failed may have been written in part
        if not done:
            raise gone(address, len(view))

    @contextmanager
    def view(self, address: int, size: int, writable: bool) -> Iterator[ByteArray]:
        """The memory itself; see :meth:`DeviceModel.dma_view`."""
        need = _READ | _WRITE if writable else _READ
        entry = self.maps.hold(address, size, need)
        if entry is None:
            raise _refused(address, size, errno.ENOTSUP, "not within one map that has a file")
        try:
            if entry.memory is None or not entry.sealed:
                raise _refused(address, size, errno.ENOTSUP, "the file could be made shorter")
            array = np.asarray(entry.memory)[address - entry.iova :][:size]
            array.flags.writeable = writable
            yield array
        finally:
            self.maps.let_go(entry)
            if writable:
                self.log.mark(address, size)

    # In pieces, where it is not all in one map with a descriptor

    def _read_spans(self, address: int, size: int) -> bytes:
        data = bytearray()
        for span in self._spans(address, size, DMAMapFlags.READ):
            if span.entry.memory is None:
                data += self._ask_to_read(span)
            else:
                data += self._copy_out(span)
        return bytes(data)

    def _write_spans(self, address: int, rest: memoryview) -> None:
        for span in self._spans(address, len(rest), DMAMapFlags.WRITE):
            try:
                if span.entry.memory is None:
                    self._ask_to_write(span, rest[: span.size])
                else:
                    self._copy_in(span, rest[: span.size])
            finally:
                self.log.mark(span.address, span.size)
            rest = rest[span.size :]

    def _spans(self, address: int, size: int, need: DMAMapFlags) -> list[_Span]:
        """The pieces of a range, all of them checked before the first is reached for."""
        at, spans = address, []
        for entry in self.maps.inside(address, address + size) if size > 0 else ():
            if entry.iova > at:
                break
            if not entry.flags & need:
                raise _refused(
                    address, size, errno.EPERM, f"mapped without permission to {need.name}"
                )
            length = min(entry.end, address + size) - at
            spans.append(_Span(entry, at, length))
            at += length
        if at != address + size:
            raise _refused(address, size, errno.EFAULT, f"{size} bytes that are not all mapped")
        return spans

    def _copy_out(self, span: _Span) -> bytearray:
        with self.maps.using(span.entry) as start:
            data = mmio.copy_out(start + span.address - span.entry.iova, span.size)
        if data is None:
            raise gone(span.address, span.size)
        return data

    def _copy_in(self, span: _Span, data: memoryview) -> None:
        with self.maps.using(span.entry) as start:
            done = mmio.copy_in(start + span.address - span.entry.iova, data)
        if not done:
            raise gone(span.address, span.size)

    # By messages

    def _ask_to_read(self, span: _Span) -> bytearray:
        data = bytearray()
        while len(data) < span.size:
            count = min(self._chunk, span.size - len(data))
            message = messages.DMARead(span.address + len(data), count)
            reply = self._ask_client(span.entry, Command.DMA_READ, message)
            assert isinstance(reply, messages.DMAData)
            data += reply.data
        return data

    def _ask_to_write(self, span: _Span, data: memoryview) -> None:
        for done in range(0, len(data), self._chunk):
            message = messages.DMAWrite(span.address + done, data[done : done + self._chunk])
            self._ask_client(span.entry, Command.DMA_WRITE, message)

    def _ask_client(
        self, entry: DMAMap, command: Command, message: messages.DMARead | messages.DMAWrite
    ) -> object:
        try:
            with self.maps.using(entry):
                reply = self._ask(command, message)
        except DMAError:
            raise
        except VFIOError as error:
            number = error.errno or _ERRNO.get(type(error), errno.EIO)
            raise DMAError(
                f"the client did not do it: {error.reason}",
                iova=message.address,
                op=command.name,
                errno=number,
            ) from error
        if entry.gone:  # the unmap did not wait so long
            raise gone(entry.iova, entry.size)
        return reply


def _refused(address: int, size: int, number: int, reason: str) -> DMAError:
    return DMAError(reason, iova=address, size=size, op=f"DMA at {address:#x}", errno=number)
