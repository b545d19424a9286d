# SPDX-License-Identifier: BSD-3-Clause
"""The allocator of IO addresses, against a list of what is taken that is searched the slow way."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as Values
from hypothesis.stateful import (
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from pyvfio.iova import LOWEST, IOVAAllocator

PAGE = 4096
FOUR_GIB = 1 << 32
EVERYTHING = [(0, (1 << 64) - 1)]
INTEL = [(0, 0xFEDF_FFFF), (0xFEF0_0000, 0x7F_FFFF_FFFF)]
"""What the kernel says of an Intel IOMMU: 39 bits, without the interrupt window."""
RANGES = [
    EVERYTHING,
    INTEL,
    [(0, 0xFFFF_FFFF)],
    [(0x1_0000, 0x1_FFFF), (0x2_0000, 0x2_7FFF), (0x1_0000_0000, 0x1_0000_3FFF)],
    [(0, 0xFFF), (0x1000, 0x2FFF), (0x3000, 0x1_FFFF)],
    [(0, 0xFFF), (0xFFFF_FFFF_FFFF_0000, 0xFFFF_FFFF_FFFF_FFFF)],
]

Taken = tuple[int, int]


def gaps(ranges: list[Taken], taken: list[Taken]) -> list[Taken]:
    """What is free, found by walking over everything that is taken."""
    found = []
    for low, high in ranges:
        at = low
        for first, last in sorted(taken):
            if low <= first <= high:
                found.append((at, first - 1))
                at = last + 1
        found.append((at, high))
    return [(first, last) for first, last in found if first <= last]


def fits(free: list[Taken], size: int, alignment: int, low: int, high: int) -> bool:
    """Whether ``size`` aligned bytes are free between two addresses."""
    for first, last in free:
        start = max(first, low)
        start += -start % alignment
        if start + size - 1 <= min(last, high):
            return True
    return False


@settings(max_examples=60, stateful_step_count=40, deadline=None)
class AllocatorMachine(RuleBasedStateMachine):
    """Takes and gives in any order, and compares with a list."""

    taken = Values("taken")

    @initialize(ranges=st.sampled_from(RANGES))
    def start(self, ranges: list[Taken]) -> None:
        self.ranges = ranges
        self.allocator = IOVAAllocator(ranges)
        self.held: list[Taken] = []

    @rule(
        target=taken,
        pages=st.integers(1, 40),
        alignment=st.sampled_from([PAGE, 4 * PAGE, 1 << 20]),
        bits=st.sampled_from([17, 28, 32, 33, 39, 64]),
    )
    def find_and_take(self, pages: int, alignment: int, bits: int) -> object:
        size, limit = pages * PAGE, (1 << bits) - 1
        free = gaps(self.ranges, self.held)
        found = self.allocator.find(size, alignment, bits)
        if found is None:
            assert not fits(free, size, alignment, LOWEST, limit), "there was room"
            return multiple()
        last = found + size - 1
        assert found % alignment == 0, "not aligned"
        assert last <= limit, "beyond the bits"
        assert found >= LOWEST, "too low"
        assert any(low <= found and last <= high for low, high in free), "not free"
        if found < FOUR_GIB and bits > 32:
            assert not fits(free, size, alignment, FOUR_GIB, limit), "low without need"
        self.allocator.take(found, last)
        self.held.append((found, last))
        return found, last

    @rule(
        target=taken,
        start=st.integers(0, 60),
        steps=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=12),
    )
    def take_many(self, start: int, steps: list[Taken]) -> object:
        at, wanted = self.ranges[0][0] + start * PAGE, []
        for gap, pages in steps:
            at += gap * PAGE
            wanted.append((at, at + pages * PAGE - 1))
            at += pages * PAGE
        free = gaps(self.ranges, self.held)
        can = all(
            any(low <= first and last <= high for low, high in free) for first, last in wanted
        )
        firsts, lasts = zip(*wanted, strict=True)
        assert self.allocator.are_free(firsts, lasts) == can
        if not can:
            return multiple()
        self.allocator.take_all(*zip(*joined(wanted), strict=True))
        self.held += wanted
        return multiple(*wanted)

    @rule(entry=consumes(taken))
    def give(self, entry: Taken) -> None:
        if entry in self.held:  # not given with others
            self.allocator.give(*entry)
            self.held.remove(entry)

    @rule(part=st.integers(2, 4))
    def give_many(self, part: int) -> None:
        given = [entry for at, entry in enumerate(sorted(self.held)) if at % part]
        if given:
            self.allocator.give_all(*zip(*joined(given), strict=True))
        self.held = [entry for entry in self.held if entry not in given]

    @invariant()
    def nothing_overlaps(self) -> None:
        held = sorted(getattr(self, "held", []))
        assert all(last < first for (_, last), (first, _) in pairwise(held))

    def teardown(self) -> None:
        if hasattr(self, "allocator"):
            give_all(self.allocator, self.held)
            check_all_free(self.allocator, self.ranges)


def joined(entries: list[Taken]) -> list[Taken]:
    """Neighbours as one."""
    found = entries[:1]
    for first, last in entries[1:]:
        if first == found[-1][1] + 1:
            found[-1] = found[-1][0], last
        else:
            found.append((first, last))
    return found


def give_all(allocator: IOVAAllocator, held: list[Taken]) -> None:
    """Give everything back in a random order."""
    for entry in random.sample(held, len(held)):
        allocator.give(*entry)


def check_all_free(allocator: IOVAAllocator, ranges: list[Taken]) -> None:
    """Take each range in one piece, which fails where one is not free or not joined."""
    for low, high in ranges:
        allocator.take(low, high)
        allocator.give(low, high)


TestAllocator = AllocatorMachine.TestCase


@pytest.mark.parametrize("ranges", RANGES, ids=str)
def test_everything_can_be_used_again_in_one_piece(ranges: list[Taken]) -> None:
    allocator, held = IOVAAllocator(ranges), []
    for _ in range(50):
        found = allocator.find(3 * PAGE, PAGE, 64)
        if found is None:
            break
        held.append((found, found + 3 * PAGE - 1))
        allocator.take(*held[-1])
    give_all(allocator, held)
    check_all_free(allocator, ranges)


def test_a_range_can_be_filled_to_its_last_byte() -> None:
    allocator = IOVAAllocator([(0x10000, 0x13FFF)])
    found = []
    for _ in range(4):
        address = allocator.find(PAGE, PAGE, 64)
        assert address is not None
        allocator.take(address, address + PAGE - 1)
        found.append(address)
    assert (found, allocator.find(PAGE, PAGE, 64)) == ([0x10000, 0x11000, 0x12000, 0x13000], None)


def test_the_last_page_of_the_address_space_can_be_used() -> None:
    top = (1 << 64) - PAGE
    assert IOVAAllocator([(top, (1 << 64) - 1)]).find(PAGE, PAGE, 64) == top


def test_a_size_beyond_the_address_space_is_not_found() -> None:
    assert IOVAAllocator(EVERYTHING).find(1 << 64, PAGE, 64) is None


def test_no_ranges_have_no_room() -> None:
    assert IOVAAllocator([]).find(PAGE, PAGE, 64) is None


def test_a_hole_is_not_used() -> None:
    allocator = IOVAAllocator([(0x10000, 0x10FFF), (0x12000, 0x13FFF)])
    assert allocator.find(2 * PAGE, PAGE, 64) == 0x12000


def test_the_interrupt_window_is_not_used() -> None:
    allocator = IOVAAllocator(INTEL)
    allocator.take(0, 0xFEDE_FFFF)
    assert allocator.find(32 * PAGE, PAGE, 32) == 0xFEF0_0000


def test_ranges_side_by_side_are_not_joined() -> None:
    allocator = IOVAAllocator([(0x10000, 0x10FFF), (0x11000, 0x11FFF)])
    for first in (0x10000, 0x11000):
        allocator.take(first, first + PAGE - 1)
    for first in (0x10000, 0x11000):
        allocator.give(first, first + PAGE - 1)
    assert allocator.find(2 * PAGE, PAGE, 64) is None


@pytest.mark.parametrize(("bits", "low"), [(64, False), (33, False), (32, True), (28, True)])
def test_high_addresses_are_preferred_where_they_can_be_used(bits: int, low: bool) -> None:
    found = IOVAAllocator(EVERYTHING).find(PAGE, PAGE, bits)
    assert found is not None
    assert (found < FOUR_GIB) == low


def test_low_addresses_are_used_when_the_high_ones_are_gone() -> None:
    allocator = IOVAAllocator([(0, 0xFFFF_FFFF), (1 << 32, (1 << 32) + PAGE - 1)])
    allocator.take(1 << 32, (1 << 32) + PAGE - 1)
    assert allocator.find(PAGE, PAGE, 64) == LOWEST


@pytest.mark.parametrize(
    ("first", "last", "allowed"),
    [
        (0, 0xFFF, True),
        (0xFEDF_F000, 0xFEDF_FFFF, True),
        (0xFEDF_F000, 0xFEE0_0FFF, False),
        (0xFEE0_0000, 0xFEE0_0FFF, False),
        (0xFEF0_0000, 0xFEF0_0FFF, True),
        (0xFEDF_F000, 0xFEF0_0FFF, False),
        (0x7F_FFFF_F000, 0x7F_FFFF_FFFF, True),
        (0x80_0000_0000, 0x80_0000_0FFF, False),
        (-PAGE, -1, False),
    ],
)
def test_allowed_is_what_lies_in_one_range(first: int, last: int, allowed: bool) -> None:
    assert IOVAAllocator(INTEL).allowed(first, last) == allowed


def test_what_is_taken_is_still_allowed() -> None:
    allocator = IOVAAllocator(INTEL)
    allocator.take(0, 0xFFF)
    assert allocator.allowed(0, 0xFFF)
