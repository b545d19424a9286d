# SPDX-License-Identifier: BSD-3-Clause
"""Device models with a will of their own, for tests of the server: ``tests.fault.models:Name``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pyvfio.server.model import DeviceModel, Identity, ModelBAR, ModelIOEventFD
from pyvfio.uapi.pci import BARType


class Small(DeviceModel):
    """Base of the others: one BAR of registers that keep what is written, 8 bytes each."""

    identity = Identity(0x1234, 0x0001, 0xFF0000)
    bars: ClassVar[Mapping[int, ModelBAR]] = {0: ModelBAR(4096)}

    def __init__(self) -> None:
        super().__init__()
        self.registers: dict[int, int] = {}

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        return self.registers.get(offset, 0)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self.registers[offset] = value


class Doorbells(Small):
    """Ports that count their kicks, and a register that fails on each."""

    bars: ClassVar[Mapping[int, ModelBAR]] = {0: ModelBAR(4096), 1: ModelBAR(64, BARType.IO)}
    io_eventfds = (
        ModelIOEventFD(1, 2, 2, 0x1234),
        ModelIOEventFD(1, 8, 8, 0x1122334455667788),
        ModelIOEventFD(0, 0x20, 1),
        ModelIOEventFD(1, 16, 1),
    )

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        if bar == 0:
            raise RuntimeError("a mistake of the model")
        self.registers[0] = self.registers.get(0, 0) + 1
        self.registers[8] = offset << 8 | width
        self.registers[16] = value
