# SPDX-License-Identifier: BSD-3-Clause
"""Maps and unmaps that were asked for together: what each was, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pyvfio.errors import VFIOTimeout
from pyvfio.map_table import MapEntry, SortedMaps
from pyvfio.memory import DMABuffer
from pyvfio.vectors import BatchFailure


@dataclass(slots=True, eq=False)
class Operation:
    """One map or unmap.

    :ivar error: why it was not carried out; None while nothing else is known.
    :ivar buffer: what is released when an unmap is through.
    """

    mapping: MapEntry
    is_map: bool
    error: BaseException | None = None
    buffer: DMABuffer | None = None

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
        self.operations: list[Operation] = []
        self._sent: list[Operation] = []

    def sent(self, operation: Operation) -> None:
        """The backend has taken an operation."""
        self.operations.append(operation)
        self._sent.append(operation)

    def refused(self, operation: Operation, error: Exception) -> None:
        """The backend refused an operation at once."""
        operation.error = error
        self.operations.append(operation)

    def retire(self, buffer: DMABuffer) -> None:
        """Release a buffer when the unmap that was asked for last is through."""
        self.operations[-1].buffer = buffer

    def retired(self) -> Iterator[DMABuffer]:
        """The buffers that were closed."""
        return (entry.buffer for entry in self.operations if entry.buffer is not None)

    def settle(self, failures: Sequence[BatchFailure]) -> None:
        """What the backend says at the end."""
        for failure in failures:
            self._sent[failure.position].error = failure.error

    def left(self, table: Iterable[MapEntry], failed: Iterable[Operation]) -> SortedMaps:
        """What is mapped after all operations but those that failed.

        :param table: what would be, if none of them had.

        An unmap takes away what is really there, which is not what it was meant for where a map
        before it failed.  And a map that was made shows that an unmap before it, of addresses that
        it has taken, was carried out all the same.
        """
        left = SortedMaps(table)
        for operation in reversed(self.operations):
            _undo(left, operation)
        skipped = set(failed)
        for operation in self.operations:
            if operation not in skipped:
                _carry_out(left, operation)
        return left


def _undo(maps: SortedMaps, operation: Operation) -> None:
    if operation.is_map:
        maps.remove(operation.mapping.iova)
    else:
        maps.insert(operation.mapping)


def _carry_out(maps: SortedMaps, operation: Operation) -> None:
    mapping = operation.mapping
    if not operation.is_map:
        if maps.at(mapping.iova) is not None:
            maps.remove(mapping.iova)
        return
    while (other := maps.overlapping(mapping.iova, mapping.last)) is not None:
        maps.remove(other.iova)
    maps.insert(mapping)
