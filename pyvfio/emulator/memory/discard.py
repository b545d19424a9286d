# SPDX-License-Identifier: BSD-3-Clause
"""RAM that is there in parts (virtio-mem), and who hears which: QEMU's RamDiscardManager."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from pyvfio.emulator.memory.calls import Calls
from pyvfio.emulator.memory.listener import Section
from pyvfio.emulator.memory.region import MAP_LOCK


class Discardable(Protocol):
    """RAM that can be there in parts."""

    name: str
    discard_manager: RAMDiscardManager | None

    @property
    def size(self) -> int:
        """Size in bytes."""

    @property
    def spaces(self) -> tuple[object, ...]:
        """The address spaces that may show it."""


class RAMDiscardListener(Protocol):
    """Who hears which parts of a section are there."""

    def populate(self, section: Section) -> None:
        """A part is there from now on; what this raises undoes it, in the listener as well."""

    def discard(self, section: Section) -> None:
        """A part that was populated, or several side by side, is not there any more."""


class RAMDiscardManager:
    """Says which parts of a RAM region are there; none at first.

    It keeps the books and tells: giving the memory back to the host is its owner's.

    :param region: a RAM region that no address space shows yet.
    :param granularity: bytes of the smallest part, a power of two.
    :raises ValueError: no such granularity, or the region is shown or has a manager.
    """

    def __init__(self, region: Discardable, granularity: int) -> None:
        if granularity <= 0 or granularity & (granularity - 1) or region.size % granularity:
            raise ValueError(f"{region.name} of {region.size} bytes in parts of {granularity}")
        with MAP_LOCK:
            if region.discard_manager is not None or region.spaces:
                raise ValueError(f"{region.name} is shown, or has a discard manager already")
            region.discard_manager = self
        self.region = region
        self.granularity = granularity
        self._there = bytearray(region.size // granularity)
        self._listeners: list[tuple[RAMDiscardListener, Section]] = []

    def is_populated(self, offset: int, size: int) -> bool:
        """Whether all of a range of the region is there."""
        first, end = offset // self.granularity, -(-(offset + size) // self.granularity)
        return 0 not in self._there[first:end]

    def populate(self, offset: int, size: int) -> None:
        """Have parts be there; those that are stay as they are.

        :raises ValueError: not whole parts of the region.
        :raises BaseException: what a listener raised; nothing was populated.
        """
        with MAP_LOCK:
            done: list[tuple[int, int]] = []
            calls = Calls()
            for first, end in list(self._runs(offset, size, there=False)):
                self._populate_run(first, end, calls)
                if calls.errors:
                    break
                done.append((first, end))
            if calls.errors:
                for first, end in reversed(done):
                    self._discard_run(first, end, calls)
            calls.end()

    def discard(self, offset: int, size: int) -> None:
        """Have parts be there no longer; those that are not stay as they are.

        :raises ValueError: not whole parts of the region.
        :raises BaseException: what a listener raised first; the parts are gone, and all were told.
        """
        with MAP_LOCK:
            calls = Calls()
            for first, end in list(self._runs(offset, size, there=True)):
                self._discard_run(first, end, calls)
            calls.end()

    def add_listener(self, listener: RAMDiscardListener, section: Section) -> None:
        """Tell somebody which parts of a section are there, and from now on what changes.

        :raises BaseException: what it raised; it was told that all is gone, and hears no more.
        """
        with MAP_LOCK:
            calls = Calls()
            told: list[Section] = []
            for part in self._populated(section):
                if not calls.make(listener.populate, part):
                    break
                told.append(part)
            if calls.errors:
                for part in reversed(told):
                    calls.make(listener.discard, part)
            calls.end()
            self._listeners.append((listener, section))

    def remove_listener(self, listener: RAMDiscardListener) -> None:
        """Tell somebody that all parts are gone, and then nothing more.

        :raises ValueError: it was not told of any.
        :raises BaseException: what it raised first.
        """
        with MAP_LOCK:
            sections = [section for found, section in self._listeners if found is listener]
            if not sections:
                raise ValueError(f"{listener!r} does not listen to {self.region.name}")
            self._listeners = [entry for entry in self._listeners if entry[0] is not listener]
            calls = Calls()
            for section in sections:
                for part in self._populated(section):
                    calls.make(listener.discard, part)
            calls.end()

    def replay(self, listener: RAMDiscardListener, section: Section) -> None:
        """Tell somebody which parts of a section are there, without telling of changes.

        :raises BaseException: what it raised; the parts behind are not told.
        """
        with MAP_LOCK:
            for part in self._populated(section):
                listener.populate(part)

    def _populate_run(self, first: int, end: int, calls: Calls) -> None:
        """Populate bytes that are not there, with every listener or with none."""
        told: list[tuple[RAMDiscardListener, Section]] = []
        for listener, part in self._parts(first, end):
            if not calls.make(listener.populate, part):
                for earlier, its_part in reversed(told):
                    calls.make(earlier.discard, its_part)
                return
            told.append((listener, part))
        self._set(first, end, there=True)

    def _discard_run(self, first: int, end: int, calls: Calls) -> None:
        self._set(first, end, there=False)
        for listener, part in reversed(list(self._parts(first, end))):
            calls.make(listener.discard, part)

    def _parts(self, first: int, end: int) -> Iterator[tuple[RAMDiscardListener, Section]]:
        """Each listener whose section has bytes of a run, and which part it has."""
        for listener, section in self._listeners:
            part = section.part(first, end)
            if part is not None:
                yield listener, part

    def _populated(self, section: Section) -> Iterator[Section]:
        for first, end in list(self._runs(0, self.region.size, there=True)):
            part = section.part(first, end)
            if part is not None:
                yield part

    def _runs(self, offset: int, size: int, there: bool) -> Iterator[tuple[int, int]]:
        """(first byte, end) of the runs within a range that are there, or are not."""
        self._check_range(offset, size)
        at, end = offset // self.granularity, (offset + size) // self.granularity
        while (first := self._there.find(there, at, end)) >= 0:
            stop = self._there.find(not there, first, end)
            at = end if stop < 0 else stop
            yield first * self.granularity, at * self.granularity

    def _set(self, first: int, end: int, there: bool) -> None:
        start, stop = first // self.granularity, end // self.granularity
        self._there[start:stop] = bytes([there]) * (stop - start)

    def _check_range(self, offset: int, size: int) -> None:
        step = self.granularity
        aligned = offset % step == 0 and size % step == 0
        if not aligned or offset < 0 or size <= 0 or offset + size > self.region.size:
            raise ValueError(
                f"{size} bytes at {offset:#x} of {self.region.name}, {self.region.size} bytes in"
                f" parts of {step}"
            )
