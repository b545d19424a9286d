# SPDX-License-Identifier: BSD-3-Clause
"""What a device has written of a guest's RAM, brought from its container to the RAM regions.

Facts: QEMU's ``vfio_listener_log_sync``, ``vfio_container_query_dirty_bitmap``.
"""

from __future__ import annotations

import logging
from weakref import WeakKeyDictionary, WeakSet

from pyvfio.container import Container
from pyvfio.emulator.memory.ram import RAMRegion
from pyvfio.errors import VFIOError
from pyvfio.map_table import MapEntry
from pyvfio.memory import SharedMemory

log = logging.getLogger(__name__)


class DirtyRAM:
    """Asks the container of one device, and marks the pages of the RAM regions.

    :param container: where the guest's RAM is mapped.
    :param uri: the device, for what is logged.
    """

    def __init__(self, container: Container, uri: str) -> None:
        self._container = container
        self._uri = uri
        self._regions: WeakKeyDictionary[SharedMemory, WeakSet[RAMRegion]] = WeakKeyDictionary()
        self._logging = False

    def learn(self, region: object) -> None:
        """A region is mapped."""
        if isinstance(region, RAMRegion):
            self._regions.setdefault(region.memory, WeakSet()).add(region)

    def start(self) -> None:
        """Have what the device writes noted; raises as :meth:`DirtyTracker.start`."""
        self._container.dirty.start()
        self._logging = True

    def stop(self) -> None:
        """Have it noted no more; raises as :meth:`DirtyTracker.stop`."""
        self._logging = False
        self._container.dirty.stop()

    def fetch(self, entry: MapEntry) -> None:
        """Mark what the device has written of a map since the last time; nothing while not noted.

        :raises VFIOError: the device does not tell.  All of the map counts as written.
        """
        if not self._logging or not entry.writable:
            return
        try:
            found = self._container.dirty.report(entry.iova, entry.size)
        except VFIOError:
            self._mark(entry, 0, entry.size)
            raise
        for address, size in found.ranges():
            self._mark(entry, address - entry.iova, size)

    def fetch_last(self, entry: MapEntry) -> None:
        """As :meth:`fetch` for a map that is about to go, which nothing may prevent."""
        try:
            self.fetch(entry)
        except VFIOError as error:
            log.warning("%s: all of %#x counts as written: %s", self._uri, entry.iova, error)

    def _mark(self, entry: MapEntry, offset: int, size: int) -> None:
        memory = entry.memory
        if not isinstance(memory, SharedMemory):
            return  # of another device
        first, end = entry.offset + offset, entry.offset + offset + size
        for region in self._regions.get(memory, ()):
            start = max(first, region.memory_offset)
            length = min(end, region.memory_offset + region.size) - start
            if length > 0:
                region.mark_dirty(start - region.memory_offset, length)
