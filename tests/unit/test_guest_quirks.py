# SPDX-License-Identifier: BSD-3-Clause
"""Quirks: which device gets which and when, and the RTL8168's window to its MSI-X table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

import pyvfio
from pyvfio.emulator.bars import GuestBARs
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.memory import MMIORegion
from pyvfio.emulator.quirks import KNOWN, KnownQuirk, Quirk, Quirks, QuirkTarget
from pyvfio.emulator.quirks.rtl8168 import RTL8168MSIXWindow
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from tests.support import ServerProcess
from tests.unit.guest_map import GuestMap, Seen, nothing

BASE = 0x1000_0000
DATA, ADDRESS, WRITTEN = 0x70, 0x74, 0x78
TABLE, OTHER = 0x1_F000, 0x3_F000
"""Addresses: a dword of the MSI-X table, and of something else, all bytes of it."""
WRITE = 1 << 31
TABLE_SIZE = 4 * 16


class Table:
    """Stands for the MSI-X table that the guest sees."""

    def __init__(self) -> None:
        self.dwords: dict[int, int] = {}
        self.widths: set[int] = set()

    def read(self, offset: int, width: int) -> int:
        self.widths.add(width)
        return self.dwords.get(offset, 0)

    def write(self, offset: int, width: int, value: int) -> None:
        self.widths.add(width)
        self.dwords[offset] = value


class Guest(NamedTuple):
    """A function with its quirks set up, and BAR 2 in the guest's memory."""

    dev: PCIDevice
    map: GuestMap
    bars: GuestBARs
    table: Table
    quirks: Quirks

    def read(self, register: int, width: int = 4) -> int:
        """A read of the guest in BAR 2."""
        return self.map.memory.read(BASE + register, width)

    def write(self, register: int, value: int, width: int = 4) -> None:
        """A write of the guest in BAR 2."""
        self.map.memory.write(BASE + register, width, value)


@pytest.fixture(scope="module")
def server(socket_folder: Path) -> Iterator[ServerProcess]:
    """Something that behaves as an RTL8168, as far as the window goes."""
    path = socket_folder / "rtl8168.sock"
    with ServerProcess("tests.unit.emulator_models:RTL8168", path) as found:
        yield found


@pytest.fixture
def dev(server: ServerProcess) -> Iterator[PCIDevice]:
    with pyvfio.open(server.uri) as found:
        found.reset()
        yield found


def target(dev: PCIDevice, bars: GuestBARs, table: Table | None) -> QuirkTarget:
    """What quirks are told of a device."""
    config = EmulatedConfig(dev.config, pci.CONFIG_SIZE, "guest")
    region = None if table is None else MMIORegion("table", TABLE_SIZE, table)
    return QuirkTarget(config, bars, region)


@contextmanager
def set_up(dev: PCIDevice, *, table: Table | None, shown: int | None = None) -> Iterator[Guest]:
    map_ = GuestMap()
    with GuestBARs(dev, None, map_.topology, name="guest", on_access=nothing) as bars:
        map_.memory_root.add(bars[2].base, BASE)
        found = target(dev, bars, table)
        if shown is not None:
            found.config.emulate(pci.DEVICE_ID, shown, 0xFFFF)
        with Quirks(found) as quirks:
            quirks.set_up_config()
            quirks.set_up_bars()
            yield Guest(dev, map_, bars, table or Table(), quirks)


@pytest.fixture
def guest(dev: PCIDevice) -> Iterator[Guest]:
    """A guest of the device."""
    with set_up(dev, table=Table()) as found:
        yield found


# The window


def test_the_guests_table_is_read_through_the_window(guest: Guest) -> None:
    guest.table.dwords[8] = 0xFEE0_0398
    guest.write(ADDRESS, TABLE | 8)
    assert guest.read(ADDRESS) == WRITE | TABLE | 8
    assert guest.read(DATA) == 0xFEE0_0398


def test_the_guests_table_is_written_through_the_window(guest: Guest) -> None:
    guest.write(DATA, 0xFEE0_0000)
    guest.write(ADDRESS, WRITE | TABLE | 16)
    assert guest.read(ADDRESS) == TABLE | 16
    assert guest.table.dwords == {16: 0xFEE0_0000}
    assert guest.table.widths == {4}


def test_the_devices_own_table_stays_as_it_is(guest: Guest) -> None:
    guest.write(DATA, 0xFEE0_0000)
    guest.write(ADDRESS, WRITE | TABLE)
    assert guest.dev.bars[2].read32(WRITTEN) == 0


def test_without_the_quirk_the_devices_own_would_be_written(dev: PCIDevice) -> None:
    with set_up(dev, table=Table(), shown=0x8169) as guest:
        guest.write(DATA, 0xFEE0_0000)
        guest.write(ADDRESS, WRITE | TABLE)
        assert guest.table.dwords == {}
    assert dev.bars[2].read32(WRITTEN) == 1


def test_what_else_is_addressed_stays_the_devices(guest: Guest) -> None:
    guest.write(DATA, 0x1234_5678)
    guest.write(ADDRESS, WRITE | OTHER)
    assert guest.read(ADDRESS) == OTHER
    guest.write(DATA, 0)
    guest.write(ADDRESS, OTHER)
    assert (guest.read(ADDRESS), guest.read(DATA)) == (WRITE | OTHER, 0x1234_5678)
    assert guest.table.dwords == {}


def test_the_devices_registers_are_back_after_the_table_was_read(guest: Guest) -> None:
    guest.write(DATA, 7)
    guest.write(ADDRESS, WRITE | OTHER)
    guest.write(ADDRESS, TABLE)
    assert guest.read(DATA) == 0
    guest.write(ADDRESS, OTHER)
    assert guest.read(DATA) == 7


