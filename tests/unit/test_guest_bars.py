# SPDX-License-Identifier: BSD-3-Clause
"""BARs in a guest's memory map: what is trapped, what is mapped, what the device is asked."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import pyvfio
from pyvfio.emulator.bar_registers import BARRegisters
from pyvfio.emulator.bars import GuestBAR, GuestBARs
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.dma_listener import DMAListener
from pyvfio.emulator.memory import MemoryRegion, MMIORegion
from pyvfio.emulator.msix_layout import BARSpec, MSIXLayout
from pyvfio.errors import DeviceClosed, RegionError
from pyvfio.memory import PAGE_SIZE, SharedMemory
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType, Command
from pyvfio.vectors import MmapArea
from tests.fault import raw
from tests.fault.raw import RawServer
from tests.support import ServerProcess
from tests.unit.emulator_models import FAILING, MAPPABLE, RECORD
from tests.unit.guest_map import Commits, GuestMap, Seen, nothing

BASE = 0x1000_0000
"""Where the tests put a BAR."""
ONES = {width: (1 << 8 * width) - 1 for width in (1, 2, 4, 8)}


class Access(NamedTuple):
    """What the device says that it was asked."""

    verb: str
    bar: int
    offset: int
    width: int


@pytest.fixture(scope="module")
def server(socket_folder: Path) -> Iterator[ServerProcess]:
    """One server for all tests that leave it as it was."""
    path = socket_folder / "guest-bars.sock"
    with ServerProcess("tests.unit.emulator_models:Recording", path) as found:
        yield found


@pytest.fixture
def dev(server: ServerProcess) -> Iterator[PCIDevice]:
    """The device, which has forgotten what it was asked."""
    with pyvfio.open(server.uri) as found:
        found.bars[RECORD].write64(0, 0)
        yield found


@pytest.fixture
def map_() -> GuestMap:
    """The guest's memory."""
    return GuestMap()


@pytest.fixture
def trapped() -> list[None]:
    """One entry for each trapped access."""
    return []


@pytest.fixture
def bars(dev: PCIDevice, map_: GuestMap, trapped: list[None]) -> Iterator[GuestBARs]:
    """Its BARs."""
    with make(dev, map_, trapped) as found:
        yield found


def make(
    dev: PCIDevice,
    map_: GuestMap,
    trapped: list[None],
    layout: MSIXLayout | None = None,
    mmap: bool = True,
) -> GuestBARs:
    """The BARs of a device."""
    return GuestBARs(
        dev,
        layout,
        map_.topology,
        name="guest",
        on_access=lambda: trapped.append(None),
        mmap=mmap,
    )


def place(map_: GuestMap, bar: GuestBAR, address: int = BASE) -> None:
    """What a BAR's register does when the guest has written an address."""
    parent = map_.io_root if bar.type is BARType.IO else map_.memory_root
    with map_.topology.transaction():
        if bar.base.parent is not None:
            parent.remove(bar.base)
        parent.add(bar.base, address, 1)
        bar.moved(address)


def take_away(bar: GuestBAR) -> None:
    """What it does when the guest has memory decoding off."""
    assert bar.base.parent is not None
    bar.base.parent.remove(bar.base)
    bar.moved(None)


def asked(dev: PCIDevice) -> list[Access]:
    """What the device was asked."""
    record = dev.bars[RECORD]
    found = [record.read64(8 + 8 * position) for position in range(record.read64(0))]
    return [
        Access(
            "write" if entry >> 32 else "read",
            entry >> 24 & 0xFF,
            entry & 0xFFFF,
            entry >> 16 & 0xFF,
        )
        for entry in found
    ]


# What the guest sees


def test_bars_are_those_of_the_device(bars: GuestBARs) -> None:
    found = {n: (bar.type, bar.size, bar.prefetchable) for n, bar in bars.items()}
    assert found == {
        0: (BARType.MEM32, 4096, False),
        1: (BARType.IO, 32, False),
        2: (BARType.MEM64, 1 << 16, True),
        4: (BARType.MEM32, 256, False),
        5: (BARType.MEM32, 4096, False),
    }
    assert all(bar.base.size == bar.size for bar in bars.values())


def test_areas_that_can_be_mapped_are_in_front_of_what_is_trapped(
    map_: GuestMap, bars: GuestBARs
) -> None:
    place(map_, bars[2])
    assert map_.seen() == [
        Seen(BASE, 0x1000, "i/o"),
        Seen(BASE + 0x1000, 0x2000, "ramd"),
        Seen(BASE + 0x3000, 0x5000, "i/o"),
        Seen(BASE + 0x8000, 0x1000, "ramd"),
        Seen(BASE + 0x9000, 0x7000, "i/o"),
    ]


