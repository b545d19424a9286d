# SPDX-License-Identifier: BSD-3-Clause
"""Maps and unmaps that were asked for together: what each was, and what became of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

from pyvfio.errors import VFIOTimeout
from pyvfio.map_table import MapEntry, SortedMaps
from pyvfio.memory import DMABuffer
from pyvfio.vectors import BatchFailure


@dataclass(frozen=True, slots=True)
class FailedOperation:
    """A map or unmap that was not carried out, as far as its error tells.

    :ivar position: which of its batch, from 0.
    """

    mapping: MapEntry
    is_map: bool
    error: BaseException
    position: int = 0

    @property
    def verb(self) -> str:
        """How errors call it."""
        return "map" if self.is_map else "unmap"

    @property
    def unanswered(self) -> bool:
        """Whether it may yet be carried out."""
        return isinstance(self.error, VFIOTimeout)


class Batch:
    """The operations of a batch, in their order."""

    def __init__(self) -> None:
        self._asked: list[tuple[MapEntry, bool]] = []
        self._refused: dict[int, Exception] = {}
        self._buffers: dict[int, DMABuffer] = {}

    def __len__(self) -> int:
        return len(self._asked)

    def sent(self, mapping: MapEntry, is_map: bool) -> None:
        """The backend has taken an operation."""
        self._asked.append((mapping, is_map))

    def all_sent(self, mappings: Iterable[MapEntry], is_map: bool) -> None:
        """The backend has taken many operations."""
        self._asked.extend(zip(mappings, repeat(is_map)))

    def refused(self, mapping: MapEntry, is_map: bool, error: Exception) -> None:
        """The backend refused an operation at once."""
        self._refused[len(self._asked)] = error
        self._asked.append((mapping, is_map))

    def retire(self, buffer: DMABuffer) -> None:
        """Release a buffer when the unmap that was asked for last is through."""
        self._buffers[len(self._asked) - 1] = buffer

    def retired(self) -> Collection[DMABuffer]:
        """The buffers that were closed."""
        return self._buffers.values()

    def settle(self, failures: Sequence[BatchFailure]) -> list[FailedOperation]:
        """What was not carried out, in order.

        :param failures: what the backend says at the end.
        """
        errors = dict(self._refused)
        if failures:
            sent = [at for at in range(len(self._asked)) if at not in self._refused]
            errors.update((sent[failure.position], failure.error) for failure in failures)
        return [FailedOperation(*self._asked[at], errors[at], at) for at in sorted(errors)]

    def left(self, table: Iterable[MapEntry], failed: Iterable[FailedOperation]) -> SortedMaps:
        """What is mapped after all operations but those that failed.

        :param table: what would be, if none of them had.

        An unmap takes away what is really there, which is not what it was meant for where a map
        before it failed.  And a map that was made shows that an unmap before it, of addresses that
        it has taken, was carried out all the same.
        """
        left = SortedMaps(table)
        for mapping, is_map in reversed(self._asked):
            _undo(left, mapping, is_map)
        skipped = {operation.position for operation in failed}
        for position, (mapping, is_map) in enumerate(self._asked):
            if position not in skipped:
                _carry_out(left, mapping, is_map)
        return left


def _undo(maps: SortedMaps, mapping: MapEntry, is_map: bool) -> None:
    if is_map:
        maps.remove(mapping.iova)
    else:
        maps.insert(mapping)


def _carry_out(maps: SortedMaps, mapping: MapEntry, is_map: bool) -> None:
    if not is_map:
        if maps.at(mapping.iova) is not None:
            maps.remove(mapping.iova)
        return
    while (other := maps.overlapping(mapping.iova, mapping.last)) is not None:
        maps.remove(other.iova)
    maps.insert(mapping)
