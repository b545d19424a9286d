# SPDX-License-Identifier: BSD-3-Clause
"""What a kernel or a server says of a region: taken where it makes sense, refused where not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pyvfio.uapi import chain, vfio
from pyvfio.uapi.chain import InfoCapability
from pyvfio.uapi.vfio import RegionCapability, RegionFlags
from pyvfio.vectors import MAX_AREAS, MmapArea, RegionInfo, known

PAGE = 4096
SIZE = 64 * PAGE
START = vfio.REGION_INFO.size
FD = 9
ALL = RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP | RegionFlags.CAPS
END = (1 << 64) - 1


def said(
    *capabilities: InfoCapability,
    flags: int = ALL,
    size: int = SIZE,
    offset: int = 0,
    cap_offset: int | None = None,
    fd: int | None = FD,
) -> RegionInfo:
    """What is made of an info with a chain."""
    behind = chain.build(START, capabilities)
    first = (START if behind else 0) if cap_offset is None else cap_offset
    info = vfio.RegionInfo(START + len(behind), flags, 2, first, size, offset)
    members = (info.argsz, info.flags, info.index, info.cap_offset, info.size, info.offset)
    return RegionInfo.from_struct(info, vfio.REGION_INFO.pack(*members) + behind, fd)


def areas(*listed: tuple[int, int]) -> InfoCapability:
    """A capability that lists areas."""
    return chain.sparse_capability([vfio.SparseMmapArea(*area) for area in listed])


def pages(numbers: Sequence[int]) -> InfoCapability:
    """A capability that lists single pages."""
    return areas(*((PAGE * number, PAGE) for number in numbers))


def test_region_without_a_list_can_be_mapped_whole() -> None:
    assert said().areas == (MmapArea(0, SIZE),)


def test_listed_areas_are_in_order_however_they_were_listed() -> None:
    found = said(areas((8 * PAGE, PAGE), (0, 2 * PAGE), (3 * PAGE, PAGE)))
    assert found.areas == (
        MmapArea(0, 2 * PAGE),
        MmapArea(3 * PAGE, PAGE),
        MmapArea(8 * PAGE, PAGE),
    )


def test_areas_may_touch_each_other_and_the_end() -> None:
    found = said(areas((0, PAGE), (PAGE, SIZE - PAGE)))
    assert found.areas == (MmapArea(0, PAGE), MmapArea(PAGE, SIZE - PAGE))


def test_empty_list_leaves_nothing_to_map() -> None:
    assert said(areas()).areas == ()


def test_as_many_areas_as_a_region_may_have_are_taken() -> None:
    numbers = range(MAX_AREAS)
    assert len(said(pages(numbers), size=MAX_AREAS * PAGE).areas) == MAX_AREAS


def test_capabilities_are_not_looked_for_where_the_flags_have_none() -> None:
    found = said(areas((END, END)), flags=ALL & ~RegionFlags.CAPS)
    assert found.areas == (MmapArea(0, SIZE),)


def test_unknown_capability_is_passed_over() -> None:
    found = said(InfoCapability(77, 1, b"\xff" * 24), areas((0, PAGE)))
    assert found.areas == (MmapArea(0, PAGE),)


def test_type_and_msix_mappable_are_read() -> None:
    found = said(
        InfoCapability(RegionCapability.TYPE, 1, vfio.REGION_TYPE.pack(0x8000_8086, 1)),
        InfoCapability(RegionCapability.MSIX_MAPPABLE, 1, b""),
    )
    assert (found.type, found.msix_mappable) == ((0x8000_8086, 1), True)


def test_flags_without_a_name_are_dropped_and_not_kept_anywhere() -> None:
    kept = len(RegionFlags._value2member_map_)
    for bits in range(1 << 10, 1 << 11):
        assert known(RegionFlags, bits << 8 | 1) == RegionFlags.READ
    assert len(RegionFlags._value2member_map_) == kept
    assert said(flags=ALL | 0x8000_0000).flags == ALL


UNMAPPABLE = {
    "no flag": said(flags=ALL & ~RegionFlags.MMAP),
    "no descriptor": said(fd=None),
    "no bytes": said(size=0),
}


@pytest.mark.parametrize("found", UNMAPPABLE.values(), ids=UNMAPPABLE)
def test_region_that_cannot_be_mapped_has_no_areas_and_keeps_no_descriptor(
    found: RegionInfo,
) -> None:
    assert (found.areas, found.fd) == ((), None)


CONTRADICTIONS: dict[str, InfoCapability] = {
    "area beyond the end": areas((SIZE, PAGE)),
    "area across the end": areas((SIZE - PAGE, 2 * PAGE)),
    "area that wraps": areas((END - PAGE + 1, 2 * PAGE)),
    "area of everything there is": areas((0, END)),
    "one area twice": areas((0, PAGE), (0, PAGE)),
    "area within another": areas((0, 4 * PAGE), (PAGE, PAGE)),
    "areas that overlap by a byte": areas((0, PAGE + 1), (PAGE, PAGE)),
    "overlap that is listed backwards": areas((PAGE, PAGE), (0, 2 * PAGE)),
    "an area too many": areas(*((number, 1) for number in range(MAX_AREAS + 1))),
    "list cut short": InfoCapability(RegionCapability.SPARSE_MMAP, 1, b"\1\0\0\0"),
    "more areas announced": InfoCapability(RegionCapability.SPARSE_MMAP, 1, b"\xff" * 8),
    "type cut short": InfoCapability(RegionCapability.TYPE, 1, b""),
}


@pytest.mark.parametrize("capability", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_capability_that_contradicts_the_region_is_refused(capability: InfoCapability) -> None:
    with pytest.raises(ValueError, match=r"area|capability"):
        said(capability)


@pytest.mark.parametrize(("size", "offset"), [(SIZE, END - SIZE + 1), (END, 1), (1, END)])
def test_region_that_leaves_its_file_is_refused(size: int, offset: int) -> None:
    with pytest.raises(ValueError, match="offset"):
        said(size=size, offset=offset)


@pytest.mark.parametrize("cap_offset", [1, START - 1, START + 1000, 0xFFFF_FFFF])
def test_chain_that_begins_where_it_cannot_is_refused(cap_offset: int) -> None:
    with pytest.raises(ValueError, match="capability"):
        said(areas((0, PAGE)), cap_offset=cap_offset)
