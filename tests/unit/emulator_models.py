# SPDX-License-Identifier: BSD-3-Clause
"""Devices for the tests of the emulator's parts; served by another process."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import ClassVar

from pyvfio.server.model import DeviceModel, Identity, ModelBAR, ModelMSIX
from pyvfio.uapi.pci import BARType
from tests.unit.option_rom import option_rom

FAILING = 0xF00
"""From here on, accesses to BAR 0 fail."""
RECORD = 5
"""The BAR that tells what was asked."""
MAPPABLE = ((0x1000, 0x2000), (0x8000, 0x1000))
"""(offset, size) of what can be mapped of BAR 2."""

ROM = option_rom(0x1234, 0x0010, length=2560)


class WithROM(DeviceModel):
    """An expansion ROM of 2.5 KiB, which claims 4 KiB."""

    identity = Identity(0x1234, 0x0010, 0xFF0000)
    rom = ROM


class Recording(DeviceModel):
    """Keeps what is asked of it; a BAR of every kind.

    ======  ===================================================================================
    BAR 0   4 KiB that keep what is written; accesses from 0xf00 on fail
    BAR 1   32 I/O ports that keep what is written
    BAR 2   64 KiB of memory, 64 bits and prefetchable; two areas of it can be mapped
    BAR 4   256 bytes of memory that can be mapped
    BAR 5   what was asked of BAR 0 and 1 so far: a number, then 8 bytes for each access (offset
            in 2 bytes, width, BAR, 1 for a write); a write forgets it
    ======  ===================================================================================
    """

    identity = Identity(0x1234, 0x0011, 0xFF0000)
    bars: ClassVar[Mapping[int, ModelBAR]] = {
        0: ModelBAR(4096),
        1: ModelBAR(32, BARType.IO),
        2: ModelBAR(1 << 16, BARType.MEM64, prefetchable=True, backed=True, mappable=MAPPABLE),
        4: ModelBAR(256, backed=True, mappable=((0, 256),)),
        5: ModelBAR(4096),
    }

    def __init__(self) -> None:
        super().__init__()
        self._kept = {0: bytearray(4096), 1: bytearray(32)}
        self._asked: list[int] = []

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        if bar == RECORD:
            return self._asked[offset // 8 - 1] if offset else len(self._asked)
        self._note(0, bar, offset, width)
        return int.from_bytes(self._kept[bar][offset : offset + width], "little")

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        if bar == RECORD:
            self._asked.clear()
            return
        self._note(1, bar, offset, width)
        self._kept[bar][offset : offset + width] = value.to_bytes(width, "little")

    def _note(self, write: int, bar: int, offset: int, width: int) -> None:
        self._asked.append(offset | width << 16 | bar << 24 | write << 32)
        if offset >= FAILING:
            raise OSError(errno.EIO, "it fails as it is meant to")


class RTL8168(DeviceModel):
    """The window of an RTL8168 to its MSI-X table, and what came through it.

    BAR 2 has data at 0x70 and address at 0x74, where any address is one of 4,096 dwords of a kind.
    0x78 tells how many dwords of the MSI-X table were written through the window.
    """

    identity = Identity(0x10EC, 0x8168, 0x020000, revision_id=0x15)
    bars: ClassVar[Mapping[int, ModelBAR]] = {
        2: ModelBAR(4096, BARType.MEM64),
        4: ModelBAR(16384, BARType.MEM64, backed=True),
    }
    msix = ModelMSIX(4, table=(4, 0), pba=(4, 0x800))

    def __init__(self) -> None:
        super().__init__()
        self._data = self._address = self._written = 0
        self._registers: dict[int, int] = {}

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        return {0x70: self._data, 0x74: self._address, 0x78: self._written}.get(offset, 0)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        if offset == 0x70:
            self._data = value
        elif offset == 0x74:
            self._address = value ^ 1 << 31  # latched, or done
            place = value & 0x7FFF_0FFF
            if value >> 31:
                self._registers[place] = self._data
                self._written += place >> 16 == 1
            else:
                self._data = self._registers.get(place, 0)

    def reset(self) -> None:
        self._registers.clear()
        self._data = self._address = self._written = 0
