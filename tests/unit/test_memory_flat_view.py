# SPDX-License-Identifier: BSD-3-Clause
"""The flat view of a tree of regions: what is seen where, compared with a painter of bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio.emulator.memory import (
    AddressSpace,
    AliasRegion,
    MemoryRegion,
    MMIORegion,
    TerminalRegion,
    Topology,
)

TOP = 1 << 64


class Register:
    """Registers that nobody reads here."""

    def read(self, offset: int, width: int) -> int:
        raise NotImplementedError

    def write(self, offset: int, width: int, value: int) -> None:
        raise NotImplementedError


def io(name: str, size: int) -> MMIORegion:
    """A region that is seen."""
    return MMIORegion(name, size, Register())


@pytest.fixture
def root() -> MemoryRegion:
    return MemoryRegion("system", TOP)


@pytest.fixture
def space(root: MemoryRegion) -> AddressSpace:
    return Topology().space("memory", root)


def seen(space: AddressSpace) -> list[tuple[int, int, str, int]]:
    """The flat view as (start, end, name, offset in the region)."""
    return [
        (found.start, found.end, found.region.name, found.offset_in_region)
        for found in space.flat_view
    ]


# What is in front


def test_nothing_is_seen_of_an_empty_tree(space: AddressSpace) -> None:
    assert space.flat_view == ()


def test_the_higher_priority_is_in_front(root: MemoryRegion, space: AddressSpace) -> None:
    root.add(io("front", 4), 2, priority=1)
    root.add(io("back", 8), 0)
    assert seen(space) == [(0, 2, "back", 0), (2, 6, "front", 0), (6, 8, "back", 6)]


def test_a_negative_priority_is_behind(root: MemoryRegion, space: AddressSpace) -> None:
    root.add(io("front", 4), 0)
    root.add(io("back", 8), 0, priority=-1)
    assert seen(space) == [(0, 4, "front", 0), (4, 8, "back", 4)]


def test_of_equals_the_last_one_added_is_in_front(root: MemoryRegion, space: AddressSpace) -> None:
    root.add(io("first", 4), 0)
    root.add(io("last", 4), 2)
    assert seen(space) == [(0, 2, "first", 0), (2, 6, "last", 0)]


def test_a_region_that_moves_comes_in_front_of_its_equals(
    root: MemoryRegion, space: AddressSpace
) -> None:
    moving = io("moving", 4)
    root.add(moving, 8)
    root.add(io("other", 4), 0)
    moving.move(2)
    assert seen(space) == [(0, 2, "other", 0), (2, 6, "moving", 0)]


def test_what_a_container_holds_does_not_leave_it(root: MemoryRegion, space: AddressSpace) -> None:
    window = MemoryRegion("window", 4)
    window.add(io("large", 8), 2)
    root.add(window, 0x10)
    assert seen(space) == [(0x12, 0x14, "large", 0)]


def test_a_container_of_high_priority_shows_what_is_behind_its_holes(
    root: MemoryRegion, space: AddressSpace
) -> None:
    window = MemoryRegion("window", 8)
    window.add(io("inside", 2), 2)
    root.add(window, 0, priority=9)
    root.add(io("back", 8), 0)
    assert seen(space) == [(0, 2, "back", 0), (2, 4, "inside", 0), (4, 8, "back", 4)]


def test_priorities_count_within_one_container_only(
    root: MemoryRegion, space: AddressSpace
) -> None:
    window = MemoryRegion("window", 8)
    window.add(io("inside", 8), 0, priority=100)
    root.add(window, 0)
    root.add(io("front", 4), 0, priority=1)
    assert seen(space) == [(0, 4, "front", 0), (4, 8, "inside", 4)]


def test_a_region_that_answers_is_behind_what_it_holds(
    root: MemoryRegion, space: AddressSpace
) -> None:
    bar = io("bar", 8)
    bar.add(io("mapped", 4), 2, priority=-5)
    root.add(bar, 0)
    assert seen(space) == [(0, 2, "bar", 0), (2, 6, "mapped", 0), (6, 8, "bar", 6)]


def test_a_region_that_is_switched_off_is_not_seen_with_all_that_it_holds(
    root: MemoryRegion, space: AddressSpace
) -> None:
    bar = io("bar", 8)
    bar.add(io("mapped", 4), 2)
    root.add(bar, 0)
    bar.enabled = False
    assert seen(space) == []
    bar.enabled = True
    assert len(seen(space)) == 3


def test_a_root_that_is_switched_off_shows_nothing(root: MemoryRegion, space: AddressSpace) -> None:
    root.add(io("one", 8), 0)
    root.enabled = False
    assert seen(space) == []


def test_a_region_of_all_addresses_is_one_range(root: MemoryRegion, space: AddressSpace) -> None:
    root.add(io("all", TOP), 0)
    assert seen(space) == [(0, TOP, "all", 0)]


def test_a_hole_in_all_addresses_leaves_both_sides(root: MemoryRegion, space: AddressSpace) -> None:
    root.add(io("all", TOP), 0)
    root.add(io("last", 1), TOP - 1, priority=1)
    root.add(io("one", 1), 1 << 63, priority=1)
    assert seen(space) == [
        (0, 1 << 63, "all", 0),
        (1 << 63, (1 << 63) + 1, "one", 0),
        ((1 << 63) + 1, TOP - 1, "all", (1 << 63) + 1),
        (TOP - 1, TOP, "last", 0),
    ]


def test_what_is_resized_is_seen_as_far_as_it_goes(root: MemoryRegion, space: AddressSpace) -> None:
    bar = io("bar", 4)
    root.add(bar, 0)
    bar.resize(8)
    assert seen(space) == [(0, 8, "bar", 0)]


# Aliases


def test_an_alias_shows_a_part_of_its_target(root: MemoryRegion, space: AddressSpace) -> None:
    target = io("target", 16)
    root.add(AliasRegion("alias", target, 4, 8), 0x100)
    assert seen(space) == [(0x100, 0x108, "target", 4)]


def test_where_the_target_is_does_not_matter(root: MemoryRegion, space: AddressSpace) -> None:
    target = io("target", 16)
    root.add(target, 0x1000)
    root.add(AliasRegion("alias", target, 4, 8), 0x100)
    target.move(0x2000)
    assert seen(space) == [(0x100, 0x108, "target", 4), (0x2000, 0x2010, "target", 0)]


def test_an_alias_that_is_longer_than_its_target_has_a_hole(
    root: MemoryRegion, space: AddressSpace
) -> None:
    root.add(AliasRegion("alias", io("target", 4), 2, 8), 0)
    assert seen(space) == [(0, 2, "target", 2)]


def test_aliases_of_aliases_add_up(root: MemoryRegion, space: AddressSpace) -> None:
    inner = AliasRegion("inner", io("target", 0x100), 0x10, 0x40)
    root.add(AliasRegion("outer", inner, 8, 0x100), 0)
    assert seen(space) == [(0, 0x38, "target", 0x18)]


def test_two_aliases_side_by_side_that_fit_together_are_one_range(
    root: MemoryRegion, space: AddressSpace
) -> None:
    target = io("target", 16)
    root.add(AliasRegion("low", target, 0, 8), 0)
    root.add(AliasRegion("high", target, 8, 8), 8)
    assert seen(space) == [(0, 16, "target", 0)]


def test_two_parts_that_do_not_fit_together_are_two(
    root: MemoryRegion, space: AddressSpace
) -> None:
    target = io("target", 16)
    root.add(AliasRegion("high", target, 8, 8), 0)
    root.add(AliasRegion("low", target, 0, 8), 8)
    assert seen(space) == [(0, 8, "target", 8), (8, 16, "target", 0)]


def test_two_parts_that_fit_together_are_two_where_one_is_read_only(
    root: MemoryRegion, space: AddressSpace
) -> None:
    target = io("target", 16)
    low = AliasRegion("low", target, 0, 8)
    low.readonly = True
    root.add(low, 0)
    root.add(AliasRegion("high", target, 8, 8), 8)
    assert [(found.start, found.readonly) for found in space.flat_view] == [(0, True), (8, False)]


def test_a_change_of_what_only_an_alias_shows_is_seen(
    root: MemoryRegion, space: AddressSpace
) -> None:
    bus = MemoryRegion("bus", 0x1000)
    root.add(AliasRegion("window", bus, 0x100, 0x100), 0)
    bus.add(io("device", 0x10), 0x180)
    assert seen(space) == [(0x80, 0x90, "device", 0)]


def test_a_read_only_alias_shows_what_can_be_written_elsewhere(
    root: MemoryRegion, space: AddressSpace
) -> None:
    target = io("target", 4)
    shadow = AliasRegion("shadow", target, 0, 4)
    root.add(target, 0)
    root.add(shadow, 4)
    shadow.readonly = True
    assert [found.readonly for found in space.flat_view] == [False, True]
    shadow.readonly = False
    assert len(space.flat_view) == 2


# Trees that cannot be


def test_a_region_is_in_one_place(root: MemoryRegion) -> None:
    region = io("one", 4)
    root.add(region, 0)
    with pytest.raises(ValueError, match="one is in system already"):
        root.add(region, 8)


@pytest.mark.parametrize("through_alias", [False, True])
def test_a_region_cannot_be_within_itself(root: MemoryRegion, through_alias: bool) -> None:
    inner = MemoryRegion("inner", 0x100)
    root.add(inner, 0)
    held = AliasRegion("alias", root, 0, 0x100) if through_alias else root
    with pytest.raises(ValueError, match="within itself"):
        inner.add(held, 0)


def test_nor_can_it_be_in_itself_at_once(root: MemoryRegion) -> None:
    with pytest.raises(ValueError, match="within itself"):
        root.add(root, 0)


@pytest.mark.parametrize("size", [0, -1, TOP + 1])
def test_sizes_that_do_not_exist_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"region bar of {size} bytes"):
        MemoryRegion("bar", size)
    with pytest.raises(ValueError, match=f"region bar of {size} bytes"):
        io("bar", 4).resize(size)


@pytest.mark.parametrize("offset", [-1, TOP])
def test_offsets_that_do_not_exist_are_refused(root: MemoryRegion, offset: int) -> None:
    inside = io("inside", 4)
    root.add(inside, 0)
    with pytest.raises(ValueError, match="at offset"):
        root.add(io("bar", 4), offset)
    with pytest.raises(ValueError, match="at offset"):
        inside.move(offset)
    with pytest.raises(ValueError, match="of offset"):
        AliasRegion("alias", inside, offset, 4)


def test_what_is_not_there_cannot_be_removed_or_moved(root: MemoryRegion) -> None:
    region = io("bar", 4)
    with pytest.raises(ValueError, match="bar is not in system"):
        root.remove(region)
    with pytest.raises(ValueError, match="bar is in no region"):
        region.move(4)


def test_an_alias_holds_nothing(root: MemoryRegion) -> None:
    with pytest.raises(ValueError, match="no regions of its own"):
        AliasRegion("alias", root, 0, 4).add(io("bar", 4), 0)


def test_a_region_that_was_removed_can_be_added_elsewhere(
    root: MemoryRegion, space: AddressSpace
) -> None:
    region, window = io("bar", 4), MemoryRegion("window", 8)
    root.add(region, 4)
    root.remove(region)
    assert (region.parent, region.offset) == (None, 0)
    window.add(region, 2)
    root.add(window, 0)
    assert seen(space) == [(2, 6, "bar", 0)]


# Against a painter

SPAN = 24
"""Addresses that the painter paints, each by itself."""


@dataclass
class Node:
    """A region as the painter knows it."""

    region: MemoryRegion
    size: int
    enabled: bool = True
    readonly: bool = False
    held: list[Held] = field(default_factory=list)
    target: tuple[Node, int] | None = None


@dataclass
class Held:
    """A node in another: who came later has the higher number."""

    node: Node
    offset: int
    priority: int
    number: int


def color(node: Node, at: int) -> tuple[str, int, bool] | None:
    """What is seen of a node at one of its bytes: name, offset and whether it is read-only."""
    if not node.enabled or not 0 <= at < node.size:
        return None
    found = None
    if node.target is not None:
        found = color(node.target[0], at + node.target[1])
    else:
        for held in sorted(node.held, key=lambda held: (-held.priority, -held.number)):
            found = found or color(held.node, at - held.offset)
        if found is None and isinstance(node.region, TerminalRegion):
            found = node.region.name, at, False
    return found and (found[0], found[1], found[2] or node.readonly)


def pixels(space: AddressSpace) -> Iterator[tuple[str, int, bool] | None]:
    """The flat view, address by address."""
    for at in range(SPAN):
        found = space.find(at)
        if found is None:
            yield None
        else:
            offset = at - found.start + found.offset_in_region
            yield found.region.name, offset, found.readonly


class Painting:
    """A tree and its painter, changed at random in the same way."""

    def __init__(self, data: st.DataObject) -> None:
        self._draw = data.draw
        self.nodes = [Node(MemoryRegion("root", SPAN), SPAN)]
        self.numbers = iter(range(10**6))
        self.topology = Topology()
        self.space = self.topology.space("space", self.nodes[0].region)

    def number(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def node(self) -> Node:
        return self._draw(st.sampled_from(self.nodes))

    def make(self) -> None:
        """A new region, in one that can hold it; an alias shows one that there was before."""
        name, size = f"r{len(self.nodes)}", self.number(1, SPAN)
        kind = self._draw(st.sampled_from(["container", "seen", "seen", "alias"]))
        if kind == "alias":
            target, offset = self.node(), self.number(0, SPAN // 2)
            node = Node(AliasRegion(name, target.region, offset, size), size)
            node.target = target, offset
        else:
            region = MemoryRegion(name, size) if kind == "container" else io(name, size)
            node = Node(region, size)
        self.nodes.append(node)
        self.put(node)

    def put(self, node: Node) -> None:
        parent, offset = self.node(), self.number(0, SPAN - 1)
        if parent.target is not None or node.region.reaches(parent.region):
            return
        priority = self.number(-1, 1)
        parent.region.add(node.region, offset, priority)
        parent.held.append(Held(node, offset, priority, next(self.numbers)))

    def take(self) -> None:
        node = self.node()
        for parent in self.nodes:
            for held in [held for held in parent.held if held.node is node]:
                parent.region.remove(node.region)
                parent.held.remove(held)
                if self.number(0, 1):
                    self.put(node)

    def move(self) -> None:
        node, offset = self.node(), self.number(0, SPAN - 1)
        for held in (held for parent in self.nodes for held in parent.held if held.node is node):
            if offset != held.offset:
                node.region.move(offset)
                held.offset, held.number = offset, next(self.numbers)

    def switch(self) -> None:
        node = self.node()
        node.enabled = node.region.enabled = not node.enabled

    def protect(self) -> None:
        node = self.node()
        node.readonly = node.region.readonly = not node.readonly

    def resize(self) -> None:
        node = self.node()
        node.size = self.number(1, SPAN)
        node.region.resize(node.size)

    def step(self) -> None:
        changes = (self.make, self.make, self.take, self.move, self.switch, self.protect)
        self._draw(st.sampled_from((*changes, self.resize)))()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_view_is_what_a_painter_paints(data: st.DataObject) -> None:
    painting = Painting(data)
    for _ in range(data.draw(st.integers(3, 20))):
        with painting.topology.transaction():
            for _ in range(data.draw(st.integers(1, 3))):
                painting.step()
        wanted = [color(painting.nodes[0], at) for at in range(SPAN)]
        assert list(pixels(painting.space)) == wanted
        view = painting.space.flat_view
        assert all(low.end <= high.start for low, high in pairwise(view))
        assert not any(high.continues(low) for low, high in pairwise(view))
