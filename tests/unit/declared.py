# SPDX-License-Identifier: BSD-3-Clause
"""Devices that are only what they say of themselves, also such as no server would serve.

Their interrupts are fired by the test: the eventfds that they were given are at hand.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence

from pyvfio import eventfd
from pyvfio.base import VFIOBase
from pyvfio.pci.device import PCIDevice
from pyvfio.posting import Posting
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import (
    PCIIRQ,
    DeviceFlags,
    IRQFlags,
    IRQSetFlags,
    PCIRegion,
    RegionFlags,
)
from pyvfio.vectors import ContainerIO, DeviceInfo, DeviceIO, IRQInfo, MmapArea, RegionInfo

URI = "declared:device"
MEM32, MEM64, IO = 0x0, 0x4, 0x1

BARs = Mapping[int, tuple[int, int, Sequence[tuple[int, int]]]]
"""(bytes, low bits of the register, areas that can be mapped) by number."""


class DeclaredIO(DeviceIO):
    """What a device says of itself.

    :param capabilities: the bytes of each from its id on, without the pointer, by offset.
    :ivar config: configuration space.
    :ivar counts: vectors of each interrupt index.
    :ivar eventfds: what it was given, by (index, action, vector).
    :ivar calls: each SET_IRQS: index, action, first vector, how many, and whether with eventfds.
    :ivar errors: raised by the next SET_IRQS, one each; None lets one pass.
    """

    def __init__(
        self,
        bars: BARs | None = None,
        capabilities: Mapping[int, bytes] | None = None,
        *,
        ids: tuple[int, int] = (0x1AF4, 0x1100),
        pin: int = 1,
        msix_mappable: bool = False,
        irq_flags: IRQFlags = IRQFlags.EVENTFD,
    ) -> None:
        self.bars = bars or {}
        self.msix_mappable = msix_mappable
        self.irq_flags = irq_flags
        self.config = bytearray(256)
        self.counts = dict.fromkeys(PCIIRQ, 32)
        self.eventfds: dict[tuple[PCIIRQ, IRQSetFlags, int], int] = {}
        self.calls: list[tuple[PCIIRQ, IRQSetFlags, int, int, bool]] = []
        self.errors: list[Exception | None] = []
        struct.pack_into("<HH", self.config, 0, *ids)
        self.config[0x3D] = pin
        for number, (_, bits, _) in self.bars.items():
            struct.pack_into("<I", self.config, 0x10 + 4 * number, bits)
        self._put_list(capabilities or {})

    def _put_list(self, capabilities: Mapping[int, bytes]) -> None:
        pointer = 0x34
        for at, body in capabilities.items():
            self.config[6] = 0x10
            self.config[pointer] = at
            self.config[at] = body[0]
            self.config[at + 2 : 256] = body[1:].ljust(254 - at, b"\0")[: 254 - at]
            pointer = at + 1

    def fire(self, index: PCIIRQ, vector: int = 0) -> None:
        """Signal a vector."""
        eventfd.signal(self.eventfds[index, IRQSetFlags.TRIGGER, vector])

    def get_info(self) -> DeviceInfo:
        return DeviceInfo(DeviceFlags.PCI, 9, 5)

    def get_region_info(self, index: int) -> RegionInfo:
        flags = RegionFlags.READ | RegionFlags.WRITE
        if index == PCIRegion.CONFIG:
            return RegionInfo(index, flags, len(self.config))
        size, _, areas = self.bars.get(index, (0, 0, ()))
        mapped = tuple(MmapArea(*area) for area in areas)
        return RegionInfo(index, flags, size, areas=mapped, msix_mappable=self.msix_mappable)

    def get_irq_info(self, index: int) -> IRQInfo:
        return IRQInfo(index, self.irq_flags, self.counts[PCIIRQ(index)])

    def region_read(self, index: int, offset: int, size: int) -> Buffer:
        if index != PCIRegion.CONFIG:
            raise OSError(errno.EIO, "there are no registers")
        return self.config[offset : offset + size]

    def region_write(self, index: int, offset: int, data: Buffer, *, posted: bool = False) -> int:
        return len(data)  # it keeps nothing

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
        irq = PCIIRQ(index)
        self.calls.append((irq, action, start, count, eventfds is not None))
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        if eventfds is None and not count:
            self.eventfds = {key: fd for key, fd in self.eventfds.items() if key[0] is not irq}
        for vector, fd in enumerate(eventfds or (), start):
            self.eventfds[irq, action, vector] = fd

    def flush(self) -> None:
        raise NotImplementedError

    def reset(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class DeclaredBase(VFIOBase):
    """A device without an IO address space."""

    def __init__(self, io: DeclaredIO) -> None:
        super().__init__(URI)
        self._io = io
        self._info = io.get_info()
        self._posting = Posting(self.flush)

    @property
    def device_io(self) -> DeviceIO:
        return self._io

    @property
    def container_io(self) -> ContainerIO:
        raise NotImplementedError


def declared(io: DeclaredIO) -> PCIDevice:
    """The device that says so of itself."""
    return PCIDevice(DeclaredBase(io))
