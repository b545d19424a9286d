# SPDX-License-Identifier: BSD-3-Clause
"""Many random accesses of a guest to configuration space, against the model of its view."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import pyvfio
from tests.support import ServerProcess
from tests.unit.random_guest import RandomGuest, unserved

COUNT = 100_000


def test_a_guest_of_a_served_device_sees_what_the_model_says(
    serve: Callable[..., ServerProcess],
) -> None:
    with pyvfio.open(serve("tests.unit.config_device:ConfigDevice").uri) as dev:
        guest = RandomGuest(dev.config)
        guest.run(20_250_626, COUNT * 3 // 10)
        guest.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_guest_that_goes_on_and_on_sees_what_the_model_says(seed: int) -> None:
    guest = RandomGuest(unserved())
    guest.run(seed, COUNT)
    guest.close()
