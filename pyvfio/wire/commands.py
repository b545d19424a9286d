# SPDX-License-Identifier: BSD-3-Clause
"""The table of commands: who sends each, its payloads, and the descriptors that go with it."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from pyvfio.wire import messages
from pyvfio.wire.header import Command
from pyvfio.wire.version import MAX_FDS


class Role(Enum):
    """Which end of the socket."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def peer(self) -> Role:
        """The other end."""
        return Role.SERVER if self is Role.CLIENT else Role.CLIENT


class CommandSpec(NamedTuple):
    """One command.

    :param sender: which side asks.
    :param request: payload class of the command.
    :param reply: payload class of the reply.
    :param request_fds: most descriptors that the command may carry.
    :param reply_fds: most descriptors that the reply may carry.
    """

    sender: Role
    request: type[messages.Request]
    reply: type[messages.Message]
    request_fds: int = 0
    reply_fds: int = 0


_CLIENT, _SERVER = Role.CLIENT, Role.SERVER

COMMANDS: dict[Command, CommandSpec] = {
    Command.VERSION: CommandSpec(_CLIENT, messages.Version, messages.Version, reply_fds=MAX_FDS),
    Command.DMA_MAP: CommandSpec(_CLIENT, messages.DMAMap, messages.Empty, request_fds=1),
    Command.DMA_UNMAP: CommandSpec(_CLIENT, messages.DMAUnmap, messages.DMAUnmap),
    Command.DEVICE_GET_INFO: CommandSpec(_CLIENT, messages.GetDeviceInfo, messages.DeviceInfo),
    Command.DEVICE_GET_REGION_INFO: CommandSpec(
        _CLIENT, messages.GetRegionInfo, messages.RegionInfo, reply_fds=1
    ),
    Command.DEVICE_GET_REGION_IO_FDS: CommandSpec(
        _CLIENT, messages.GetRegionIOFDs, messages.RegionIOFDs, reply_fds=MAX_FDS
    ),
    Command.DEVICE_GET_IRQ_INFO: CommandSpec(_CLIENT, messages.GetIRQInfo, messages.IRQInfo),
    Command.DEVICE_SET_IRQS: CommandSpec(
        _CLIENT, messages.SetIRQs, messages.Empty, request_fds=MAX_FDS
    ),
    Command.REGION_READ: CommandSpec(_CLIENT, messages.RegionRead, messages.RegionData),
    Command.REGION_WRITE: CommandSpec(_CLIENT, messages.RegionWrite, messages.RegionWritten),
    Command.DMA_READ: CommandSpec(_SERVER, messages.DMARead, messages.DMAData),
    Command.DMA_WRITE: CommandSpec(_SERVER, messages.DMAWrite, messages.DMAWritten),
    Command.DEVICE_RESET: CommandSpec(_CLIENT, messages.Empty, messages.Empty),
    Command.REGION_WRITE_MULTI: CommandSpec(
        _CLIENT, messages.RegionWriteMulti, messages.RegionWriteMultiDone
    ),
    Command.DEVICE_FEATURE: CommandSpec(_CLIENT, messages.DeviceFeature, messages.DeviceFeature),
    Command.MIG_DATA_READ: CommandSpec(_CLIENT, messages.MigDataRead, messages.MigData),
    Command.MIG_DATA_WRITE: CommandSpec(_CLIENT, messages.MigDataWrite, messages.Empty),
}
