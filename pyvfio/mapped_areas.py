# SPDX-License-Identifier: BSD-3-Clause
"""The parts of a region that are mapped into this process."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Sequence

from pyvfio.memory import PAGE_SIZE, View
from pyvfio.native import mmio, window
from pyvfio.native.window import Messages, Pane, Window
from pyvfio.uapi.vfio import RegionFlags
from pyvfio.vectors import MmapArea, RegionInfo

log = logging.getLogger(__name__)


class MappedArea:
    """One of them, from ``start`` to ``end`` of the region."""

    def __init__(self, area: MmapArea, view: View) -> None:
        self.start = area.offset
        self.end = area.offset + area.size
        self.view = view
        # Held while a thread uses the area, even if another closes the region meanwhile.
        self.memory = view.memory
        self.address = self.memory.address

    def holds(self, offset: int, size: int) -> bool:
        """Whether ``size`` bytes at ``offset`` of the region are in it."""
        return self.start <= offset and offset + size <= self.end


def map_areas(info: RegionInfo, name: str, uri: str) -> Iterator[MappedArea]:
    """Map what can be mapped of a region; the rest is logged."""
    for area in info.areas:
        try:
            yield MappedArea(area, _map(info, area, name))
        except OSError as error:
            log.warning("%s: cannot map %s at %#x: %s", uri, name, area.offset, error)


def _map(info: RegionInfo, area: MmapArea, name: str) -> View:
    start = info.fd_offset + area.offset
    # A kernel maps a BAR smaller than a page where nothing else is in that page.
    whole = area.size % PAGE_SIZE == 0 or area.offset + area.size == info.size
    if info.fd is None or start % PAGE_SIZE or area.offset % PAGE_SIZE or not whole:
        raise OSError(errno.EINVAL, "no descriptor, or not whole pages")
    memory = mmio.MappedMemory(
        info.fd,
        start,
        area.size,
        readable=bool(info.flags & RegionFlags.READ),
        writable=bool(info.flags & RegionFlags.WRITE),
    )
    return View(memory, name)


def window_of(
    info: RegionInfo, areas: Sequence[MappedArea] = (), messages: Messages | None = None
) -> Window:
    """A region as C sees it."""
    return window.window(
        info.size,
        bool(info.flags & RegionFlags.READ),
        bool(info.flags & RegionFlags.WRITE),
        [Pane(area.start, area.memory) for area in areas],
        messages,
    )