def test_without_mmap_all_is_trapped(dev: PCIDevice, map_: GuestMap, trapped: list[None]) -> None:
    with make(dev, map_, trapped, mmap=False) as bars:
        place(map_, bars[2])
        assert map_.seen() == [Seen(BASE, 1 << 16, "i/o")]
        map_.memory.write(BASE + 0x1000, 4, 5)
        assert (map_.memory.read(BASE + 0x1000, 4), len(trapped)) == (5, 2)


@pytest.mark.parametrize("relocation", [0, 5], ids=["grown", "new"])
def test_a_relocated_msix_table_has_a_place_in_its_bar(
    testdev: PCIDevice, map_: GuestMap, trapped: list[None], relocation: int
) -> None:
    layout = MSIXLayout.probe(testdev, relocation)
    assert layout is not None
    with make(testdev, map_, trapped, layout) as bars:
        bar = bars[relocation]
        assert layout.table.bar == relocation
        assert bar.base.size == bar.size > layout.table.offset
        place(map_, bar)
        device_has = 4096 if relocation == 0 else 0
        trapped_part = [Seen(BASE, device_has, "i/o")] if device_has else []
        assert map_.seen() == trapped_part
        assert map_.memory.read(BASE + layout.table.offset, 4) == ONES[4]


# Trapped accesses


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("at", [(0, 0x20), (0, 0xEF8), (1, 0x08)], ids=str)
def test_an_access_is_one_of_that_width_to_the_device(
    dev: PCIDevice, map_: GuestMap, bars: GuestBARs, at: tuple[int, int], width: int
) -> None:
    number, offset = at
    place(map_, bars[number], 0x1000)
    space = map_.io if number == 1 else map_.memory
    value = 0x8877_6655_4433_2211 & ONES[width]
    space.write(0x1000 + offset, width, value)
    assert space.read(0x1000 + offset, width) == value
    assert asked(dev) == [
        Access("write", number, offset, width),
        Access("read", number, offset, width),
    ]


def test_what_is_not_aligned_is_split_into_the_widest_parts(
    dev: PCIDevice, map_: GuestMap, bars: GuestBARs
) -> None:
    place(map_, bars[0])
    map_.memory.write(BASE + 1, 4, 0x44332211)
    map_.memory.write(BASE + 6, 2, 0x6655)
    map_.memory.read(BASE + 4, 8)
    assert asked(dev) == [
        Access("write", 0, 1, 1),
        Access("write", 0, 2, 2),
        Access("write", 0, 4, 1),
        Access("write", 0, 6, 2),
        Access("read", 0, 4, 4),
        Access("read", 0, 8, 4),
    ]
    assert dev.bars[0].read64(0) == 0x6655_0044_3322_1100


def test_bytes_are_little_endian(dev: PCIDevice, map_: GuestMap, bars: GuestBARs) -> None:
    dev.bars[0].write64(0x40, 0x8877_6655_4433_2211)
    place(map_, bars[0])
    assert [map_.memory.read(BASE + at, 1) for at in range(0x40, 0x48)] == [
        0x11 * (at + 1) for at in range(8)
    ]


def test_a_write_is_done_when_the_next_read_is(
    dev: PCIDevice, map_: GuestMap, bars: GuestBARs
) -> None:
    place(map_, bars[0])
    for value in range(100):
        map_.memory.write(BASE + 8, 4, value)
        assert map_.memory.read(BASE + 8, 4) == value
    assert [access.verb for access in asked(dev)] == ["write", "read"] * 100


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_read_that_fails_gives_all_ones(
    map_: GuestMap, bars: GuestBARs, trapped: list[None], width: int
) -> None:
    place(map_, bars[0])
    assert map_.memory.read(BASE + FAILING, width) == ONES[width]
    assert len(trapped) == 1


def test_accesses_that_fail_are_logged_once(
    map_: GuestMap, bars: GuestBARs, trapped: list[None], caplog: pytest.LogCaptureFixture
) -> None:
    place(map_, bars[0])
    for _ in range(3):
        map_.memory.read(BASE + FAILING, 4)
        map_.memory.write(BASE + FAILING, 4, 0)
    errors = [line for line in caplog.messages if "of the guest failed" in line]
    verbs = sorted(line.split()[2] for line in errors)
    assert verbs == ["read", "write"]
    assert all(line.startswith("guest: ") and "bar0+0xf00" in line for line in errors)
    assert len(trapped) == 6


