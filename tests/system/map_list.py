# SPDX-License-Identifier: BSD-3-Clause
"""A device that tells what a client has mapped for it, as it heard of it.

========  ==================================================================
BAR 0     0x00 number of maps; reading it makes the list of BAR 2
          0x08 address whose map is refused with ENOSPC (64 bits)
          0x10 address whose unmap fails with EIO, and is gone all the same (64 bits)
          0x18 number of maps and unmaps that were heard of so far (32 bits)
BAR 2     the list: address, size, flags, and the first 8 bytes that are found there
========  ==================================================================
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from pyvfio.errors import VFIOError
from pyvfio.pci.device import PCIDevice
from pyvfio.server.model import DeviceModel, Identity, ModelBAR
from pyvfio.uapi.vfio import DMAMapFlags

REGISTERS, LIST = 0, 2
COUNT, REFUSE_MAP, REFUSE_UNMAP, HEARD = 0x00, 0x08, 0x10, 0x18
ENTRY = 32
"""Bytes of an entry of the list."""
NOWHERE = (1 << 64) - 1
"""An address at which nothing is refused."""


class MapList(DeviceModel):
    """The device."""

    identity = Identity(0x1B36, 0x0005, 0x00FF00)
    bars: ClassVar[Mapping[int, ModelBAR]] = {
        REGISTERS: ModelBAR(4096),
        LIST: ModelBAR(64 * 1024, backed=True),
    }

    def __init__(self) -> None:
        super().__init__()
        self._maps: dict[int, tuple[int, DMAMapFlags]] = {}
        self._refuse = {REFUSE_MAP: NOWHERE, REFUSE_UNMAP: NOWHERE}
        self._heard = 0

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        if offset == HEARD:
            return self._heard
        if offset == COUNT:
            self._make_list()
            return len(self._maps)
        return 0

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        if offset in self._refuse:
            self._refuse[offset] = value

    def memory_mapped(self, iova: int, size: int, flags: DMAMapFlags) -> None:
        if iova == self._refuse[REFUSE_MAP]:
            raise OSError(errno.ENOSPC, "as it was asked for")
        self._maps[iova] = size, flags
        self._heard += 1

    def memory_unmapped(self, iova: int, size: int) -> None:
        mapped, _ = self._maps.pop(iova)
        assert mapped == size
        self._heard += 1
        if iova == self._refuse[REFUSE_UNMAP]:
            raise OSError(errno.EIO, "as it was asked for")

    def reset(self) -> None:
        """Refuse nothing, and count from 0."""
        self._refuse = dict.fromkeys(self._refuse, NOWHERE)
        self._heard = 0

    def _make_list(self) -> None:
        memory = self.bar_memory(LIST).view("<u8")
        for position, (iova, (size, flags)) in enumerate(sorted(self._maps.items())):
            memory[position * 4 : position * 4 + 4] = iova, size, flags, self._first_bytes(iova)

    def _first_bytes(self, iova: int) -> int:
        try:
            return int.from_bytes(self.dma_read(iova, 8), "little")
        except VFIOError:
            return 0


class Heard(NamedTuple):
    """A map, as the device heard of it; ``first`` are its first 8 bytes, 0 where it reads none."""

    iova: int
    size: int
    flags: int
    first: int


def heard(device: PCIDevice) -> list[Heard]:
    """What is mapped for the device, as it says."""
    count = device.bars[REGISTERS].read32(COUNT)
    data = memoryview(device.bars[LIST].read_bytes(0, count * ENTRY)).cast("Q")
    return [Heard(*data[at : at + 4]) for at in range(0, len(data), 4)]
