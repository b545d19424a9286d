# SPDX-License-Identifier: BSD-3-Clause
"""The commands of the protocol, carried out for one client (specification, "Commands")."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from pyvfio.server.deferred import DeferredAnswers
from pyvfio.server.failures import note
from pyvfio.server.features import Features
from pyvfio.server.function import PCIFunction
from pyvfio.server.guest_memory import GuestMemory
from pyvfio.server.io_eventfds import IOEventFDs
from pyvfio.server.migration import Migration
from pyvfio.server.model import ModelIOEventFD
from pyvfio.server.quotas import Quotas
from pyvfio.server.run_control import Kicks
from pyvfio.transport.channel import PeerRequest
from pyvfio.uapi import chain, vfio
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.pci import BARType
from pyvfio.vectors import RegionInfo
from pyvfio.wire import messages
from pyvfio.wire.connection import RequestInvalid
from pyvfio.wire.header import Command
from pyvfio.wire.messages import Message

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """A reply's payload, with descriptors that stay their owner's."""

    message: Message
    fds: tuple[int, ...] = ()


class Requests:
    """Carries out the commands of one client, one after the other.

    :param guest: the client's memory.
    :param deferred: where answers of the model are awaited.
    :param max_fds: descriptors that the client takes in one message.
    :param name: what the log calls the client.
    """

    def __init__(
        self,
        function: PCIFunction,
        *,
        guest: GuestMemory,
        deferred: DeferredAnswers,
        quotas: Quotas,
        max_fds: int,
        name: str,
    ) -> None:
        self._function = function
        self._maps = guest.maps
        self._deferred = deferred
        self._quotas = quotas
        self._max_fds = max_fds
        self._name = name
        self._features = Features(function.migration, guest.log, quotas)
        self._io_eventfds = IOEventFDs(
            function.model.io_eventfds, self._write, lambda: deferred.over, name
        )

    def carry_out(self, request: PeerRequest, fds: list[int]) -> Answer:
        """Do what a request asks; descriptors that are kept are removed from ``fds``.

        :raises Exception: it is refused, or the model failed.
        """
        if isinstance(request, RequestInvalid):
            raise OSError(request.errno, request.reason)
        handler = _HANDLERS.get(request.command)
        if handler is None:
            raise OSError(errno.ENOTSUP, f"{request.command.name} is not served")
        return handler(self, request.message, fds)

    @property
    def kicks(self) -> Kicks:
        """The client's eventfds, for who stops the device."""
        return self._io_eventfds

    def close(self) -> None:
        """The client is gone: nothing kicks the model any more."""
        self._io_eventfds.close()

    def _version(self, message: Any, fds: list[int]) -> Answer:
        raise OSError(errno.EINVAL, "VERSION is the first message, once")

    # Memory

    def _dma_map(self, message: messages.DMAMap, fds: list[int]) -> Answer:
        self._maps.map(message, fds[0] if fds else None)
        return Answer(messages.Empty())

    def _dma_unmap(self, message: messages.DMAUnmap, fds: list[int]) -> Answer:
        self._maps.unmap(message)
        return Answer(message)

    # What the device is

    def _get_info(self, message: messages.GetDeviceInfo, fds: list[int]) -> Answer:
        info = self._function.info()
        return Answer(messages.DeviceInfo(info.flags, info.num_regions, info.num_irqs))

    def _get_region_info(self, message: messages.GetRegionInfo, fds: list[int]) -> Answer:
        info = self._function.regions.info(message.index)
        start, found = vfio.REGION_INFO.size, _capabilities(info)
        # Capabilities, and the descriptor with them, only where the client has room for them; the
        # reply's argsz tells of more. The flag comes with them: QEMU refuses it without an offset.
        fits = start + len(found) <= message.argsz
        here = bool(found) and fits
        reply = messages.RegionInfo(
            argsz=start + len(found),
            flags=info.flags | vfio.RegionFlags.CAPS if here else info.flags,
            index=info.index,
            cap_offset=start if here else 0,
            size=info.size,
            offset=info.fd_offset,
            chain=found if fits else b"",
        )
        return Answer(reply, (info.fd,) if info.fd is not None and fits else ())

    def _get_region_io_fds(self, message: messages.GetRegionIOFDs, fds: list[int]) -> Answer:
        index = self._function.regions.info(message.index).index
        bar = self._function.model.bars.get(index)
        ports = bar is not None and bar.type is BARType.IO
        # Fewer where the client takes fewer descriptors: what is not listed is written by messages.
        found = self._io_eventfds.of(index)[: self._max_fds]
        sub_regions = [_sub_region(entry, n, ports) for n, (entry, _) in enumerate(found)]
        reply = messages.RegionIOFDs.of(index, sub_regions, message.argsz)
        return Answer(reply, tuple(fd for _, fd in found) if reply.sub_regions else ())

    # Interrupts

    def _get_irq_info(self, message: messages.GetIRQInfo, fds: list[int]) -> Answer:
        flags, count = self._function.irq_info(message.index)
        return Answer(messages.IRQInfo(flags, message.index, count))

    def _set_irqs(self, message: messages.SetIRQs, fds: list[int]) -> Answer:
        self._function.set_irqs(message, fds, self._quotas.max_descriptors)
        return Answer(messages.Empty())

    # Registers

    def _region_read(self, message: messages.RegionRead, fds: list[int]) -> Answer:
        self._check_count(message.count)
        data = self._function.regions.read(
            message.region, message.offset, message.count, self._deferred
        )
        return Answer(messages.RegionData(message.offset, message.region, data))

    def _region_write(self, message: messages.RegionWrite, fds: list[int]) -> Answer:
        self._check_count(message.count)
        self._write(message.region, message.offset, message.data)
        return Answer(messages.RegionWritten(message.offset, message.region, message.count))

    def _region_write_multi(self, message: messages.RegionWriteMulti, fds: list[int]) -> Answer:
        done = 0
        for write in message.writes:
            try:
                self._write(write.region, write.offset, write.data)
            except Exception as error:
                if not done:
                    raise
                # The reply says how many were done, as a short write does.
                note(log, self._name, error)
                break
            done += 1
        return Answer(messages.RegionWriteMultiDone(done))

    def _check_count(self, count: int) -> None:
        if count > self._quotas.max_data:
            raise OSError(errno.EINVAL, f"{count} bytes, at most {self._quotas.max_data}")

    def _write(self, region: int, offset: int, data: Buffer) -> None:
        self._function.regions.write(region, offset, data, self._deferred)

    def _reset(self, message: messages.Empty, fds: list[int]) -> Answer:
        self._function.reset(self._deferred)
        return Answer(messages.Empty())

    # Migration

    def _feature(self, message: messages.DeviceFeature, fds: list[int]) -> Answer:
        return Answer(self._features.carry_out(message))

    def _mig_data_read(self, message: messages.MigDataRead, fds: list[int]) -> Answer:
        self._check_count(message.size)
        return Answer(messages.MigData(self._migration.read(message.size)))

    def _mig_data_write(self, message: messages.MigDataWrite, fds: list[int]) -> Answer:
        self._check_count(len(message.data))
        self._migration.write(message.data)
        return Answer(messages.Empty())

    @property
    def _migration(self) -> Migration:
        if self._function.migration is None:
            raise OSError(errno.ENOTSUP, "the device cannot be migrated")
        return self._function.migration


