# SPDX-License-Identifier: BSD-3-Clause
"""DMA maps of a device that follow the guest's memory, as QEMU's hw/vfio/listener.c makes them."""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from pyvfio.container import Container
from pyvfio.emulator.dirty_ram import DirtyRAM
from pyvfio.emulator.mapped_pages import MappedPages, Obstacle
from pyvfio.emulator.memory.address_space import AddressSpace
from pyvfio.emulator.memory.calls import Calls, with_notes
from pyvfio.emulator.memory.discard import RAMDiscardManager
from pyvfio.emulator.memory.iommu import IOMMUNotifier, IOMMURegion, IOTLBEntry
from pyvfio.emulator.memory.listener import MemoryListener, Section
from pyvfio.emulator.memory.ram import MemoryBackedRegion, RAMRegion
from pyvfio.emulator.memory.region import MAP_LOCK
from pyvfio.emulator.owned_maps import OwnedMaps
from pyvfio.errors import DMAError
from pyvfio.map_table import MapEntry

log = logging.getLogger(__name__)

OTHER_SECTIONS = 512
"""Maps that are kept free for whole sections beside RAM in parts, as QEMU does without KVM."""


class DMAListener(MemoryListener):
    """Maps for a device what its address space shows of RAM, and of other devices' BARs.

    All that a transaction changes goes out as one batch.  A map that is refused is raised from the
    end of the transaction and not tried again; the others are made.

    Where the device was lost and is reached again, detach and attach.

    :param container: the device's.
    :param uri: the device, for what is logged.
    :ivar users: functions that it is attached for; kept by their bus.
    """

    def __init__(self, container: Container, uri: str) -> None:
        self._container = container
        self.users = 0
        self._uri = uri
        self._space: AddressSpace | None = None
        self.pages = MappedPages(container)
        self._dirty = DirtyRAM(container, uri)
        self._maps = OwnedMaps(container, uri, self._dirty.fetch_last)
        self._plan: _Plan | None = None
        self._notifiers: dict[Section, IOMMUNotifier] = {}
        self._parts: dict[Section, _Parts] = {}
        self._skipped: dict[Section, str] = {}

    @property
    def container(self) -> Container:
        """The container of the device."""
        return self._container

    @property
    def space(self) -> AddressSpace | None:
        """What it follows; None where it is not attached."""
        return self._space

    @property
    def mappings(self) -> tuple[MapEntry, ...]:
        """Its maps, by ascending address."""
        return self._maps.all()

    @property
    def skipped(self) -> dict[Section, str]:
        """Sections of memory that are seen but not mapped, and why."""
        return dict(self._skipped)

    def attach(self, space: AddressSpace) -> None:
        """Map what an address space shows, and follow it from now on.

        :raises ValueError: it follows one already.
        :raises VFIOError: the first map that was refused; everything was undone.
        """
        with MAP_LOCK:
            if self._space is not None:
                raise ValueError(f"{self._uri} follows {self._space.name} already")
            space.add_listener(self)
            self._space = space

    def detach(self) -> None:
        """Take away every map that it has made.  May be repeated.

        :raises VFIOError: the device refused; what is left is tried by the next call.
        """
        with MAP_LOCK:
            space, self._space = self._space, None
            calls = Calls()
            if space is not None and self in space.listeners:
                calls.make(space.remove_listener, self)
            if not calls.errors:
                calls.make(self._maps.change, self._maps.all(), ())
            calls.end()

    # Hooks

    def begin(self) -> None:
        """Collect, until :meth:`commit`."""
        self._plan = _Plan({}, [])

    def commit(self) -> None:
        """Carry out what was collected; :raises VFIOError: what was refused first."""
        plan, self._plan = self._plan, None
        if plan is not None:
            self._maps.change(plan.gone.values(), plan.new)

    def region_add(self, section: Section) -> None:
        """Map a section, or follow what comes and goes in it; skip it with a line in the log."""
        region = section.region
        if not isinstance(region, MemoryBackedRegion | IOMMURegion):
            return
        self._dirty.learn(region)
        obstacle = self.pages.obstacle(section)
        if obstacle is not None:
            self._skip(section, obstacle)
        elif isinstance(region, IOMMURegion):
            self._follow_iommu(section, region)
        elif isinstance(region, RAMRegion) and region.discard_manager is not None:
            self._follow_parts(section, region.discard_manager)
        else:
            self.change((), list(self.pages.entries(section)))

    def region_del(self, section: Section) -> None:
        """Take away what was mapped of a section, however many maps it are."""
        self._skipped.pop(section, None)
        notifier = self._notifiers.pop(section, None)
        if notifier is not None:
            assert isinstance(section.region, IOMMURegion)
            section.region.remove_notifier(notifier)
        parts = self._parts.pop(section, None)
        if parts is not None:
            parts.manager.remove_listener(parts)
        self.unmap(section)

    def log_start(self) -> None:
        """Have what the device writes noted; :raises VFIOError: it refused."""
        self._dirty.start()

    def log_stop(self) -> None:
        """Have it noted no more; :raises VFIOError: the device refused."""
        self._dirty.stop()

    def log_sync(self, section: Section) -> None:
        """Mark what the device has written of a section, see :meth:`RAMRegion.take_dirty`.

        :raises VFIOError: it does not tell; what it may have written is marked.
        """
        first, end = self.pages.of(section)
        for entry in list(self._maps.within(first, end - 1)):
            self._dirty.fetch(entry)

    def change(self, gone: Collection[MapEntry], new: Collection[MapEntry]) -> None:
        """Unmap, then map: now, or with what else a transaction changes."""
        if self._plan is None:
            self._maps.change(gone, new)
        else:
            self._plan.gone.update((entry.iova, entry) for entry in gone)
            self._plan.new.extend(new)

    def unmap(self, section: Section) -> None:
        """Unmap what is mapped of a section; a map that goes beyond is made again without that."""
        first, end = self.pages.of(section)
        if first >= end:
            return  # nothing of less than a page is mapped
        gone = list(self._maps.within(first, end - 1))
        if self._plan is not None:  # what it has unmapped is gone, and what it maps is not yet
            gone = [entry for entry in gone if entry.iova not in self._plan.gone]
            self._plan.new[:] = _without(self._plan.new, first, end)
        self.change(gone, _without(gone, first, end))

    def _skip(self, section: Section, obstacle: Obstacle) -> None:
        self._skipped[section] = obstacle.reason
        what = f"{section.region.name} at {section.address:#x}, {section.size:#x} bytes"
        log.log(obstacle.level, "%s: no DMA to %s: %s", self._uri, what, obstacle.reason)

    # A virtual IOMMU

    def _follow_iommu(self, section: Section, region: IOMMURegion) -> None:
        first = section.offset_in_region
        callback = partial(self._translation_changed, section, region)
        notifier = IOMMUNotifier(first, first + section.size - 1, callback)
        region.add_notifier(notifier)
        self._notifiers[section] = notifier
        region.replay(notifier)

    def _translation_changed(
        self, section: Section, region: IOMMURegion, entry: IOTLBEntry
    ) -> None:
        seen = section.part(entry.iova, entry.last + 1)
        if seen is None:
            return
        if entry.permission:
            self.change((), list(self._translated(seen, region, entry)))
        else:
            self.unmap(seen)

    def _translated(
        self, seen: Section, region: IOMMURegion, entry: IOTLBEntry
    ) -> Iterator[MapEntry]:
        """The maps of what an entry translates to, as far as that is memory."""
        start = entry.translated + seen.offset_in_region - entry.iova
        for found, at, size in region.target.pieces(start, seen.size):
            address = seen.address + at - start
            if found is None or not isinstance(found.region, MemoryBackedRegion):
                self._refuse_translation(address, size, "no memory is there")
                continue
            offset = at - found.start + found.offset_in_region
            piece = Section(seen.space, found.region, offset, address, size, found.readonly)
            obstacle = self.pages.obstacle(piece)
            self._dirty.learn(found.region)
            if obstacle is not None or not _is_populated(piece):
                reason = "discarded memory" if obstacle is None else obstacle.reason
                self._refuse_translation(address, size, reason)
                continue
            for new in self.pages.entries(piece):
                yield new._replace(flags=new.flags & entry.permission)

    def _refuse_translation(self, address: int, size: int, reason: str) -> None:
        text = "%s: the guest's IOMMU maps %#x bytes at iova %#x, which cannot be mapped: %s"
        log.warning(text, self._uri, size, address, reason)

    # RAM in parts

    def _follow_parts(self, section: Section, manager: RAMDiscardManager) -> None:
        self._check_parts(section, manager)
        parts = _Parts(self, manager)
        manager.add_listener(parts, section)
        self._parts[section] = parts

    def _check_parts(self, section: Section, manager: RAMDiscardManager) -> None:
        """Refuse parts of less than a page, and more of them than may be mapped at one time."""
        page, most = self._container.page_size, self._container.max_maps
        if manager.granularity % page:
            reason = f"parts of {manager.granularity} bytes, pages of {page}"
            raise _part_error(section, self._uri, errno.EINVAL, reason)
        counts = [
            -(-(other.address + other.size) // parts.manager.granularity)
            - other.address // parts.manager.granularity
            for other, parts in (*self._parts.items(), (section, _Parts(self, manager)))
        ]
        if sum(counts) + OTHER_SECTIONS - len(counts) > most:
            reason = f"{sum(counts)} parts, and {most} maps at most: take larger parts"
            raise _part_error(section, self._uri, errno.ENOSPC, reason)


class _Plan(NamedTuple):
    """What a transaction unmaps, by address, and then maps."""

    gone: dict[int, MapEntry]
    new: list[MapEntry]


class _Parts:
    """Maps the parts of a section that are there, each by itself so that each can go."""

    def __init__(self, owner: DMAListener, manager: RAMDiscardManager) -> None:
        self.manager = manager
        self._owner = owner

    def populate(self, section: Section) -> None:
        """Map parts; all or, outside of a transaction, none."""
        new = list(self._owner.pages.entries(section, self.manager.granularity))
        try:
            self._owner.change((), new)
        except BaseException as error:
            calls = Calls()
            calls.make(self._owner.unmap, section)
            with_notes(error, calls.errors)
            raise

    def discard(self, section: Section) -> None:
        """Unmap parts."""
        self._owner.unmap(section)


def _is_populated(section: Section) -> bool:
    manager = getattr(section.region, "discard_manager", None)
    return manager is None or manager.is_populated(section.offset_in_region, section.size)


def _without(entries: Iterable[MapEntry], first: int, end: int) -> list[MapEntry]:
    """What maps have below ``first``, and from ``end`` on."""
    rest = []
    for entry in entries:
        below, behind = min(first, entry.last + 1), max(end, entry.iova)
        if entry.iova < below:
            rest.append(entry._replace(size=below - entry.iova))
        if behind <= entry.last:
            skipped = behind - entry.iova
            size, offset = entry.size - skipped, entry.offset + skipped
            rest.append(entry._replace(iova=behind, size=size, offset=offset))
    return rest


def _part_error(section: Section, uri: str, number: int, reason: str) -> DMAError:
    op = f"dma map of {section.region.name}"
    return DMAError(reason, iova=section.address, size=section.size, op=op, uri=uri, errno=number)
