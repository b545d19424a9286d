# SPDX-License-Identifier: BSD-3-Clause
"""The maps of a container that one owner has made, changed together, and true after a failure."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Iterator

from pyvfio.container import Container
from pyvfio.device_memory import DeviceMemory
from pyvfio.emulator.memory.calls import Calls
from pyvfio.errors import DeviceClosed, DMABatchError, DMAError, VFIOError
from pyvfio.map_table import MapEntry, MapTable

log = logging.getLogger(__name__)

ALL_ADDRESSES = [(0, (1 << 64) - 1)]


class OwnedMaps:
    """What is mapped for one owner; others may have maps in the same container.

    Memory of another device (peer to peer) that cannot be mapped is no error: the first time is a
    warning, as with QEMU.

    :param container: where maps are made.
    :param uri: the device, for what is logged.
    :param before_unmap: called with each map that is about to go.
    """

    def __init__(
        self, container: Container, uri: str, before_unmap: Callable[[MapEntry], None]
    ) -> None:
        self._container = container
        self._uri = uri
        self._before_unmap = before_unmap
        self._maps = MapTable(ALL_ADDRESSES)
        self._warned = False

    def all(self) -> tuple[MapEntry, ...]:
        """The maps, by ascending address."""
        return self._maps.all()

    def within(self, first: int, last: int) -> Iterator[MapEntry]:
        """The maps that have an address from ``first`` to ``last``, the highest first."""
        while first <= last and (entry := self._maps.overlapping(first, last)) is not None:
            yield entry
            last = entry.iova - 1

    def change(self, gone: Collection[MapEntry], new: Collection[MapEntry]) -> None:
        """Unmap, then map, in one batch.

        Where nothing is mapped any more, as when the device is lost or closed, to unmap is no
        error.

        :raises BaseException: what was refused first; the rest is done.
        """
        if not gone and not new:
            return
        for entry in gone:
            self._before_unmap(entry)
        calls = Calls()
        taken: list[MapEntry] = []
        before = self.all()
        calls.make(self._carry_out, gone, new, taken, calls)
        if not calls.errors:
            self._note(gone, taken)
        else:
            self._ask_container((*before, *taken))
        calls.errors = [error for error in calls.errors if self._matters(error, gone, new)]
        calls.end()

    def _carry_out(
        self,
        gone: Collection[MapEntry],
        new: Collection[MapEntry],
        taken: list[MapEntry],
        calls: Calls,
    ) -> None:
        """:param taken: gets those of ``new`` that were not refused at once."""
        with self._container.batch():
            for entry in gone:
                calls.make(self._unmap, entry)
            for entry in new:
                calls.make(self._map, entry, taken)

    def _unmap(self, entry: MapEntry) -> None:
        try:
            self._container.unmap(entry.iova, entry.size)
        except DMAError as error:
            if error.errno != errno.ENOENT:
                raise
            log.info("%s: somebody else took a map away: %s", self._uri, error)

    def _map(self, entry: MapEntry, taken: list[MapEntry]) -> None:
        iova, size, flags = entry.iova, entry.size, entry.flags
        try:
            self._container.map(
                entry.memory, iova=iova, offset=entry.offset, size=size, flags=flags
            )
        except VFIOError as error:
            if not _is_peer(entry):
                raise
            self._warn(error)
        else:
            taken.append(entry)

    # What has become of it

    def _note(self, gone: Collection[MapEntry], new: Collection[MapEntry]) -> None:
        for entry in gone:
            self._maps.remove(entry)
        for entry in new:
            self._maps.insert(entry)

    def _ask_container(self, possible: Collection[MapEntry]) -> None:
        """Keep those of ``possible`` that are mapped: a map may have failed, and an unmap too."""
        mapped = {entry.iova: entry for entry in self._container.mappings}
        self._maps = MapTable(ALL_ADDRESSES)
        for entry in possible:
            if mapped.get(entry.iova) == entry:
                self._maps.insert(mapped.pop(entry.iova))

    def _matters(
        self, error: BaseException, gone: Collection[MapEntry], new: Collection[MapEntry]
    ) -> bool:
        if isinstance(error, DeviceClosed):
            return bool(new)  # its maps were gone with it
        if not isinstance(error, DMABatchError):
            return True
        peers = {entry.iova for entry in new if _is_peer(entry)} - {entry.iova for entry in gone}
        of_peers = [found for found in error.failures if getattr(found, "iova", None) in peers]
        for found in of_peers:
            self._warn(found)
        return len(of_peers) < len(error.failures)

    def _warn(self, error: VFIOError) -> None:
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        log.log(level, "%s: no DMA to another device's BAR: %s", self._uri, error)


def _is_peer(entry: MapEntry) -> bool:
    return isinstance(entry.memory, DeviceMemory)
