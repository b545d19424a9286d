# SPDX-License-Identifier: BSD-3-Clause
"""Configuration spaces made of bytes, also such as no server would serve."""

from __future__ import annotations

from pyvfio.pci.config import ConfigSpace
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Register, Status
from pyvfio.uapi.vfio import PCIRegion, RegionFlags
from pyvfio.vectors import RegionInfo
from tests.unit.test_region import FakeIO

READ_WRITE = RegionFlags.READ | RegionFlags.WRITE

PLAIN = {pci.VENDOR_ID: 0x1234, pci.DEVICE_ID: 0x5678, pci.REVISION_ID: 0x9A}


class RawConfig(FakeIO):
    """A device that keeps whatever is written to its configuration space, ids included.

    :ivar region: its region.
    """

    def __init__(self, size: int = pci.EXTENDED_CONFIG_SIZE) -> None:
        super().__init__()
        self.region = ConfigSpace(self, RegionInfo(PCIRegion.CONFIG, READ_WRITE, size), "raw:x")
        for register, value in PLAIN.items():
            self.store(register, value)

    def store(self, register: Register, value: int, base: int = 0) -> None:
        """Set a register of the device."""
        start = base + register.offset
        self.memory[start : start + register.width] = value.to_bytes(register.width, "little")

    def load(self, register: Register, base: int = 0) -> int:
        """What a register of the device holds."""
        start = base + register.offset
        return int.from_bytes(self.memory[start : start + register.width], "little")

    def put_list(self, *capabilities: tuple[int, int]) -> None:
        """Write a list of (offset, id)."""
        self.store(pci.STATUS, Status.CAP_LIST)
        pointer = pci.CAPABILITY_LIST.offset
        for offset, number in capabilities:
            self.memory[pointer] = offset
            self.memory[offset] = number
            pointer = offset + 1
        self.memory[pointer] = 0

    def put_extended(self, *capabilities: tuple[int, int]) -> None:
        """Write an extended list of (offset, id), of version 1 each."""
        ends = [offset for offset, _ in capabilities[1:]] + [0]
        for (offset, number), following in zip(capabilities, ends, strict=True):
            self.store(Register(offset, 4), following << 20 | 1 << 16 | number)
