# SPDX-License-Identifier: BSD-3-Clause
"""Base address registers: what kind of space each BAR is, and access to it."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import Any

from pyvfio.base import VFIOBase
from pyvfio.errors import RegionError
from pyvfio.pci.config import ConfigSpace
from pyvfio.region import Region
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType
from pyvfio.uapi.vfio import PCIRegion


class BAR(Region):
    """One BAR.

    :ivar type: the space that it claims.
    :ivar prefetchable: reads have no side effects and writes may be merged.
    """

    type: BARType
    prefetchable: bool

    @property
    def name(self) -> str:
        return f"bar{self.info.index}"

    @property
    def postable(self) -> bool:
        """Whether writes may be posted: to memory, as on the bus, never to I/O ports."""
        return self.type is not BARType.IO

    @property
    def mapped(self) -> bool:
        """Whether some of the BAR is reached by load and store instead of messages or syscalls."""
        return bool(self._mapped())

    def decode(self, register: int) -> None:
        """Take type and prefetchable from the low bits of the BAR's register."""
        if register & pci.BAR_IO:
            self.type, self.prefetchable = BARType.IO, False
            return
        is_64bit = register & pci.BAR_MEM_TYPE_MASK == pci.BAR_MEM_TYPE_64
        self.type = BARType.MEM64 if is_64bit else BARType.MEM32
        self.prefetchable = bool(register & pci.BAR_PREFETCH)

    def __str__(self) -> str:
        prefetchable = ", prefetchable" if self.prefetchable else ""
        return f"BAR{self.info.index}: {self.type.value}, {self.size} bytes{prefetchable}"


class BARs(Mapping[int, BAR]):
    """The BARs that the device implements, by number; a 64-bit BAR has the number of its low half.

    Looked up when first asked for.
    """

    def __init__(self, base: VFIOBase, config: ConfigSpace) -> None:
        self._base = base
        self._config = config
        self._found: dict[int, BAR] = {}

    def __getitem__(self, number: int) -> BAR:
        """BAR ``number``.

        :raises RegionError: the device does not implement it.
        """
        bar = self._found.get(number)
        if bar is not None:
            return bar
        implemented = self._look_up(number)
        if implemented is None:
            raise RegionError(
                "the device does not implement this BAR",
                op=f"bar{number}",
                uri=self._base.uri,
                errno=errno.ENXIO,
                hint=f"it has {', '.join(f'bar{found}' for found in self) or 'none'}",
            )
        return implemented

    def _look_up(self, number: int) -> BAR | None:
        if not 0 <= number < pci.NUM_BARS:
            return None
        bar = self._base.region(PCIRegion.BAR0 + number, BAR)
        assert isinstance(bar, BAR)
        if not bar.size:
            return None
        bar.decode(self._config.read32(pci.BASE_ADDRESS_0.offset + 4 * number))
        self._found[number] = bar
        return bar

    def __iter__(self) -> Iterator[int]:
        return (number for number in range(pci.NUM_BARS) if self._look_up(number) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get(self, number: int, default: Any = None) -> Any:
        """BAR ``number``, or ``default`` where the device does not implement it."""
        return self[number] if number in self else default  # noqa: SIM401 - this is get()

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self._look_up(number) is not None
