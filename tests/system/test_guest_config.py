# SPDX-License-Identifier: BSD-3-Clause
"""Long random lives of functions, against the model of what their guests see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pyvfio
from tests.support import ServerProcess
from tests.unit.random_guest import RandomGuest, unserved

COUNT = 100_000


def test_a_guest_of_a_served_device_sees_what_the_model_says(
    serve: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    uri = serve("tests.unit.config_device:ConfigDevice").uri
    with pyvfio.open(uri) as dev, RandomGuest(dev, tmp_path) as guest:
        guest.run(20_250_626, COUNT * 3 // 10)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_guest_that_goes_on_and_on_sees_what_the_model_says(tmp_path: Path, seed: int) -> None:
    with unserved(tmp_path) as guest:
        guest.run(seed, COUNT)
