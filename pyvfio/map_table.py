# SPDX-License-Identifier: BSD-3-Clause
"""What is mapped for a device, by address, and which of its addresses are free."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pyvfio.iova import IOVAAllocator
from pyvfio.uapi.vfio import DMAMapFlags
from pyvfio.vectors import DMASource


@dataclass(frozen=True, slots=True)
class MapEntry:
    """One entry of the map table: ``size`` bytes at ``offset`` of ``memory`` are at ``iova``."""

    iova: int
    size: int
    memory: DMASource
    offset: int
    flags: DMAMapFlags

    @property
    def last(self) -> int:
        """The last address that is mapped."""
        return self.iova + self.size - 1

    @property
    def writable(self) -> bool:
        """Whether a device may write to it."""
        return bool(self.flags & DMAMapFlags.WRITE)

    def overlaps(self, other: MapEntry) -> bool:
        """Whether it shares an address with another."""
        return self.iova <= other.last and other.iova <= self.last


class MapTable:
    """The maps of a container, none of which overlap.

    Its owner makes changes one at a time.  Who only looks things up, in any thread, holds
    :attr:`lock` meanwhile, which a change holds for moments.

    :param ranges: (first, last) of the addresses that can be mapped.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.lock = threading.Lock()
        self._maps: list[MapEntry] = []
        self._ranges = ranges
        self._free = IOVAAllocator(ranges)

    def __len__(self) -> int:
        return len(self._maps)

    def all(self) -> tuple[MapEntry, ...]:
        """The maps, by ascending address."""
        with self.lock:
            return tuple(self._maps)

    def holder(self, iova: int) -> MapEntry | None:
        """The map that holds an address."""
        position = bisect_right(self._maps, iova, key=_start) - 1
        if position < 0 or self._maps[position].last < iova:
            return None
        return self._maps[position]

    def overlapping(self, iova: int, last: int) -> MapEntry | None:
        """A map that shares an address with a range."""
        position = bisect_right(self._maps, last, key=_start) - 1
        if position < 0 or self._maps[position].last < iova:
            return None
        return self._maps[position]

    def allowed(self, iova: int, last: int) -> bool:
        """Whether addresses can be mapped at all."""
        return self._free.allowed(iova, last)

    def is_free(self, iova: int, last: int) -> bool:
        """Whether addresses are neither mapped nor taken out without being free again."""
        return self._free.is_free(iova, last)

    def find(self, size: int, alignment: int, address_bits: int) -> int | None:
        """A free address for ``size`` bytes; None where there is none."""
        return self._free.find(size, alignment, address_bits)

    def insert(self, mapping: MapEntry) -> None:
        """Add a map whose addresses are free."""
        with self.lock:
            position = bisect_right(self._maps, mapping.iova, key=_start)
            self._maps.insert(position, mapping)
        self._free.take(mapping.iova, mapping.last)

    def remove(self, mapping: MapEntry, reuse: bool = True) -> None:
        """Take a map out.

        :param reuse: whether its addresses are free again.
        """
        with self.lock:
            del self._maps[bisect_right(self._maps, mapping.iova, key=_start) - 1]
        if reuse:
            self._free.give(mapping.iova, mapping.last)

    def change_to(self, maps: Mapping[int, MapEntry], doubtful: Sequence[MapEntry]) -> None:
        """Have the table hold other maps.

        :param maps: address -> map.
        :param doubtful: maps whose addresses are not free again, unless one of ``maps`` has them.
        """
        before = {entry.iova: entry for entry in self._maps}
        for entry in before.values():
            if maps.get(entry.iova) is not entry:
                doubted = entry in doubtful and not _any_overlaps(maps.values(), entry)
                self.remove(entry, reuse=not doubted)
        for entry in maps.values():
            if before.get(entry.iova) is not entry:
                self.insert(entry)

    def renew(self) -> None:
        """Whatever held addresses that are not mapped is gone: they are free again."""
        self._free = IOVAAllocator(self._ranges)
        for entry in self._maps:
            self._free.take(entry.iova, entry.last)

    def clear(self) -> None:
        """Forget every map, at the end."""
        with self.lock:
            self._maps.clear()


def _any_overlaps(entries: Iterable[MapEntry], other: MapEntry) -> bool:
    return any(entry.overlaps(other) for entry in entries)


def _start(mapping: MapEntry) -> int:
    return mapping.iova
