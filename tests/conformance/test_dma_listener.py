# SPDX-License-Identifier: BSD-3-Clause
"""DMA maps that follow the guest's memory: what is mapped of it, what is not, and when."""

from __future__ import annotations

import logging
import random

import pytest

from pyvfio.emulator.dma_listener import DMAListener
from pyvfio.emulator.memory import (
    AddressSpace,
    AliasRegion,
    MemoryRegion,
    MMIORegion,
    RAMRegion,
    Topology,
)
from pyvfio.errors import DMAError, VFIOError
from pyvfio.map_table import MapEntry
from pyvfio.memory import SharedMemory
from pyvfio.pci.device import PCIDevice
from tests.conformance.guest_memory import (
    BASE,
    PAGE,
    READ,
    WRITE,
    BadRAM,
    Guest,
    Registers,
    maps,
    read_by_dma,
)

# RAM


@pytest.mark.usefixtures("listener")
def test_ram_that_is_seen_is_mapped_and_the_device_reaches_it(
    edu: PCIDevice, root: MemoryRegion, ram: RAMRegion
) -> None:
    root.add(ram, BASE)
    assert maps(edu) == [(BASE, 8 * PAGE, 0)]
    assert read_by_dma(edu, BASE + 5 * PAGE) == 5
    root.remove(ram)
    assert maps(edu) == []


def test_ram_that_is_there_already_is_mapped_when_it_begins_and_gone_when_it_ends(
    edu: PCIDevice, root: MemoryRegion, space: AddressSpace, ram: RAMRegion
) -> None:
    root.add(ram, BASE)
    listener = DMAListener(edu.dma, edu.uri)
    listener.attach(space)
    assert maps(edu) == [(BASE, 8 * PAGE, 0)]
    assert listener.mappings == edu.dma.mappings
    listener.detach()
    listener.detach()
    assert (maps(edu), listener.mappings, listener.space) == ([], (), None)
    ram.enabled = False
    assert maps(edu) == []


def test_it_follows_one_space_at_a_time(listener: DMAListener, space: AddressSpace) -> None:
    with pytest.raises(ValueError, match="follows memory already"):
        listener.attach(space)
    listener.detach()
    listener.attach(space)
    space.close()
    listener.detach()


@pytest.mark.usefixtures("listener")
def test_what_is_in_front_of_ram_is_cut_out(
    edu: PCIDevice, root: MemoryRegion, ram: RAMRegion
) -> None:
    root.add(ram, BASE)
    root.add(MMIORegion("registers", 2 * PAGE, Registers()), BASE + 2 * PAGE, priority=1)
    assert maps(edu) == [(BASE, 2 * PAGE, 0), (BASE + 4 * PAGE, 4 * PAGE, 4 * PAGE)]


@pytest.mark.usefixtures("listener")
def test_ram_that_moves_is_mapped_where_it_goes(
    edu: PCIDevice, root: MemoryRegion, ram: RAMRegion
) -> None:
    root.add(ram, BASE)
    for page in (4, 20, 3):
        ram.move(BASE + page * PAGE)
        assert maps(edu) == [(BASE + page * PAGE, 8 * PAGE, 0)]
        assert read_by_dma(edu, BASE + (page + 7) * PAGE) == 7


@pytest.mark.usefixtures("listener")
def test_ram_takes_the_place_of_other_ram_in_one_transaction(
    edu: PCIDevice, topology: Topology, root: MemoryRegion, ram: RAMRegion
) -> None:
    root.add(ram, BASE)
    with RAMRegion("other", 8 * PAGE) as other:
        other.array[:] = 0x55
        with topology.transaction():
            root.remove(ram)
            root.add(other, BASE)
        assert read_by_dma(edu, BASE) == 0x55
        root.remove(other)


@pytest.mark.usefixtures("listener")
def test_read_only_ram_may_be_read_only(edu: PCIDevice, root: MemoryRegion, ram: RAMRegion) -> None:
    root.add(ram, BASE)
    (before,) = edu.dma.mappings
    ram.readonly = True
    (after,) = edu.dma.mappings
    assert (before.flags, after.flags) == (READ | WRITE, READ)
    assert read_by_dma(edu, BASE + 6 * PAGE) == 6


