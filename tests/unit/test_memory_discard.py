# SPDX-License-Identifier: BSD-3-Clause
"""RAM that is there in parts: who hears which, and that a refusal leaves no half."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio.emulator.memory import (
    AliasRegion,
    MemoryRegion,
    RAMDiscardManager,
    RAMRegion,
    Section,
    Topology,
)

PART = 0x1000
PARTS = 8
SIZE = PARTS * PART


class Listener:
    """Knows which bytes of the region are there, and refuses one part where it is told to."""

    def __init__(self) -> None:
        self.there: set[int] = set()
        self.calls: list[tuple[str, int, int]] = []
        self.refuse: int | None = None
        self.forget: Exception | None = None

    def populate(self, section: Section) -> None:
        parts = self._parts("populate", section)
        if self.refuse in parts:
            raise OSError(f"no part {self.refuse}")
        assert not self.there & parts
        self.there |= parts

    def discard(self, section: Section) -> None:
        parts = self._parts("discard", section)
        assert parts <= self.there
        self.there -= parts
        if self.forget is not None:
            raise self.forget

    def _parts(self, verb: str, section: Section) -> set[int]:
        first, count = section.offset_in_region // PART, section.size // PART
        self.calls.append((verb, first, count))
        return set(range(first, first + count))


@pytest.fixture
def ram() -> Iterator[RAMRegion]:
    with RAMRegion("dimm", SIZE) as found:
        yield found


@pytest.fixture
def manager(ram: RAMRegion) -> RAMDiscardManager:
    return RAMDiscardManager(ram, PART)


@pytest.fixture
def section(ram: RAMRegion, manager: RAMDiscardManager) -> Section:
    """All of the RAM, which was given a manager before it is shown."""
    assert ram.discard_manager is manager
    root = MemoryRegion("system", 1 << 32)
    root.add(ram, 0x10_0000)
    (found,) = Topology().space("memory", root).sections
    return found


def test_nothing_is_there_at_first(manager: RAMDiscardManager, section: Section) -> None:
    listener = Listener()
    manager.add_listener(listener, section)
    assert listener.calls == []
    assert not manager.is_populated(0, PART)


def test_parts_come_and_go_in_one_piece(manager: RAMDiscardManager, section: Section) -> None:
    listener = Listener()
    manager.add_listener(listener, section)
    manager.populate(PART, 3 * PART)
    manager.discard(2 * PART, PART)
    assert listener.calls == [("populate", 1, 3), ("discard", 2, 1)]
    assert manager.is_populated(PART, PART)
    assert not manager.is_populated(PART, 2 * PART)
    assert manager.is_populated(3 * PART + 5, 1)


def test_only_what_changes_is_told(manager: RAMDiscardManager, section: Section) -> None:
    listener = Listener()
    manager.add_listener(listener, section)
    manager.populate(PART, PART)
    manager.populate(3 * PART, PART)
    manager.populate(0, SIZE)
    manager.discard(0, 2 * PART)
    manager.discard(0, 3 * PART)
    manager.discard(0, PART)
    assert listener.calls[2:5] == [("populate", 0, 1), ("populate", 2, 1), ("populate", 4, 4)]
    assert listener.calls[5:] == [("discard", 0, 2), ("discard", 2, 1)]


def test_a_listener_hears_of_its_section_only(ram: RAMRegion, manager: RAMDiscardManager) -> None:
    root = MemoryRegion("system", 1 << 32)
    root.add(AliasRegion("window", ram, 2 * PART, 2 * PART), 0x4000)
    (window,) = Topology().space("memory", root).sections
    listener = Listener()
    manager.add_listener(listener, window)
    manager.populate(0, 3 * PART)
    manager.populate(4 * PART, PART)
    assert listener.there == {2}


def test_who_comes_later_hears_what_is_there_and_at_the_end_that_it_is_gone(
    manager: RAMDiscardManager, section: Section
) -> None:
    listener = Listener()
    manager.populate(0, PART)
    manager.populate(4 * PART, 2 * PART)
    manager.add_listener(listener, section)
    assert listener.calls == [("populate", 0, 1), ("populate", 4, 2)]
    manager.remove_listener(listener)
    assert listener.there == set()
    manager.discard(0, PART)
    assert len(listener.calls) == 4
    with pytest.raises(ValueError, match="does not listen to dimm"):
        manager.remove_listener(listener)


def test_what_is_there_can_be_told_again(manager: RAMDiscardManager, section: Section) -> None:
    manager.populate(PART, PART)
    listener = Listener()
    manager.replay(listener, section)
    manager.populate(0, PART)
    assert listener.calls == [("populate", 1, 1)]


def test_a_listener_that_refuses_at_the_start_has_nothing(
    manager: RAMDiscardManager, section: Section
) -> None:
    manager.populate(0, PART)
    manager.populate(4 * PART, PART)
    listener = Listener()
    listener.refuse = 4
    with pytest.raises(OSError, match="no part 4"):
        manager.add_listener(listener, section)
    assert listener.there == set()
    manager.discard(0, PART)
    assert listener.calls[-1] == ("discard", 0, 1)
    assert len(listener.calls) == 3


def test_a_refusal_is_undone_for_all(manager: RAMDiscardManager, section: Section) -> None:
    listeners = [Listener() for _ in range(3)]
    for listener in listeners:
        manager.add_listener(listener, section)
    manager.populate(2 * PART, PART)
    listeners[1].refuse = 5
    with pytest.raises(OSError, match="no part 5"):
        manager.populate(0, SIZE)
    assert [listener.there for listener in listeners] == [{2}] * 3
    assert not manager.is_populated(0, PART)
    listeners[1].refuse = None
    manager.populate(0, SIZE)
    assert [len(listener.there) for listener in listeners] == [PARTS] * 3


def test_all_hear_that_parts_are_gone_although_one_fails(
    manager: RAMDiscardManager, section: Section
) -> None:
    listeners = [Listener() for _ in range(3)]
    for listener in listeners:
        manager.add_listener(listener, section)
    manager.populate(0, SIZE)
    listeners[1].forget = OSError("cannot forget")
    with pytest.raises(OSError, match="cannot forget"):
        manager.discard(0, SIZE)
    assert [listener.there for listener in listeners] == [set()] * 3
    assert not manager.is_populated(0, PART)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, PARTS - 1), st.integers(1, PARTS))))
def test_books_and_listeners_agree(steps: list[tuple[bool, int, int]]) -> None:
    with RAMRegion("dimm", SIZE) as ram:
        manager = RAMDiscardManager(ram, PART)
        root = MemoryRegion("system", 1 << 32)
        root.add(ram, 0)
        (section,) = Topology().space("memory", root).sections
        listener = Listener()
        wanted: set[int] = set()
        manager.add_listener(listener, section)
        for populate, first, count in steps:
            parts = range(first, min(first + count, PARTS))
            change = manager.populate if populate else manager.discard
            change(first * PART, len(parts) * PART)
            wanted = wanted | set(parts) if populate else wanted - set(parts)
            assert listener.there == wanted
            there = {part for part in range(PARTS) if manager.is_populated(part * PART, PART)}
            assert there == wanted


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 0), (0, PART - 1), (1, PART), (SIZE, PART), (-PART, PART), (0, SIZE + PART)],
)
def test_what_is_not_whole_parts_of_the_region_is_refused(
    manager: RAMDiscardManager, offset: int, size: int
) -> None:
    for change in (manager.populate, manager.discard):
        with pytest.raises(ValueError, match="in parts of"):
            change(offset, size)


@pytest.mark.parametrize("granularity", [0, -PART, 3 * PART, 2 * SIZE, PART + 1])
def test_a_granularity_is_a_power_of_two_that_divides(ram: RAMRegion, granularity: int) -> None:
    with pytest.raises(ValueError, match=f"in parts of {granularity}"):
        RAMDiscardManager(ram, granularity)


@pytest.mark.usefixtures("manager")
def test_a_region_has_one_manager_before_it_is_shown(ram: RAMRegion) -> None:
    with pytest.raises(ValueError, match="discard manager already"):
        RAMDiscardManager(ram, PART)
    with RAMRegion("shown", SIZE) as shown:
        Topology().space("memory", shown)
        with pytest.raises(ValueError, match="shown, or"):
            RAMDiscardManager(shown, PART)
