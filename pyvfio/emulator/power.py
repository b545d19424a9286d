# SPDX-License-Identifier: BSD-3-Clause
"""The power state of a function: its BARs are there in D0 only.

Facts: QEMU's ``pci_pm_init``, ``pci_pm_update``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from pyvfio.uapi import pci
from pyvfio.uapi.pci import Register

log = logging.getLogger(__name__)

_SUPPORTED = {1: pci.PM_CAPABILITIES_D1, 2: pci.PM_CAPABILITIES_D2}
"""States that a function need not have, and the bit that says that it does."""


class _Config(Protocol):
    @property
    def name(self) -> str: ...
    def get(self, register: Register, base: int = 0) -> int: ...
    def set(self, register: Register, value: int, base: int = 0) -> None: ...
    def allow(self, register: Register, mask: int, base: int = 0) -> None: ...
    def watch(self, offset: int, size: int, callback: Callable[[bytes, bytes], None]) -> None: ...


class PowerState:
    """The power state in the local copy of configuration space; D0 without the capability.

    :ivar offset: of the power management capability; None without one.
    """

    def __init__(self, config: _Config) -> None:
        self._config = config
        self._followers: list[Callable[[], None]] = []
        self.offset: int | None = None

    def attach(self, offset: int) -> None:
        """Follow the guest's writes to the capability at ``offset``; its state bits are writable.

        :raises ValueError: there is one already.
        """
        if self.offset is not None:
            raise ValueError(f"power management is at {self.offset:#x} already")
        self.offset = offset
        self._config.allow(pci.PM_CONTROL, pci.PM_CONTROL_STATE, offset)
        self._config.watch(offset + pci.PM_CONTROL.offset, pci.PM_CONTROL.width, self._written)

    @property
    def state(self) -> int:
        """0 to 3 for D0 to D3."""
        if self.offset is None:
            return 0
        return self._config.get(pci.PM_CONTROL, self.offset) & pci.PM_CONTROL_STATE

    def follow(self, callback: Callable[[], None]) -> None:
        """Have a function called when the guest leaves D0 or comes back to it."""
        self._followers.append(callback)

    def unfollow(self, callback: Callable[[], None]) -> None:
        """Do not call a function any more.  May be repeated."""
        self._followers = [kept for kept in self._followers if kept != callback]

    def reset(self) -> None:
        """Back to D0, without telling anybody."""
        self._set(0)

    def _set(self, state: int) -> None:
        if self.offset is not None:
            control = self._config.get(pci.PM_CONTROL, self.offset) & ~pci.PM_CONTROL_STATE
            self._config.set(pci.PM_CONTROL, control | state, self.offset)

    def _written(self, before: bytes, after: bytes) -> None:
        old, new = before[0] & pci.PM_CONTROL_STATE, after[0] & pci.PM_CONTROL_STATE
        if not self._allowed(old, new):
            log.debug("%s: the guest cannot go from D%d to D%d", self._config.name, old, new)
            self._set(old)
            return
        if bool(old) != bool(new):
            for callback in list(self._followers):
                callback()

    def _allowed(self, old: int, new: int) -> bool:
        """Whether there is such a transition: to D0, or further down to a state that exists."""
        assert self.offset is not None
        supported = self._config.get(pci.PM_CAPABILITIES, self.offset)
        if new in _SUPPORTED and not supported & _SUPPORTED[new]:
            return False
        return new == 0 or new >= old
