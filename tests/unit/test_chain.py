# SPDX-License-Identifier: BSD-3-Clause
"""Capability chains: what is built is found again, and no chain leads out of its struct."""

from __future__ import annotations

import struct
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio.uapi import chain, vfio
from pyvfio.uapi.chain import ChainError, InfoCapability

START = 32
"""Bytes of a region info, behind which its chain begins."""

U16 = st.integers(0, (1 << 16) - 1)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
CAPABILITIES = st.lists(st.builds(InfoCapability, U16, U16, st.binary(max_size=40)), max_size=5)
AREAS = st.lists(st.builds(vfio.SparseMmapArea, U64, U64), max_size=5)

MODERATE = settings(deadline=None, max_examples=60)


def info(*nodes: bytes) -> bytes:
    """An info struct with ``nodes`` behind it."""
    return bytes(START) + b"".join(nodes)


def node(following: int, data: bytes = b"", number: int = 1, version: int = 1) -> bytes:
    """One node, with whatever it says about where the next one stands."""
    return struct.pack("=HHI", number, version, following) + data


def sparse(announced: int, areas: bytes = b"") -> InfoCapability:
    """A sparse mmap capability that announces a number of areas."""
    head = struct.pack("=II", announced, 0)
    return InfoCapability(vfio.RegionCapability.SPARSE_MMAP, 1, head + areas)


