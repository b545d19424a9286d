# SPDX-License-Identifier: BSD-3-Clause
"""Device models that show what the package's own do not: order of writes, wholly mapped memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pyvfio.server.model import DeviceModel, Identity, ModelBAR

COUNT, LAST, OUT_OF_ORDER, PUT = 0x0, 0x4, 0x8, 0x10
"""Registers of :class:`Sequence`: writes to PUT so far, the last value, those that were not one
more than the one before."""
MEMORY_SIZE = 1 << 20


class Sequence(DeviceModel):
    """Counts writes, and those out of order; no region of it can be mapped."""

    identity = Identity(0x1234, 0x0001, 0xFF0000)
    bars: ClassVar[Mapping[int, ModelBAR]] = {0: ModelBAR(4096)}

    def __init__(self) -> None:
        super().__init__()
        self._registers = {COUNT: 0, LAST: 0, OUT_OF_ORDER: 0}

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """A register."""
        return self._registers.get(offset, 0)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """PUT takes a number."""
        if offset == PUT:
            self._registers[COUNT] += 1
            self._registers[OUT_OF_ORDER] += value != self._registers[LAST] + 1
            self._registers[LAST] = value


class Memory(DeviceModel):
    """Memory that clients may map from its first byte to its last."""

    identity = Identity(0x1234, 0x0002, 0x058000)
    bars: ClassVar[Mapping[int, ModelBAR]] = {
        0: ModelBAR(MEMORY_SIZE, backed=True, mappable=((0, MEMORY_SIZE),))
    }
