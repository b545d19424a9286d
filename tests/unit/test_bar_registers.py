# SPDX-License-Identifier: BSD-3-Clause
"""BARs that a guest sizes, places, moves and hides, on a bus with a memory map."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvfio.emulator.bar_registers import BARRegisters
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.header import set_up_header
from pyvfio.emulator.memory import MemoryListener, MemoryRegion, MMIORegion, Section
from pyvfio.emulator.options import FunctionOptions
from pyvfio.errors import DMAError
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType, Command
from pyvfio.uapi.vfio import PCIRegion
from tests.unit.guest_map import GuestMap
from tests.unit.raw_config import RawConfig

MEM32, MEM64, IO = BARType.MEM32, BARType.MEM64, BARType.IO
ROM = PCIRegion.ROM
COMMAND, BAR0, BAR1, BAR2, ROM_AT = 0x04, 0x10, 0x14, 0x18, 0x30
PM_AT = 0x40
ALL = 0xFFFF_FFFF
MIB, GIB = 1 << 20, 1 << 30


class Silence:
    """Nothing answers with anything but 0."""

    def read(self, offset: int, width: int) -> int:
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        pass


class Heard(MemoryListener):
    """What a listener of the memory space heard, a list for each commit."""

    def __init__(self) -> None:
        self.commits: list[list[str]] = []
        self.error: Exception | None = None
        self._now: list[str] = []

    def region_add(self, section: Section) -> None:
        self._now.append(f"+{section.region.name}@{section.address:#x}")
        if self.error is not None:
            raise self.error

    def region_del(self, section: Section) -> None:
        self._now.append(f"-{section.region.name}@{section.address:#x}")

    def commit(self) -> None:
        self.commits.append(self._now)
        self._now = []


class Function:
    """A function with BARs on a bus of its own.

    :ivar config: its configuration space; the guest's accesses are made here.
    :ivar registers: what is tested.
    """

    def __init__(self) -> None:
        guest_map = GuestMap()
        self.topology = guest_map.topology
        self.memory, self.io = guest_map.memory, guest_map.io
        self.heard = Heard()
        self.memory.add_listener(self.heard)
        self.heard.commits.clear()
        self.device = RawConfig()
        self.config = EmulatedConfig(self.device.region, 4096, "guest")
        set_up_header(self.config, FunctionOptions())
        self.registers = BARRegisters(self.config, guest_map.bus)
        self.moves: list[tuple[int, int | None]] = []

    def bar(
        self, number: int, kind: BARType, size: int, *, prefetchable: bool = False
    ) -> MMIORegion:
        """Implement a BAR."""
        region = MMIORegion(f"bar{number}", size, Silence())
        self.registers.register(
            number,
            kind,
            prefetchable,
            region,
            lambda address: self.moves.append((number, address)),
        )
        return region

    def rom(self, size: int) -> MMIORegion:
        """Implement the ROM."""
        region = MMIORegion("rom", size, Silence())
        self.registers.register_rom(region)
        return region

    def command(self, command: int) -> None:
        """The guest writes the command register."""
        self.config.write(COMMAND, 2, command)

    def place(self, number: int, address: int, width: int = 4) -> None:
        """The guest writes a BAR, high half first."""
        register = BAR0 + 4 * number
        if width == 8:
            self.config.write(register + 4, 4, address >> 32)
        self.config.write(register, 4, address & ALL)

    def seen(self) -> dict[str, int]:
        """What memory space shows, and where."""
        return {found.region.name: found.start for found in self.memory.flat_view}

    def ports(self) -> dict[str, int]:
        """What I/O space shows, and where."""
        return {found.region.name: found.start for found in self.io.flat_view}


@pytest.fixture
def function() -> Iterator[Function]:
    """A function without BARs."""
    made = Function()
    yield made
    made.registers.close()
    made.topology.close()


# Sizing


@pytest.mark.parametrize(
    ("kind", "prefetchable", "size", "masks"),
    [
        (MEM32, False, 16, (0xFFFF_FFF0, 0)),
        (MEM32, False, 4096, (0xFFFF_F000, 0)),
        (MEM32, True, MIB, (0xFFF0_0008, 0)),
        (MEM32, False, 2 * GIB, (0x8000_0000, 0)),
        (MEM64, False, 4096, (0xFFFF_F004, ALL)),
        (MEM64, True, 64 * MIB, (0xFC00_000C, ALL)),
        (MEM64, True, 4 * GIB, (0x0000_000C, ALL)),
        (MEM64, False, 1 << 63, (0x0000_0004, 0x8000_0000)),
        (IO, False, 4, (0xFFFF_FFFD, 0)),
        (IO, True, 256, (0xFFFF_FF01, 0)),
        (MEM32, False, 8, (0xFFFF_FFF0, 0)),
        (IO, False, 1, (0xFFFF_FFFD, 0)),
    ],
)
def test_a_guest_learns_kind_and_size(
    function: Function, kind: BARType, prefetchable: bool, size: int, masks: tuple[int, int]
) -> None:
    function.bar(0, kind, size, prefetchable=prefetchable)
    flags = masks[0] & (0x1 if kind is IO else 0xF)
    assert (function.config.read(BAR0, 4), function.config.read(BAR1, 4)) == (flags, 0)
    for register in (BAR0, BAR1):
        function.config.write(register, 4, ALL)
    assert (function.config.read(BAR0, 4), function.config.read(BAR1, 4)) == masks
    assert function.seen() == function.ports() == {}
    for register in (BAR0, BAR1):
        function.config.write(register, 4, 0)
    assert (function.config.read(BAR0, 4), function.config.read(BAR1, 4)) == (flags, 0)


@pytest.mark.parametrize(
    ("size", "mask"), [(1, 0xFFFF_F801), (2048, 0xFFFF_F801), (65536, 0xFFFF_0001)]
)
def test_a_guest_learns_the_size_of_the_rom(function: Function, size: int, mask: int) -> None:
    function.rom(size)
    assert function.config.read(ROM_AT, 4) == 0
    function.config.write(ROM_AT, 4, ALL)
    assert function.config.read(ROM_AT, 4) == mask


def test_what_a_guest_writes_reaches_the_device_as_well(function: Function) -> None:
    function.bar(0, MEM32, 4096)
    function.config.write(BAR0, 4, ALL)
    assert function.device.load(pci.BASE_ADDRESS_0) == ALL


def test_bars_that_are_not_there_stay_0(function: Function) -> None:
    function.bar(1, MEM64, 4096)
    for register in (*range(BAR0, 0x28, 4), ROM_AT):
        function.config.write(register, 4, ALL)
    values = [function.config.read(register, 4) for register in (*range(BAR0, 0x28, 4), ROM_AT)]
    assert values == [0, 0xFFFF_F004, ALL, 0, 0, 0, 0]


def test_a_saved_state_must_have_the_same_bars(function: Function) -> None:
    function.bar(0, MEM64, 4096)
    function.rom(4096)
    compared = function.config.compared
    assert compared[BAR0:0x28] == b"\xff" * 8 + bytes(16)
    assert compared[ROM_AT : ROM_AT + 4] == b"\xff" * 4


# Where they are seen


@pytest.mark.parametrize(
    ("kind", "address"), [(MEM32, 0xFE00_0000), (MEM64, 0xFE00_0000), (MEM64, 0x38_0000_0000)]
)
def test_memory_is_seen_where_the_guest_puts_it_while_it_decodes_memory(
    function: Function, kind: BARType, address: int
) -> None:
    function.bar(0, kind, 4096)
    function.place(0, address, 8 if kind is MEM64 else 4)
    assert (function.seen(), function.registers.address(0)) == ({}, None)
    function.command(Command.IO | Command.MASTER)
    assert function.seen() == {}
    function.command(Command.MEMORY)
    assert (function.seen(), function.registers.address(0)) == ({"bar0": address}, address)
    function.command(0)
    assert (function.seen(), function.registers.address(0)) == ({}, None)


def test_ports_are_seen_where_the_guest_puts_them_while_it_decodes_io(function: Function) -> None:
    function.bar(2, IO, 32)
    function.place(2, 0xC000)
    function.command(Command.MEMORY)
    assert function.ports() == {}
    function.command(Command.IO)
    assert (function.ports(), function.registers.address(2)) == ({"bar2": 0xC000}, 0xC000)
    assert function.seen() == {}


def test_a_rom_is_seen_while_it_is_enabled_and_memory_is_decoded(function: Function) -> None:
    function.rom(0x10000)
    function.command(Command.MEMORY)
    function.config.write(ROM_AT, 4, 0xF000_0000)
    assert (function.seen(), function.registers.address(ROM)) == ({}, None)
    function.config.write(ROM_AT, 1, 1)
    assert (function.seen(), function.registers.address(ROM)) == (
        {"rom": 0xF000_0000},
        0xF000_0000,
    )
    function.command(0)
    assert function.seen() == {}
    function.command(Command.MEMORY)
    function.config.write(ROM_AT, 1, 0)
    assert function.seen() == {}


@pytest.mark.parametrize(
    ("kind", "size", "address", "seen"),
    [
        (MEM32, 4096, 0, False),
        (MEM32, 4096, 0x1000, True),
        (MEM32, 4096, 0xFFFF_E000, True),
        (MEM32, 4096, 0xFFFF_F000, False),
        (MEM32, 2 * GIB, 0x8000_0000, False),
        (MEM64, 4096, 0, False),
        (MEM64, 4096, 0xFFFF_F000, True),
        (MEM64, 4096, 0x1_0000_0000, True),
        (MEM64, 4096, 0xFFFF_FFFF_FFFF_E000, True),
        (MEM64, 4096, 0xFFFF_FFFF_FFFF_F000, False),
        (MEM64, 1 << 63, 1 << 63, False),
        (MEM64, 1 << 62, 1 << 62, True),
        (IO, 256, 0, False),
        (IO, 256, 0x100, True),
        (IO, 256, 0xFF00, True),
        (IO, 256, 0x1_0000, False),
        (IO, 256, 0xFFFF_FF00, False),
    ],
)
def test_some_addresses_are_no_place(
    function: Function, kind: BARType, size: int, address: int, seen: bool
) -> None:
    function.bar(0, kind, size)
    function.command(Command.MEMORY | Command.IO)
    function.place(0, address, 8 if kind is MEM64 else 4)
    assert function.registers.address(0) == (address if seen else None)
    assert bool(function.seen() or function.ports()) == seen


def test_a_rom_is_not_seen_at_the_end_of_32_bits(function: Function) -> None:
    function.rom(4096)
    function.command(Command.MEMORY)
    function.config.write(ROM_AT, 4, 0xFFFF_F001)
    assert function.seen() == {}


def test_a_bar_moves_while_it_is_seen(function: Function) -> None:
    function.bar(0, MEM32, 4096)
    function.command(Command.MEMORY)
    function.place(0, 0xE000_0000)
    function.config.write(BAR0 + 2, 2, 0xF012)
    assert function.seen() == {"bar0": 0xF012_0000}
    function.place(0, ALL)
    assert function.seen() == {}
    function.place(0, 0xF012_0000)
    assert function.seen() == {"bar0": 0xF012_0000}


def test_the_halves_of_a_64_bit_bar_are_seen_as_they_are_written(function: Function) -> None:
    function.bar(0, MEM64, 4096)
    function.command(Command.MEMORY)
    function.config.write(BAR0, 4, 0xE000_0000)
    function.config.write(BAR1, 4, 0x12)
    assert function.seen() == {"bar0": 0x12_E000_0000}
    assert function.moves == [(0, 0xE000_0000), (0, 0x12_E000_0000)]


def test_a_bar_covers_what_else_is_there(function: Function) -> None:
    ram = MMIORegion("ram", GIB, Silence())
    function.memory.root.add(ram, 0)
    function.bar(0, MEM32, 4096)
    function.command(Command.MEMORY)
    function.place(0, 0x10_0000)
    names = [found.region.name for found in function.memory.flat_view]
    assert names == ["ram", "bar0", "ram"]


# One write, one change


def test_all_that_one_write_moves_is_seen_at_once(function: Function) -> None:
    function.bar(0, MEM32, 4096)
    function.bar(2, MEM64, 4096)
    function.bar(4, IO, 16)
    function.rom(4096)
    for number, address in ((0, 0xE000_0000), (2, 0xE100_0000), (4, 0xC000)):
        function.place(number, address)
    function.config.write(ROM_AT, 4, 0xE200_0001)
    assert function.heard.commits == []
    function.command(Command.MEMORY | Command.IO)
    assert function.heard.commits == [["+bar0@0xe0000000", "+bar2@0xe1000000", "+rom@0xe2000000"]]
    function.command(0)
    assert function.heard.commits[1:] == [
        ["-rom@0xe2000000", "-bar2@0xe1000000", "-bar0@0xe0000000"]
    ]
    assert function.moves == [
        (0, 0xE000_0000),
        (2, 0xE100_0000),
        (4, 0xC000),
        (0, None),
        (2, None),
        (4, None),
    ]


def test_a_write_that_moves_nothing_is_no_change(function: Function) -> None:
    function.bar(0, MEM32, 4096)
    function.command(Command.MEMORY)
    function.place(0, 0xE000_0000)
    function.heard.commits.clear()
    function.place(0, 0xE000_0FFF)
    function.command(Command.MEMORY | Command.MASTER)
    function.registers.update()
    assert (function.heard.commits, function.moves) == ([], [(0, 0xE000_0000)])


def test_a_bar_that_hears_of_its_move_can_change_within_it(function: Function) -> None:
    region = MemoryRegion("small", 512)
    part = MMIORegion("part", 512, Silence())
    region.add(part, 0)

    def grow(address: int | None) -> None:
        size = 4096 if address is not None and address % 4096 == 0 else 512
        region.resize(size)
        part.resize(size)

    function.registers.register(0, MEM32, False, region, grow)
    function.command(Command.MEMORY)
    for address, size in ((0xE000_0000, 4096), (0xE000_0200, 512), (0xE000_1000, 4096)):
        function.place(0, address)
        assert [(found.start, found.size) for found in function.memory.flat_view] == [
            (address, size)
        ]
    assert len(function.heard.commits) == 3


# Power states


def test_bars_are_seen_in_d0_only(function: Function) -> None:
    function.bar(0, MEM32, 4096)
    function.config.power.attach(PM_AT)
    function.command(Command.MEMORY)
    function.place(0, 0xE000_0000)
    function.config.write(PM_AT + 4, 2, 3)
    assert function.seen() == {}
    function.place(0, 0xE100_0000)
    assert function.seen() == {}
    function.config.write(PM_AT + 4, 2, 0)
    assert function.seen() == {"bar0": 0xE100_0000}


# Reset and end


def test_a_reset_takes_the_addresses(function: Function) -> None:
    function.bar(0, MEM64, 4096, prefetchable=True)
    function.rom(4096)
    function.command(Command.MEMORY)
    function.place(0, 0x1_E000_0000, 8)
    function.config.write(ROM_AT, 4, 0xE200_0001)
    function.registers.reset()
    assert function.seen() == {}
    assert [function.config.read(register, 4) for register in (BAR0, BAR1, ROM_AT)] == [0xC, 0, 0]


def test_an_update_shows_what_was_set_past_the_guest(function: Function) -> None:
    function.bar(0, MEM32, 4096)
    function.config.set(pci.BASE_ADDRESS_0, 0xE000_0000)
    function.config.set(pci.COMMAND, Command.MEMORY)
    assert function.seen() == {}
    function.registers.update()
    assert function.seen() == {"bar0": 0xE000_0000}


def test_closing_takes_all_off_the_bus_and_follows_no_more(function: Function) -> None:
    function.bar(0, MEM32, 4096)
    function.bar(4, IO, 16)
    function.config.power.attach(PM_AT)
    function.command(Command.MEMORY | Command.IO)
    function.place(0, 0xE000_0000)
    function.place(4, 0xC000)
    function.registers.close()
    function.registers.close()
    assert (function.seen(), function.ports()) == ({}, {})
    function.place(0, 0xE100_0000)
    function.config.write(PM_AT + 4, 2, 3)
    function.config.write(PM_AT + 4, 2, 0)
    assert (function.seen(), function.registers.address(0)) == ({}, None)
    assert function.moves[-2:] == [(0, None), (4, None)]


# A listener that fails


def test_a_failing_listener_does_not_reach_the_guest(
    function: Function, caplog: pytest.LogCaptureFixture
) -> None:
    function.bar(0, MEM32, 4096)
    function.place(0, 0xE000_0000)
    function.heard.error = DMAError("no peer-to-peer")
    function.command(Command.MEMORY)
    assert function.seen() == {"bar0": 0xE000_0000}
    assert "no peer-to-peer" in caplog.text
    function.heard.error = None
    function.command(0)
    assert function.seen() == {}


def test_a_failing_listener_is_told_where_no_guest_is(function: Function) -> None:
    function.bar(0, MEM32, 4096)
    function.config.set(pci.BASE_ADDRESS_0, 0xE000_0000)
    function.config.set(pci.COMMAND, Command.MEMORY)
    function.heard.error = DMAError("no peer-to-peer")
    with pytest.raises(DMAError):
        function.registers.update()
    assert function.registers.address(0) == 0xE000_0000


# Mistakes


@pytest.mark.parametrize(
    ("number", "kind"), [(-1, MEM32), (6, MEM32), (7, MEM32), (5, MEM64), (-1, MEM64)]
)
def test_there_are_six_bars_and_a_wide_one_is_two(
    function: Function, number: int, kind: BARType
) -> None:
    with pytest.raises(ValueError, match=f"for BAR {number}"):
        function.bar(number, kind, 4096)


@pytest.mark.parametrize(
    ("number", "kind"), [(1, MEM64), (2, MEM32), (2, MEM64), (3, MEM32), (3, MEM64)]
)
def test_a_bar_is_there_once(function: Function, number: int, kind: BARType) -> None:
    function.bar(2, MEM64, 4096)
    with pytest.raises(ValueError, match=f"BAR {number} is there already"):
        function.bar(number, kind, 4096)


def test_there_is_one_rom(function: Function) -> None:
    function.rom(4096)
    with pytest.raises(ValueError, match="BAR 6 is there already"):
        function.rom(4096)


@pytest.mark.parametrize(
    ("kind", "size"),
    [(MEM32, 4097), (MEM32, 4 * GIB), (MEM64, 3 * GIB), (IO, 48), (MEM64, 1 << 64)],
)
def test_a_size_that_no_bar_has_is_refused(function: Function, kind: BARType, size: int) -> None:
    with pytest.raises(ValueError, match=f"cannot have {size:#x}"):
        function.bar(0, kind, size)
    with pytest.raises(ValueError, match="cannot have"):
        function.rom(4097)
    assert bytes(function.config.writable[BAR0:0x28]) == bytes(24)
