# SPDX-License-Identifier: BSD-3-Clause
"""The tree of memory regions: what lies where, and which address spaces show it.

``MemoryRegion`` is QEMU's of that name (system/memory.c): itself a container with holes, and the
base of every other kind.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

MAP_LOCK = threading.RLock()
"""Held while a memory map changes and while listeners hear of it, in the whole process.

A listener, a translation or a transaction must not wait for a thread that wants to change a map.
"""

MAX_SIZE = 1 << 64


class Space(Protocol):
    """What a region needs of an address space that shows it."""

    def changing(self) -> AbstractContextManager[None]:
        """A transaction at whose end the space is rendered again."""


class MemoryRegion:
    """A range of guest memory that holds other regions, with holes between them.

    Where regions overlap, the one of higher priority is seen, and among equals the one that was
    added last.  What leaves the region is cut off.

    :param name: how descriptions and errors call it.
    :param size: bytes, up to 2^64.
    :raises ValueError: no such size.
    """

    def __init__(self, name: str, size: int) -> None:
        if not 0 < size <= MAX_SIZE:
            raise ValueError(f"region {name} of {size} bytes")
        self.name = name
        self._size = size
        self._offset = 0
        self._priority = 0
        self._enabled = True
        self._readonly = False
        self._parent: MemoryRegion | None = None
        self._regions: tuple[MemoryRegion, ...] = ()
        self._spaces: list[Space] = []
        self._aliases: weakref.WeakSet[MemoryRegion] = weakref.WeakSet()

    @property
    def kind(self) -> str:
        """How descriptions call its kind."""
        return "container"

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._size

    @property
    def parent(self) -> MemoryRegion | None:
        """The region that holds it."""
        return self._parent

    @property
    def offset(self) -> int:
        """Where it starts in its parent, in bytes."""
        return self._offset

    @property
    def priority(self) -> int:
        """The higher one is seen where regions of one parent overlap."""
        return self._priority

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """The regions that it holds, the one that is seen first in front."""
        return self._regions

    @property
    def enabled(self) -> bool:
        """Whether it is seen, with all that it holds; settable."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        if enabled != self._enabled:
            with self._changing():
                self._enabled = enabled

    @property
    def readonly(self) -> bool:
        """Whether RAM that is seen through it drops writes of the guest; settable."""
        return self._readonly

    @readonly.setter
    def readonly(self, readonly: bool) -> None:
        if readonly != self._readonly:
            with self._changing():
                self._readonly = readonly

    # Changes

    def add(self, region: MemoryRegion, offset: int, priority: int = 0) -> None:
        """Put a region into this one.

        :param offset: where it starts, in bytes.
        :raises ValueError: it is in a region already, holds this one, or the offset is impossible.
        """
        with MAP_LOCK:
            _check_offset(region, offset)
            if region.parent is not None:
                raise ValueError(f"region {region.name} is in {region.parent.name} already")
            if region.reaches(self):
                raise ValueError(f"region {region.name} would be within itself")
            with self._changing():
                self._insert(region, offset, priority)

    def remove(self, region: MemoryRegion) -> None:
        """Take a region out.

        :raises ValueError: it is not in this one.
        """
        with MAP_LOCK:
            if region.parent is not self:
                raise ValueError(f"region {region.name} is not in {self.name}")
            with self._changing():
                self._take_out(region)

    def move(self, offset: int) -> None:
        """Have it start elsewhere in its parent, in front of others of its priority.

        :raises ValueError: it is in no region, or the offset is impossible.
        """
        with MAP_LOCK:
            _check_offset(self, offset)
            parent = self._parent
            if parent is None:
                raise ValueError(f"region {self.name} is in no region")
            if offset != self._offset:
                with parent._changing():
                    parent._take_out(self)
                    parent._insert(self, offset, self._priority)

    def resize(self, size: int) -> None:
        """Give it another size in bytes.

        :raises ValueError: no such size, or not for this kind of region.
        """
        self._check_size(size)
        if size != self._size:
            with self._changing():
                self._size = size

    def _check_size(self, size: int) -> None:
        if not 0 < size <= MAX_SIZE:
            raise ValueError(f"region {self.name} of {size} bytes")

    def _insert(self, region: MemoryRegion, offset: int, priority: int) -> None:
        region._parent, region._offset, region._priority = self, offset, priority
        others = self._regions
        position = sum(other.priority > priority for other in others)
        self._regions = (*others[:position], region, *others[position:])

    def _take_out(self, region: MemoryRegion) -> None:
        self._regions = tuple(other for other in self._regions if other is not region)
        region._parent, region._offset = None, 0

    # Where it is seen

    def reaches(self, region: MemoryRegion) -> bool:
        """Whether ``region`` is this one, or is held by it or by what its aliases show."""
        seen: set[MemoryRegion] = set()
        waiting = [self]
        while waiting:
            found = waiting.pop()
            if found is region:
                return True
            if found not in seen:
                seen.add(found)
                waiting.extend(found._below())
        return False

    def _below(self) -> tuple[MemoryRegion, ...]:
        return self._regions

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The address spaces that may show it: through its parents, and what aliases them."""
        found: dict[Space, None] = {}
        seen: set[MemoryRegion] = set()
        waiting: list[MemoryRegion] = [self]
        while waiting:
            region = waiting.pop()
            if region in seen:
                continue
            seen.add(region)
            found.update(dict.fromkeys(region._spaces))
            waiting.extend(region._aliases)
            if region._parent is not None:
                waiting.append(region._parent)
        return tuple(found)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """A transaction of every address space that may show the region."""
        with MAP_LOCK, ExitStack() as transactions:
            for space in self.spaces:
                transactions.enter_context(space.changing())
            yield

    def show_in(self, space: Space) -> None:
        """It is the root of an address space; called by it."""
        self._spaces.append(space)

    def hide_from(self, space: Space) -> None:
        """It is not any more; called by the space."""
        self._spaces.remove(space)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} size={self._size:#x}>"


def _check_offset(region: MemoryRegion, offset: int) -> None:
    if not 0 <= offset < MAX_SIZE:
        raise ValueError(f"region {region.name} at offset {offset:#x}")
