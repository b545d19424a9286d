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

    :param command: its number.
    :param sender: which side asks.
    :param request: payload class of the command.
    :param reply: payload class of the reply.
    :param request_fds: most descriptors that the command may carry.
    :param reply_fds: most descriptors that the reply may carry.
    """

    command: Command
    sender: Role
    request: type[messages.Request]
    reply: type[messages.Message]
    request_fds: int = 0
    reply_fds: int = 0


_CLIENT, _SERVER = Role.CLIENT, Role.SERVER

_SPECS = (
    CommandSpec(Command.VERSION, _CLIENT, messages.Version, messages.Version, reply_fds=MAX_FDS),
    CommandSpec(Command.DMA_MAP, _CLIENT, messages.DMAMap, messages.Empty, request_fds=1),
    CommandSpec(Command.DMA_UNMAP, _CLIENT, messages.DMAUnmap, messages.DMAUnmap),
    CommandSpec(Command.DEVICE_GET_INFO, _CLIENT, messages.GetDeviceInfo, messages.DeviceInfo),
    CommandSpec(
        Command.DEVICE_GET_REGION_INFO,
        _CLIENT,
        messages.GetRegionInfo,
        messages.RegionInfo,
        reply_fds=1,
    ),
    CommandSpec(
        Command.DEVICE_GET_REGION_IO_FDS,
        _CLIENT,
        messages.GetRegionIOFDs,
        messages.RegionIOFDs,
        reply_fds=MAX_FDS,
    ),
    CommandSpec(Command.DEVICE_GET_IRQ_INFO, _CLIENT, messages.GetIRQInfo, messages.IRQInfo),
    CommandSpec(
        Command.DEVICE_SET_IRQS, _CLIENT, messages.SetIRQs, messages.Empty, request_fds=MAX_FDS
    ),
    CommandSpec(Command.REGION_READ, _CLIENT, messages.RegionRead, messages.RegionData),
    CommandSpec(Command.REGION_WRITE, _CLIENT, messages.RegionWrite, messages.RegionWritten),
    CommandSpec(Command.DMA_READ, _SERVER, messages.DMARead, messages.DMAData),
    CommandSpec(Command.DMA_WRITE, _SERVER, messages.DMAWrite, messages.DMAWritten),
    CommandSpec(Command.DEVICE_RESET, _CLIENT, messages.Empty, messages.Empty),
    CommandSpec(
        Command.REGION_WRITE_MULTI,
        _CLIENT,
        messages.RegionWriteMulti,
        messages.RegionWriteMultiDone,
    ),
    CommandSpec(Command.DEVICE_FEATURE, _CLIENT, messages.DeviceFeature, messages.DeviceFeature),
    CommandSpec(Command.MIG_DATA_READ, _CLIENT, messages.MigDataRead, messages.MigData),
    CommandSpec(Command.MIG_DATA_WRITE, _CLIENT, messages.MigDataWrite, messages.Empty),
)

COMMANDS: dict[int, CommandSpec] = {spec.command: spec for spec in _SPECS}
"""Command number -> what there is to know of it."""
