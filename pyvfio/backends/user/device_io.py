# SPDX-License-Identifier: BSD-3-Clause
"""The device vector on a vfio-user socket."""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyvfio.backends.user.register_writes import RegisterWrites
from pyvfio.backends.user.registers import SocketRegisters
from pyvfio.dirty_bitmap import bitmap_size
from pyvfio.errors import RemoteError, RemoteProtocolError
from pyvfio.eventfd import is_eventfd
from pyvfio.transport.channel import Channel
from pyvfio.transport.flight import Flight
from pyvfio.transport.sockets import close_fds
from pyvfio.uapi import vfio
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import (
    DeviceFlags,
    DeviceState,
    Feature,
    FeatureFlags,
    IRQFlags,
    IRQSetFlags,
)
from pyvfio.vectors import (
    MAX_REGION_INFO,
    BatchFailure,
    DeviceInfo,
    DeviceIO,
    IOEventFDInfo,
    IRQInfo,
    RegionInfo,
    known,
)
from pyvfio.wire import messages
from pyvfio.wire.header import Command
from pyvfio.wire.messages.region import MAX_WRITE_ENTRY
from pyvfio.wire.version import Limits

SAFE_WRITE = 32 * 1024
"""Bytes in one REGION_WRITE or MIG_DATA_WRITE to a server that does not say that it reads longer
ones whole.  A widespread one reads a body with one recv() and loses step above about this size,
whatever it negotiated."""


SOME_IO_FDS = 4096
"""Bytes of sub-regions with descriptors that are asked for at first."""
NO_SUCH_COMMAND = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.ENOTTY)
"""How servers refuse a command that is optional; which of them is said nowhere."""
IOEVENTFD = messages.IOFDType.IOEVENTFD
"""The kind of descriptor that can be used without KVM; others are left alone."""


