# SPDX-License-Identifier: BSD-3-Clause
"""The address spaces of a machine, and transactions that change what they show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyvfio.closing import Closing
from pyvfio.emulator.memory import describe
from pyvfio.emulator.memory.address_space import AddressSpace
from pyvfio.emulator.memory.calls import Calls, with_notes
from pyvfio.emulator.memory.listener import MemoryListener, Section
from pyvfio.emulator.memory.region import MAP_LOCK, MemoryRegion


class Topology(Closing):
    """Owns address spaces and their transactions.

    A change of a region is a transaction of its own, unless one is open.  At the end of the
    outermost one each address space that has changed is rendered again, and its listeners hear
    what is gone, last address first, then what is new.
    """

    def __init__(self) -> None:
        self._spaces: list[AddressSpace] = []
        self._changed: set[AddressSpace] = set()
        self._depth = 0
        self._telling = False
        self._logging = False

    @property
    def spaces(self) -> tuple[AddressSpace, ...]:
        """The address spaces, in the order in which they were made."""
        return tuple(self._spaces)

    def space(self, name: str, root: MemoryRegion) -> AddressSpace:
        """A new address space that shows ``root``; one that a vIOMMU translates to comes first."""
        with MAP_LOCK:
            self.check_quiet()
            space = AddressSpace(self, name, root)
            self._spaces.append(space)
            space.render()
            return space

    # Transactions

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Have the changes of a ``with`` block seen together; may be nested.

        Another thread's changes wait for its end.  What was changed before the block raised is
        seen as well.

        :raises BaseException: what a listener raised first; the view is the new one, and the other
            listeners were told.
        :raises RuntimeError: within a listener.
        """
        with MAP_LOCK:
            self.check_quiet()
            self._depth += 1
            try:
                yield
            except BaseException as error:
                with_notes(error, self._leave().errors)
                raise
            self._leave().end()

    @contextmanager
    def changing(self, space: AddressSpace) -> Iterator[None]:
        """A transaction that changes a space; called by it."""
        with self.transaction():
            self._changed.add(space)
            yield

    def _leave(self) -> Calls:
        self._depth -= 1
        calls = Calls()
        if self._depth == 0:
            changed, self._changed = self._changed, set()
            views = [(space, space.render()) for space in self._spaces if space in changed]
            with self.telling():
                for space, before in views:
                    if before is not None:
                        space.tell(before, calls)
        return calls

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Listeners are called, which must not change what they are told of."""
        self.check_quiet()
        self._telling = True
        try:
            yield
        finally:
            self._telling = False

    def check_quiet(self) -> None:
        """Raise RuntimeError while listeners are called."""
        if self._telling:
            raise RuntimeError("a listener must not change the memory map that it listens to")

    # What is written

    @property
    def logging(self) -> bool:
        """Whether what is written is noted, between :meth:`log_start` and :meth:`log_stop`."""
        return self._logging

    def log_start(self) -> None:
        """Have every listener note what is written from now on; nothing where it is noted already.

        :raises BaseException: what a listener raised; those before it were stopped again.
        """
        with MAP_LOCK, self.telling():
            if self._logging:
                return
            started: list[MemoryListener] = []
            calls = Calls()
            for listener in self._listeners():
                if not calls.make(listener.log_start):
                    break
                started.append(listener)
            if calls.errors:
                for listener in reversed(started):
                    calls.make(listener.log_stop)
            calls.end()
            self._logging = True

    def log_stop(self) -> None:
        """Have no listener note it any more; nothing where none does.

        :raises BaseException: what a listener raised first; the others were told.
        """
        with MAP_LOCK, self.telling():
            if not self._logging:
                return
            self._logging = False
            calls = Calls()
            for listener in reversed(self._listeners()):
                calls.make(listener.log_stop)
            calls.end()

    def log_sync(self, what: AddressSpace | Section | None = None) -> None:
        """Have listeners bring what was written to where the emulator looks for it.

        :param what: an address space or a section of one; all spaces by default.
        :raises BaseException: what a listener raised first; the others were told.
        """
        with MAP_LOCK, self.telling():
            calls = Calls()
            for section in self._sections(what):
                for listener in section.space.listeners:
                    calls.make(listener.log_sync, section)
            calls.end()

    def _sections(self, what: AddressSpace | Section | None) -> tuple[Section, ...]:
        if isinstance(what, Section):
            return (what,)
        if what is not None:
            return what.sections
        return tuple(section for space in self._spaces for section in space.sections)

    def _listeners(self) -> tuple[MemoryListener, ...]:
        found = {listener: None for space in self._spaces for listener in space.listeners}
        return tuple(found)

    # For people

    def describe(self) -> str:
        """The trees and what they show, as text (QEMU's ``info mtree`` and ``info mtree -f``)."""
        with MAP_LOCK:
            return describe.spaces(self._spaces)

    # Life

    def forget(self, space: AddressSpace) -> None:
        """A space is closed; called by it."""
        self._spaces.remove(space)
        self._changed.discard(space)

    def close(self) -> None:
        """Close every address space.  May be repeated.

        :raises BaseException: what a listener raised first; all are closed.
        """
        with MAP_LOCK:
            calls = Calls()
            for space in reversed(self.spaces):
                calls.make(space.close)
            calls.end()
