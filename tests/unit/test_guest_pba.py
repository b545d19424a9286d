# SPDX-License-Identifier: BSD-3-Clause
"""MSI-X pending bits in a guest's memory map, over registers and over memory of the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import pyvfio
from pyvfio.closing import Closing
from pyvfio.emulator.bars import GuestBARs
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.events import Events
from pyvfio.emulator.irq_index import IRQIndex
from pyvfio.emulator.messages import Messenger
from pyvfio.emulator.msix import GuestMSIX
from pyvfio.emulator.msix_layout import BARSpec, MSIXLayout
from pyvfio.pci.device import PCIDevice
from pyvfio.pci.msix import Location
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType
from pyvfio.uapi.vfio import PCIIRQ
from tests.emulated import RecordingHost
from tests.support import ServerProcess
from tests.unit.declared import MEM32, DeclaredIO, declared
from tests.unit.emulator_models import RECORD
from tests.unit.guest_map import Commits, GuestMap, Seen, nothing
from tests.unit.test_guest_bars import Access, asked, place

BASE = 0x1000_0000
VECTORS = 16
CAPABILITY = 0x40
TABLE = Location(0, 0x400)
REGISTERS, MEMORY, SMALL = 0, 2, 4
"""BARs of the device: trapped; with an area from 0x1000 on that is mapped; mapped as a whole."""


@pytest.fixture(scope="module")
def server(socket_folder: Path) -> Iterator[ServerProcess]:
    """One server for all tests."""
    path = socket_folder / "guest-pba.sock"
    with ServerProcess("tests.unit.emulator_models:Recording", path) as found:
        yield found


@pytest.fixture
def dev(server: ServerProcess) -> Iterator[PCIDevice]:
    """The device, which has forgotten what it was asked."""
    with pyvfio.open(server.uri) as found:
        found.bars[RECORD].write64(0, 0)
        yield found


class Guest(Closing):
    """A function whose pending bits are at ``pba``, in a BAR that is at ``BASE``.

    :param relocated: the place is not the device's, but in a BAR made for it.
    """

    name = "guest"

    def __init__(
        self, dev: PCIDevice, pba: Location, relocated: BARSpec | None = None, mmap: bool = True
    ) -> None:
        self._closing = ExitStack()
        self.map = GuestMap()
        self._closing.callback(self.map.topology.close)
        table = TABLE if relocated is None else Location(pba.bar, 0)
        layout = MSIXLayout(VECTORS, table, pba, True, TABLE, relocated, dev)
        self.bars = self._closing.enter_context(
            GuestBARs(dev, layout, self.map.topology, name=self.name, on_access=nothing, mmap=mmap)
        )
        config = EmulatedConfig(dev.config, pci.CONFIG_SIZE, self.name)
        events = self._closing.enter_context(Events())
        self.msix = GuestMSIX(
            config,
            CAPABILITY,
            layout,
            self.bars,
            irqs=IRQIndex(dev.base, PCIIRQ.MSIX, self.name),
            messenger=Messenger(RecordingHost(), self, events, config, offer_eventfds=False),
            name=self.name,
        )
        self.msix.add_to_config()
        self.msix.add_to_bars()
        self._closing.callback(self.msix.remove_from_bars)
        config.set(pci.MSIX_CONTROL, pci.MSIX_CONTROL_ENABLE | VECTORS - 1, CAPABILITY)
        place(self.map, self.bars[pba.bar], BASE)

    def close(self) -> None:
        self._closing.close()

    def pend(self, vector: int) -> None:
        """Have a vector pending, as if it had fired while it was masked."""
        state = bytearray(self.msix.save())
        state[VECTORS * pci.MSIX_ENTRY_SIZE + vector // 8] |= 1 << vector % 8
        self.msix.load(bytes(state))

    def unmask(self, vector: int) -> None:
        """The guest unmasks a vector, which is not pending then."""
        at = vector * pci.MSIX_ENTRY_SIZE + pci.MSIX_ENTRY_CONTROL
        self.msix.table.write(at, 4, 0)


# Over registers


def test_while_nothing_is_pending_the_device_has_registers_there(dev: PCIDevice) -> None:
    with Guest(dev, Location(REGISTERS, 0x800)) as guest:
        guest.map.memory.write(BASE + 0x804, 2, 0xCAFE)
        assert guest.map.memory.read(BASE + 0x800, 8) == 0xCAFE << 32
    assert asked(dev) == [Access("write", 0, 0x804, 2), Access("read", 0, 0x800, 8)]
    dev.bars[REGISTERS].write64(0x800, 0)


def test_while_something_is_pending_the_device_is_not_asked(dev: PCIDevice) -> None:
    with Guest(dev, Location(REGISTERS, 0x800)) as guest:
        guest.pend(3)
        guest.pend(9)
        guest.map.memory.write(BASE + 0x800, 8, 0)
        assert guest.map.memory.read(BASE + 0x800, 8) == 1 << 3 | 1 << 9
        assert guest.map.memory.read(BASE + 0x801, 1) == 1 << 1
        guest.unmask(3)
        assert guest.map.memory.read(BASE + 0x800, 4) == 1 << 9
        assert asked(dev) == []
        guest.unmask(9)
        assert guest.map.memory.read(BASE + 0x800, 4) == 0
    assert asked(dev) == [Access("read", 0, 0x800, 4)]


def test_registers_beside_them_are_always_the_devices(dev: PCIDevice) -> None:
    with Guest(dev, Location(REGISTERS, 0x800)) as guest:
        guest.pend(3)
        guest.map.memory.read(BASE + 0x7F8, 8)
        guest.map.memory.read(BASE + 0x808, 4)
    assert asked(dev) == [Access("read", 0, 0x7F8, 8), Access("read", 0, 0x808, 4)]


def test_the_memory_map_does_not_change_when_bits_come_and_go(dev: PCIDevice) -> None:
    with Guest(dev, Location(REGISTERS, 0x800)) as guest:
        commits = Commits()
        guest.map.memory.add_listener(commits)
        before = commits.count
        guest.pend(3)
        guest.unmask(3)
        assert commits.count == before
        guest.map.memory.remove_listener(commits)


@pytest.mark.parametrize(("bar", "offset"), [(MEMORY, 0x1000), (SMALL, 0x80)])
def test_what_could_be_mapped_and_is_not_is_registers_as_well(
    dev: PCIDevice, bar: int, offset: int
) -> None:
    with Guest(dev, Location(bar, offset), mmap=False) as guest:
        before = guest.map.seen()
        guest.map.memory.write(BASE + offset, 4, 0x1234)
        assert dev.bars[bar].read32(offset) == 0x1234
        guest.pend(0)
        assert guest.map.memory.read(BASE + offset, 4) == 1
        assert guest.map.seen() == before


# Over mapped memory


def test_what_is_mapped_is_mapped_as_a_whole_while_nothing_is_pending(dev: PCIDevice) -> None:
    with Guest(dev, Location(MEMORY, 0x1800)) as guest:
        mapped = Seen(BASE + 0x1000, 0x2000, "ramd")
        assert mapped in guest.map.seen()
        guest.map.memory.write(BASE + 0x1800, 4, 0x1234)
        guest.pend(2)
        assert mapped not in guest.map.seen()
        assert Seen(BASE + 0x1800, 8, "i/o") in guest.map.seen()
        guest.map.memory.write(BASE + 0x1800, 4, 0)
        assert guest.map.memory.read(BASE + 0x1800, 4) == 1 << 2
        guest.unmask(2)
        assert mapped in guest.map.seen()
        assert guest.map.memory.read(BASE + 0x1800, 4) == 0x1234


def test_pending_bits_that_end_where_what_is_mapped_starts_are_not_over_it(dev: PCIDevice) -> None:
    with Guest(dev, Location(MEMORY, 0xFF8)) as guest:
        assert Seen(BASE + 0xFF8, 8, "i/o") in guest.map.seen()
        assert Seen(BASE + 0x1000, 0x2000, "ramd") in guest.map.seen()


def test_a_mapped_bar_below_a_page_is_mapped_while_nothing_is_pending(dev: PCIDevice) -> None:
    with Guest(dev, Location(SMALL, 0x80)) as guest:
        before = guest.map.seen()
        assert [seen.kind for seen in before] == ["ramd"]
        guest.pend(2)
        assert guest.map.memory.read(BASE + 0x80, 8) == 1 << 2
        guest.unmask(2)
        assert guest.map.seen() == before


# Where the device has nothing


def check_bits_only(guest: Guest, at: int) -> None:
    """The place has pending bits and nothing else."""
    assert guest.map.memory.read(at, 8) == 0
    guest.pend(2)
    assert guest.map.memory.read(at, 8) == 1 << 2
    guest.unmask(2)
    guest.map.memory.write(at, 8, 0x1234)
    assert guest.map.memory.read(at, 8) == 0


def test_a_part_of_a_bar_made_for_them_has_nothing_else(dev: PCIDevice) -> None:
    spec = BARSpec(BARType.MEM32, False, 0x2000)
    with Guest(dev, Location(REGISTERS, 0x1100), spec) as guest:
        check_bits_only(guest, BASE + 0x1100)
    assert asked(dev) == []


def test_a_bar_made_for_them_has_nothing_else() -> None:
    spec = BARSpec(BARType.MEM32, True, 0x1000)
    dev = declared(DeclaredIO({0: (0x1000, MEM32, [])}))
    with Guest(dev, Location(3, 0x100), spec) as guest:
        check_bits_only(guest, BASE + 0x100)
