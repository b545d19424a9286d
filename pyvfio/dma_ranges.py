# SPDX-License-Identifier: BSD-3-Clause
"""Many ranges of addresses to be mapped or unmapped together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pyvfio.integers import integers
from pyvfio.map_table import MapEntry
from pyvfio.uapi.vfio import DMAMapFlags
from pyvfio.vectors import DMASource

_Value = TypeVar("_Value")


class DMARanges:
    """Ranges as somebody has asked for them; one number stands for as many as there are others.

    :ivar iovas: their first addresses.
    :ivar sizes: bytes.
    :ivar offsets: what is to be there: bytes from the start of a memory.
    :ivar firsts: the addresses, ascending.
    :raises ValueError: these are not integers, or not as many of each.
    """

    def __init__(
        self, iovas: npt.ArrayLike, sizes: npt.ArrayLike, offsets: npt.ArrayLike = 0
    ) -> None:
        arrays = np.broadcast_arrays(integers(iovas), integers(sizes), integers(offsets))
        if arrays[0].ndim > 1:
            raise ValueError(f"{arrays[0].ndim} dimensions of addresses")
        self.iovas, self.sizes, self.offsets = (array.ravel() for array in arrays)
        self._order: npt.NDArray[np.intp] | None = None
        if not (self.iovas[1:] > self.iovas[:-1]).all():
            self._order = np.argsort(self.iovas, kind="stable")
        self.firsts: list[int] = self._ascending(self.iovas).tolist()

    def _ascending(self, asked: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        return asked if self._order is None else asked[self._order]

    def __len__(self) -> int:
        return len(self.iovas)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Address and size of each."""
        return zip(self.iovas.tolist(), self.sizes.tolist(), strict=True)

    def entries(self, memory: DMASource, flags: DMAMapFlags) -> list[MapEntry]:
        """What the map table has to hold of each."""
        iovas, sizes, offsets = self.iovas.tolist(), self.sizes.tolist(), self.offsets.tolist()
        members = zip(iovas, sizes, repeat(memory), offsets, repeat(flags))
        # As MapEntry._make does it, without a call of Python for each.
        return list(map(tuple.__new__, repeat(MapEntry), members))

    # By ascending address

    @property
    def lasts(self) -> list[int]:
        """The last addresses, in the order of :attr:`firsts`."""
        lasts: list[int] = self._ascending(self._ends()).tolist()
        return lasts

    def runs(self) -> tuple[list[int], list[int]]:
        """First and last addresses, where neighbours count as one."""
        if not len(self):
            return [], []
        firsts, lasts = self._ascending(self.iovas), self._ascending(self._ends())
        borders = np.flatnonzero(firsts[1:] != lasts[:-1] + np.uint64(1))
        return firsts[np.append(0, borders + 1)].tolist(), lasts[np.append(borders, -1)].tolist()

    def _ends(self) -> npt.NDArray[np.uint64]:
        return self.iovas + (self.sizes - np.uint64(1))

    def in_order(self, asked: Sequence[_Value]) -> Sequence[_Value]:
        """What is given in the order in which it was asked for."""
        return asked if self._order is None else [asked[at] for at in self._order.tolist()]

    def as_asked(self, ordered: Sequence[_Value]) -> Sequence[_Value]:
        """The other way round."""
        if self._order is None:
            return ordered
        return [ordered[at] for at in np.argsort(self._order).tolist()]

    # Checks

    def fit(self, page: int, address_bits: int, available: int | None) -> bool:
        """Whether all can be mapped, as far as can be told without those that are mapped.

        :param page: bytes of a page.
        :param address_bits: width of the device's addresses.
        :param available: bytes that the memory has, where it is known.
        """
        if not len(self):
            return True
        lasts, ends = self._ends(), self.offsets + self.sizes
        parts = (self.iovas | self.sizes | self.offsets) & np.uint64(page - 1)
        return bool(
            self.sizes.all()
            and not parts.any()
            and (lasts >= self.iovas).all()
            and not int(lasts.max()) >> address_bits
            and (ends >= self.offsets).all()
            and (available is None or int(ends.max()) <= available)
            and (self._ascending(lasts)[:-1] < self._ascending(self.iovas)[1:]).all()
        )

    def match(self, maps: Sequence[MapEntry | None]) -> bool:
        """Whether each is a map, and no two the same.

        :param maps: what begins at each address, in the order of :attr:`firsts`.
        """
        sizes = self._ascending(self.sizes).tolist()
        if [entry.size for entry in maps if entry is not None] != sizes:
            return False
        return self._order is None or len(set(self.firsts)) == len(sizes)
