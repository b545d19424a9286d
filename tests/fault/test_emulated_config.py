# SPDX-License-Identifier: BSD-3-Clause
"""A guest whose device dies: it reads ones, and its BARs can be moved and taken away still."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import pyvfio
from pyvfio.emulator.bar_registers import BARRegisters
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.header import set_up_header
from pyvfio.emulator.memory import MemoryRegion
from pyvfio.emulator.options import FunctionOptions
from pyvfio.errors import ConnectionLost
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType, Command
from tests.support import ServerProcess
from tests.unit.guest_map import GuestMap

BAR0, COMMAND = 0x10, 0x04


def test_a_guest_outlives_its_device(
    serve: Callable[..., ServerProcess], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve("edu")
    bus = GuestMap().bus
    with pyvfio.open(server.uri) as dev:
        config = EmulatedConfig(dev.config, 4096, "guest")
        set_up_header(config, FunctionOptions(vendor_id=0x8086))
        with BARRegisters(config, bus) as registers:
            registers.register(0, BARType.MEM32, False, MemoryRegion("bar0", dev.bars[0].size))
            config.write(BAR0, 4, 0xE000_0000)
            config.write(COMMAND, 2, Command.MEMORY)
            assert registers.address(0) == 0xE000_0000
            server.kill()
            assert [config.read(offset, 4) for offset in (0x00, 0x08, 0x3C)] == [0xFFFF_FFFF] * 3
            assert config.read(0x00, 2) == 0x8086
            config.write(BAR0, 4, 0xE010_0000)
            assert registers.address(0) == 0xE010_0000
            assert config.read(BAR0, 4) == 0xE010_0000
            with pytest.raises(ConnectionLost):
                config.device_get(pci.DEVICE_ID)
            config.write(COMMAND, 2, 0)
            assert registers.address(0) is None
        bus.topology.close()
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len([line for line in said if line.startswith("guest: the guest's read failed")]) == 1
    assert len([line for line in said if line.startswith("guest: the guest's write failed")]) == 1


def test_a_device_that_dies_before_a_guest_has_it_is_refused(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("edu")
    with pyvfio.open(server.uri) as dev:
        server.kill()
        with pytest.raises(ConnectionLost):
            EmulatedConfig(dev.config, 4096, "guest")
