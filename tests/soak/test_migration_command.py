# SPDX-License-Identifier: BSD-3-Clause
"""A device moves by ``pyvfio migrate``, again and again, and a driver goes after it.

A server has one client at a time, so the driver lets go for each move, with work of the device's
under way: what comes of it, its interrupt included, is met where the device has gone.  That a
driver works on through a move is in :mod:`tests.soak.test_migration`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import pyvfio
from pyvfio.memory import SharedMemory
from pyvfio.pci.device import PCIDevice
from tests.soak import LONG
from tests.soak.following import DRIVERS, PAGE, PAGES, Driver
from tests.support import ROOT, eventually

MIGRATIONS = 100 if LONG else 3
IOVA = 0x100000
PATIENCE = 30.0


class Place:
    """Where the device is, opened.

    :ivar dev: the device.
    """

    def __init__(self, memory: SharedMemory, uri: str) -> None:
        self._memory = memory
        self.go(uri)

    def go(self, uri: str) -> None:
        """Open it there."""
        self.dev: PCIDevice = pyvfio.open(uri, posted_writes=False)
        self.dev.dma.map(self._memory, iova=IOVA)


def migrate(source: str, destination: str) -> dict[str, Any]:
    """Run the command, as a script does."""
    done = subprocess.run(
        [sys.executable, "-m", "pyvfio", "migrate", source, destination, "--resume", "-o", "json"],
        cwd=ROOT,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["source_state"], found["destination_state"]) == ("STOP", "RUNNING")
    return found


def lines(model: str, done: list[dict[str, Any]]) -> Iterator[str]:
    """For people."""
    down = [found["downtime_ms"] for found in done]
    yield (
        f"{model}: {len(done)} runs of `pyvfio migrate`, downtime"
        f" {statistics.median(down):.1f} ms (median), {max(down):.1f} ms (longest)"
    )
    largest = max(done, key=lambda found: int(found["total_bytes"]))
    parts = f"{largest['rounds']} {largest['stopped_bytes']}"
    yield f"{model}: bytes of the passes and the rest: {parts}"


@pytest.mark.timeout(60 + 10 * MIGRATIONS)
def test_a_driver_finds_its_device_where_the_command_has_moved_it(
    model: str, places: list[str], figures: list[str]
) -> None:
    """Memory, registers and what was under way are what they must be, each time."""
    done = []
    with SharedMemory(PAGES * PAGE) as memory:
        place = Place(memory, places[0])
        driver: Driver = DRIVERS[model]([place.dev], memory, IOVA)
        try:
            for number in range(MIGRATIONS):
                source, destination = places[number % 2], places[1 - number % 2]
                with driver.between_turns():
                    driver.let_go()
                    done.append(migrate(source, destination))
                    place.go(destination)
                    driver.take_up(place.dev)
                turned = partial(driver.has_turned, driver.turns)
                assert eventually(turned, PATIENCE)
                driver.check()
        finally:
            driver.stop()
            place.dev.close()
    figures.extend(lines(model, done))
    figures.append(
        f"{model}: {driver.turns} turns, {driver.came.total()} interrupts, and {len(done)} that"
        " came where the device had gone"
    )