def test_the_rest_of_the_bar_is_the_devices(guest: Guest) -> None:
    assert guest.map.seen()[:3] == [
        Seen(BASE, DATA, "i/o"),
        Seen(BASE + DATA, 8, "i/o"),
        Seen(BASE + DATA + 8, 4096 - DATA - 8, "i/o"),
    ]
    assert guest.read(WRITTEN) == 0


@pytest.mark.parametrize("width", [1, 2])
def test_no_register_has_less_than_4_bytes(guest: Guest, width: int) -> None:
    guest.write(DATA, 5)
    guest.write(ADDRESS, 0xFF, width)
    guest.write(ADDRESS + 2, 1, width)
    assert guest.read(ADDRESS, width) == (1 << 8 * width) - 1
    assert guest.read(DATA) == 5
    assert guest.dev.bars[2].read32(ADDRESS) == 0


def test_8_bytes_are_both_registers(guest: Guest) -> None:
    guest.write(DATA, (WRITE | TABLE | 4) << 32 | 0xABCD, 8)
    assert guest.table.dwords == {4: 0xABCD}
    assert guest.read(DATA, 8) == (TABLE | 4) << 32 | 0xABCD


def test_nothing_is_behind_the_tables_end(guest: Guest) -> None:
    guest.write(DATA, 5)
    guest.write(ADDRESS, WRITE | TABLE | TABLE_SIZE)
    guest.write(ADDRESS, TABLE | 0xFFC)
    assert (guest.read(DATA), guest.table.dwords) == (0, {})


def test_without_msix_the_window_shows_zeros(dev: PCIDevice) -> None:
    with set_up(dev, table=None) as guest:
        guest.write(DATA, 5)
        guest.write(ADDRESS, WRITE | TABLE)
        guest.write(ADDRESS, TABLE)
        assert guest.read(DATA) == 0
    assert dev.bars[2].read32(WRITTEN) == 0


def test_a_reset_leaves_nothing_addressed(guest: Guest) -> None:
    guest.table.dwords[0] = 7
    guest.write(ADDRESS, TABLE)
    guest.dev.reset()
    guest.quirks.reset()
    assert (guest.read(ADDRESS), guest.read(DATA)) == (0, 0)


def test_closing_leaves_the_bar_to_the_device(guest: Guest) -> None:
    guest.quirks.close()
    guest.quirks.close()
    assert guest.map.seen() == [Seen(BASE, 4096, "i/o")]
    guest.write(DATA, 9)
    assert guest.dev.bars[2].read32(DATA) == 9


def test_a_device_that_has_no_window_is_left_alone(
    testdev: PCIDevice, caplog: pytest.LogCaptureFixture
) -> None:
    with GuestBARs(testdev, None, GuestMap().topology, name="guest", on_access=nothing) as bars:
        without = {number: bar for number, bar in bars.items() if number != 2}
        config = EmulatedConfig(testdev.config, pci.CONFIG_SIZE, "guest")
        with RTL8168MSIXWindow(QuirkTarget(config, without, None)) as quirk:
            quirk.set_up_bars()
    assert "without its window" in caplog.text


# Which device, and when


STEPS: list[str] = []


class Noting(Quirk):
    """Notes its steps."""

    label = "a"
    fails = False

    def set_up_config(self) -> None:
        STEPS.append(f"config {self.label}")

    def set_up_bars(self) -> None:
        STEPS.append(f"bars {self.label}")

    def reset(self) -> None:
        STEPS.append(f"reset {self.label}")

    def close(self) -> None:
        STEPS.append(f"close {self.label}")
        if self.fails:
            raise RuntimeError("a mistake of the quirk")


class Failing(Noting):
    """Cannot be closed without an error."""

    label = "b"
    fails = True


@pytest.fixture
def found(dev: PCIDevice) -> Iterator[QuirkTarget]:
    """An RTL8168."""
    STEPS.clear()
    with GuestBARs(dev, None, GuestMap().topology, name="guest", on_access=nothing) as bars:
        yield target(dev, bars, None)


def test_each_step_is_taken_in_order_and_undone_in_reverse(found: QuirkTarget) -> None:
    known = [KnownQuirk(None, None, Noting), KnownQuirk(0x10EC, 0x8168, Failing)]
    quirks = Quirks(found, known)
    quirks.set_up_config()
    quirks.set_up_bars()
    quirks.reset()
    with pytest.raises(RuntimeError):
        quirks.close()
    assert STEPS == [
        "config a",
        "config b",
        "bars a",
        "bars b",
        "reset a",
        "reset b",
        "close b",
        "close a",
    ]


@pytest.mark.parametrize(
    ("vendor", "device", "matches"),
    [
        (0x10EC, 0x8168, True),
        (None, 0x8168, True),
        (0x10EC, None, True),
        (None, None, True),
        (0x10EC, 0x8169, False),
        (0x10ED, 0x8168, False),
        (0x10ED, None, False),
    ],
)
def test_ids_say_which_devices_have_a_quirk(
    found: QuirkTarget, vendor: int | None, device: int | None, matches: bool
) -> None:
    with suppress(RuntimeError), Quirks(found, [KnownQuirk(vendor, device, Noting)]) as quirks:
        quirks.set_up_config()
    assert bool(STEPS) == matches


def test_the_ids_are_those_that_the_guest_sees(found: QuirkTarget) -> None:
    found.config.emulate(pci.DEVICE_ID, 0x8169, 0xFFFF)
    assert [entry.matches(found) for entry in KNOWN] == [False] * len(KNOWN)