@pytest.mark.usefixtures("listener")
@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ((0x10, 0x800), []),
        ((0, PAGE + 1), [(BASE, PAGE, 0)]),
        ((0x800, 2 * PAGE), [(BASE + PAGE, PAGE, PAGE)]),
        ((PAGE - 1, 2 * PAGE + 1), [(BASE + PAGE, 2 * PAGE, PAGE)]),
        ((PAGE - 1, PAGE), []),
    ],
)
def test_only_whole_pages_are_mapped(
    edu: PCIDevice,
    root: MemoryRegion,
    ram: RAMRegion,
    part: tuple[int, int],
    wanted: list[tuple[int, int, int]],
) -> None:
    root.add(AliasRegion("part", ram, *part), BASE + part[0])
    assert maps(edu) == wanted


def test_ram_that_lies_askew_in_its_pages_is_not_mapped_and_the_log_says_so(
    edu: PCIDevice,
    listener: DMAListener,
    root: MemoryRegion,
    ram: RAMRegion,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        root.add(ram, BASE + 0x10)
    assert maps(edu) == []
    assert "no DMA to ram at 0x100010, 0x8000 bytes: address and memory differ" in caplog.text
    ((section, reason),) = listener.skipped.items()
    assert (section.address, reason) == (
        BASE + 0x10,
        "address and memory differ within a page",
    )
    ram.move(BASE)
    assert (maps(edu), listener.skipped) == ([(BASE, 8 * PAGE, 0)], {})


@pytest.mark.usefixtures("listener")
def test_the_offset_in_shared_memory_counts(edu: PCIDevice, root: MemoryRegion) -> None:
    with SharedMemory(4 * PAGE) as memory:
        root.add(RAMRegion("high", 2 * PAGE, memory, 0x800), BASE)
        assert maps(edu) == []
        root.regions[0].move(BASE + 0x800)
        assert maps(edu) == [(BASE + PAGE, PAGE, PAGE)]
        root.remove(root.regions[0])


def test_what_seems_to_be_in_the_upper_half_is_not_mapped(
    edu: PCIDevice, listener: DMAListener, root: MemoryRegion, ram: RAMRegion
) -> None:
    root.add(ram, (1 << 63) + BASE)
    assert maps(edu) == []
    assert list(listener.skipped.values()) == ["bit 63 of the address is set"]


@pytest.mark.usefixtures("listener")
def test_a_region_of_all_addresses_leaves_room_for_ram(
    edu: PCIDevice, root: MemoryRegion, ram: RAMRegion
) -> None:
    root.add(MMIORegion("all", 1 << 64, Registers()), 0)
    root.add(ram, BASE, priority=1)
    assert maps(edu) == [(BASE, 8 * PAGE, 0)]


def test_maps_of_others_are_left_alone(
    edu: PCIDevice, listener: DMAListener, root: MemoryRegion, ram: RAMRegion
) -> None:
    with edu.dma.alloc(PAGE) as buffer:
        root.add(ram, BASE)
        listener.detach()
        assert maps(edu) == [(buffer.iova, PAGE, 0)]


# Refusals


def test_a_refusal_at_the_start_leaves_nothing(
    edu: PCIDevice, root: MemoryRegion, space: AddressSpace, ram: RAMRegion, bad: BadRAM
) -> None:
    root.add(ram, BASE)
    root.add(bad, BASE + 2 * PAGE, priority=1)
    listener = DMAListener(edu.dma, edu.uri)
    with pytest.raises(DMAError) as caught:
        listener.attach(space)
    assert (caught.value.iova, caught.value.size) == (BASE + 2 * PAGE, PAGE)
    assert (maps(edu), listener.mappings, space.listeners) == ([], (), ())
    bad.enabled = False
    listener.attach(space)
    assert len(maps(edu)) == 1
    listener.detach()


def test_a_refusal_later_is_raised_from_the_transaction_and_the_rest_is_mapped(
    edu: PCIDevice,
    listener: DMAListener,
    guest: Guest,
    ram: RAMRegion,
    bad: BadRAM,
) -> None:
    with pytest.raises(DMAError) as caught:
        _add_both(guest, ram, bad)
    assert caught.value.iova == BASE
    assert maps(edu) == [(BASE + PAGE, 8 * PAGE, 0)]
    assert listener.mappings == edu.dma.mappings
    guest.root.remove(bad)
    ram.move(BASE)
    assert maps(edu) == [(BASE, 8 * PAGE, 0)]


def _add_both(guest: Guest, ram: RAMRegion, bad: BadRAM) -> None:
    with guest.topology.transaction():
        guest.root.add(bad, BASE)
        guest.root.add(ram, BASE + PAGE)


def test_ram_where_somebody_else_has_a_map_is_refused(
    edu: PCIDevice, listener: DMAListener, root: MemoryRegion, ram: RAMRegion
) -> None:
    with SharedMemory(PAGE) as memory:
        edu.dma.map(memory, iova=BASE)
        with pytest.raises(DMAError, match="overlaps the map"):
            root.add(ram, BASE)
        root.remove(ram)
        assert (maps(edu), listener.mappings) == ([(BASE, PAGE, 0)], ())
        edu.dma.unmap(BASE, PAGE)


def test_a_map_that_somebody_else_took_away_is_gone(
    edu: PCIDevice, listener: DMAListener, root: MemoryRegion, ram: RAMRegion
) -> None:
    root.add(ram, BASE)
    edu.dma.unmap(BASE, 8 * PAGE)
    ram.move(BASE + 8 * PAGE)
    assert maps(edu) == [(BASE + 8 * PAGE, 8 * PAGE, 0)]
    assert listener.mappings == edu.dma.mappings


def test_a_closed_device_has_no_maps_left_to_take_away(
    edu: PCIDevice, listener: DMAListener, root: MemoryRegion, ram: RAMRegion
) -> None:
    root.add(ram, BASE)
    edu.close()
    root.remove(ram)
    with pytest.raises(VFIOError, match="closed"):
        root.add(ram, BASE)
    listener.detach()
    assert listener.mappings == ()


# Histories


def expected(space: AddressSpace) -> list[MapEntry]:
    """What must be mapped of a flat view of RAM whose parts all lie at whole pages."""
    return [
        MapEntry(
            found.start,
            found.size,
            found.region.memory,
            found.offset_in_region,
            READ if found.readonly else READ | WRITE,
        )
        for found in space.flat_view
        if isinstance(found.region, RAMRegion)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_after_every_commit_of_a_history_the_maps_are_what_is_seen(
    edu: PCIDevice,
    listener: DMAListener,
    guest: Guest,
    ram: RAMRegion,
    seed: int,
) -> None:
    rng = random.Random(seed)
    windows: list[MemoryRegion] = [
        AliasRegion(f"w{n}", ram, rng.randrange(7) * PAGE, rng.randint(1, 8) * PAGE)
        for n in range(6)
    ]
    windows += [MMIORegion(f"m{n}", rng.randint(1, 3) * PAGE, Registers()) for n in range(2)]
    for window in windows:
        guest.root.add(window, BASE + rng.randrange(32) * PAGE, rng.randint(-1, 1))
    for _ in range(60):
        with guest.topology.transaction():
            for window in rng.sample(windows, rng.randint(1, 4)):
                change = rng.randrange(4)
                if change == 0:
                    window.enabled = not window.enabled
                elif change == 1:
                    window.readonly = not window.readonly
                else:
                    window.move(BASE + rng.randrange(32) * PAGE)
        assert list(edu.dma.mappings) == list(listener.mappings) == expected(guest.space)
    for entry in edu.dma.mappings[:2]:
        assert read_by_dma(edu, entry.iova) == entry.offset // PAGE
