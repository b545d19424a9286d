# SPDX-License-Identifier: BSD-3-Clause
"""BARs and ROM of devices of the kernel's VFIO, as an emulator's guest sees them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import pyvfio
from pyvfio.emulator.bar_registers import BARRegisters
from pyvfio.emulator.bars import GuestBARs
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.msix_layout import MSIXLayout
from pyvfio.emulator.options import FunctionOptions
from pyvfio.emulator.rom import GuestROM
from pyvfio.memory import PAGE_SIZE
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Command
from tests.guest.suite.conftest import bound
from tests.unit.guest_map import GuestMap, Seen, nothing

IVSHMEM = "1af4:1110"
BASE = 0x1000_0000
STATUS = 0x0008
"""A register of the network adapter."""


@pytest.fixture
def ivshmem() -> Iterator[PCIDevice]:
    """Shared memory; its registers have 256 bytes."""
    with pyvfio.open(f"vfio:{bound(IVSHMEM)}") as dev:
        yield dev


def test_registers_are_reached_through_the_guests_memory(e1000e: PCIDevice) -> None:
    map_, layout = GuestMap(), MSIXLayout.probe(e1000e)
    with GuestBARs(e1000e, layout, map_.topology, name="e1000e", on_access=nothing) as bars:
        map_.memory_root.add(bars[0].base, BASE)
        map_.io_root.add(bars[2].base, 0x1000)
        assert map_.seen() == [Seen(BASE, 128 << 10, "ramd")]
        assert map_.seen(map_.io) == [Seen(0x1000, 32, "i/o")]
        map_.io.write(0x1000, 4, STATUS)  # IOADDR, then IODATA
        found = map_.io.read(0x1004, 4)
        assert found == map_.memory.read(BASE + STATUS, 4) == e1000e.bars[0].read32(STATUS)
        bars.set_mmaps(False)
        assert map_.seen() == [Seen(BASE, 128 << 10, "i/o")]
        assert map_.memory.read(BASE + STATUS, 4) == found


def test_a_bar_below_a_page_fills_its_page(ivshmem: PCIDevice) -> None:
    map_ = GuestMap()
    config = EmulatedConfig(ivshmem.config, pci.CONFIG_SIZE, "ivshmem")
    with (
        GuestBARs(ivshmem, None, map_.topology, name="ivshmem", on_access=nothing) as bars,
        BARRegisters(config, map_.bus) as registers,
    ):
        bar = bars[0]
        assert bar.size == 256
        registers.register(0, bar.type, bar.prefetchable, bar.base, bar.moved)
        config.write(pci.COMMAND.offset, 2, Command.MEMORY)
        config.write(pci.BASE_ADDRESS_0.offset, 4, BASE)
        assert map_.seen() == [Seen(BASE, PAGE_SIZE, "ramd")]
        config.write(pci.BASE_ADDRESS_0.offset, 4, BASE + 0x100)
        assert map_.seen() == [Seen(BASE + 0x100, 256, "ramd")]


def test_the_rom_is_sized_and_read(e1000e: PCIDevice) -> None:
    assert e1000e.rom is not None
    before = e1000e.config.get(pci.ROM_ADDRESS)
    config = EmulatedConfig(e1000e.config, pci.CONFIG_SIZE, "e1000e")
    rom = GuestROM(e1000e, config, FunctionOptions())
    assert rom.region is not None
    assert rom.region.size == e1000e.rom.size
    assert e1000e.config.get(pci.ROM_ADDRESS) == before
    assert rom.region.read_bytes(0, 4096) == e1000e.rom.read_bytes(0, 4096)