def test_what_is_mapped_is_not_trapped(
    dev: PCIDevice, map_: GuestMap, bars: GuestBARs, trapped: list[None]
) -> None:
    place(map_, bars[2])
    map_.memory.write(BASE + 0x1008, 8, 0x0123_4567_89AB_CDEF)
    assert (map_.memory.read(BASE + 0x1008, 4), trapped) == (0x89AB_CDEF, [])
    map_.memory.write(BASE + 0x10, 4, 7)
    assert map_.memory.read(BASE + 0x10, 4) == 7
    assert len(trapped) == 2
    assert dev.bars[2].read64(0x1008) == 0x0123_4567_89AB_CDEF


def test_a_device_that_dies_answers_with_ones(
    serve: Callable[..., ServerProcess], map_: GuestMap, trapped: list[None]
) -> None:
    server = serve("tests.unit.emulator_models:Recording")
    with pyvfio.open(server.uri) as dev, make(dev, map_, trapped) as bars:
        place(map_, bars[0])
        map_.memory.write(BASE, 4, 1)
        server.kill()
        assert map_.memory.read(BASE, 4) == ONES[4]
        map_.memory.write(BASE, 4, 2)
        assert map_.memory.read(BASE, 8) == ONES[8]


def test_a_device_that_was_closed_is_a_mistake(
    server: ServerProcess, map_: GuestMap, trapped: list[None]
) -> None:
    with pyvfio.open(server.uri) as dev:
        bars = make(dev, map_, trapped)
    place(map_, bars[0])
    with pytest.raises(DeviceClosed):
        map_.memory.read(BASE, 4)
    with pytest.raises(DeviceClosed):
        map_.memory.write(BASE, 4, 0)
    bars.close()


# Everything trapped for a while


def test_all_that_is_mapped_is_trapped_and_mapped_again_at_once(
    map_: GuestMap, bars: GuestBARs, trapped: list[None]
) -> None:
    place(map_, bars[2])
    place(map_, bars[4], BASE + 0x10_0000)
    before = map_.seen()
    map_.memory.write(BASE + 0x1000, 4, 0x1234)
    commits = Commits()
    map_.memory.add_listener(commits)
    commits.count = 0
    bars.set_mmaps(False)
    assert commits.count == 1
    assert {part.kind for part in map_.seen()} == {"i/o"}
    assert (map_.memory.read(BASE + 0x1000, 4), len(trapped)) == (0x1234, 1)
    bars.set_mmaps(True)
    assert (map_.seen(), commits.count) == (before, 2)
    map_.memory.remove_listener(commits)


# Smaller than a page


PAGE_OF_BAR = Seen(BASE, PAGE_SIZE, "ramd")


def test_a_mapped_bar_below_a_page_gets_the_page_that_it_starts(
    map_: GuestMap, bars: GuestBARs
) -> None:
    place(map_, bars[4])
    assert map_.seen() == [PAGE_OF_BAR]
    assert bars[4].base.size == PAGE_SIZE


def test_nothing_is_behind_its_end(dev: PCIDevice, map_: GuestMap, bars: GuestBARs) -> None:
    place(map_, bars[4])
    map_.memory.write(BASE + 0xFC, 4, 0x5A5A)
    map_.memory.write(BASE + 0x100, 4, 0x5A5A)
    reads = [map_.memory.read(BASE + 0xFC, 4), map_.memory.read(BASE + 0x100, 4)]
    assert reads == [0x5A5A, ONES[4]]
    assert dev.bars[4].read32(0xFC) == 0x5A5A
    assert map_.memory.read(BASE + 0xFE, 4) == 0xFFFF_0000


def test_others_in_the_page_are_seen(map_: GuestMap, bars: GuestBARs) -> None:
    other = MemoryRegion("other", 0x100)
    other.add(MMIORegion("registers", 0x100, Zeros()), 0)
    map_.memory_root.add(other, BASE + 0x200, 1)
    place(map_, bars[4])
    assert map_.seen() == [
        Seen(BASE, 0x200, "ramd"),
        Seen(BASE + 0x200, 0x100, "i/o"),
        Seen(BASE + 0x300, 0xD00, "ramd"),
    ]


def test_elsewhere_it_has_its_own_size(map_: GuestMap, bars: GuestBARs) -> None:
    bar = bars[4]
    place(map_, bar)
    place(map_, bar, BASE + 0x100)
    assert map_.seen() == [Seen(BASE + 0x100, 0x100, "ramd")]
    assert (bar.base.size, bar.base.priority) == (0x100, 1)
    place(map_, bar)
    assert (map_.seen(), bar.base.priority) == ([PAGE_OF_BAR], 0)
    take_away(bar)
    assert (map_.seen(), bar.base.size) == ([], 0x100)


