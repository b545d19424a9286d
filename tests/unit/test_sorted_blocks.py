# SPDX-License-Identifier: BSD-3-Clause
"""Sorted blocks, against a dictionary that is sorted each time."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyvfio import sorted_blocks
from pyvfio.sorted_blocks import SortedBlocks

KEYS = st.integers(0, 40)
WEIGHTS = st.integers(0, 9)


@settings(max_examples=60, stateful_step_count=80, deadline=None)
class BlocksMachine(RuleBasedStateMachine):
    """Puts and pops in any order, in blocks of four; an entry weighs its value."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = SortedBlocks[int](lambda _, value: value)
        self.held: dict[int, int] = {}
        self.limits = sorted_blocks.MOST, sorted_blocks.FEW
        sorted_blocks.MOST, sorted_blocks.FEW = 4, 2

    def teardown(self) -> None:
        sorted_blocks.MOST, sorted_blocks.FEW = self.limits

    @rule(key=KEYS, value=WEIGHTS)
    def put(self, key: int, value: int) -> None:
        self.blocks.put(key, value)
        self.held[key] = value

    @rule(key=KEYS)
    def pop(self, key: int) -> None:
        if key in self.held:
            assert self.blocks.pop(key) == self.held.pop(key)
        else:
            with pytest.raises(KeyError):
                self.blocks.pop(key)

    @rule(entries=st.dictionaries(KEYS, WEIGHTS))
    def put_all(self, entries: dict[int, int]) -> None:
        keys = sorted(entries)
        self.blocks.put_all(keys, [entries[key] for key in keys])
        self.held |= entries

    @rule(keys=st.sets(KEYS))
    def find_all(self, keys: set[int]) -> None:
        ordered = sorted(keys)
        assert self.blocks.find_all(ordered) == [self.held.get(key) for key in ordered]

    @rule(keys=st.sets(KEYS))
    def pop_all(self, keys: set[int]) -> None:
        there = sorted(keys & self.held.keys())
        self.blocks.pop_all(there)
        for key in there:
            del self.held[key]

    @rule(key=st.integers(-1, 42))
    def floor(self, key: int) -> None:
        below = [(held, self.held[held]) for held in self.held if held <= key]
        assert self.blocks.floor(key) == max(below, default=None)

    @rule(key=st.integers(-1, 42), weight=WEIGHTS, taken=st.integers(1, 50))
    def heavy(self, key: int, weight: int, taken: int) -> None:
        start = max((held for held in self.held if held <= key), default=-1)
        expected = [
            (held, value)
            for held, value in sorted(self.held.items())
            if held >= start and value >= weight
        ]
        found = list(islice(self.blocks.heavy(weight, key), taken))
        assert found == expected[:taken]

    @invariant()
    def all_are_there_in_order(self) -> None:
        assert len(self.blocks) == len(self.held)
        assert list(self.blocks) == [value for _, value in sorted(self.held.items())]
        assert all(len(block.keys) <= sorted_blocks.MOST for block in self.blocks._blocks)


TestBlocks = BlocksMachine.TestCase


def test_blocks_stay_short_and_become_few_again() -> None:
    blocks = SortedBlocks[int]()
    for key in range(10_000):
        blocks.put(key * 7919 % 10_007, key)
    assert max(len(block.keys) for block in blocks._blocks) <= sorted_blocks.MOST
    for key in range(9_900):
        blocks.pop(key * 7919 % 10_007)
    assert len(blocks._blocks) <= 2
    assert len(blocks) == 100


@pytest.mark.parametrize("keys", [[5, 6, 7], [5, 9, 12]])
def test_many_of_which_one_is_not_there_cannot_be_taken_out(
    keys: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorted_blocks, "FEW", 2)
    blocks = SortedBlocks[int]()
    blocks.put_all([5, 7, 9], [0, 0, 0])
    with pytest.raises(KeyError):
        blocks.pop_all(keys)


def test_blocks_stay_short_where_many_are_put_and_taken_together() -> None:
    blocks = SortedBlocks[int]()
    for first in range(7):
        keys = list(range(first, 70_000, 7))
        blocks.put_all(keys, keys)
        assert max(len(block.keys) for block in blocks._blocks) <= sorted_blocks.MOST
    assert list(blocks) == list(range(70_000))
    for first in range(6):
        blocks.pop_all(list(range(first, 70_000, 7)))
    assert list(blocks) == list(range(6, 70_000, 7))
    assert len(blocks._blocks) <= 4 * 10_000 // sorted_blocks.MOST
