# SPDX-License-Identifier: BSD-3-Clause
"""An interrupt index of the device, set up as its guest wants it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from pyvfio.base import VFIOBase
from pyvfio.errors import ConnectionLost, DeviceClosed, VFIOError
from pyvfio.uapi.vfio import PCIIRQ, IRQSetFlags

log = logging.getLogger(__name__)

NO_EVENTFD = -1
"""Instead of a descriptor: the vector signals nothing."""


class IRQIndex:
    """One interrupt index.

    A guest can have the same refusal said again and again, so each kind is logged once.

    :param name: how messages call the function.
    """

    def __init__(self, base: VFIOBase, index: PCIIRQ, name: str) -> None:
        self._base = base
        self._index = index
        self._name = name
        self._told: set[tuple[str, type[Exception], int | None]] = set()

    @property
    def vectors(self) -> int:
        """How many vectors it has.

        :raises VFIOError: the device does not tell.
        """
        return self._base.irq_info(self._index).count

    def set_eventfds(
        self, start: int, eventfds: Sequence[int], action: IRQSetFlags = IRQSetFlags.TRIGGER
    ) -> None:
        """Have vectors from ``start`` on signal eventfds, or none where there is a -1.

        :param action: UNMASK makes of each an eventfd that unmasks its vector.
        :raises VFIOError: the device refuses, or is lost.
        """
        self._base.set_irqs(self._index, action, start, len(eventfds), eventfds=eventfds)

    def try_eventfds(
        self, start: int, eventfds: Sequence[int], action: IRQSetFlags = IRQSetFlags.TRIGGER
    ) -> bool:
        """As :meth:`set_eventfds`; whether it was done.  A refusal is logged."""
        return self.attempt("set up", lambda: self.set_eventfds(start, eventfds, action))

    def take_eventfds(self, start: int, count: int) -> None:
        """Have vectors signal nothing any more, while the index stays as it is."""
        self.try_eventfds(start, [NO_EVENTFD] * count)

    def disable(self) -> None:
        """Have nothing signalled any more; a refusal is logged."""
        self.attempt("disable", lambda: self._act(IRQSetFlags.TRIGGER, 0))

    def mask(self) -> None:
        """Keep vector 0 from firing; a refusal is logged."""
        self.attempt("mask", lambda: self._act(IRQSetFlags.MASK, 1))

    def unmask(self) -> None:
        """Let vector 0 fire; a refusal is logged."""
        self.attempt("unmask", lambda: self._act(IRQSetFlags.UNMASK, 1))

    def _act(self, action: IRQSetFlags, count: int) -> None:
        self._base.set_irqs(self._index, action, 0, count)

    def attempt(self, what: str, step: Callable[[], None]) -> bool:
        """Whether a step was done; a refusal is logged.

        :param what: the step, in an infinitive.
        """
        try:
            step()
        except VFIOError as error:
            self.report(what, error)
            return False
        return True

    def report(self, what: str, error: VFIOError | OSError) -> None:
        """Log what failed; that the device is gone, once for all that fails then."""
        is_gone = isinstance(error, ConnectionLost | DeviceClosed)
        kind = ("" if is_gone else what, type(error), error.errno)
        level = logging.DEBUG if kind in self._told else logging.ERROR
        self._told.add(kind)
        log.log(level, "%s: cannot %s %s: %s", self._name, what, self._index.name, error)