class UserDeviceIO(DeviceIO):
    """Each operation is one message, or one per chunk; owns the descriptors of the regions."""

    def __init__(self, channel: Channel, limits: Limits) -> None:
        self._channel = channel
        self._exchange = channel.exchange
        self._limits = limits
        self._region_fds: list[int] = []
        self._sizes: dict[int, int] = {}

    def get_info(self) -> DeviceInfo:
        reply = self._channel.call(Command.DEVICE_GET_INFO, messages.GetDeviceInfo()).message
        return DeviceInfo(known(DeviceFlags, reply.flags), reply.num_regions, reply.num_irqs)

    def get_region_info(self, index: int) -> RegionInfo:
        reply, fds = self._ask_region(index, vfio.REGION_INFO.size)
        if reply.argsz > vfio.REGION_INFO.size:
            # Capabilities, and with some servers the descriptor, come only where they fit.
            close_fds(fds)
            reply, fds = self._ask_region(index, min(reply.argsz, MAX_REGION_INFO))
        try:
            info = _region_info(reply, fds[0] if fds else None)
        except ValueError as error:
            close_fds(fds)
            raise RemoteProtocolError(f"region {index}: {error}", uri=self._channel.name) from error
        self._sizes[index] = info.size
        if info.fd is None:
            close_fds(fds)
        else:
            self._region_fds.append(info.fd)
        return info

    def _ask_region(self, index: int, argsz: int) -> tuple[messages.RegionInfo, tuple[int, ...]]:
        request = messages.GetRegionInfo(index, argsz)
        return self._channel.call(Command.DEVICE_GET_REGION_INFO, request)

    def get_irq_info(self, index: int) -> IRQInfo:
        request = messages.GetIRQInfo(index)
        reply = self._channel.call(Command.DEVICE_GET_IRQ_INFO, request).message
        return IRQInfo(index, known(IRQFlags, reply.flags), reply.count)

    def get_io_eventfds(self, index: int) -> Sequence[IOEventFDInfo]:
        try:
            reply, fds = self._ask_io_fds(index, SOME_IO_FDS)
            if reply.argsz > SOME_IO_FDS:
                close_fds(fds)
                reply, fds = self._ask_io_fds(index, min(reply.argsz, MAX_REGION_INFO))
        except RemoteError as error:
            if error.errno in NO_SUCH_COMMAND:
                return ()
            raise
        try:
            size = self._sizes.get(index, 0)
            listed = [sub for sub in reply.sub_regions if sub.type == IOEVENTFD]
            infos = [_io_eventfd(sub, fds, size) for sub in listed]
        except ValueError as error:
            close_fds(fds)
            reason = f"io fds of region {index}: {error}"
            raise RemoteProtocolError(reason, uri=self._channel.name) from error
        used = {info.fd for info in infos}
        self._region_fds.extend(used)
        close_fds(fd for fd in fds if fd not in used)
        return infos

    def _ask_io_fds(self, index: int, argsz: int) -> tuple[messages.RegionIOFDs, tuple[int, ...]]:
        request = messages.GetRegionIOFDs(index, argsz)
        return self._channel.call(Command.DEVICE_GET_REGION_IO_FDS, request)

    def set_irqs(
        self,
        index: int,
        action: IRQSetFlags,
        start: int,
        count: int,
        *,
        eventfds: Sequence[int] | None = None,
        bools: Sequence[bool] | None = None,
    ) -> None:
        if eventfds is None:
            data = b"" if bools is None else bytes(bools)
            kind = IRQSetFlags.DATA_NONE if bools is None else IRQSetFlags.DATA_BOOL
            request = messages.SetIRQs(kind | action, index, start, count, data)
            self._channel.call(Command.DEVICE_SET_IRQS, request)
            return
        if self._limits.max_msg_fds < 1 and any(fd >= 0 for fd in eventfds):
            raise OSError(errno.E2BIG, "the server takes no descriptors")
        flags = IRQSetFlags.DATA_EVENTFD | action
        for run in _eventfd_runs(start, eventfds, self._limits.max_msg_fds):
            request = messages.SetIRQs(flags, index, run.first, run.vectors)
            self._channel.call(Command.DEVICE_SET_IRQS, request, run.fds)

    def region_read(self, index: int, offset: int, size: int) -> Buffer:
        if size <= self._limits.max_data_xfer_size:
            return self._read(index, offset, size)
        data = bytearray(size)
        return data[: self.region_read_into(index, offset, memoryview(data))]

    def region_read_into(self, index: int, offset: int, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer):
            part = buffer[done : done + self._limits.max_data_xfer_size]
            count = self._read_into(index, offset + done, part)
            done += count
            if count < len(part):
                break
        return done

    def _read(self, index: int, offset: int, size: int) -> Buffer:
        request = messages.RegionRead(offset, index, size)
        data: Buffer = self._channel.call(Command.REGION_READ, request).message.data
        return data

    def _read_into(self, index: int, offset: int, target: memoryview) -> int:
        call = self._exchange.read_region(index, offset, target)
        if call is None:
            return len(target)
        data: Buffer = call.result().message.data
        target[: len(data)] = data
        return len(data)

    def register_messages(self, index: int) -> SocketRegisters | None:
        if not self._exchange.is_open:
            return None
        return SocketRegisters(self._exchange, index, self._post)

    def region_write(self, index: int, offset: int, data: Buffer, *, posted: bool = False) -> int:
        if len(data) <= self._longest_write:
            return self._write(index, offset, data, posted)
        view, done = memoryview(data), 0
        while done < len(view):
            chunk = view[done : done + self._longest_write]
            written = self._write(index, offset + done, chunk, posted)
            done += written
            if written < len(chunk):
                break
        return done

    @property
    def _longest_write(self) -> int:
        longest = self._limits.max_data_xfer_size
        return longest if self._limits.long_writes else min(longest, SAFE_WRITE)

    def _write(self, index: int, offset: int, data: Buffer, posted: bool) -> int:
        if posted:
            self._post(index, offset, data)
            return len(data)
        request = messages.RegionWrite(offset, index, data)
        count: int = self._channel.call(Command.REGION_WRITE, request).message.count
        return count

    def _post(self, index: int, offset: int, data: Buffer) -> None:
        request = messages.RegionWrite(offset, index, data)
        try:
            if self._limits.write_multiple and request.count <= MAX_WRITE_ENTRY:
                self._channel.post_write(request)
            else:
                self._channel.post(Command.REGION_WRITE, request)
        finally:
            self._exchange.count_post()

    def registers_write(
        self,
        index: int,
        offsets: npt.NDArray[np.uint64],
        width: int,
        values: npt.NDArray[np.uint64],
        posted: bool = False,
    ) -> Sequence[BatchFailure]:
        writes = RegisterWrites(index, width, offsets, values)
        if not posted:
            return [BatchFailure(*failure) for failure in Flight(self._channel, writes).run()]
        if not self._exchange.is_open:
            for _, request in writes:
                self._post(index, request.offset, request.data)
        elif self._limits.write_multiple:
            for message in writes.collected():
                self._post_encoded(Command.REGION_WRITE_MULTI, message)
        else:
            for messages_of_some in writes.posted():
                self._post_encoded(Command.REGION_WRITE, messages_of_some)
        return []

    def _post_encoded(self, command: Command, encoded: bytes) -> None:
        try:
            self._channel.post_encoded(command, encoded)
        finally:
            self._exchange.count_post()

    @property
    def unflushed(self) -> bool:
        return self._exchange.flushed != self._exchange.posted

    def flush(self) -> None:
        posted = self._exchange.posted  # before the question: a write may be posted behind it
        if self._exchange.flushed >= posted:
            return
        # Commands are carried out in order: any answer tells that those before it are through.
        with contextlib.suppress(RemoteError):
            self._channel.call(Command.DEVICE_GET_INFO, messages.GetDeviceInfo())
        self._exchange.flushed = max(self._exchange.flushed, posted)

    def reset(self) -> None:
        self._channel.call(Command.DEVICE_RESET, messages.Empty())

    def feature(self, flags: int, data: Buffer = b"", size: int = 0) -> Buffer:
        argsz = vfio.DEVICE_FEATURE.size + max(len(data), size)
        request = messages.DeviceFeature(argsz, flags, data)
        reply: Buffer = self._channel.call(Command.DEVICE_FEATURE, request).message.data
        return reply

    def set_migration_state(self, state: DeviceState) -> None:
        self.feature(
            Feature.MIG_DEVICE_STATE | FeatureFlags.SET, vfio.FEATURE_STATE.pack(state, -1)
        )

    def migration_read(self, buffer: memoryview) -> int:
        wanted = min(len(buffer), self._limits.max_data_xfer_size)
        request = messages.MigDataRead(wanted)
        data = self._channel.call(Command.MIG_DATA_READ, request).message.data
        buffer[: len(data)] = data
        return len(data)

    def migration_write(self, data: memoryview) -> int:
        chunk = data[: self._longest_write]
        self._channel.call(Command.MIG_DATA_WRITE, messages.MigDataWrite(chunk))
        return len(chunk)

    @property
    def state_outlives_client(self) -> bool:
        return True  # it is the server's

    @property
    def max_report(self) -> int:
        return min(super().max_report, self._limits.max_data_xfer_size & ~7)

    @property
    def logs_everything(self) -> bool:
        return True

    @property
    def log_outlives_maps(self) -> bool:
        return False  # servers keep it with the map

    def logging_start(self, page_size: int, ranges: Sequence[tuple[int, int]]) -> int:
        data = vfio.LOGGING_CONTROL.pack(page_size, len(ranges), 0)
        data += b"".join(vfio.LOGGING_RANGE.pack(*found) for found in ranges)
        flags = Feature.DMA_LOGGING_START | FeatureFlags.SET
        reply = self.feature(flags, data, len(data))
        if len(reply) != len(data):
            raise self._wrong(f"{len(reply)} bytes answer DMA_LOGGING_START of {len(data)}")
        return vfio.LOGGING_CONTROL.unpack_from(reply).page_size

    def logging_stop(self) -> None:
        self.feature(Feature.DMA_LOGGING_STOP | FeatureFlags.SET)

    def logging_report(self, iova: int, size: int, page_size: int) -> Buffer:
        layout = vfio.LOGGING_REPORT
        asked = layout.pack(iova, size, page_size)
        total = layout.size + bitmap_size(size, page_size)
        reply = self.feature(Feature.DMA_LOGGING_REPORT | FeatureFlags.GET, asked, total)
        if len(reply) != total or reply[: layout.size] != asked:
            raise self._wrong(f"{len(reply)} bytes of another DMA_LOGGING_REPORT than {total}")
        return memoryview(reply)[layout.size :]

    def _wrong(self, reason: str) -> RemoteProtocolError:
        return RemoteProtocolError(reason, uri=self._channel.name)

    def close(self) -> None:
        close_fds(self._region_fds)
        self._region_fds = []


