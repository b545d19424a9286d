# SPDX-License-Identifier: BSD-3-Clause
"""Which devices have which quirks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from pyvfio.closing import Closing
from pyvfio.emulator.quirks.quirk import Quirk, QuirkTarget
from pyvfio.emulator.quirks.rtl8168 import RTL8168MSIXWindow
from pyvfio.uapi import pci

log = logging.getLogger(__name__)


class KnownQuirk(NamedTuple):
    """A quirk, and the ids of the devices that need it; None is any."""

    vendor_id: int | None
    device_id: int | None
    make: Callable[[QuirkTarget], Quirk]

    def matches(self, target: QuirkTarget) -> bool:
        """Whether a function is such a device, as far as its guest can tell."""
        return self.vendor_id in (None, target.config.get(pci.VENDOR_ID)) and self.device_id in (
            None,
            target.config.get(pci.DEVICE_ID),
        )


KNOWN: tuple[KnownQuirk, ...] = (KnownQuirk(0x10EC, 0x8168, RTL8168MSIXWindow),)


class Quirks(Closing):
    """The quirks of one function; the steps are those of :class:`Quirk`, in their order.

    :param known: what to look for.
    """

    def __init__(self, target: QuirkTarget, known: Sequence[KnownQuirk] = KNOWN) -> None:
        self._found: list[Quirk] = []
        for entry in known:
            if entry.matches(target):
                log.debug("%s: %s", target.name, entry.make)
                self._found.append(entry.make(target))

    def set_up_config(self) -> None:
        """See :meth:`Quirk.set_up_config`."""
        for quirk in self._found:
            quirk.set_up_config()

    def set_up_bars(self) -> None:
        """See :meth:`Quirk.set_up_bars`."""
        for quirk in self._found:
            quirk.set_up_bars()

    def reset(self) -> None:
        """See :meth:`Quirk.reset`."""
        for quirk in self._found:
            quirk.reset()

    def close(self) -> None:
        """Undo every quirk, the last one first, even where one fails.  May be repeated."""
        with ExitStack() as undo:
            for quirk in self._found:
                undo.callback(quirk.close)
