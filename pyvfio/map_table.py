# SPDX-License-Identifier: BSD-3-Clause
"""What is mapped for a device, by address, and which of its addresses are free."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pyvfio.iova import IOVAAllocator
from pyvfio.sorted_blocks import SortedBlocks
from pyvfio.uapi.vfio import DMAMapFlags
from pyvfio.vectors import DMASource


class MapEntry(NamedTuple):
    """One entry of the map table: ``size`` bytes at ``offset`` of ``memory`` are at ``iova``.

    A tuple, since there may be very many and no other record is made as quickly.
    """

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


class SortedMaps:
    """Maps of which none overlap, by ascending address."""

    def __init__(self, maps: Iterable[MapEntry] = ()) -> None:
        self._maps = SortedBlocks[MapEntry]()
        for entry in maps:
            self.insert(entry)

    def __len__(self) -> int:
        return len(self._maps)

    def __iter__(self) -> Iterator[MapEntry]:
        return iter(self._maps)

    def at(self, iova: int) -> MapEntry | None:
        """The map that begins at an address."""
        found = self._maps.floor(iova)
        return found[1] if found is not None and found[0] == iova else None

    def overlapping(self, iova: int, last: int) -> MapEntry | None:
        """The last map that shares an address with a range."""
        found = self._maps.floor(last)
        return found[1] if found is not None and iova <= found[1].last else None

    def insert(self, mapping: MapEntry) -> None:
        """Add a map whose addresses no other has."""
        self._maps.put(mapping.iova, mapping)

    def remove(self, iova: int) -> None:
        """Take out the map that begins at an address."""
        self._maps.pop(iova)

    def all_at(self, iovas: Sequence[int]) -> list[MapEntry | None]:
        """The maps that begin at some addresses, which ascend."""
        return self._maps.find_all(iovas)

    def insert_all(self, iovas: Sequence[int], maps: Sequence[MapEntry]) -> None:
        """Add maps, by ascending address."""
        self._maps.put_all(iovas, maps)

    def remove_all(self, iovas: Sequence[int]) -> None:
        """Take out the maps that begin at some addresses, which ascend."""
        self._maps.pop_all(iovas)


class MapTable:
    """The maps of a container, none of which overlap.

    Its owner makes changes one at a time.  Who only looks things up, in any thread, holds
    :attr:`lock` meanwhile, which a change holds for moments.

    :param ranges: (first, last) of the addresses that can be mapped.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.lock = threading.Lock()
        self._maps = SortedMaps()
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
        return self._maps.overlapping(iova, iova)

    def overlapping(self, iova: int, last: int) -> MapEntry | None:
        """A map that shares an address with a range."""
        return self._maps.overlapping(iova, last)

    def allowed(self, iova: int, last: int) -> bool:
        """Whether addresses can be mapped at all."""
        return self._free.allowed(iova, last)

    def is_free(self, iova: int, last: int) -> bool:
        """Whether addresses are neither mapped nor taken out without being free again."""
        return self._free.is_free(iova, last)

    def find(
        self, size: int, alignment: int, address_bits: int, tries: int | None = None
    ) -> int | None:
        """A free address for ``size`` bytes; see :meth:`IOVAAllocator.find`."""
        return self._free.find(size, alignment, address_bits, tries)

    def insert(self, mapping: MapEntry) -> None:
        """Add a map whose addresses are free."""
        with self.lock:
            self._maps.insert(mapping)
        self._free.take(mapping.iova, mapping.last)

    def remove(self, mapping: MapEntry, reuse: bool = True) -> None:
        """Take a map out.

        :param reuse: whether its addresses are free again.
        """
        with self.lock:
            self._maps.remove(mapping.iova)
        if reuse:
            self._free.give(mapping.iova, mapping.last)

    # Many together, by ascending address

    def all_at(self, iovas: Sequence[int]) -> list[MapEntry | None]:
        """The maps that begin at some addresses."""
        return self._maps.all_at(iovas)

    def are_free(self, iovas: Sequence[int], lasts: Sequence[int]) -> bool:
        """As :meth:`is_free`, of ranges that do not overlap."""
        return self._free.are_free(iovas, lasts)

    def insert_all(
        self, iovas: Sequence[int], maps: Sequence[MapEntry], runs: tuple[list[int], list[int]]
    ) -> None:
        """Add maps whose addresses are free.

        :param runs: first and last addresses of what they are together.
        """
        with self.lock:
            self._maps.insert_all(iovas, maps)
        self._free.take_all(*runs)

    def remove_all(self, iovas: Sequence[int], runs: tuple[list[int], list[int]]) -> None:
        """Take maps out; their addresses are free again."""
        with self.lock:
            self._maps.remove_all(iovas)
        self._free.give_all(*runs)

    def change_to(self, maps: SortedMaps, doubtful: Iterable[MapEntry]) -> None:
        """Have the table hold other maps.

        :param maps: what it shall hold.
        :param doubtful: maps whose addresses are not free again, unless one of ``maps`` has them.
        """
        doubted = {id(entry) for entry in doubtful}
        for entry in self.all():
            if maps.at(entry.iova) is not entry:
                replaced = maps.overlapping(entry.iova, entry.last) is not None
                self.remove(entry, reuse=replaced or id(entry) not in doubted)
        for entry in maps:
            if self._maps.at(entry.iova) is not entry:
                self.insert(entry)

    def renew(self) -> None:
        """Whatever held addresses that are not mapped is gone: they are free again."""
        self._free = IOVAAllocator(self._ranges)
        for entry in self._maps:
            self._free.take(entry.iova, entry.last)

    def clear(self) -> None:
        """Forget every map, at the end."""
        with self.lock:
            self._maps = SortedMaps()
