# SPDX-License-Identifier: BSD-3-Clause
"""Which pages of a section are mapped for a device, and which sections are not: QEMU's rules."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

from pyvfio.container import READ_WRITE, Container
from pyvfio.emulator.memory.listener import Section
from pyvfio.emulator.memory.ram import MemoryBackedRegion, RAMDeviceRegion
from pyvfio.map_table import MapEntry
from pyvfio.uapi.vfio import DMAMapFlags


class Obstacle(NamedTuple):
    """Why a section is not mapped, and the level at which the log tells it."""

    reason: str
    level: int


class MappedPages:
    """The pages of sections, in the size that a container maps.

    :param container: says how large a page is.
    """

    def __init__(self, container: Container) -> None:
        self._container = container

    def of(self, section: Section) -> tuple[int, int]:
        """The whole pages of a section: the first address, and the one behind the last."""
        page = self._container.page_size
        end = section.address + section.size
        return -(-section.address // page) * page, end // page * page

    def entries(self, section: Section, step: int | None = None) -> Iterator[MapEntry]:
        """The maps of a section of memory.

        :param step: bytes at whose multiples in the region a map ends; all is one by default.
        """
        region = section.region
        assert isinstance(region, MemoryBackedRegion)
        flags = DMAMapFlags.READ if section.readonly else READ_WRITE
        iova, end = self.of(section)
        while iova < end:
            offset = iova - section.address + section.offset_in_region
            size = end - iova if step is None else min(end - iova, step - offset % step)
            yield MapEntry(iova, size, region.dma_source, region.dma_offset + offset, flags)
            iova += size

    def obstacle(self, section: Section) -> Obstacle | None:
        """Why a section of memory or of an IOMMU cannot be mapped; None where it can.

        QEMU's ``vfio_listener_valid_section`` and what follows it.
        """
        page = self._container.page_size
        if section.address >> 63:
            # Where a BAR seems to be while a guest sizes it; no IOMMU has so many address bits.
            return Obstacle("bit 63 of the address is set", logging.DEBUG)
        if section.address % page != _offset_in_memory(section) % page:
            return Obstacle("address and memory differ within a page", logging.WARNING)
        if isinstance(section.region, RAMDeviceRegion) and (
            section.address % page or section.size % page
        ):
            return Obstacle(f"not whole pages of {page} bytes", logging.INFO)
        first, end = self.of(section)
        if first >= end:
            return Obstacle(f"not one whole page of {page} bytes", logging.DEBUG)
        return None


def _offset_in_memory(section: Section) -> int:
    region = section.region
    base = region.dma_offset if isinstance(region, MemoryBackedRegion) else 0
    return base + section.offset_in_region
