# SPDX-License-Identifier: BSD-3-Clause
"""Whether something can be mapped or unmapped, and if not, why."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import cast

from pyvfio.dma_ranges import DMARanges
from pyvfio.errors import DMAError
from pyvfio.map_table import MapEntry, MapTable, SortedMaps
from pyvfio.uapi.vfio import DMAMapFlags
from pyvfio.vectors import ContainerIO, DMASource

ALIGNED_TRIES = 64
"""Free ranges of a buffer's size that are looked at for a better alignment than a page's."""


class MapChecks:
    """The checks of a container.

    :param maps: what is mapped.
    :param io: gives the container's vector.
    :param uri: the device, for errors.
    """

    def __init__(self, maps: MapTable, io: Callable[[], ContainerIO], uri: str) -> None:
        self._maps = maps
        self._io = io
        self._uri = uri

    @property
    def page_size(self) -> int:
        """Smallest size and alignment in bytes that can be mapped."""
        sizes = self._io().page_sizes
        return sizes & -sizes

    def find(self, size: int, address_bits: int) -> int:
        """A free address; raises :class:`DMAError`."""
        # A buffer of whole huge pages is put where the IOMMU can use huge pages as well.
        alignment = max(self.page_size, min(1 << (size.bit_length() - 1), 1 << 30))
        found = self._maps.find(size, alignment, address_bits, ALIGNED_TRIES)
        if found is None:
            found = self._maps.find(size, self.page_size, address_bits)
        if found is None:
            reason = f"no {size} bytes are free below 2^{address_bits}"
            raise self._refusal("map", None, size, errno.ENOSPC, reason)
        return found

    # To be mapped

    def check_new(
        self, memory: DMASource, iova: int, size: int, offset: int, address_bits: int
    ) -> None:
        """Raise :class:`DMAError` where a map cannot be made."""
        last = iova + size - 1
        whole = size > 0 and offset >= 0 and not (iova | size | offset) % self.page_size
        # What is free can be mapped, and no map has it.
        if not whole or last >> address_bits or not self._maps.is_free(iova, last):
            raise self._obstacle(iova, size, offset, address_bits)
        self._check_count(iova, size, 1)
        # What is behind the memory would be reached by the device as well.
        available = _size_of(memory)
        if available is not None and offset + size > available:
            reason = f"the memory has {available} bytes, {offset + size} are asked for"
            raise self._refusal("map", iova, size, errno.EINVAL, reason)

    def check_all_new(self, memory: DMASource, ranges: DMARanges, address_bits: int) -> None:
        """Raise :class:`DMAError` where one of many maps cannot be made."""
        fit = ranges.fit(self.page_size, address_bits, _size_of(memory))
        if not fit or not self._maps.are_free(ranges.firsts, ranges.lasts):
            self._find_obstacle(memory, ranges, address_bits)
        if len(ranges):
            self._check_count(int(ranges.iovas[0]), int(ranges.sizes[0]), len(ranges))

    def _find_obstacle(self, memory: DMASource, ranges: DMARanges, address_bits: int) -> None:
        """Raise for the first map that cannot be made."""
        others = SortedMaps()
        for entry in ranges.entries(memory, DMAMapFlags(0)):
            self.check_new(memory, entry.iova, entry.size, entry.offset, address_bits)
            other = others.overlapping(entry.iova, entry.last)
            if other is not None:
                raise self._overlap(entry.iova, entry.size, other)
            others.insert(entry)

    def _obstacle(self, iova: int, size: int, offset: int, address_bits: int) -> DMAError:
        """Why addresses are not to be mapped."""
        page, last = self.page_size, iova + size - 1
        if size <= 0 or offset < 0 or (iova | size | offset) % page:
            reason = f"address, size and offset must be multiples of {page} bytes"
            return self._refusal("map", iova, size, errno.EINVAL, reason)
        if last >> address_bits:
            reason = f"beyond the device's {address_bits} address bits"
            return self._refusal("map", iova, size, errno.EINVAL, reason)
        if not self._maps.allowed(iova, last):
            ranges = ", ".join(f"{low:#x}-{high:#x}" for low, high in self._io().iova_ranges)
            reason = f"outside of the addresses that can be mapped ({ranges})"
            return self._refusal("map", iova, size, errno.EINVAL, reason)
        other = self._maps.overlapping(iova, last)
        if other is not None:
            return self._overlap(iova, size, other)
        reason = "an earlier map of these addresses was not answered, and may yet be made"
        return self._refusal("map", iova, size, errno.EBUSY, reason)

    def _overlap(self, iova: int, size: int, other: MapEntry) -> DMAError:
        reason = f"overlaps the map at {other.iova:#x}, {other.size} bytes"
        return self._refusal("map", iova, size, errno.EEXIST, reason)

    def _check_count(self, iova: int, size: int, count: int) -> None:
        most = self._io().max_maps
        if len(self._maps) + count > most:
            reason = f"all {most} maps are in use"
            if count > 1:
                reason = f"{len(self._maps)} of {most} maps are in use, {count} are asked for"
            raise self._refusal("map", iova, size, errno.ENOSPC, reason)

    # To be unmapped

    def exact(self, iova: int, size: int) -> MapEntry:
        """The map that is exactly a range; raises :class:`DMAError`."""
        mapping = self._maps.holder(iova)
        if mapping is None or mapping.iova != iova or mapping.size != size:
            raise self._refusal("unmap", iova, size, errno.ENOENT, "not mapped as such")
        return mapping

    def all_exact(self, ranges: DMARanges) -> Sequence[MapEntry]:
        """The maps that are exactly some ranges, in their order; raises :class:`DMAError`."""
        found = self._maps.all_at(ranges.firsts)
        if not ranges.match(found):
            seen = set[int]()
            for iova, size in ranges:
                self.exact(iova, size)
                if iova in seen:
                    raise self._refusal("unmap", iova, size, errno.ENOENT, "asked for twice")
                seen.add(iova)
        return ranges.as_asked(cast(list[MapEntry], found))

    def _refusal(
        self, verb: str, iova: int | None, size: int, number: int, reason: str
    ) -> DMAError:
        where = "" if iova is None else f" at iova {iova:#x}"
        return DMAError(
            reason,
            iova=iova,
            size=size,
            op=f"dma {verb} of {size} bytes{where}",
            uri=self._uri,
            errno=number,
        )


def _size_of(memory: DMASource) -> int | None:
    """Bytes that there are; None where neither the memory nor its file tells."""
    size = getattr(memory, "size", None)
    if isinstance(size, int):
        return size
    try:
        status = os.fstat(memory.fd)
    except OSError:
        return None  # no descriptor: the owner vouches for the address
    return status.st_size if stat.S_ISREG(status.st_mode) else None
