# SPDX-License-Identifier: BSD-3-Clause
"""What one bus master sees: accesses by address, and the listeners of the view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from pyvfio.closing import Closing
from pyvfio.emulator.memory.calls import Calls
from pyvfio.emulator.memory.flat_view import FlatRange, FlatView, render
from pyvfio.emulator.memory.listener import MemoryListener, Section
from pyvfio.emulator.memory.region import MAP_LOCK, MAX_SIZE, MemoryRegion
from pyvfio.emulator.memory.terminal import check_access
from pyvfio.errors import DeviceClosed
from pyvfio.uapi.layout import Buffer


class Owner(Protocol):
    """What an address space needs of its topology."""

    @property
    def logging(self) -> bool:
        """Whether what is written is noted."""

    def changing(self, space: AddressSpace) -> AbstractContextManager[None]:
        """A transaction at whose end the space is rendered again."""

    def telling(self) -> AbstractContextManager[None]:
        """Listeners are called; maps must not change meanwhile."""

    def check_quiet(self) -> None:
        """Raise RuntimeError while listeners are called."""

    def forget(self, space: AddressSpace) -> None:
        """A space is closed."""


class AddressSpace(Closing):
    """A tree of regions as a bus master sees it; made by :meth:`Topology.space`.

    :param owner: the topology.
    :param root: the tree; its first byte is at address 0.
    """

    def __init__(self, owner: Owner, name: str, root: MemoryRegion) -> None:
        self.name = name
        self.root = root
        self._owner = owner
        self._listeners: list[tuple[int, MemoryListener]] = []
        self._closed = False
        self._view = FlatView()
        root.show_in(self)

    @property
    def flat_view(self) -> tuple[FlatRange, ...]:
        """What is seen where, by ascending address; what lies between is unassigned."""
        return self._view.ranges

    @property
    def sections(self) -> tuple[Section, ...]:
        """The flat view, as listeners are told of it."""
        return tuple(map(self._section, self._view.ranges))

    # Accesses

    def read(self, address: int, width: int) -> int:
        """A read of 1, 2, 4 or 8 bytes, little-endian; where nothing is, bits are ones.

        One access of the region where it is aligned there and does not leave it.

        :raises ValueError: no such width or address.
        """
        check_access(width)
        _check_range(address, width)
        found = self._view.at(address)
        if found is None or address + width > found.end:
            return int.from_bytes(self.read_bytes(address, width), "little")
        return found.region.read(address - found.start + found.offset_in_region, width)

    def write(self, address: int, width: int, value: int) -> None:
        """A write of 1, 2, 4 or 8 bytes, little-endian; dropped where nothing is.

        One access of the region where it is aligned there and does not leave it.

        :raises ValueError: no such width or address, or the value does not fit.
        """
        check_access(width, value)
        _check_range(address, width)
        found = self._view.at(address)
        if found is None or address + width > found.end:
            self.write_bytes(address, value.to_bytes(width, "little"))
        elif not _drops_writes(found):
            offset = address - found.start + found.offset_in_region
            found.region.write(offset, width, value)

    def read_bytes(self, address: int, size: int) -> bytes:
        """Any number of bytes; ones where nothing is.

        :raises ValueError: no such addresses.
        """
        _check_range(address, size)
        parts = []
        for found, at, length in self._view.pieces(address, size):
            if found is None:
                parts.append(b"\xff" * length)
            else:
                offset = at - found.start + found.offset_in_region
                parts.append(found.region.read_bytes(offset, length))
        return b"".join(parts)

    def write_bytes(self, address: int, data: Buffer) -> None:
        """Any number of bytes; dropped where nothing is.

        :raises ValueError: no such addresses.
        """
        view = memoryview(data).cast("B")
        _check_range(address, len(view))
        for found, at, length in self._view.pieces(address, len(view)):
            if found is not None and not _drops_writes(found):
                offset = at - found.start + found.offset_in_region
                found.region.write_bytes(offset, view[at - address : at - address + length])

    def find(self, address: int) -> FlatRange | None:
        """The range that holds an address; None where nothing is."""
        return self._view.at(address)

    def pieces(self, address: int, size: int) -> Iterator[tuple[FlatRange | None, int, int]]:
        """A stretch of addresses as (range or None, first address, bytes), in order."""
        return self._view.pieces(address, size)

    # Listeners

    @property
    def listeners(self) -> tuple[MemoryListener, ...]:
        """Who listens, by ascending priority: the order of all calls but those that undo."""
        return tuple(listener for _, listener in self._listeners)

    def add_listener(self, listener: MemoryListener, priority: int = 0) -> None:
        """Tell a listener what is seen, and from now on how it changes.

        :param priority: the higher one hears of what is new later, and of what is gone sooner.
        :raises ValueError: it listens already.
        :raises BaseException: what a hook of it raised first; it was told that all is gone again,
            and does not listen.
        """
        with MAP_LOCK:
            self._check_open()
            if listener in self.listeners:
                raise ValueError(f"{listener!r} listens to {self.name} already")
            calls = Calls()
            with self._owner.telling():
                self._tell_all(listener, calls)
                if calls.errors:
                    self._tell_none(listener, calls)
            calls.end()
            self._listeners.append((priority, listener))
            self._listeners.sort(key=_priority)

    def remove_listener(self, listener: MemoryListener) -> None:
        """Tell a listener that all is gone, and then nothing more.

        :raises ValueError: it does not listen.
        :raises BaseException: what a hook of it raised first; it does not listen any more.
        """
        with MAP_LOCK:
            if listener not in self.listeners:
                raise ValueError(f"{listener!r} does not listen to {self.name}")
            calls = Calls()
            with self._owner.telling():
                self._listeners = [entry for entry in self._listeners if entry[1] is not listener]
                self._tell_none(listener, calls)
            calls.end()

    def _tell_all(self, listener: MemoryListener, calls: Calls) -> None:
        calls.make(listener.begin)
        if self._owner.logging:
            calls.make(listener.log_start)
        for section in self.sections:
            calls.make(listener.region_add, section)
        calls.make(listener.commit)

    def _tell_none(self, listener: MemoryListener, calls: Calls) -> None:
        calls.make(listener.begin)
        for section in reversed(self.sections):
            calls.make(listener.region_del, section)
        if self._owner.logging:
            calls.make(listener.log_stop)
        calls.make(listener.commit)

    # Changes

    def changing(self) -> AbstractContextManager[None]:
        """A transaction at whose end the space is rendered again; called by its regions."""
        return self._owner.changing(self)

    def render(self) -> FlatView | None:
        """Show what the regions are now; returns the view before, None where it is the same.

        Called by the topology.
        """
        before, view = self._view, render(self.root)
        if self._closed or view.ranges == before.ranges:
            return None
        self._view = view
        return before

    def tell(self, before: FlatView, calls: Calls) -> None:
        """Have the listeners hear what has changed; called by the topology."""
        old, new = set(before.ranges), set(self._view.ranges)
        listeners = self.listeners
        for listener in listeners:
            calls.make(listener.begin)
        for section in self._sections(found for found in before.ranges[::-1] if found not in new):
            for listener in reversed(listeners):
                calls.make(listener.region_del, section)
        for section in self._sections(found for found in self._view.ranges if found not in old):
            for listener in listeners:
                calls.make(listener.region_add, section)
        for listener in listeners:
            calls.make(listener.commit)

    def _sections(self, ranges: Iterable[FlatRange]) -> Iterable[Section]:
        return map(self._section, ranges)

    def _section(self, found: FlatRange) -> Section:
        offset = found.offset_in_region
        return Section(self, found.region, offset, found.start, found.size, found.readonly)

    def close(self) -> None:
        """Tell every listener that all is gone.  May be repeated.

        :raises BaseException: what a listener raised first; the space is closed.
        :raises RuntimeError: within a listener; it is not closed.
        """
        with MAP_LOCK:
            if self._closed:
                return
            self._owner.check_quiet()
            calls = Calls()
            for listener in reversed(self.listeners):
                calls.make(self.remove_listener, listener)
            self._closed = True
            self._view = FlatView()
            self.root.hide_from(self)
            self._owner.forget(self)
            calls.end()

    def _check_open(self) -> None:
        if self._closed:
            raise DeviceClosed("closed", op=f"address space {self.name}")

    def __repr__(self) -> str:
        return f"<AddressSpace {self.name}>"


def _drops_writes(found: FlatRange) -> bool:
    return found.readonly and found.region.is_ram


def _check_range(address: int, size: int) -> None:
    if size < 0 or not 0 <= address < MAX_SIZE:
        raise ValueError(f"an access of {size} bytes at {address:#x}")


def _priority(entry: tuple[int, MemoryListener]) -> int:
    return entry[0]
