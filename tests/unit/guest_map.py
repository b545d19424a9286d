# SPDX-License-Identifier: BSD-3-Clause
"""A guest's memory map for tests of what a function shows in it."""

from __future__ import annotations

from dataclasses import dataclass

from pyvfio.emulator.bus import Bus, BusKind
from pyvfio.emulator.host import Host, Requester
from pyvfio.emulator.memory import AddressSpace, MemoryListener, MemoryRegion, Topology


def nothing() -> None:
    """What is done after a trapped access where nobody wants to know of it."""


class NoHost(Host):
    """A host that is asked nothing."""

    def send_msi(self, function: Requester, address: int, data: int) -> None:
        raise AssertionError("no interrupt was expected")

    def set_pin(self, function: Requester, pin: int, level: bool) -> None:
        raise AssertionError("no interrupt was expected")


class Commits(MemoryListener):
    """Counts how often the map has changed."""

    def __init__(self) -> None:
        self.count = 0

    def commit(self) -> None:
        self.count += 1


@dataclass(frozen=True)
class Seen:
    """A part of the map: where, how long, and what kind of region."""

    start: int
    size: int
    kind: str


class GuestMap:
    """Memory and ports with nothing in them.

    :param kind: of the bus that has all of them.
    """

    def __init__(self, kind: BusKind = BusKind.ROOT_COMPLEX, host: Host | None = None) -> None:
        self.topology = Topology()
        self.memory_root = MemoryRegion("memory", 1 << 64)
        self.io_root = MemoryRegion("ports", 1 << 16)
        self.memory = self.topology.space("memory", self.memory_root)
        self.io = self.topology.space("ports", self.io_root)
        self.bus = Bus(
            self.topology,
            memory=self.memory_root,
            io=self.io_root,
            dma=self.memory,
            host=host or NoHost(),
            kind=kind,
        )

    def seen(self, space: AddressSpace | None = None) -> list[Seen]:
        """What is seen in memory, or in another space."""
        ranges = (space or self.memory).flat_view
        return [Seen(found.start, found.size, found.region.kind) for found in ranges]
