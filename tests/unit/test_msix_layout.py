# SPDX-License-Identifier: BSD-3-Clause
"""Where a guest sees MSI-X table and PBA: arithmetic on what a device says of itself."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest

from pyvfio.emulator.msix_layout import BARSpec, MSIXLayout
from pyvfio.errors import RegionError, UnsupportedError
from pyvfio.pci.device import PCIDevice
from pyvfio.pci.msix import Location
from pyvfio.uapi.pci import BARType
from pyvfio.uapi.vfio import IRQFlags
from tests.unit.declared import IO, MEM32, MEM64, URI, BARs, DeclaredIO, declared

PAGE = 4096
MSIX_AT = 0x40


def device(
    bars: BARs,
    msix: tuple[int, int, int] | None = (32, 0, 0x800),
    at: int = MSIX_AT,
    **rest: Any,
) -> PCIDevice:
    """A device with BARs, and an MSI-X capability of (entries, table register, PBA register)."""
    capabilities = {}
    if msix is not None:
        entries, table, pba = msix
        capabilities[at] = struct.pack("<BHII", 0x11, entries - 1, table, pba)
    return declared(DeclaredIO(bars, capabilities, **rest))


def probe(dev: PCIDevice, relocation: int | None = None) -> MSIXLayout:
    layout = MSIXLayout.probe(dev, relocation)
    assert layout is not None
    return layout


def areas(layout: MSIXLayout, number: int) -> list[tuple[int, int]]:
    return [(area.offset, area.size) for area in layout.areas(number)]


def whole(size: int, bits: int = MEM32) -> tuple[int, int, Sequence[tuple[int, int]]]:
    """A BAR that can be mapped as a whole."""
    return size, bits, [(0, size)]


# What is read


def test_a_device_without_the_capability_has_no_layout() -> None:
    assert MSIXLayout.probe(device({0: whole(PAGE)}, None)) is None


def test_table_and_pba_are_where_the_capability_says() -> None:
    layout = probe(device({1: whole(PAGE), 4: whole(PAGE)}, (32, 1, 0x800 | 4)))
    assert (layout.entries, layout.table, layout.pba) == (32, Location(1, 0), Location(4, 0x800))


@pytest.mark.parametrize("flags", [IRQFlags.EVENTFD, IRQFlags.EVENTFD | IRQFlags.NORESIZE])
def test_whether_vectors_come_one_by_one_is_what_the_index_says(flags: IRQFlags) -> None:
    layout = probe(device({0: whole(PAGE)}, irq_flags=flags))
    assert layout.resizable == (IRQFlags.NORESIZE not in flags)


def test_a_capability_that_leaves_configuration_space_is_an_error() -> None:
    with pytest.raises(RegionError):
        probe(device({0: whole(PAGE)}, at=0xF8))


# Places that make no sense


@pytest.mark.parametrize(
    ("msix", "named"),
    [
        ((32, 0xF00, 0x800), "table"),  # leaves the BAR
        ((32, 2, 0x800), "table"),  # a BAR that there is not
        ((32, 6, 0x800), "table"),  # no BAR at all
        ((32, 7, 0x800), "table"),
        ((32, 4, 0x800), "table"),  # I/O ports
        ((32, 0, 0xFFC | 0), "PBA"),
        ((65, 0, 0xFF8), "PBA"),  # its second word
        ((32, 0, 0x1000), "PBA"),
        ((32, 0, 0x800 | 7), "PBA"),
        ((32, 0xFFFF_FFF8, 0x800), "table"),
    ],
)
def test_a_place_that_is_not_there_is_refused(msix: tuple[int, int, int], named: str) -> None:
    dev = device({0: whole(PAGE), 4: (32, IO, [])}, msix)
    with pytest.raises(UnsupportedError, match=f"{named} is at .* \\(FunctionOptions") as raised:
        probe(dev)
    assert raised.value.uri == URI


@pytest.mark.parametrize("pba", [0, 0x1F8])
def test_a_table_that_overlaps_the_pba_is_refused(pba: int) -> None:
    with pytest.raises(UnsupportedError, match="overlap"):
        probe(device({0: whole(PAGE)}, (32, 0, pba)))


@pytest.mark.parametrize("pba", [0x200, 0x208])
def test_the_pba_may_follow_the_table_at_once(pba: int) -> None:
    assert probe(device({0: whole(PAGE)}, (32, 0, pba))).pba.offset == pba


@pytest.mark.parametrize(
    ("ids", "size", "said", "meant"),
    [
        ((0x1425, 0x5800), 0x2000, 0x8000, 0x1000),
        ((0x1425, 0x58FF), 0x2000, 0x8000, 0x1000),
        ((0x1D22, 0x3685), 0x10000, 0x460000, 0xB400),
    ],
)
def test_devices_known_to_say_a_wrong_pba_are_corrected(
    ids: tuple[int, int], size: int, said: int, meant: int
) -> None:
    layout = probe(device({0: whole(size)}, (32, 0, said), ids=ids))
    assert layout.pba == Location(0, meant)


@pytest.mark.parametrize("ids", [(0x1425, 0x5900), (0x1D22, 0x3684), (0x1D22, 0x5800)])
def test_others_that_say_so_are_refused(ids: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedError):
        probe(device({0: whole(0x2000)}, (32, 0, 0x8000), ids=ids))


def test_a_known_device_that_says_a_right_pba_is_believed() -> None:
    layout = probe(device({0: whole(0x2000)}, (32, 0, 0x1800), ids=(0x1425, 0x5801)))
    assert layout.pba == Location(0, 0x1800)


# What is mapped


@pytest.mark.parametrize(
    ("table", "entries", "mapped"),
    [
        (0, 32, [(PAGE, 3 * PAGE)]),
        (0, 1024, []),  # four pages
        (PAGE, 32, [(0, PAGE), (2 * PAGE, 2 * PAGE)]),
        (PAGE + 0x800, 256, [(0, PAGE), (3 * PAGE, PAGE)]),  # on two pages
        (3 * PAGE, 256, [(0, 3 * PAGE)]),
        (3 * PAGE + 0x800, 1, [(0, 3 * PAGE)]),
        (2 * PAGE, 512, [(0, 2 * PAGE)]),
    ],
)
def test_the_pages_with_the_table_are_cut_out(
    table: int, entries: int, mapped: list[tuple[int, int]]
) -> None:
    layout = probe(device({0: whole(4 * PAGE), 2: whole(PAGE)}, (entries, table, 2)))
    assert areas(layout, 0) == mapped


def test_other_bars_are_mapped_as_the_device_says() -> None:
    bars = {0: whole(PAGE), 2: (8 * PAGE, MEM64, [(0, PAGE), (4 * PAGE, PAGE)])}
    layout = probe(device(bars))
    assert areas(layout, 2) == [(0, PAGE), (4 * PAGE, PAGE)]
    assert areas(layout, 3) == []


def test_nothing_is_cut_out_where_the_table_may_be_mapped() -> None:
    layout = probe(device({0: whole(4 * PAGE)}, msix_mappable=True))
    assert areas(layout, 0) == [(0, 4 * PAGE)]


@pytest.mark.parametrize("sparse", [[], [(PAGE, PAGE)], [(0, PAGE), (PAGE, 3 * PAGE)]])
def test_a_bar_that_is_not_one_area_is_left_as_it_is(sparse: list[tuple[int, int]]) -> None:
    layout = probe(device({0: (4 * PAGE, MEM32, sparse)}))
    assert areas(layout, 0) == sparse


# Relocation


@pytest.mark.parametrize(
    ("entries", "bytes_needed"),
    [(32, PAGE), (256, 2 * PAGE), (2048, 16 * PAGE)],  # 512 + 8, 4096 + 32, 32768 + 256
)
def test_a_bar_that_there_is_grows_and_has_the_table_in_its_upper_half(
    entries: int, bytes_needed: int
) -> None:
    layout = probe(device({0: whole(PAGE), 2: whole(PAGE, MEM64)}, (entries, 0, 0)), 2)
    size = max(2 * PAGE, 2 * bytes_needed)
    assert layout.bar_size(2, PAGE) == size
    assert layout.table == Location(2, size // 2)
    assert layout.pba == Location(2, size // 2 + 16 * entries)
    assert layout.new_bar(2) is None


def test_a_large_bar_doubles() -> None:
    layout = probe(device({0: whole(1 << 20)}), 0)
    assert (layout.bar_size(0, 1 << 20), layout.table) == (2 << 20, Location(0, 1 << 20))


def test_other_bars_keep_their_size() -> None:
    layout = probe(device({0: whole(PAGE), 2: whole(PAGE)}), 2)
    assert layout.bar_size(0, PAGE) == PAGE
    assert probe(device({0: whole(PAGE)})).bar_size(0, PAGE) == PAGE


def test_the_device_s_own_table_is_not_mapped_either() -> None:
    layout = probe(device({0: whole(4 * PAGE), 2: whole(PAGE)}), 2)
    assert areas(layout, 0) == [(PAGE, 3 * PAGE)]
    assert areas(layout, 2) == [(0, PAGE)]


@pytest.mark.parametrize(
    ("number", "spec"),
    [
        (2, BARSpec(BARType.MEM64, True, PAGE)),  # the next one is free as well
        (3, BARSpec(BARType.MEM32, True, PAGE)),
        (5, BARSpec(BARType.MEM32, True, PAGE)),  # there is no next one
    ],
)
def test_a_free_bar_is_made_for_the_table(number: int, spec: BARSpec) -> None:
    layout = probe(device({0: whole(PAGE), 4: whole(PAGE)}), number)
    assert layout.new_bar(number) == spec
    assert layout.table == Location(number, 0)
    assert layout.pba == Location(number, 32 * 16)
    assert layout.new_bar(0) is None
    assert areas(layout, number) == []


def test_relocation_helps_a_device_whose_places_make_no_sense() -> None:
    layout = probe(device({0: whole(4 * PAGE)}, (32, 0x100000, 0x8000 | 3)), 2)
    assert (layout.table.bar, layout.pba.bar) == (2, 2)
    assert areas(layout, 0) == [(0, 4 * PAGE)]


@pytest.mark.parametrize(
    ("relocation", "reason"),
    [
        (4, "it is for I/O ports"),
        (3, "it is the upper half of BAR 2"),
        (1, "its 0x80000000 bytes cannot grow in 32 bits"),
    ],
)
def test_a_bar_that_cannot_take_the_table_is_refused(relocation: int, reason: str) -> None:
    bars = {0: whole(PAGE), 1: whole(2 << 30), 2: whole(4 << 30, MEM64), 4: (32, IO, [])}
    with pytest.raises(UnsupportedError, match=f"BAR {relocation} cannot take the table: {reason}"):
        probe(device(bars), relocation)


def test_a_large_64_bit_bar_can_grow() -> None:
    layout = probe(device({0: whole(PAGE), 2: whole(4 << 30, MEM64)}), 2)
    assert layout.bar_size(2, 4 << 30) == 8 << 30


@pytest.mark.parametrize("number", [-1, 6])
def test_a_bar_that_no_function_has_is_a_wrong_argument(number: int) -> None:
    with pytest.raises(ValueError, match=f"no BAR {number}"):
        probe(device({0: whole(PAGE)}), number)


def test_relocation_of_a_device_without_msix_is_nothing() -> None:
    assert MSIXLayout.probe(device({0: whole(PAGE)}, None), 2) is None
