# SPDX-License-Identifier: BSD-3-Clause
"""Devices for the tests of the emulator's parts; served by another process."""

from __future__ import annotations

from pyvfio.server.model import DeviceModel, Identity
from tests.unit.option_rom import option_rom

ROM = option_rom(0x1234, 0x0010, length=2560)


class WithROM(DeviceModel):
    """An expansion ROM of 2.5 KiB, which claims 4 KiB."""

    identity = Identity(0x1234, 0x0010, 0xFF0000)
    rom = ROM
