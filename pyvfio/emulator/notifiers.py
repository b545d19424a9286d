# SPDX-License-Identifier: BSD-3-Clause
"""What a device has to say beside its interrupts: errors, and that its host wants it back.

A device that cannot tell, or refuses, is used without (QEMU's
``vfio_pci_register_err_notifier`` and ``vfio_pci_register_req_notifier``).
"""

from __future__ import annotations

import logging
from functools import partial

from pyvfio.base import VFIOBase
from pyvfio.closing import Closing
from pyvfio.emulator.events import EventFD, Events, Handler
from pyvfio.emulator.host import Host, Requester
from pyvfio.emulator.irq_index import IRQIndex
from pyvfio.errors import VFIOError
from pyvfio.uapi.vfio import PCIIRQ

log = logging.getLogger(__name__)


class Notifiers(Closing):
    """Has the host told of errors of a device, and of its own host's wish to have it back."""

    def __init__(self, base: VFIOBase, host: Host, events: Events, function: Requester) -> None:
        self._base = base
        self._events = events
        self._name = function.name
        self._open: list[tuple[IRQIndex, EventFD]] = []
        self._calls: tuple[tuple[PCIIRQ, Handler], ...] = (
            (PCIIRQ.ERR, partial(host.device_error, function)),
            (PCIIRQ.REQ, partial(host.release_requested, function)),
        )

    def set_up(self) -> None:
        """Have both signalled, where the device can."""
        for index, call in self._calls:
            irqs = IRQIndex(self._base, index, self._name)
            try:
                self._open_one(irqs, call)
            except (VFIOError, OSError) as error:
                log.warning("%s: does without %s: %s", self._name, index.name, error)

    def _open_one(self, irqs: IRQIndex, call: Handler) -> None:
        if not irqs.vectors:
            return
        event = self._events.eventfd(call)
        try:
            irqs.set_eventfds(0, [event.fd])
        except BaseException:
            event.close()
            raise
        self._open.append((irqs, event))

    def close(self) -> None:
        """Have neither signalled any more.  May be repeated."""
        while self._open:
            irqs, event = self._open.pop()
            irqs.take_eventfds(0, 1)
            event.close()
