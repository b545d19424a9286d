# SPDX-License-Identifier: BSD-3-Clause
"""DMA maps that follow a virtual IOMMU, and RAM that is there in parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from pyvfio.emulator.dma_listener import DMAListener
from pyvfio.emulator.memory import (
    AddressSpace,
    AliasRegion,
    IOMMURegion,
    IOTLBEntry,
    MemoryListener,
    MemoryRegion,
    MMIORegion,
    RAMDiscardManager,
    RAMRegion,
    Topology,
)
from pyvfio.errors import DMAError
from pyvfio.memory import SharedMemory
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DMAMapFlags
from tests.conformance.guest_memory import (
    BASE,
    PAGE,
    READ,
    WRITE,
    BadRAM,
    Registers,
    maps,
    read_by_dma,
)

# A virtual IOMMU


class Table(IOMMURegion):
    """An IOMMU whose mappings a test makes."""

    def __init__(self, target: AddressSpace) -> None:
        super().__init__("iommu", 1 << 64, target)
        self.mapped: dict[int, IOTLBEntry] = {}

    def entries(self, first: int, last: int) -> Iterator[IOTLBEntry]:
        return (entry for entry in self.mapped.values() if first <= entry.iova <= last)

    def map(
        self, iova: int, translated: int, size: int = PAGE, permission: DMAMapFlags = READ | WRITE
    ) -> None:
        self.mapped[iova] = IOTLBEntry(iova, translated, size - 1, permission)
        self.notify(self.mapped[iova])

    def unmap(self, iova: int, size: int) -> None:
        self.mapped = {
            at: entry for at, entry in self.mapped.items() if not iova <= at < iova + size
        }
        self.notify(IOTLBEntry(iova, 0, size - 1, DMAMapFlags(0)))


@pytest.fixture
def iommu(space: AddressSpace, root: MemoryRegion, ram: RAMRegion) -> Table:
    """An IOMMU; the RAM is at BASE of what it translates to."""
    root.add(ram, BASE)
    return Table(space)


@pytest.fixture
def behind(edu: PCIDevice, topology: Topology, iommu: Table) -> Iterator[DMAListener]:
    """Follows what the IOMMU shows at all addresses."""
    found = DMAListener(edu.dma, edu.uri)
    found.attach(topology.space("device", iommu))
    yield found
    found.detach()


@pytest.mark.usefixtures("behind")
def test_what_the_guest_maps_in_its_iommu_the_device_reaches(edu: PCIDevice, iommu: Table) -> None:
    assert maps(edu) == []
    iommu.map(0x20_0000, BASE + 3 * PAGE)
    assert maps(edu) == [(0x20_0000, PAGE, 3 * PAGE)]
    assert read_by_dma(edu, 0x20_0000) == 3
    iommu.unmap(0x20_0000, PAGE)
    assert maps(edu) == []


def test_what_was_mapped_before_is_mapped_when_it_begins(
    edu: PCIDevice, topology: Topology, iommu: Table
) -> None:
    iommu.map(0x20_0000, BASE)
    iommu.map(0x30_0000, BASE + 4 * PAGE, 4 * PAGE)
    listener = DMAListener(edu.dma, edu.uri)
    listener.attach(topology.space("device", iommu))
    assert maps(edu) == [(0x20_0000, PAGE, 0), (0x30_0000, 4 * PAGE, 4 * PAGE)]
    listener.detach()
    assert maps(edu) == []
    iommu.map(0x40_0000, BASE)
    assert maps(edu) == []


@pytest.mark.usefixtures("behind")
@pytest.mark.parametrize("permission", [READ, WRITE, READ | WRITE])
def test_a_translation_has_its_permission(
    edu: PCIDevice, iommu: Table, permission: DMAMapFlags
) -> None:
    iommu.map(0x20_0000, BASE, permission=permission)
    assert [entry.flags for entry in edu.dma.mappings] == [permission]


@pytest.mark.usefixtures("behind")
def test_read_only_ram_is_not_written_through_an_iommu(
    edu: PCIDevice, iommu: Table, ram: RAMRegion
) -> None:
    ram.readonly = True
    iommu.map(0x20_0000, BASE)
    assert [entry.flags for entry in edu.dma.mappings] == [READ]


@pytest.mark.usefixtures("behind")
def test_one_unmap_takes_many_maps(edu: PCIDevice, iommu: Table) -> None:
    for page in (0, 1, 2, 5, 8):
        iommu.map(0x20_0000 + page * PAGE, BASE)
    iommu.unmap(0x20_0000, 8 * PAGE)
    assert maps(edu) == [(0x20_8000, PAGE, 0)]
    iommu.unmap(0, 1 << 64)
    assert maps(edu) == []


@pytest.mark.usefixtures("behind")
def test_an_unmap_within_a_map_leaves_both_sides(edu: PCIDevice, iommu: Table) -> None:
    iommu.map(0x20_0000, BASE, 8 * PAGE)
    iommu.unmap(0x20_2000, 2 * PAGE)
    assert maps(edu) == [(0x20_0000, 2 * PAGE, 0), (0x20_4000, 4 * PAGE, 4 * PAGE)]
    assert read_by_dma(edu, 0x20_5000) == 5


@pytest.mark.usefixtures("behind")
def test_what_is_no_memory_is_not_mapped_and_the_log_says_so(
    edu: PCIDevice, iommu: Table, root: MemoryRegion, caplog: pytest.LogCaptureFixture
) -> None:
    root.add(MMIORegion("registers", PAGE, Registers()), BASE + 2 * PAGE, priority=1)
    with caplog.at_level(logging.WARNING):
        iommu.map(0x20_0000, BASE, 16 * PAGE)
    assert maps(edu) == [(0x20_0000, 2 * PAGE, 0), (0x20_3000, 5 * PAGE, 3 * PAGE)]
    assert "iommu maps 0x1000 bytes at iova 0x202000" in caplog.text.lower()
    assert "iommu maps 0x8000 bytes at iova 0x208000" in caplog.text.lower()


def test_a_window_of_an_iommu_is_followed_where_it_is_seen(
    edu: PCIDevice, topology: Topology, iommu: Table
) -> None:
    bus = MemoryRegion("bus", 1 << 64)
    window = AliasRegion("window", iommu, 0x20_0000, 4 * PAGE)
    bus.add(window, 0x50_0000)
    iommu.map(0x20_1000, BASE)
    listener = DMAListener(edu.dma, edu.uri)
    listener.attach(topology.space("device", bus))
    iommu.map(0x20_2000, BASE + PAGE)
    iommu.map(0x20_4000, BASE)
    iommu.map(0, BASE)
    assert maps(edu) == [(0x50_1000, PAGE, 0), (0x50_2000, PAGE, PAGE)]
    window.move(0x60_0000)
    assert maps(edu) == [(0x60_1000, PAGE, 0), (0x60_2000, PAGE, PAGE)]
    window.enabled = False
    assert maps(edu) == []
    listener.detach()


def test_a_translation_that_cannot_be_mapped_is_raised_to_who_made_it(
    edu: PCIDevice, behind: DMAListener, iommu: Table, root: MemoryRegion, bad: BadRAM
) -> None:
    root.add(bad, BASE + 2 * PAGE, priority=1)
    with pytest.raises(DMAError):
        iommu.map(0x20_0000, BASE, 4 * PAGE)
    assert maps(edu) == [(0x20_0000, 2 * PAGE, 0), (0x20_3000, PAGE, 3 * PAGE)]
    assert behind.mappings == edu.dma.mappings
    iommu.unmap(0x20_0000, 4 * PAGE)
    assert maps(edu) == []


class Invalidator(MemoryListener):
    """A part of the machine that changes the IOMMU when memory changes, before maps are made."""

    def __init__(self, change: Callable[[], None]) -> None:
        self._change = change

    def commit(self) -> None:
        self._change()


def test_what_another_listener_unmaps_meanwhile_is_not_mapped(
    edu: PCIDevice, topology: Topology, iommu: Table
) -> None:
    bus = MemoryRegion("bus", 1 << 64)
    device = topology.space("device", bus)
    listener = DMAListener(edu.dma, edu.uri)
    listener.attach(device)
    device.add_listener(Invalidator(lambda: iommu.unmap(0x20_2000, 2 * PAGE)), priority=-1)
    iommu.map(0x20_0000, BASE, 8 * PAGE)
    bus.add(iommu, 0)
    assert maps(edu) == [(0x20_0000, 2 * PAGE, 0), (0x20_4000, 4 * PAGE, 4 * PAGE)]
    bus.remove(iommu)
    assert maps(edu) == []
    listener.detach()


def test_what_was_mapped_before_is_unmapped_meanwhile_piece_by_piece(
    edu: PCIDevice, topology: Topology, iommu: Table
) -> None:
    bus = MemoryRegion("bus", 1 << 64)
    bus.add(AliasRegion("window", iommu, 0x20_0000, 0x10_0000), 0x20_0000)
    device = topology.space("device", bus)
    listener = DMAListener(edu.dma, edu.uri)
    listener.attach(device)
    iommu.map(0x20_0000, BASE, 8 * PAGE)
    pieces: list[tuple[int, int]] = []

    def unmap_pieces() -> None:
        for first, size in pieces:
            iommu.unmap(first, size)

    device.add_listener(Invalidator(unmap_pieces), priority=-1)
    pieces += [(0x20_2000, 2 * PAGE), (0x20_0000, PAGE), (0x20_7400, 0x400)]
    bus.add(MMIORegion("registers", PAGE, Registers()), 0)
    assert maps(edu) == [(0x20_1000, PAGE, PAGE), (0x20_4000, 4 * PAGE, 4 * PAGE)]
    listener.detach()


# RAM in parts


@pytest.fixture
def parts(ram: RAMRegion) -> RAMDiscardManager:
    """Says which parts of the RAM, two pages each, are there."""
    return RAMDiscardManager(ram, 2 * PAGE)


@pytest.mark.usefixtures("listener")
def test_only_parts_that_are_there_are_mapped_each_by_itself(
    edu: PCIDevice, root: MemoryRegion, ram: RAMRegion, parts: RAMDiscardManager
) -> None:
    root.add(ram, BASE)
    assert maps(edu) == []
    parts.populate(2 * PAGE, 4 * PAGE)
    assert maps(edu) == [
        (BASE + 2 * PAGE, 2 * PAGE, 2 * PAGE),
        (BASE + 4 * PAGE, 2 * PAGE, 4 * PAGE),
    ]
    assert read_by_dma(edu, BASE + 3 * PAGE) == 3
    parts.discard(2 * PAGE, 2 * PAGE)
    assert maps(edu) == [(BASE + 4 * PAGE, 2 * PAGE, 4 * PAGE)]


@pytest.mark.usefixtures("listener")
def test_parts_follow_their_ram(
    edu: PCIDevice, root: MemoryRegion, ram: RAMRegion, parts: RAMDiscardManager
) -> None:
    parts.populate(0, 8 * PAGE)
    root.add(ram, BASE)
    assert len(maps(edu)) == 4
    ram.move(BASE + PAGE)
    assert [iova for iova, _, _ in maps(edu)] == [BASE + n * PAGE for n in (1, 3, 5, 7)]
    root.remove(ram)
    assert maps(edu) == []
    parts.discard(0, 2 * PAGE)


@pytest.mark.usefixtures("listener")
def test_a_part_that_is_cut_is_mapped_as_far_as_it_is_seen(
    edu: PCIDevice, root: MemoryRegion, ram: RAMRegion, parts: RAMDiscardManager
) -> None:
    root.add(AliasRegion("window", ram, PAGE, 4 * PAGE), BASE)
    parts.populate(0, 8 * PAGE)
    assert maps(edu) == [
        (BASE, PAGE, PAGE),
        (BASE + PAGE, 2 * PAGE, 2 * PAGE),
        (BASE + 3 * PAGE, PAGE, 4 * PAGE),
    ]


def test_a_part_that_is_refused_is_not_there(
    edu: PCIDevice,
    listener: DMAListener,
    root: MemoryRegion,
    ram: RAMRegion,
    parts: RAMDiscardManager,
) -> None:
    root.add(ram, BASE)
    with SharedMemory(PAGE) as memory:
        edu.dma.map(memory, iova=BASE + 4 * PAGE)
        parts.populate(0, 2 * PAGE)
        with pytest.raises(DMAError, match="overlaps"):
            parts.populate(0, 8 * PAGE)
        assert [entry.iova for entry in listener.mappings] == [BASE]
        assert not parts.is_populated(2 * PAGE, 2 * PAGE)
        edu.dma.unmap(BASE + 4 * PAGE, PAGE)
    parts.populate(0, 8 * PAGE)
    assert len(listener.mappings) == 4


@pytest.mark.usefixtures("listener")
def test_parts_of_less_than_a_page_are_refused(
    edu: PCIDevice, root: MemoryRegion, ram: RAMRegion
) -> None:
    RAMDiscardManager(ram, PAGE // 2)
    with pytest.raises(DMAError, match="parts of 2048 bytes"):
        root.add(ram, BASE)
    root.remove(ram)
    assert maps(edu) == []


@pytest.mark.usefixtures("listener")
def test_more_parts_than_there_may_be_maps_are_refused(edu: PCIDevice, root: MemoryRegion) -> None:
    with RAMRegion("large", (edu.dma.max_maps - 500) * PAGE) as large:
        RAMDiscardManager(large, PAGE)
        with pytest.raises(DMAError, match="take larger parts"):
            root.add(large, BASE)
        root.remove(large)


@pytest.mark.usefixtures("behind")
def test_an_iommu_does_not_map_parts_that_are_not_there(
    edu: PCIDevice, iommu: Table, root: MemoryRegion, caplog: pytest.LogCaptureFixture
) -> None:
    with RAMRegion("dimm", 4 * PAGE) as dimm:
        manager = RAMDiscardManager(dimm, 2 * PAGE)
        root.add(dimm, 0x100_0000)
        manager.populate(0, 2 * PAGE)
        iommu.map(0x20_0000, 0x100_0000, 2 * PAGE)
        iommu.map(0x20_2000, 0x100_2000, 2 * PAGE)
        assert maps(edu) == [(0x20_0000, 2 * PAGE, 0)]
        assert "discarded memory" in caplog.text
        iommu.unmap(0, 1 << 64)
        root.remove(dimm)
