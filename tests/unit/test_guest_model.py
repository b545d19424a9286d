# SPDX-License-Identifier: BSD-3-Clause
"""A random life of a function against the model of it; tests/system has longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.random_guest import unserved


@pytest.mark.parametrize("seed", range(4))
def test_a_guest_sees_what_the_model_says(tmp_path: Path, seed: int) -> None:
    with unserved(tmp_path) as guest:
        guest.run(seed, 1000)
