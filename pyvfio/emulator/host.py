# SPDX-License-Identifier: BSD-3-Clause
"""What an emulator does for the functions on its bus: interrupts get to the guest through it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Protocol

log = logging.getLogger(__name__)


class Requester(Protocol):
    """The function that asks, as far as a host is to know it."""

    @property
    def name(self) -> str:
        """How messages call it."""


class IRQRoute(Protocol):
    """An eventfd whose signals an emulator hands to its guest itself (KVM's irqfd)."""

    def update(self, address: int, data: int) -> None:
        """The message is another one from now on; not called for a pin."""

    def close(self) -> None:
        """Take no signals any more."""


class Host(ABC):
    """The emulator, for the functions of one bus; subclass it.

    Called from whatever calls a function: configuration and BAR accesses of the guest, and
    :meth:`Events.dispatch`; what it raises, those raise.  The guest may run within
    :meth:`send_msi` and :meth:`set_pin`, not within what has to do with routes.
    """

    @abstractmethod
    def send_msi(self, function: Requester, address: int, data: int) -> None:
        """Deliver a message-signalled interrupt: the function writes ``data`` to ``address``."""

    @abstractmethod
    def set_pin(self, function: Requester, pin: int, level: bool) -> None:
        """An interrupt pin of the function (1 to 4 for INTA to INTD) has another level."""

    def route_msi(
        self, function: Requester, address: int, data: int, eventfd: int
    ) -> IRQRoute | None:
        """Deliver the message at each signal of ``eventfd``, without asking the function.

        :returns: the route, which is told of changes and closed by the function; None where
            signals are to go through :meth:`send_msi`, as they do by default.
        """
        return None

    def route_pin(
        self, function: Requester, pin: int, eventfd: int, resample: int
    ) -> IRQRoute | None:
        """Assert the pin at each signal of ``eventfd``; lower it at the guest's end of interrupt.

        :param resample: an eventfd to signal at each end of interrupt; it unmasks the device's pin.
        :returns: as :meth:`route_msi`; by default signals go through :meth:`set_pin`.
        """
        return None

    def device_error(self, function: Requester) -> None:
        """The device has an error that it cannot correct.  QEMU stops its guest; this logs."""
        log.error("%s: the device reports an error that it cannot correct", function.name)

    def release_requested(self, function: Requester) -> None:
        """The device's host wants it back: the guest should be asked to let go of it.  Logged."""
        log.warning("%s: its host asks for the device back", function.name)
