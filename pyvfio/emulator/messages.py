# SPDX-License-Identifier: BSD-3-Clause
"""Message-signalled interrupts on their way to the guest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import NamedTuple

from pyvfio.closing import Closing
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.events import Events, Handler
from pyvfio.emulator.host import Host, IRQRoute, Requester
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Command


class Message(NamedTuple):
    """What an interrupt writes, and where: 32 bits of data."""

    address: int
    data: int


class MessageVector(Closing):
    """A vector in use: an eventfd of ours, and one for the emulator where it takes signals itself.

    :param handler: called for signals that come our way.
    :param ask_route: asks the emulator whether it takes the signals of an eventfd; None: it does
        not.
    :raises OSError: no descriptor is left.
    """

    def __init__(
        self,
        events: Events,
        handler: Handler,
        ask_route: Callable[[Message, int], IRQRoute | None] | None,
    ) -> None:
        self._ask_route = ask_route
        self._eventfd = events.eventfd(handler)
        self._route: IRQRoute | None = None
        self._routed_fd = -1

    @property
    def routed(self) -> bool:
        """Whether the emulator takes signals of :attr:`routed_fd`."""
        return self._route is not None

    @property
    def own_fd(self) -> int:
        """The eventfd whose signals are handed to the handler."""
        return self._eventfd.fd

    @property
    def preferred_fd(self) -> int:
        """The emulator's eventfd where it has one, else our own."""
        return self._routed_fd if self.routed else self.own_fd

    def route(self, message: Message) -> None:
        """Offer the signals to the emulator, once; later on tell it of another message.

        :raises OSError: no descriptor is left.
        """
        if self._route is not None:
            self._route.update(message.address, message.data)
        elif self._ask_route is not None:
            ask, self._ask_route = self._ask_route, None
            self._routed_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                self._route = ask(message, self._routed_fd)
            finally:
                if self._route is None:
                    self._close_routed_fd()

    def _close_routed_fd(self) -> None:
        if self._routed_fd >= 0:
            os.close(self._routed_fd)
            self._routed_fd = -1

    def close(self) -> None:
        """Signals that nobody has taken are lost.  May be repeated."""
        with ExitStack() as closing:
            closing.callback(self._eventfd.close)
            closing.callback(self._close_routed_fd)
            if self._route is not None:
                closing.callback(self._route.close)
            self._route = None


def close_vectors(vectors: Iterable[MessageVector]) -> None:
    """Close them all, whatever the host's code raises."""
    with ExitStack() as closing:
        for vector in vectors:
            closing.callback(vector.close)


class Messenger:
    """Sends the messages of one function.

    :param offer_eventfds: whether the emulator is asked to take signals itself.
    """

    def __init__(
        self,
        host: Host,
        function: Requester,
        events: Events,
        config: EmulatedConfig,
        offer_eventfds: bool,
    ) -> None:
        self._host = host
        self._function = function
        self._events = events
        self._config = config
        self._offer_eventfds = offer_eventfds

    def send(self, message: Message) -> None:
        """Deliver a message, unless the guest forbids the function to write to memory."""
        if self._config.get(pci.COMMAND) & Command.MASTER:
            self._host.send_msi(self._function, message.address, message.data)

    def vector(self, handler: Handler) -> MessageVector:
        """A vector that calls ``handler`` for its signals.

        :raises OSError: no descriptor is left.
        """
        ask_route = self._ask_route if self._offer_eventfds else None
        return MessageVector(self._events, handler, ask_route)

    def _ask_route(self, message: Message, eventfd: int) -> IRQRoute | None:
        return self._host.route_msi(self._function, message.address, message.data, eventfd)
