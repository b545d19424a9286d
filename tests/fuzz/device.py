# SPDX-License-Identifier: BSD-3-Clause
"""The device behind the random server: orderly in each answer, but not always in what it is."""

from __future__ import annotations

import dataclasses
import random
import socket
import struct

from pyvfio.uapi import chain, vfio
from pyvfio.uapi.vfio import DeviceState, Feature, FeatureFlags
from pyvfio.wire import messages as m
from pyvfio.wire.header import Command
from pyvfio.wire.version import Capabilities
from tests.fuzz import values
from tests.fuzz.descriptors import Descriptors
from tests.fuzz.messages import damaged
from tests.fuzz.subject import PATTERN, PATTERN_OFFSET
from tests.unit.wire_examples import ANSWERS

CONFIG = 7
_READ, _WRITE, _MAP, _CAPS = 1, 2, 4, 8
_SANE = Capabilities(max_msg_fds=8, max_data_xfer_size=1 << 20, write_multiple=True)
_START = vfio.REGION_INFO.size

_CAPABILITIES = (
    (0x40, b"\x01\x50\x03\x00\x08\x00\x00\x00"),
    (0x50, b"\x05\x70\x86\x00" + bytes(20)),
    (0x70, b"\x11\x80\x1f\x00\x01\x00\x00\x00\x01\x08\x00\x00"),
    (0x80, b"\x10\x00\x02\x00" + bytes(56)),
)
"""Power management, MSI, MSI-X and PCI Express, as they stand in configuration space."""


def _config_space(rng: random.Random) -> bytes:
    """4 KiB of configuration space: in order, damaged, or no such thing at all."""
    space = bytearray(4096)
    struct.pack_into("=HHHH", space, 0, 0x1234, 0x11E8, 0, 0x10)
    space[0x34], space[0x3D] = 0x40, 1
    for offset, capability in _CAPABILITIES:
        space[offset : offset + len(capability)] = capability
    space[0x100:0x108] = struct.pack("=II", 0x1401_0001, 0)
    kind = rng.random()
    if kind < 0.6:
        return bytes(space)
    if kind < 0.9:
        return damaged(rng, bytes(space[:256]))[:256].ljust(256, b"\0") + bytes(space[256:])
    return rng.randbytes(4096)


class Device:
    """Answers every command of the table.

    :param stock: descriptors that regions are backed with.
    :ivar twin: our end of the twin socket, until somebody takes it.
    """

    def __init__(self, rng: random.Random, stock: Descriptors) -> None:
        self._rng = rng
        self._stock = stock
        self._config = _config_space(rng)
        self._sizes = {0: 4096, 1: 4096, 2: rng.choice((0x4000, 64 << 20)), 4: 32}
        self._sizes[CONFIG] = rng.choice((4096, 256, 256, 64))
        self._mapped = rng.random() < 0.5
        self._twin = rng.random() < 0.7
        self.twin: socket.socket | None = None
        self._state = int(DeviceState.RUNNING)

    def answer(self, command: Command, asked: m.Request) -> tuple[m.Message, list[int]]:
        """The payload, and the descriptors that go with it."""
        if isinstance(asked, m.GetRegionInfo):
            return self._region(asked)
        if isinstance(asked, m.GetIRQInfo):
            counts = (1, 8, 32, 1, 1)
            return m.IRQInfo(7, asked.index, counts[asked.index % len(counts)]), []
        if isinstance(asked, m.GetRegionIOFDs):
            entries = [m.IOSubRegion(4 * at, 4, at % 2, 0, 0, 0) for at in range(3)]
            found = m.RegionIOFDs.of(asked.index, entries, asked.argsz)
            return found, [self._stock.event] * 2 if found.sub_regions else []
        if isinstance(asked, m.RegionRead):
            return m.RegionData(asked.offset, asked.region, self._read(asked)), []
        if isinstance(asked, m.DeviceFeature | m.MigDataRead):
            return self._migration(asked), []
        return ANSWERS[command](asked), []

    def _migration(self, asked: m.DeviceFeature | m.MigDataRead) -> m.Message:
        if isinstance(asked, m.MigDataRead):
            size = self._rng.choice((0, 0, 1, asked.size))
            return m.MigData(bytes(min(size, asked.size, 1 << 20)))
        data = self._feature(asked)
        return m.DeviceFeature(8 + len(data), asked.flags, data)

    def _feature(self, asked: m.DeviceFeature) -> bytes:
        """What comes back of a feature: it is there, and says what it is asked."""
        data, get = bytes(asked.data), asked.flags & FeatureFlags.GET
        if asked.flags & FeatureFlags.PROBE:
            return data
        feature = asked.flags & vfio.FEATURE_MASK
        if feature == Feature.MIG_DEVICE_STATE and get:
            return vfio.FEATURE_STATE.pack(self._state, -1)
        if feature == Feature.MIG_DEVICE_STATE and len(data) >= vfio.FEATURE_STATE.size:
            self._state = vfio.FEATURE_STATE.unpack_from(data).device_state
        elif feature == Feature.DMA_LOGGING_REPORT and get:
            return data + self._rng.randbytes(max(0, min(asked.argsz, 1 << 16) - 8 - len(data)))
        elif get:
            return struct.pack("=Q", self._rng.choice((1, 5, 5, 7)))
        return data

    def _read(self, asked: m.RegionRead) -> bytes:
        if asked.region != CONFIG:
            return bytes(asked.count)
        if (asked.offset, asked.count) == (PATTERN_OFFSET, len(PATTERN)):
            return PATTERN
        return self._config[asked.offset : asked.offset + asked.count].ljust(asked.count, b"\xff")

    def _region(self, asked: m.GetRegionInfo) -> tuple[m.Message, list[int]]:
        size = self._sizes.get(asked.index, 0)
        flags = _READ | _WRITE if size else 0
        if not self._mapped or size < 0x4000:
            return m.RegionInfo(_START, flags, asked.index, 0, size, 0), []
        areas = [vfio.SparseMmapArea(0x1000, 0x1000), vfio.SparseMmapArea(0x3000, 0x1000)]
        listed = chain.build(_START, [chain.sparse_capability(areas)])
        flags |= _MAP | _CAPS
        argsz = _START + len(listed)
        if asked.argsz < argsz:
            return m.RegionInfo(argsz, flags, asked.index, 0, size, 0), []
        return m.RegionInfo(argsz, flags, asked.index, _START, size, 0, listed), [self._stock.file]

    def version(self, offered: m.Version) -> tuple[m.Version, socket.socket | None]:
        """The answer to VERSION, and the client's end of a twin socket if it takes one."""
        ours = values.capabilities(self._rng) if self._rng.random() < 0.3 else _SANE
        theirs = offered.capabilities or Capabilities()
        if not theirs.twin_socket or not self._twin:
            return m.Version(0, 1, dataclasses.replace(ours, twin_socket=None)), None
        if self.twin is not None:
            self.twin.close()  # that of an earlier connection, which nobody took
        self.twin, client_end = socket.socketpair()
        agreed = dataclasses.replace(ours, twin_socket=True, twin_fd_index=0)
        return m.Version(0, 1, agreed), client_end
