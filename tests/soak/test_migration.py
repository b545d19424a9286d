# SPDX-License-Identifier: BSD-3-Clause
"""A device moves between two servers again and again, while a driver works with it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest

import pyvfio
from pyvfio.memory import SharedMemory
from pyvfio.migration_transfer import Transfer
from pyvfio.pci.device import PCIDevice
from tests.soak import LONG
from tests.soak.following import DRIVERS, PAGE, PAGES, Driver
from tests.support import eventually

MIGRATIONS = 100 if LONG else 8
IOVA = 0x100000


@pytest.fixture
def devices(places: list[str]) -> Iterator[list[PCIDevice]]:
    """The devices of both; writes to them are not posted."""
    one, other = places
    with (
        pyvfio.open(one, posted_writes=False) as here,
        pyvfio.open(other, posted_writes=False) as there,
    ):
        yield [here, there]


@pytest.fixture
def driver(model: str, devices: list[PCIDevice]) -> Iterator[Driver]:
    """A driver at work, in memory that both devices reach."""
    here, there = devices
    with SharedMemory(PAGES * PAGE) as memory:
        here.dma.map(memory, iova=IOVA)
        pyvfio.share_memory(here, there)
        driver = DRIVERS[model](devices, memory, IOVA)
        try:
            yield driver
        finally:
            driver.stop()


class Figures:
    """What the migrations of a device were like.

    :ivar dirty: pages of memory that the device had written, at the end of each pass.
    """

    def __init__(self) -> None:
        self.done: list[Transfer] = []
        self.dirty: list[list[int]] = []

    def lines(self, model: str) -> Iterator[str]:
        """For people."""
        down = [1000 * (t.downtime or 0) for t in self.done]
        yield (
            f"{model}: {len(self.done)} migrations, downtime {statistics.median(down):.1f} ms"
            f" (median), {max(down):.1f} ms (longest)"
        )
        longest = max(self.done, key=lambda t: len(t.rounds))
        yield f"{model}: bytes of the passes and the rest: {longest.rounds} {longest.stopped_bytes}"
        yield f"{model}: dirty pages of memory by pass and rest: {max(self.dirty, key=len)}"


class Watcher:
    """Has the source log what it writes, and asks for it at each pass of pre-copy."""

    def __init__(self, source: PCIDevice) -> None:
        self.pages: set[int] = set()
        self.counts: list[int] = []
        self._dirty = source.dma.dirty
        self._rounds = 0
        self._dirty.start()

    def __call__(self, transfer: Transfer) -> None:
        rounds = len(transfer.rounds) + transfer.stopped
        if rounds > self._rounds:
            self._rounds = rounds
            self.ask()

    def ask(self) -> None:
        """Which pages were written since the last time."""
        found = self._dirty.report(IOVA, PAGES * PAGE).page_numbers().tolist()
        self.pages.update(found)
        self.counts.append(len(found))

    def stop(self) -> None:
        self.ask()
        self._dirty.stop()


def move(driver: Driver, source: PCIDevice, destination: PCIDevice, figures: Figures) -> None:
    """Have the device move, and the driver follow; compare what both have."""
    watcher = Watcher(source)
    before = len(driver.device_wrote)
    figures.done.append(pyvfio.migrate(source, destination, resume=True, progress=watcher))
    watcher.stop()
    # Writes of which the source has said that they were done, but for one that began before.
    wrote = {page for dev, page in driver.device_wrote[before + 1 :] if dev is source}
    assert wrote <= watcher.pages
    figures.dirty.append(watcher.counts)
    turns = driver.turns
    driver.following.move(destination)
    assert eventually(lambda: driver.turns > turns + 1 or driver.failed, 30)
    driver.check()


@pytest.mark.timeout(60 + 5 * MIGRATIONS)
def test_a_driver_goes_along_with_its_device(
    model: str, devices: list[PCIDevice], driver: Driver, figures: list[str]
) -> None:
    """Memory, registers and interrupts are what they must be after each move."""
    found = Figures()
    for number in range(MIGRATIONS):
        source, destination = devices[number % 2], devices[1 - number % 2]
        move(driver, source, destination, found)
    figures.extend(found.lines(model))
    figures.append(f"{model}: {driver.turns} turns, {driver.came.total()} interrupts")