def _capabilities(info: RegionInfo) -> bytes:
    """The capability chain behind a region's info: the areas, where not all of it is one."""
    if not info.areas or (info.areas[0].offset, info.areas[0].size) == (0, info.size):
        return b""
    areas = [vfio.SparseMmapArea(area.offset, area.size) for area in info.areas]
    return chain.build(vfio.REGION_INFO.size, [chain.sparse_capability(areas)])


def _sub_region(entry: ModelIOEventFD, fd_index: int, ports: bool) -> messages.IOSubRegion:
    flags = messages.IOEventFDFlags(0)
    if entry.datamatch is not None:
        flags |= messages.IOEventFDFlags.DATAMATCH
    if ports:
        flags |= messages.IOEventFDFlags.PIO
    kind = messages.IOFDType.IOEVENTFD
    return messages.IOSubRegion(
        entry.offset, entry.size, fd_index, kind, flags, entry.datamatch or 0
    )


_HANDLERS: dict[Command, Callable[[Requests, Any, list[int]], Answer]] = {
    Command.VERSION: Requests._version,
    Command.DMA_MAP: Requests._dma_map,
    Command.DMA_UNMAP: Requests._dma_unmap,
    Command.DEVICE_GET_INFO: Requests._get_info,
    Command.DEVICE_GET_REGION_INFO: Requests._get_region_info,
    Command.DEVICE_GET_REGION_IO_FDS: Requests._get_region_io_fds,
    Command.DEVICE_GET_IRQ_INFO: Requests._get_irq_info,
    Command.DEVICE_SET_IRQS: Requests._set_irqs,
    Command.REGION_READ: Requests._region_read,
    Command.REGION_WRITE: Requests._region_write,
    Command.REGION_WRITE_MULTI: Requests._region_write_multi,
    Command.DEVICE_RESET: Requests._reset,
    Command.DEVICE_FEATURE: Requests._feature,
    Command.MIG_DATA_READ: Requests._mig_data_read,
    Command.MIG_DATA_WRITE: Requests._mig_data_write,
}
