# SPDX-License-Identifier: BSD-3-Clause
"""Random accesses of a guest against the model of its view; tests/system has more of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.random_guest import RandomGuest, unserved


@pytest.fixture
def guest() -> Iterator[RandomGuest]:
    """A guest of a device that no server hosts."""
    made = RandomGuest(unserved())
    yield made
    made.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_guest_sees_what_the_model_says(guest: RandomGuest, seed: int) -> None:
    guest.run(seed, 1000)
