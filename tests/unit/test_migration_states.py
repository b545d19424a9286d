# SPDX-License-Identifier: BSD-3-Clause
"""The states of migration: every pair of them, for every kind of device.

The rules are stated here a second time: the first step of every way of a device that supports
everything as a grid, and that a state which a device does not have is skipped.
"""

from __future__ import annotations

import itertools

import pytest

from pyvfio import migration_states
from pyvfio.migration_states import ARCS, SAVING, path, supported
from pyvfio.uapi.vfio import DeviceState, MigrationFlags

LETTERS = {
    "E": DeviceState.ERROR,
    "S": DeviceState.STOP,
    "R": DeviceState.RUNNING,
    "C": DeviceState.STOP_COPY,
    "L": DeviceState.RESUMING,  # load
    "r": DeviceState.RUNNING_P2P,
    "P": DeviceState.PRE_COPY,
    "p": DeviceState.PRE_COPY_P2P,
}

FIRST_STEP = {
    #     to E S R C L r P p
    "E": "   . . . . . . . .",
    "S": "   . S r C L r r r",
    "R": "   . r R r r r P r",
    "C": "   . S S C S S . .",
    "L": "   . S S S L S S S",
    "r": "   . S R S S r R p",
    "P": "   . R R p R R P p",
    "p": "   . r r C r r P p",
}
"""The next state on the way from one (row) to another (column); a dot where there is none."""

ALL = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
KINDS = [
    MigrationFlags.STOP_COPY,
    MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY,
    MigrationFlags.STOP_COPY | MigrationFlags.P2P,
    ALL,
]
PAIRS = list(itertools.product(DeviceState, repeat=2))

NAMES = {state: letter for letter, state in LETTERS.items()}


def first_step(before: DeviceState, after: DeviceState) -> DeviceState | None:
    """What the grid says."""
    row = FIRST_STEP[NAMES[before]].split()
    return LETTERS.get(row[list(LETTERS.values()).index(after)])


def walked(
    before: DeviceState, after: DeviceState, flags: MigrationFlags
) -> list[DeviceState] | None:
    """The way by the grid; states that the device does not have are skipped."""
    has_pre_copy, has_p2p = flags & MigrationFlags.PRE_COPY, flags & MigrationFlags.P2P
    missing = {NAMES[state] for state in DeviceState if "PRE_COPY" in state.name} - (
        {"P", "p"} if has_pre_copy else set()
    )
    missing |= set() if has_p2p else {"r", "p"}
    if {NAMES[before], NAMES[after]} & missing:
        return None
    way: list[DeviceState] = []
    at: DeviceState | None = before
    while at is not after:
        assert at is not None
        at = first_step(at, after)
        if at is None:
            return None
        if NAMES[at] not in missing:
            way.append(at)
    return way


@pytest.mark.parametrize("flags", KINDS, ids=str)
@pytest.mark.parametrize(("before", "after"), PAIRS, ids=lambda state: state.name)
def test_every_pair_has_the_way_of_the_rules(
    before: DeviceState, after: DeviceState, flags: MigrationFlags
) -> None:
    expected = None if before is DeviceState.ERROR else walked(before, after, flags)
    found = path(before, after, flags)
    assert (None if found is None else list(found)) == expected


@pytest.mark.parametrize("flags", KINDS, ids=str)
def test_a_way_consists_of_arcs_of_the_device(flags: MigrationFlags) -> None:
    known = supported(flags)
    arcs = {(arc.before, arc.after) for arc in ARCS}
    for before, after in PAIRS:
        steps = list(itertools.pairwise((before, *(path(before, after, flags) or ()))))
        assert set(steps) <= arcs
        assert {state for step in steps for state in step} <= known


@pytest.mark.parametrize("flags", KINDS, ids=str)
def test_no_other_way_is_as_short(flags: MigrationFlags) -> None:
    p2p = bool(flags & MigrationFlags.P2P)
    known = supported(flags)
    arcs = [arc for arc in ARCS if arc.p2p in (None, p2p) and {arc.before, arc.after} <= known]
    for before, after in PAIRS:
        found = path(before, after, flags)
        if not found:
            continue
        ways: list[tuple[DeviceState, ...]] = [(before,)]
        for _ in found:
            ways = [(*way, arc.after) for way in ways for arc in arcs if arc.before is way[-1]]
        through = [way for way in ways if way[-1] is after and allowed(way)]
        assert through == [(before, *found)]


def allowed(way: tuple[DeviceState, ...]) -> bool:
    """Whether no save begins and ends within a way."""
    inside = set(way[1:-1]) & SAVING
    return not inside or {way[0], way[-1]} <= SAVING


def test_a_device_without_options_has_five_states() -> None:
    assert {state.name for state in supported(MigrationFlags.STOP_COPY)} == {
        "ERROR",
        "STOP",
        "RUNNING",
        "STOP_COPY",
        "RESUMING",
    }


def test_a_save_stops_the_device_before_its_state_is_read() -> None:
    assert path(DeviceState.RUNNING, DeviceState.STOP_COPY, MigrationFlags.STOP_COPY) == (
        DeviceState.STOP,
        DeviceState.STOP_COPY,
    )


def test_a_save_does_not_begin_again() -> None:
    for after in (DeviceState.PRE_COPY, DeviceState.PRE_COPY_P2P):
        assert path(DeviceState.STOP_COPY, after, ALL) is None


def test_the_sets_of_states_say_what_a_device_does_in_them() -> None:
    assert {state.name for state in migration_states.DATA} == {
        "STOP_COPY",
        "RESUMING",
        "PRE_COPY",
        "PRE_COPY_P2P",
    }
    assert {state.name for state in migration_states.RUNNING} == {
        "RUNNING",
        "RUNNING_P2P",
        "PRE_COPY",
        "PRE_COPY_P2P",
    }