def test_a_bar_that_is_moved_keeps_behind_others_until_it_is_small_again(
    map_: GuestMap, bars: GuestBARs
) -> None:
    bar = bars[4]
    place(map_, bar)
    with map_.topology.transaction():
        bar.base.move(BASE + 0x1000)  # which keeps its priority
        bar.moved(BASE + 0x1000)
    assert (bar.base.size, bar.base.priority) == (PAGE_SIZE, 0)
    with map_.topology.transaction():
        bar.base.move(BASE + 0x1100)
        bar.moved(BASE + 0x1100)
    assert (bar.base.size, bar.base.priority) == (0x100, 1)


def test_a_bar_that_is_not_mapped_does_not_grow(
    dev: PCIDevice, map_: GuestMap, trapped: list[None]
) -> None:
    with make(dev, map_, trapped, mmap=False) as bars:
        place(map_, bars[4])
        assert map_.seen() == [Seen(BASE, 0x100, "i/o")]


class Zeros:
    """Registers of nothing."""

    def read(self, offset: int, width: int) -> int:
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """Dropped."""


@pytest.fixture
def placed(dev: PCIDevice, map_: GuestMap, bars: GuestBARs) -> Iterator[EmulatedConfig]:
    """Configuration space in which the guest places the BARs."""
    config = EmulatedConfig(dev.config, pci.CONFIG_SIZE, "guest")
    config.set(pci.COMMAND, 0)
    with BARRegisters(config, map_.bus) as registers:
        for number, bar in bars.items():
            registers.register(number, bar.type, bar.prefetchable, bar.base, bar.moved)
        yield config


def test_a_guest_that_places_it_decides_whether_it_fills_a_page(
    placed: EmulatedConfig, map_: GuestMap, bars: GuestBARs
) -> None:
    register = pci.BASE_ADDRESS_0.offset + 4 * 4

    def seen(address: int, command: Command = Command.MEMORY) -> list[Seen]:
        placed.write(register, 4, address)
        placed.write(pci.COMMAND.offset, 2, command)
        return map_.seen()

    assert seen(BASE) == [PAGE_OF_BAR]
    assert seen(BASE + 0x400) == [Seen(BASE + 0x400, 0x100, "ramd")]
    assert seen(BASE) == [PAGE_OF_BAR]
    assert seen(BASE, Command.IO) == []
    assert seen(0xFFFF_FFFF) == []
    assert placed.read(register, 4) == 0xFFFF_FF00
    assert bars[4].base.size == 0x100
    assert seen(BASE) == [PAGE_OF_BAR]


def test_another_device_can_reach_what_fills_a_page(
    testdev: PCIDevice, map_: GuestMap, bars: GuestBARs
) -> None:
    listener = DMAListener(testdev.dma, testdev.uri)
    listener.attach(map_.memory)
    place(map_, bars[4])
    place(map_, bars[2], BASE + 0x10_0000)
    mapped = [(entry.iova, entry.size) for entry in testdev.dma.mappings]
    assert mapped == [(BASE, PAGE_SIZE)] + [
        (BASE + 0x10_0000 + offset, size) for offset, size in MAPPABLE
    ]
    bars.set_mmaps(False)
    assert testdev.dma.mappings == ()
    bars.set_mmaps(True)
    assert len(testdev.dma.mappings) == len(mapped)
    bars.close()
    assert testdev.dma.mappings == ()
    listener.detach()


# Devices that say what cannot be


@pytest.fixture
def raw_server(socket_folder: Path) -> Iterator[RawServer]:
    """A device that can say anything."""
    with RawServer(socket_folder / "raw-bars.sock") as found:
        yield found


def announce(server: RawServer, number: int, register: int, size: int, flags: int = 0) -> None:
    """Have the device say that it has a BAR."""
    server.regions[number] = (raw.READABLE | raw.WRITABLE | flags, size)
    server.memory[number] = bytearray(min(size, 1 << 16))
    at = 0x10 + 4 * number
    server.memory[raw.CONFIG][at : at + 4] = register.to_bytes(4, "little")


MEM32, MEM64, PORTS = 0x0, 0x4, 0x1