class _Run(NamedTuple):
    first: int
    vectors: int
    fds: list[int]


def _eventfd_runs(start: int, eventfds: Sequence[int], most: int) -> Iterator[_Run]:
    """Split vectors into messages: each has a descriptor for every vector of it, or none at all.

    :param most: descriptors that the server takes in one message.
    """
    at = start
    for valid, group in itertools.groupby(eventfds, key=lambda fd: fd >= 0):
        fds = list(group)
        if not valid:
            yield _Run(at, len(fds), [])
        else:
            for first in range(0, len(fds), most):
                part = fds[first : first + most]
                yield _Run(at + first, len(part), part)
        at += len(fds)


def _io_eventfd(sub: messages.IOSubRegion, fds: Sequence[int], size: int) -> IOEventFDInfo:
    """What a server says of a part of a region of ``size`` bytes, checked, or ValueError."""
    if sub.offset + sub.size > size:
        raise ValueError(f"{sub.size} bytes at {sub.offset:#x} of {size:#x}")
    if sub.fd_index >= len(fds):
        raise ValueError(f"descriptor {sub.fd_index} of {len(fds)}")
    if not is_eventfd(fds[sub.fd_index]):
        raise ValueError(f"descriptor {sub.fd_index} is no eventfd")
    matches = sub.flags & messages.IOEventFDFlags.DATAMATCH
    datamatch = sub.datamatch if matches else None
    return IOEventFDInfo(sub.offset, sub.size, datamatch, fds[sub.fd_index])


def _region_info(reply: messages.RegionInfo, fd: int | None) -> RegionInfo:
    """What a server says of a region, checked; raises :class:`ValueError`."""
    # A first answer without room for the chain has no cap_offset, whatever its flags say.
    cap_offset = reply.cap_offset if reply.chain else 0
    members = (reply.argsz, reply.flags, reply.index, cap_offset, reply.size, reply.offset)
    data = vfio.REGION_INFO.pack(*members) + reply.chain
    return RegionInfo.from_struct(vfio.RegionInfo(*members), data, fd)