def walked(data: bytes, first: int) -> list[InfoCapability]:
    """The nodes of a chain, but no more than there is room for, should the walk not end."""
    return list(islice(chain.walk(data, START, first), len(data) // 8))


def area(offset: int, size: int) -> bytes:
    return struct.pack("=QQ", offset, size)


# Walking


def test_first_of_0_is_an_empty_chain() -> None:
    assert list(chain.walk(info(node(0)), START, 0)) == []


def test_nodes_come_in_order_with_the_bytes_behind_their_header() -> None:
    data = info(node(48, b"one-one-", 1, 2), node(0, b"two", 3, 4))
    assert list(chain.walk(data, START, START)) == [
        InfoCapability(1, 2, b"one-one-"),
        InfoCapability(3, 4, b"two"),
    ]


def test_first_node_may_stand_behind_a_gap() -> None:
    data = info(b"padding!", node(0, b"data"))
    assert list(chain.walk(data, START, START + 8)) == [InfoCapability(1, 1, b"data")]


def test_bytes_between_two_nodes_belong_to_the_first() -> None:
    data = info(node(56, b"datadata"), b"gap-gap-", node(0))
    assert next(chain.walk(data, START, START)).data == b"datadatagap-gap-"


def test_last_node_may_end_with_the_struct() -> None:
    assert list(chain.walk(info(node(0)), START, START)) == [InfoCapability(1, 1, b"")]


def test_walk_reads_a_memoryview() -> None:
    data = memoryview(bytearray(info(node(0, b"data"))))
    assert list(chain.walk(data, START, START)) == [InfoCapability(1, 1, b"data")]


BROKEN = {
    "first-within-the-struct": (info(node(0)), 8),
    "first-one-byte-too-low": (info(node(0)), START - 1),
    "first-at-the-end": (info(node(0)), START + 8),
    "first-far-beyond-the-end": (info(node(0)), 0xFFFF_FFFF),
    "first-without-a-chain": (info(), START),
    "header-cut-short": (info(node(0)[:7]), START),
    "next-header-cut-short": (info(node(START + 8), node(0)[:7]), START),
    "next-at-the-end": (info(node(START + 8)), START),
    "next-far-beyond-the-end": (info(node(0xFFFF_FFFF)), START),
    "next-is-itself": (info(node(START)), START),
    "next-within-its-own-header": (info(node(START + 4), bytes(8)), START),
    "next-within-the-struct": (info(node(8)), START),
    "next-leads-back": (info(node(START + 8), node(START)), START),
    "loop-of-three": (info(node(START + 8), node(START + 16), node(START + 8)), START),
}


@pytest.mark.parametrize(("data", "first"), BROKEN.values(), ids=BROKEN)
def test_chain_that_leaves_its_struct_or_leads_back_is_refused(data: bytes, first: int) -> None:
    with pytest.raises(ChainError):
        walked(data, first)


@given(behind=st.binary(max_size=120), first=st.integers(0, 160))
@MODERATE
def test_any_bytes_give_nodes_within_them_or_an_error(behind: bytes, first: int) -> None:
    try:
        nodes = walked(info(behind), first)
    except ChainError:
        return
    assert sum(8 + len(capability.data) for capability in nodes) <= len(behind)


@given(targets=st.lists(st.integers(START, START + 64), min_size=1, max_size=8))
@MODERATE
def test_walk_ends_wherever_the_nodes_point(targets: list[int]) -> None:
    data = info(*(node(following) for following in targets))
    with pytest.raises(ChainError):  # none of them says that it is the last
        walked(data, START)


# Building


def test_chain_is_laid_out_as_the_kernel_does() -> None:
    capabilities = [
        chain.sparse_capability([vfio.SparseMmapArea(0x1000, 0x2000)]),
        InfoCapability(vfio.RegionCapability.MSIX_MAPPABLE, 1, b""),
    ]
    expected = (
        (1, 1, START + 32),  # sparse mmap; the next node stands behind its one area
        (1, 0, 0x1000, 0x2000),
        (3, 1, 0),
    )
    assert chain.build(START, capabilities) == (
        struct.pack("=HHI", *expected[0])
        + struct.pack("=IIQQ", *expected[1])
        + struct.pack("=HHI", *expected[2])
    )


def test_no_capabilities_are_no_bytes() -> None:
    assert chain.build(START, []) == b""


def test_nodes_begin_at_multiples_of_8() -> None:
    odd = InfoCapability(7, 1, b"odd")
    assert chain.build(START, [odd, odd]) == (
        node(START + 16, b"odd\0\0\0\0\0", 7) + node(0, b"odd\0\0\0\0\0", 7)
    )


@given(capabilities=CAPABILITIES, start=st.integers(1, 64))
@MODERATE
def test_walk_finds_what_build_laid_out(capabilities: list[InfoCapability], start: int) -> None:
    data = bytes(start) + chain.build(start, capabilities)
    padded = [
        InfoCapability(number, version, content + bytes(-len(content) % 8))
        for number, version, content in capabilities
    ]
    assert list(chain.walk(data, start, start if capabilities else 0)) == padded


# What single capabilities carry


def test_sparse_areas_come_in_order() -> None:
    assert chain.sparse_areas(sparse(2, area(0, 0x1000) + area(0x3000, 0x2000))) == [
        vfio.SparseMmapArea(0, 0x1000),
        vfio.SparseMmapArea(0x3000, 0x2000),
    ]


def test_sparse_areas_of_size_0_are_dropped() -> None:
    areas = area(0x1000, 0) + area(0x2000, 0x1000) + area(0, 0)
    assert chain.sparse_areas(sparse(3, areas)) == [vfio.SparseMmapArea(0x2000, 0x1000)]


def test_no_sparse_areas_at_all() -> None:
    assert chain.sparse_areas(sparse(0)) == []


def test_bytes_behind_the_announced_sparse_areas_are_ignored() -> None:
    assert chain.sparse_areas(sparse(0, area(0x1000, 0x1000))) == []


@pytest.mark.parametrize(
    ("announced", "areas"),
    [(1, b""), (2, area(0, 1)), (1, area(0, 1)[:-1]), (0xFFFF_FFFF, area(0, 1))],
    ids=["none-there", "one-too-many", "last-cut-short", "four-billion"],
)
def test_more_sparse_areas_announced_than_there_are_is_refused(
    announced: int, areas: bytes
) -> None:
    with pytest.raises(ChainError):
        chain.sparse_areas(sparse(announced, areas))


@pytest.mark.parametrize("size", [0, 7])
def test_sparse_capability_without_its_head_is_refused(size: int) -> None:
    with pytest.raises(ChainError):
        chain.sparse_areas(InfoCapability(vfio.RegionCapability.SPARSE_MMAP, 1, bytes(size)))


@given(areas=AREAS)
@MODERATE
def test_sparse_areas_finds_what_sparse_capability_listed(
    areas: list[vfio.SparseMmapArea],
) -> None:
    data = info(chain.build(START, [chain.sparse_capability(areas)]))
    [capability] = chain.walk(data, START, START)
    assert capability.id == vfio.RegionCapability.SPARSE_MMAP
    assert chain.sparse_areas(capability) == [found for found in areas if found.size]


def test_region_type_is_read() -> None:
    data = struct.pack("=II", 0x8000_8086, 3)
    assert chain.region_type(InfoCapability(2, 1, data)) == vfio.RegionType(0x8000_8086, 3)


@pytest.mark.parametrize("size", [0, 7])
def test_region_type_cut_short_is_refused(size: int) -> None:
    with pytest.raises(ChainError):
        chain.region_type(InfoCapability(vfio.RegionCapability.TYPE, 1, bytes(size)))
