# SPDX-License-Identifier: BSD-3-Clause
"""Transactions and listeners: who hears what, in which order, and what becomes of errors."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio.emulator.memory import (
    AddressSpace,
    AliasRegion,
    FlatRange,
    MemoryListener,
    MemoryRegion,
    RAMRegion,
    Section,
    Topology,
)
from pyvfio.errors import DeviceClosed
from tests.unit.test_memory_flat_view import Painting, io


class Recorder(MemoryListener):
    """Keeps what it hears, in a list that several may share, and raises where it is told to."""

    def __init__(self, heard: list[str], name: str = "") -> None:
        self.heard = heard
        self.raises: dict[str, BaseException] = {}
        self.sections: list[Section] = []
        self._name = name

    def _hear(self, what: str, section: Section | None = None) -> None:
        where = "" if section is None else f" {section.region.name}@{section.address:#x}"
        self.heard.append(f"{self._name}{what}{where}")
        error = self.raises.pop(what + where, None)
        if error is not None:
            raise error

    def begin(self) -> None:
        self._hear("begin")

    def commit(self) -> None:
        self._hear("commit")

    def region_add(self, section: Section) -> None:
        self.sections.append(section)
        self._hear("add", section)

    def region_del(self, section: Section) -> None:
        self.sections.remove(section)
        self._hear("del", section)

    def log_start(self) -> None:
        self._hear("start")

    def log_stop(self) -> None:
        self._hear("stop")

    def log_sync(self, section: Section) -> None:
        self._hear("sync", section)


@pytest.fixture
def heard() -> list[str]:
    """What is heard in a test, by all listeners."""
    return []


@pytest.fixture
def root() -> MemoryRegion:
    return MemoryRegion("system", 1 << 64)


@pytest.fixture
def topology() -> Topology:
    return Topology()


@pytest.fixture
def space(topology: Topology, root: MemoryRegion) -> AddressSpace:
    return topology.space("memory", root)


@pytest.fixture
def listener(space: AddressSpace, heard: list[str]) -> Recorder:
    """Listens from the start; nothing was heard yet."""
    found = Recorder(heard)
    space.add_listener(found)
    heard.clear()
    return found


# What is heard


@pytest.mark.usefixtures("listener")
def test_a_change_is_a_transaction_of_its_own(root: MemoryRegion, heard: list[str]) -> None:
    root.add(io("bar", 8), 0x10)
    assert heard == ["begin", "add bar@0x10", "commit"]


@pytest.mark.usefixtures("listener")
def test_the_changes_of_a_transaction_are_heard_together(
    topology: Topology, root: MemoryRegion, heard: list[str]
) -> None:
    one, two = io("one", 8), io("two", 8)
    with topology.transaction():
        root.add(one, 0)
        with topology.transaction():
            root.add(two, 0x10)
        one.move(0x20)
        assert heard == []
    assert heard == ["begin", "add two@0x10", "add one@0x20", "commit"]


@pytest.mark.usefixtures("listener")
def test_what_is_gone_is_heard_before_what_is_new_the_last_address_first(
    topology: Topology, root: MemoryRegion, heard: list[str]
) -> None:
    low, high = io("low", 8), io("high", 8)
    root.add(low, 0)
    root.add(high, 0x10)
    heard.clear()
    with topology.transaction():
        low.move(0x100)
        high.move(0x108)
    assert heard == [
        *["begin", "del high@0x10", "del low@0x0"],
        *["add low@0x100", "add high@0x108", "commit"],
    ]


@pytest.mark.usefixtures("listener")
def test_what_stays_is_not_heard_of(root: MemoryRegion, heard: list[str]) -> None:
    root.add(io("back", 0x100), 0)
    heard.clear()
    root.add(io("elsewhere", 8), 0x200)
    root.add(io("front", 8), 0, priority=1)
    assert heard == [
        *["begin", "add elsewhere@0x200", "commit"],
        *["begin", "del back@0x0", "add front@0x0", "add back@0x8", "commit"],
    ]


@pytest.mark.usefixtures("listener")
def test_a_transaction_that_changes_nothing_is_not_heard(
    topology: Topology, root: MemoryRegion, heard: list[str]
) -> None:
    bar = io("bar", 8)
    root.add(bar, 0)
    heard.clear()
    with topology.transaction():
        bar.move(0x10)
        bar.move(0)
        bar.enabled = False
        bar.enabled = True
    with topology.transaction():
        pass
    bar.enabled = True
    root.add(MemoryRegion("holes", 8), 0x100)
    assert heard == []


def test_a_switch_to_read_only_is_heard(
    root: MemoryRegion, listener: Recorder, heard: list[str]
) -> None:
    bar = io("bar", 8)
    root.add(bar, 0)
    heard.clear()
    bar.readonly = True
    assert heard == ["begin", "del bar@0x0", "add bar@0x0", "commit"]
    assert listener.sections[0].readonly


def test_a_section_says_what_is_seen_of_a_region(
    space: AddressSpace, root: MemoryRegion, listener: Recorder
) -> None:
    bar = io("bar", 0x100)
    root.add(AliasRegion("alias", bar, 0x20, 0x40), 0x1000)
    assert listener.sections == [Section(space, bar, 0x20, 0x1000, 0x40, False)]
    assert listener.sections == list(space.sections)


def test_a_part_of_a_section_is_where_it_belongs(space: AddressSpace) -> None:
    bar = io("bar", 0x100)
    section = Section(space, bar, 0x20, 0x1000, 0x40, False)
    assert section.part(0, 0x30) == Section(space, bar, 0x20, 0x1000, 0x10, False)
    assert section.part(0x30, 0x200) == Section(space, bar, 0x30, 0x1010, 0x30, False)
    assert section.part(0x60, 0x200) is None
    assert section.part(0, 0x20) is None


@pytest.mark.usefixtures("listener")
def test_every_space_that_shows_a_region_hears_of_it(
    topology: Topology, root: MemoryRegion, heard: list[str]
) -> None:
    bus = MemoryRegion("bus", 0x1000)
    other_root = MemoryRegion("other", 0x10000)
    other_root.add(AliasRegion("window", bus, 0, 0x1000), 0x100)
    root.add(bus, 0)
    other = topology.space("other", other_root)
    other.add_listener(Recorder(heard, "other "))
    heard.clear()
    bus.add(io("bar", 8), 0)
    assert heard == [
        *["begin", "add bar@0x0", "commit"],
        *["other begin", "other add bar@0x100", "other commit"],
    ]


@pytest.mark.usefixtures("listener")
def test_spaces_of_two_machines_may_show_one_region(root: MemoryRegion, heard: list[str]) -> None:
    shared = io("shared", 8)
    root.add(shared, 0)
    other_root = MemoryRegion("other", 0x100)
    other_root.add(AliasRegion("alias", shared, 0, 8), 0)
    other = Topology().space("other", other_root)
    shared.enabled = False
    assert other.flat_view == ()
    assert heard[-2:] == ["del shared@0x0", "commit"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_listener_knows_the_flat_view_from_the_differences(data: st.DataObject) -> None:
    painting = Painting(data)
    listener = Recorder([])
    painting.space.add_listener(listener)
    for _ in range(data.draw(st.integers(1, 8))):
        before = set(painting.space.flat_view)
        listener.heard.clear()
        with painting.topology.transaction():
            for _ in range(data.draw(st.integers(1, 3))):
                painting.step()
        assert sorted(listener.sections, key=_address) == list(painting.space.sections)
        changed: set[FlatRange] = before ^ set(painting.space.flat_view)
        told = [line for line in listener.heard if line not in ("begin", "commit")]
        assert len(told) == len(changed)


def _address(section: Section) -> int:
    return section.address


# Listeners come and go


def test_a_new_listener_hears_what_there_is(
    space: AddressSpace, root: MemoryRegion, heard: list[str]
) -> None:
    root.add(io("one", 8), 0)
    root.add(io("two", 8), 8)
    listener = Recorder(heard)
    space.add_listener(listener)
    space.remove_listener(listener)
    assert heard == [
        *["begin", "add one@0x0", "add two@0x8", "commit"],
        *["begin", "del two@0x8", "del one@0x0", "commit"],
    ]


def test_listeners_hear_by_priority_and_the_other_way_round_of_what_is_gone(
    space: AddressSpace, root: MemoryRegion, heard: list[str]
) -> None:
    for name, priority in (("b ", 0), ("c ", 5), ("a ", -1), ("b2 ", 0)):
        space.add_listener(Recorder(heard, name), priority)
    bar = io("bar", 8)
    heard.clear()
    root.add(bar, 0)
    root.remove(bar)
    assert [line for line in heard if " add " in line or " del " in line] == [
        *["a add bar@0x0", "b add bar@0x0", "b2 add bar@0x0", "c add bar@0x0"],
        *["c del bar@0x0", "b2 del bar@0x0", "b del bar@0x0", "a del bar@0x0"],
    ]


def test_a_listener_listens_once(space: AddressSpace, listener: Recorder) -> None:
    with pytest.raises(ValueError, match="listens to memory already"):
        space.add_listener(listener)
    space.remove_listener(listener)
    with pytest.raises(ValueError, match="does not listen to memory"):
        space.remove_listener(listener)


@pytest.mark.parametrize("at", ["begin", "add one@0x0", "add two@0x8", "commit"])
def test_a_listener_that_fails_at_the_start_hears_that_all_is_gone(
    space: AddressSpace, root: MemoryRegion, heard: list[str], at: str
) -> None:
    root.add(io("one", 8), 0)
    root.add(io("two", 8), 8)
    listener = Recorder(heard)
    listener.raises[at] = OSError("first")
    listener.raises["del one@0x0"] = KeyError("later")
    with pytest.raises(OSError, match="first") as caught:
        space.add_listener(listener)
    assert caught.value.__notes__ == ["and then KeyError: 'later'"]
    assert heard[4:] == ["begin", "del two@0x8", "del one@0x0", "commit"]
    assert space.listeners == ()


def test_a_listener_that_fails_at_the_end_listens_no_more(
    space: AddressSpace, root: MemoryRegion, listener: Recorder, heard: list[str]
) -> None:
    root.add(io("one", 8), 0)
    heard.clear()
    listener.raises["del one@0x0"] = OSError("stays")
    with pytest.raises(OSError, match="stays"):
        space.remove_listener(listener)
    assert heard == ["begin", "del one@0x0", "commit"]
    assert space.listeners == ()


def test_a_closed_space_tells_that_all_is_gone(
    topology: Topology, space: AddressSpace, root: MemoryRegion, listener: Recorder
) -> None:
    root.add(io("one", 8), 0)
    topology.close()
    topology.close()
    space.close()
    assert (listener.sections, listener.heard[-1], topology.spaces) == ([], "commit", ())
    assert (space.flat_view, space.read(0, 4)) == ((), 0xFFFF_FFFF)
    root.add(io("two", 8), 8)
    with pytest.raises(DeviceClosed, match="address space memory"):
        space.add_listener(listener)


def test_a_space_that_fails_to_close_is_closed(
    topology: Topology, space: AddressSpace, root: MemoryRegion, listener: Recorder
) -> None:
    root.add(io("one", 8), 0)
    listener.raises["commit"] = OSError("stays")
    with pytest.raises(OSError, match="stays"), topology:
        pass
    assert topology.spaces == ()
    space.close()


# Errors


@pytest.mark.parametrize("at", ["begin", "add bar@0x0", "commit"])
def test_what_a_listener_raises_comes_after_all_were_told(
    space: AddressSpace, root: MemoryRegion, listener: Recorder, heard: list[str], at: str
) -> None:
    space.add_listener(Recorder(heard, "other "))
    heard.clear()
    listener.raises[at] = OSError("refused")
    with pytest.raises(OSError, match="refused"):
        root.add(io("bar", 8), 0)
    assert heard == [
        f"{name}{what}" for what in ("begin", "add bar@0x0", "commit") for name in ("", "other ")
    ]
    assert len(space.flat_view) == 1


def test_later_errors_are_notes_of_the_first(
    space: AddressSpace, root: MemoryRegion, listener: Recorder, heard: list[str]
) -> None:
    other = Recorder(heard)
    space.add_listener(other)
    listener.raises["add bar@0x0"] = OSError("first")
    other.raises["add bar@0x0"] = ValueError("second")
    listener.raises["commit"] = ValueError("third")
    with pytest.raises(OSError, match="first") as caught:
        root.add(io("bar", 8), 0)
    assert caught.value.__notes__ == ["and then ValueError: second", "and then ValueError: third"]


def test_a_block_that_raises_has_its_changes_seen(
    topology: Topology, root: MemoryRegion, listener: Recorder, heard: list[str]
) -> None:
    listener.raises["commit"] = OSError("refused")
    with pytest.raises(ValueError, match="bar is in system already") as caught:
        _add_twice(topology, root)
    assert caught.value.__notes__ == ["and then OSError: refused"]
    assert heard == ["begin", "add bar@0x0", "commit"]


def _add_twice(topology: Topology, root: MemoryRegion) -> None:
    bar = io("bar", 8)
    with topology.transaction():
        root.add(bar, 0)
        root.add(bar, 8)


def test_an_interrupt_within_a_listener_waits_until_all_were_told(
    root: MemoryRegion, listener: Recorder, heard: list[str]
) -> None:
    listener.raises["begin"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        root.add(io("bar", 8), 0)
    assert heard == ["begin", "add bar@0x0", "commit"]


@pytest.mark.parametrize("change", ["region", "space", "log", "listener", "close"])
def test_a_listener_cannot_change_what_it_listens_to(
    topology: Topology, space: AddressSpace, root: MemoryRegion, change: str
) -> None:
    changes: dict[str, Callable[[], object]] = {
        "region": lambda: root.add(io("bar", 8), 0x100),
        "space": lambda: topology.space("other", root),
        "log": topology.log_start,
        "listener": lambda: space.add_listener(MemoryListener()),
        "close": space.close,
    }

    class Meddler(MemoryListener):
        def commit(self) -> None:
            if space.flat_view:
                changes[change]()

    space.add_listener(Meddler())
    with pytest.raises(RuntimeError, match="must not change"):
        root.add(io("bar", 8), 0)
    assert [found.region.name for found in space.flat_view] == ["bar"]


# What is written


@pytest.mark.usefixtures("listener")
def test_every_listener_hears_when_to_note_what_is_written(
    topology: Topology, heard: list[str]
) -> None:
    other = topology.space("other", MemoryRegion("other", 8))
    other.add_listener(Recorder(heard, "other "))
    heard.clear()
    topology.log_start()
    topology.log_start()
    assert topology.logging
    topology.log_stop()
    topology.log_stop()
    assert heard == ["start", "other start", "other stop", "stop"]


def test_a_listener_that_comes_or_goes_meanwhile_hears_it_as_well(
    topology: Topology, space: AddressSpace, heard: list[str]
) -> None:
    topology.log_start()
    listener = Recorder(heard)
    space.add_listener(listener)
    space.remove_listener(listener)
    assert heard == ["begin", "start", "commit", "begin", "stop", "commit"]


@pytest.mark.usefixtures("listener")
def test_where_one_cannot_note_what_is_written_none_does(
    topology: Topology, space: AddressSpace, heard: list[str]
) -> None:
    for name in ("second ", "third "):
        last = Recorder(heard, name)
        space.add_listener(last)
    second = space.listeners[1]
    assert isinstance(second, Recorder)
    second.raises["start"] = OSError("cannot")
    heard.clear()
    with pytest.raises(OSError, match="cannot"):
        topology.log_start()
    assert heard == ["start", "second start", "stop"]
    assert not topology.logging


def test_all_stop_although_one_fails(
    topology: Topology, space: AddressSpace, listener: Recorder, heard: list[str]
) -> None:
    space.add_listener(Recorder(heard, "other "), priority=-1)
    topology.log_start()
    listener.raises["stop"] = OSError("cannot")
    with pytest.raises(OSError, match="cannot"):
        topology.log_stop()
    assert heard[-2:] == ["stop", "other stop"]
    assert not topology.logging


def test_what_was_written_is_asked_for_by_section_space_or_at_all(
    topology: Topology, space: AddressSpace, root: MemoryRegion, heard: list[str]
) -> None:
    root.add(io("one", 8), 0)
    root.add(io("two", 8), 8)
    other = topology.space("other", root)
    space.add_listener(Recorder(heard))
    other.add_listener(Recorder(heard, "other "))
    heard.clear()
    topology.log_sync(space.sections[1])
    topology.log_sync(other)
    assert heard == ["sync two@0x8", "other sync one@0x0", "other sync two@0x8"]
    heard.clear()
    topology.log_sync()
    assert len(heard) == 4


# Threads


@pytest.mark.usefixtures("listener")
def test_another_threads_changes_wait_for_the_end_of_a_transaction(
    topology: Topology, root: MemoryRegion, heard: list[str]
) -> None:
    thread = threading.Thread(target=lambda: root.add(io("theirs", 8), 0x100))
    with topology.transaction():
        thread.start()
        root.add(io("ours", 8), 0)
        thread.join(0.05)
        assert thread.is_alive()
    thread.join()
    assert heard == [
        *["begin", "add ours@0x0", "commit"],
        *["begin", "add theirs@0x100", "commit"],
    ]


# For people


@pytest.mark.usefixtures("space")
def test_a_map_can_be_read(topology: Topology, root: MemoryRegion) -> None:
    with RAMRegion("pc.ram", 0x10000) as ram:
        root.add(ram, 0)
        shadow = AliasRegion("shadow", ram, 0x1000, 0x1000)
        shadow.readonly = True
        hidden = io("hidden", 8)
        hidden.enabled = False
        root.add(shadow, 0x2000, priority=1)
        root.add(hidden, 0x20000)
        topology.space("empty", MemoryRegion("nothing", 0x100))
        described = topology.describe()
        root.remove(ram)
    assert described.splitlines() == [
        "address-space: memory",
        "  0000000000000000-ffffffffffffffff (prio 0, container): system",
        "    0000000000002000-0000000000002fff (prio 1, alias): shadow"
        " -> pc.ram 0000000000001000-0000000000001fff [read-only]",
        "    0000000000020000-0000000000020007 (prio 0, i/o): hidden [disabled]",
        "    0000000000000000-000000000000ffff (prio 0, ram): pc.ram",
        "flat view of memory",
        "  0000000000000000-0000000000001fff (ram): pc.ram @0000000000000000",
        "  0000000000002000-0000000000002fff (ram): pc.ram @0000000000001000 [read-only]",
        "  0000000000003000-000000000000ffff (ram): pc.ram @0000000000003000",
        "address-space: empty",
        "  0000000000000000-00000000000000ff (prio 0, container): nothing",
        "flat view of empty",
        "  nothing",
    ]
