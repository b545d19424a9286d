# SPDX-License-Identifier: BSD-3-Clause
"""Models that are wrong in one way each; the demo must notice every edu among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pyvfio.models import edu
from pyvfio.models.testdev import REGISTERS, TestDevice
from pyvfio.server.model import ModelBAR
from pyvfio.uapi.layout import Buffer


class WrongIdentification(edu.Edu):
    """Says that it is something else."""

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        return 0x01000000 if offset == edu.ID else super().bar_read(bar, offset, width)


class WrongLiveness(edu.Edu):
    """Gives the value back instead of its inverse."""

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        value = super().bar_read(bar, offset, width)
        return ~value if offset == edu.LIVENESS else value


class WrongFactorial(edu.Edu):
    """Is off by one."""

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        value = super().bar_read(bar, offset, width)
        return value + 1 if offset == edu.FACTORIAL else value


class OneWrongByte(edu.Edu):
    """Spoils the last byte of each DMA to the host."""

    def dma_write(self, address: int, data: Buffer) -> None:
        super().dma_write(address, bytes(data[:-1]) + bytes([data[-1] ^ 1]))


class TwoInterruptsForOne(edu.Edu):
    """Sends each MSI twice."""

    def send_msi(self, vector: int) -> None:
        super().send_msi(vector)
        super().send_msi(vector)


class IgnoresReset(edu.Edu):
    """Keeps its registers over a reset."""

    def reset(self) -> None:
        """Nothing changes."""


class FailsWhenLeft(edu.Edu):
    """Fails when its client leaves."""

    def client_lost(self) -> None:
        raise OSError("a mistake of the model")


class DeafPin(edu.Edu):
    """Never asserts its interrupt pin."""

    def set_intx(self, level: bool) -> None:
        super().set_intx(False)


class LikeTestDevice(TestDevice):
    """Has the ids of the test device, and a larger BAR."""

    bars: ClassVar[Mapping[int, ModelBAR]] = {**TestDevice.bars, REGISTERS: ModelBAR(8192)}