@pytest.mark.parametrize(
    ("bar", "guest_size"),
    [
        ((1, MEM32, 0x3000), 0x4000),
        ((1, MEM32, 1), 16),
        ((1, PORTS, 1), 4),
        ((1, PORTS, 24), 32),
        ((1, MEM32, 1 << 31), 1 << 31),
        ((2, MEM64, (1 << 32) + 1), 1 << 33),
        ((2, MEM64, 1 << 63), 1 << 63),
    ],
    ids=str,
)
def test_a_size_that_no_register_expresses_is_made_one(
    raw_server: RawServer,
    map_: GuestMap,
    trapped: list[None],
    bar: tuple[int, int, int],
    guest_size: int,
) -> None:
    announce(raw_server, *bar)
    with pyvfio.open(raw_server.uri) as dev, make(dev, map_, trapped) as bars:
        found = bars[bar[0]]
        assert found.base.size == found.size == guest_size


def test_what_is_behind_the_devices_end_is_not_asked_of_it(
    raw_server: RawServer, map_: GuestMap, trapped: list[None]
) -> None:
    announce(raw_server, 1, MEM32, 0x3000)
    with pyvfio.open(raw_server.uri) as dev, make(dev, map_, trapped) as bars:
        place(map_, bars[1])
        assert map_.memory.read(BASE + 0x3000, 4) == ONES[4]
        assert map_.memory.read(BASE + 0x2FFC, 4) == 0
    assert len(trapped) == 1


@pytest.mark.parametrize(
    "found",
    [
        [(1, PORTS, (1 << 16) + 1)],
        [(1, MEM32, (1 << 31) + 1)],
        [(1, MEM32, 1 << 40)],
        [(2, MEM64, (1 << 63) + 1)],
        [(5, MEM64, 4096)],
        [(2, MEM64, 4096), (3, MEM32, 4096)],
    ],
    ids=["ports", "32 bits", "far too large", "64 bits", "last register", "two in a register"],
)
def test_bars_that_cannot_be_are_refused(
    raw_server: RawServer, map_: GuestMap, trapped: list[None], found: list[tuple[int, int, int]]
) -> None:
    for number, register, size in found:
        announce(raw_server, number, register, size)
    with pyvfio.open(raw_server.uri) as dev, pytest.raises(RegionError, match="bar"):
        make(dev, map_, trapped)


def test_what_cannot_be_mapped_is_trapped(
    raw_server: RawServer,
    map_: GuestMap,
    trapped: list[None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    announce(raw_server, 1, MEM32, 2 * PAGE_SIZE, raw.MAPPABLE)
    read_end, write_end = os.pipe()
    raw_server.fds[raw.GET_REGION_INFO] = [read_end]
    try:
        with pyvfio.open(raw_server.uri) as dev, make(dev, map_, trapped) as bars:
            place(map_, bars[1])
            assert map_.seen() == [Seen(BASE, 2 * PAGE_SIZE, "i/o")]
            map_.memory.write(BASE + 8, 4, 9)
            assert (map_.memory.read(BASE + 8, 4), len(trapped)) == (9, 2)
    finally:
        os.close(read_end)
        os.close(write_end)
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert ["cannot map bar1" in record.getMessage() for record in warnings] == [True]


def test_ports_are_never_mapped(raw_server: RawServer, map_: GuestMap, trapped: list[None]) -> None:
    announce(raw_server, 1, PORTS, PAGE_SIZE, raw.MAPPABLE)
    with SharedMemory(PAGE_SIZE) as memory:
        raw_server.fds[raw.GET_REGION_INFO] = [memory.fd]
        with pyvfio.open(raw_server.uri) as dev, make(dev, map_, trapped) as bars:
            place(map_, bars[1], 0x1000)
            assert map_.seen(map_.io) == [Seen(0x1000, PAGE_SIZE, "i/o")]


def test_an_area_of_no_bytes_is_none(dev: PCIDevice, map_: GuestMap) -> None:
    areas = [MmapArea(0x1000, 0), *(MmapArea(*area) for area in MAPPABLE)]
    spec = BARSpec(BARType.MEM64, True, 1 << 16)
    with GuestBAR(dev.bars[2], 2, spec, areas, name="guest", on_access=nothing) as bar:
        place(map_, bar)
        assert [part.size for part in map_.seen() if part.kind == "ramd"] == [0x2000, 0x1000]


# The end


def test_closing_leaves_nothing_of_the_devices_in_the_map(
    dev: PCIDevice, map_: GuestMap, trapped: list[None]
) -> None:
    bars = make(dev, map_, trapped)
    for number, bar in bars.items():
        place(map_, bar, 0x1000 * (number + 1))
    other = MemoryRegion("the table of MSI-X", 16)
    bars[0].base.add(other, 0, 1)
    bars.close()
    bars.close()
    assert map_.seen() + map_.seen(map_.io) == []
    assert bars[0].base.regions == (other,)  # it is another's
