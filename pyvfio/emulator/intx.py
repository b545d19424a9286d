# SPDX-License-Identifier: BSD-3-Clause
"""The interrupt pin of a function, as its guest sees it.

A device that fires is masked by the kernel or server until it is told to go on.  When the guest's
end of interrupt is depends on the emulator: one that takes the eventfd knows; else it is taken for
the next access to a BAR, which is why mapped BARs are trapped for a while after an interrupt.
Facts: QEMU's ``vfio_intx_enable``, ``vfio_intx_interrupt``, ``vfio_pci_intx_eoi``,
``vfio_intx_mmap_enable``, ``vfio_intx_enable_kvm``; the pin's level, ``pci_irq_handler``.

The host is told of the pin's level last of all, everything else being done: it may let its guest
run at that, or its code may fail.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack

from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.events import EventFD, Events, Timer
from pyvfio.emulator.host import Host, IRQRoute, Requester
from pyvfio.emulator.irq_index import NO_EVENTFD, IRQIndex
from pyvfio.emulator.options import FunctionOptions
from pyvfio.errors import VFIOError
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Command
from pyvfio.uapi.vfio import IRQSetFlags

log = logging.getLogger(__name__)

_PINS = 4


class Pin:
    """The level of an interrupt pin, as the host hears of it: low while the guest disables it."""

    def __init__(
        self, host: Host, function: Requester, number: int, config: EmulatedConfig
    ) -> None:
        self._host = host
        self._function = function
        self._number = number
        self._config = config
        self._level = self._shown = False

    def set(self, level: bool) -> None:
        """The function asserts the pin, or not any more."""
        self._level = level
        self.show()

    def show(self) -> None:
        """Tell the host of the level, where it is another one for it."""
        disabled = bool(self._config.get(pci.COMMAND) & Command.INTX_DISABLE)
        shown = self._level and not disabled
        if shown != self._shown:
            self._shown = shown
            self._host.set_pin(self._function, self._number, shown)


class GuestINTx:
    """The pin; whoever owns it says when it is enabled and disabled.

    :param set_mmaps: traps what is mapped of the BARs (False), or lets it go again (True).
    :ivar number: 1 to 4 for INTA to INTD; 0 where the device has none.
    """

    def __init__(
        self,
        config: EmulatedConfig,
        irqs: IRQIndex,
        *,
        host: Host,
        events: Events,
        function: Requester,
        options: FunctionOptions,
        set_mmaps: Callable[[bool], None],
    ) -> None:
        self._irqs = irqs
        self._host = host
        self._events = events
        self._function = function
        self._mmap_seconds = options.intx_mmap_seconds
        self._offer_eventfds = options.irqfd
        self._set_mmaps = set_mmaps
        number = config.read(pci.INTERRUPT_PIN.offset, pci.INTERRUPT_PIN.width)
        if number > _PINS:
            log.warning("%s: there is no interrupt pin %d", function.name, number)
            number = 0
        self.number = number
        self._pin = Pin(host, function, number, config)
        self._eventfd: EventFD | None = None
        self._resample: EventFD | None = None
        self._attached = False
        self._route: IRQRoute | None = None
        self._pending = False
        self._trapping = False
        self._timer: Timer | None = None
        self._last_fired = 0.0

    def show_level(self) -> None:
        """The guest has written to the command register."""
        self._pin.show()

    # Enable and disable

    def enable(self) -> None:
        """Have the device signal its pin.

        :raises VFIOError: the device refuses; nothing is left enabled.
        :raises OSError: no descriptor is left.
        """
        self._eventfd = self._events.eventfd(self._fired)
        try:
            self._irqs.set_eventfds(0, [self._eventfd.fd])
            self._offer(self._eventfd)
        except BaseException:
            self.disable()
            raise

    def disable(self) -> None:
        """Have nothing signalled any more, and nothing asserted.  May be repeated."""
        eventfd, self._eventfd = self._eventfd, None
        if eventfd is None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with ExitStack() as steps:  # from the last one on, whatever the host's code raises
            steps.callback(self._lower)
            steps.callback(eventfd.close)
            steps.callback(self._trap, False)
            steps.callback(self._irqs.disable)
            steps.callback(self._withdraw, eventfd)

    def _lower(self) -> None:
        self._pending = False
        self._pin.set(False)

    def _trap(self, trapping: bool) -> None:
        if trapping != self._trapping:
            self._trapping = trapping
            self._set_mmaps(not trapping)

    # Through us

    def _fired(self) -> None:
        self._pending = True
        self._last_fired = time.monotonic()
        if self._timer is None and self._mmap_seconds:
            self._timer = self._events.call_after(self._mmap_seconds, self._quiet)
        try:
            self._trap(True)
        finally:
            self._pin.set(True)

    def _quiet(self) -> None:
        """Let the BARs go again, once the last interrupt was that long ago and is served."""
        self._timer = None
        left = self._last_fired + self._mmap_seconds - time.monotonic()
        if self._pending:
            left = self._mmap_seconds
        if left > 0:
            self._timer = self._events.call_after(left, self._quiet)
        else:
            self._trap(False)

    def end_of_interrupt(self) -> None:
        """The guest has served the interrupt, if there is one; it fires again if it has not."""
        if self._pending:
            self._pending = False
            self._irqs.unmask()  # what fires now waits for Events.dispatch()
            self._pin.set(False)

    # Through the emulator

    def reroute(self) -> None:
        """The pin leads elsewhere now: ask the emulator again whether it takes the signals."""
        if self._eventfd is not None:
            self._withdraw(self._eventfd)
            self.end_of_interrupt()  # the guest's own may be lost on the old way
        if self._eventfd is not None:  # not disabled by the guest, which the host may let run
            self._offer(self._eventfd)

    def _offer(self, eventfd: EventFD) -> None:
        if not self._offer_eventfds:
            return
        try:
            self._resample = self._events.eventfd(self._irqs.unmask)
        except OSError as error:
            self._irqs.report("make an eventfd for", error)
            return
        number, fds = self.number, (eventfd.fd, self._resample.fd)
        try:
            self._route = self._host.route_pin(self._function, number, *fds)
        finally:
            if self._route is None:
                self._resample.close()
        if self._route is not None:
            eventfd.watch(False)
            self._irqs.mask()
            self._attach(self._resample)
            self._irqs.unmask()

    def _attach(self, resample: EventFD) -> None:
        """Have the device unmasked by an eventfd, without us where it can do that."""
        try:
            self._irqs.set_eventfds(0, [resample.fd], IRQSetFlags.UNMASK)
        except VFIOError as error:
            log.info("%s: ends of interrupt come through here: %s", self._function.name, error)
        else:
            self._attached = True
            resample.watch(False)

    def _withdraw(self, eventfd: EventFD) -> None:
        """Have signals come to us again; one that was missed comes again."""
        route, self._route = self._route, None
        resample, self._resample = self._resample, None
        if route is None or resample is None:
            return
        self._irqs.mask()
        try:
            route.close()
        finally:
            if self._attached:
                self._attached = False
                self._irqs.try_eventfds(0, [NO_EVENTFD], IRQSetFlags.UNMASK)
            resample.close()
            eventfd.watch(True)
            self._irqs.unmask()
