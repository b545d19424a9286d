# SPDX-License-Identifier: BSD-3-Clause
"""Long histories of a guest's memory map: what the server heard, what the container has, and what
is seen agree after every commit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pytest

import pyvfio
from pyvfio.emulator.dma_listener import DMAListener
from pyvfio.emulator.memory import (
    AliasRegion,
    FlatRange,
    IOMMURegion,
    IOTLBEntry,
    MemoryRegion,
    MMIORegion,
    RAMDeviceRegion,
    RAMDiscardManager,
    RAMRegion,
    Topology,
)
from pyvfio.map_table import MapEntry
from pyvfio.native import mmio
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DMAMapFlags
from pyvfio.vectors import DMASource, MmapArea
from tests.conformance.devices import MEMORY
from tests.conformance.guest_memory import PAGE, READ, WRITE, Registers
from tests.support import ServerProcess
from tests.system.map_list import heard

STEPS = 3000
SPAN = 256
"""Pages of the address space in which things move about."""
BLOCKS = (1, 7, 32, 64)
"""Pages of each block of RAM."""

Serve = Callable[..., ServerProcess]


@pytest.fixture
def device(serve: Serve) -> Iterator[PCIDevice]:
    """A device that tells what is mapped for it."""
    with pyvfio.open(serve("tests.system.map_list:MapList").uri) as dev:
        dev.bus_master = True
        yield dev


@pytest.fixture
def peer(serve: Serve) -> Iterator[PCIDevice]:
    """A device of which BAR memory can be mapped."""
    with pyvfio.open(serve("testdev").uri) as dev:
        yield dev


def numbered(name: str, pages: int, number: int) -> RAMRegion:
    """RAM whose pages each begin with a number that no other page has."""
    ram = RAMRegion(name, pages * PAGE)
    ram.array.view("<u8")[:: PAGE // 8] = np.arange(pages) + (number << 32) + 1
    return ram


class Page(NamedTuple):
    """What a page is mapped to."""

    memory: DMASource
    offset: int
    flags: DMAMapFlags


def pages(entries: Iterable[MapEntry]) -> dict[int, Page]:
    """Maps page by page."""
    return {
        entry.iova + at: Page(entry.memory, entry.offset + at, entry.flags)
        for entry in entries
        for at in range(0, entry.size, PAGE)
    }


class Machine:
    """A guest's memory, what a device sees of it, and the device's maps, which follow it."""

    def __init__(self, device: PCIDevice, seed: int) -> None:
        self.device = device
        self.rng = random.Random(seed)
        self.topology = Topology()
        self.root = MemoryRegion("system", 1 << 64)
        self.memory = self.topology.space("memory", self.root)
        self.blocks = [numbered(f"ram{n}", count, n + 1) for n, count in enumerate(BLOCKS)]
        self.listener = DMAListener(device.dma, device.uri)

    def check(self, wanted: dict[int, Page]) -> None:
        """Table, listener and server agree with what must be mapped."""
        assert pages(self.listener.mappings) == wanted
        assert self.listener.mappings == self.device.dma.mappings
        found = heard(self.device)
        assert [(entry.iova, entry.size, entry.flags) for entry in found] == [
            (entry.iova, entry.size, entry.flags) for entry in self.listener.mappings
        ]
        for entry in found:
            page = wanted[entry.iova]
            first = mmio.READ[8](page.memory.address + page.offset)
            assert entry.first == (first if page.flags & READ else 0)

    def close(self) -> None:
        """Take everything away; nothing is mapped any more."""
        self.listener.detach()
        self.check({})
        self.topology.close()
        for block in self.blocks:
            block.close()


@contextmanager
def machine(device: PCIDevice, seed: int) -> Iterator[Machine]:
    found = Machine(device, seed)
    try:
        yield found
    finally:
        found.close()


# Regions that come, go and move


def seen(found: FlatRange) -> dict[int, Page]:
    """What must be mapped of a range: whole pages of memory that does not lie askew in them."""
    region = found.region
    if not isinstance(region, RAMRegion | RAMDeviceRegion) or found.start >> 63:
        return {}
    shift = found.offset_in_region - found.start
    partial = found.start % PAGE or found.end % PAGE
    if shift % PAGE or (isinstance(region, RAMDeviceRegion) and partial):
        return {}
    flags = READ if found.readonly else READ | WRITE
    return {
        at: Page(region.dma_source, region.dma_offset + shift + at, flags)
        for at in range(found.start // PAGE * PAGE, found.end, PAGE)
        if found.start <= at and at + PAGE <= found.end
    }


def scatter(guest: Machine, peer: PCIDevice) -> list[MemoryRegion]:
    """Windows onto all kinds of memory, of all sizes, and registers in front of some."""
    rng = guest.rng
    area = RAMDeviceRegion("peer", peer.bars[MEMORY], MmapArea(PAGE, 32 * PAGE))
    for page in range(32):
        area.write(page * PAGE, 8, 0xBA0000 + page)
    windows: list[MemoryRegion] = [
        MMIORegion(f"io{n}", size, Registers()) for n, size in enumerate((1, PAGE, 3 * PAGE + 5))
    ]
    for number, target in enumerate([*guest.blocks, area] * 3):
        offset = rng.randrange(0, target.size, PAGE // 2)
        size = rng.choice((rng.randint(1, 40) * PAGE, rng.randint(1, 8 * PAGE)))
        windows.append(AliasRegion(f"window{number}", target, offset, size))
    return windows


def place(rng: random.Random) -> int:
    """Somewhere; at a page more often than not, and now and then in the upper half."""
    high = (1 << 63) * (rng.random() < 0.05)
    return high + rng.randrange(SPAN) * PAGE + rng.choice((0, 0, 0, PAGE // 2))


def disturb(guest: Machine, window: MemoryRegion) -> None:
    """Change something about a region."""
    rng, change = guest.rng, guest.rng.randrange(8)
    if change == 0:
        window.enabled = not window.enabled
    elif change == 1:
        window.readonly = not window.readonly
    elif window.parent is None:
        guest.root.add(window, place(rng), rng.randint(-2, 2))
    elif change <= 3:
        guest.root.remove(window)
    else:
        window.move(place(rng))


def test_maps_follow_regions(device: PCIDevice, peer: PCIDevice) -> None:
    with machine(device, 1) as guest:
        windows = scatter(guest, peer)
        guest.listener.attach(guest.memory)
        for _ in range(STEPS):
            with guest.topology.transaction():
                for window in guest.rng.sample(windows, guest.rng.randint(1, 5)):
                    disturb(guest, window)
            ranges = [found for entry in guest.memory.flat_view if (found := seen(entry))]
            assert len(ranges) == len(guest.listener.mappings)
            guest.check({at: page for found in ranges for at, page in found.items()})


# A virtual IOMMU


class Table(IOMMURegion):
    """An IOMMU with a table of entries."""

    table: dict[int, IOTLBEntry]

    def entries(self, first: int, last: int) -> Iterator[IOTLBEntry]:
        return (entry for entry in self.table.values() if entry.iova <= last)


def test_maps_follow_an_iommu(device: PCIDevice) -> None:
    with machine(device, 2) as guest:
        block = guest.blocks[3]
        guest.root.add(block, 0)
        iommu = Table("iommu", 1 << 64, guest.memory)
        iommu.table = {}
        window = AliasRegion("window", iommu, 0, 64 * PAGE)
        bus = MemoryRegion("bus", 1 << 64)
        bus.add(window, 0)
        guest.listener.attach(guest.topology.space("device", bus))
        for step in range(STEPS // 3):
            _change_table(guest.rng, iommu)
            if step % 50 == 0:
                window.move(guest.rng.randrange(SPAN) * PAGE)
            guest.check(
                {
                    window.offset + entry.iova + at: Page(
                        block.memory, entry.translated + at, entry.permission
                    )
                    for entry in iommu.table.values()
                    for at in range(0, entry.mask + 1, PAGE)
                    if entry.iova + at < window.size
                }
            )


def _change_table(rng: random.Random, iommu: Table) -> None:
    """Map pages where none is mapped, or unmap a range with whatever is in it."""
    size = PAGE << rng.randrange(4)
    iova = rng.randrange(0, 128 * PAGE, size)
    inside = [
        entry for entry in iommu.table.values() if iova <= entry.last and entry.iova < iova + size
    ]
    if not inside:
        permission = rng.choice((READ, WRITE, READ | WRITE))
        entry = IOTLBEntry(iova, rng.randrange(0, 64 * PAGE, size), size - 1, permission)
        iommu.table[iova] = entry
        iommu.notify(entry)
        return
    for entry in inside:
        del iommu.table[entry.iova]
        for at in range(entry.iova, entry.last, PAGE):  # what is left of it, page by page
            if not iova <= at < iova + size:
                page = IOTLBEntry(
                    at, entry.translated + at - entry.iova, PAGE - 1, entry.permission
                )
                iommu.table[at] = page
    iommu.notify(IOTLBEntry(iova, 0, size - 1, DMAMapFlags(0)))


# RAM in parts


def test_maps_follow_parts_of_ram(device: PCIDevice) -> None:
    part = 4 * PAGE
    with machine(device, 3) as guest:
        rng, block = guest.rng, guest.blocks[2]
        manager = RAMDiscardManager(block, part)
        windows = [AliasRegion(f"w{n}", block, (8 * n + 1) * PAGE, 12 * PAGE) for n in range(3)]
        for window in windows:
            guest.root.add(window, place(rng))
        guest.listener.attach(guest.memory)
        for _ in range(STEPS // 3):
            first = rng.randrange(8)
            size = rng.randint(1, 8 - first) * part
            rng.choice((manager.populate, manager.discard))(first * part, size)
            if rng.random() < 0.2:
                rng.choice(windows).move(place(rng))
            everything = {
                at: page for entry in guest.memory.flat_view for at, page in seen(entry).items()
            }
            guest.check(
                {
                    at: page
                    for at, page in everything.items()
                    if manager.is_populated(page.offset, PAGE)
                }
            )
