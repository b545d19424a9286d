# SPDX-License-Identifier: BSD-3-Clause
"""MSI-X of a function as its guest sees it: table and pending bits are ours, vectors the device's.

A vector is given to the device when the guest unmasks it for the first time.  From then on masking
is a matter of ours, since there are guests that mask and unmask at every interrupt: only where the
emulator takes the signals itself the device is told to signal us instead.  Facts: QEMU's
hw/pci/msix.c, ``vfio_msix_enable``, ``vfio_msix_vector_do_use``, ``vfio_msix_vector_release``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.irq_index import NO_EVENTFD, IRQIndex
from pyvfio.emulator.memory import MemoryRegion, MMIORegion
from pyvfio.emulator.memory.calls import Calls
from pyvfio.emulator.memory.mmio import MMIOHandler
from pyvfio.emulator.messages import MessageVector, Messenger, close_vectors
from pyvfio.emulator.msix_layout import MSIXLayout, pba_size, table_size
from pyvfio.emulator.msix_table import MSIXTable, PendingBits
from pyvfio.uapi import pci

_IN_FRONT = 2
"""Priority within a BAR: before its registers, its mapped areas and quirks."""


class TableBAR(Protocol):
    """A BAR that table or pending bits are in."""

    @property
    def base(self) -> MemoryRegion:
        """The whole BAR, as the guest sees it."""

    @property
    def trapped(self) -> MMIOHandler | None:
        """Makes accesses on the device; None where the device has no such BAR."""

    def maps(self, offset: int, size: int) -> bool:
        """Whether the guest may reach any of these bytes without a trap."""


class GuestMSIX:
    """The capability at ``offset``; whoever owns it says when it is enabled and disabled.

    :param bars: those that table and pending bits are in.
    :param name: how messages call the function.
    """

    size = pci.MSIX_SIZE

    def __init__(
        self,
        config: EmulatedConfig,
        offset: int,
        layout: MSIXLayout,
        bars: Mapping[int, TableBAR],
        *,
        irqs: IRQIndex,
        messenger: Messenger,
        name: str,
    ) -> None:
        self._config = config
        self.offset = offset
        self._layout = layout
        self._irqs = irqs
        self._messenger = messenger
        self._table = MSIXTable(layout.entries, self._mask_changed)
        self._bars = bars
        self._table_region = MMIORegion(
            f"{name} MSI-X table", table_size(layout.entries), self._table
        )
        pba, size = layout.pba, pba_size(layout.entries)
        device = bars[pba.bar].trapped if layout.relocated is None else None
        bits = PendingBits(self._table, device, pba.offset)
        self._pba_region = MMIORegion(f"{name} MSI-X PBA", size, bits)
        # What is mapped stays so while nothing is pending.  Elsewhere the region forwards accesses,
        # since to show and hide it is a change of the whole memory map at each masked interrupt.
        self._hides_pba = bars[pba.bar].maps(pba.offset, size)
        self._pba_region.enabled = not self._hides_pba
        self._active = False
        self._vectors: dict[int, MessageVector] = {}
        self._signalled: dict[int, int] = {}
        """The eventfds that the device has been given."""
        self._reserved = 0
        """Vectors from 0 on that the device was asked for, in use or not."""

    @property
    def table(self) -> MMIORegion:
        """The table, in front of the BAR that it is in."""
        return self._table_region

    # Set-up

    def add_to_config(self) -> None:
        """Have the guest see the capability, disabled, instead of the device's."""
        layout = self._layout
        for register, value in (
            (pci.MSIX_CONTROL, layout.entries - 1),
            (pci.MSIX_TABLE, layout.table.offset | layout.table.bar),
            (pci.MSIX_PBA, layout.pba.offset | layout.pba.bar),
        ):
            self._config.emulate(register, value, (1 << 8 * register.width) - 1, self.offset)
        self._config.mark_emulated(self.offset, self.size)
        writable = pci.MSIX_CONTROL_ENABLE | pci.MSIX_CONTROL_MASK_ALL
        self._config.allow(pci.MSIX_CONTROL, writable, self.offset)

    def add_to_bars(self) -> None:
        """Lay table and pending bits over their BARs."""
        table, pba = self._layout.table, self._layout.pba
        self._bars[table.bar].base.add(self._table_region, table.offset, _IN_FRONT)
        self._bars[pba.bar].base.add(self._pba_region, pba.offset, _IN_FRONT)

    def remove_from_bars(self) -> None:
        """Take both away.  May be repeated."""
        for region in (self._pba_region, self._table_region):
            if region.parent is not None:
                region.parent.remove(region)

    # What the guest has written

    @property
    def enabled(self) -> bool:
        """Whether the guest has it enabled."""
        return bool(self._control & pci.MSIX_CONTROL_ENABLE)

    @property
    def _control(self) -> int:
        return self._config.get(pci.MSIX_CONTROL, self.offset)

    def written(self) -> None:
        """The guest has written to the capability: all vectors may be masked now, or none.

        :raises BaseException: what the host's code raised first; all vectors are followed.
        """
        masked = bool(self._control & pci.MSIX_CONTROL_MASK_ALL)
        calls = Calls()
        for vector in self._table.mask_function(masked or not self.enabled):
            calls.make(self._follow, vector)
        calls.end()

    def _mask_changed(self, vector: int) -> None:
        """The guest has masked or unmasked a vector in the table."""
        try:
            self._follow(vector)
        finally:
            self._deliver(vector)

    def _follow(self, vector: int) -> None:
        """Have the device signal a vector as its mask says."""
        if not self._active:
            return
        if self._table.masked(vector):
            self._release(vector)
        else:
            self._use(vector)

    # Pending bits

    def deliver_pending(self) -> None:
        """Send what is pending and not masked any more.

        :raises BaseException: what the host's code raised first; the others are sent.
        """
        if not self._table.any_pending:
            return
        calls = Calls()
        for vector in range(self._table.entries):
            calls.make(self._deliver, vector)
        calls.end()

    def _deliver(self, vector: int) -> None:
        if self._table.masked(vector) or not self._table.pending(vector):
            return
        try:
            self._set_pending(vector, False)
        finally:
            self._messenger.send(self._table.message(vector))

    def _set_pending(self, vector: int, pending: bool) -> None:
        self._table.set_pending(vector, pending)
        self._show_pending()

    def _show_pending(self) -> None:
        if self._hides_pba:
            self._pba_region.enabled = self._table.any_pending

    # Signals

    def enable(self) -> None:
        """Have the device signal all vectors that are not masked; a refusal is logged.

        Without any of them MSI-X is enabled all the same: there are devices whose firmware, or
        physical function, looks whether it is (``vfio_enable_msix_no_vec``).

        :raises BaseException: what the host's code raised; nothing is left enabled.
        """
        try:
            for vector in range(self._table.entries):
                if not self._table.masked(vector):
                    self._prepare(vector)
        except BaseException:
            self.disable()
            raise
        self._reserved = max(self._vectors, default=-1) + 1
        self._active = True
        if not self._signal_all():
            self._reserved = 0

    def disable(self) -> None:
        """Have nothing signalled and nothing pending any more.  May be repeated."""
        self._active = False
        self._irqs.disable()
        self._signalled.clear()
        self._reserved = 0
        self._table.clear_pending()
        vectors, self._vectors = self._vectors, {}
        try:
            self._show_pending()
        finally:
            close_vectors(vectors.values())

    def _prepare(self, vector: int) -> None:
        """Have a vector ready to be signalled; logged, where no descriptor is left."""
        found = self._vectors.get(vector)
        try:
            if found is None:
                found = self._messenger.vector(partial(self._fired, vector))
                self._vectors[vector] = found
            found.route(self._table.message(vector))
        except OSError as error:
            self._irqs.report("make an eventfd for", error)

    def _use(self, vector: int) -> None:
        """The guest has unmasked a vector."""
        try:
            self._prepare(vector)
        finally:  # it is signalled, whatever the host's code raises
            found = self._vectors.get(vector)
            if found is not None:
                self._give(vector, found.preferred_fd)

    def _give(self, vector: int, eventfd: int) -> None:
        if vector < self._reserved or self._layout.resizable:
            self._reserved = max(self._reserved, vector + 1)
            self._signal(vector, eventfd)
        else:
            self._grow(vector + 1)

    def _release(self, vector: int) -> None:
        """The guest has masked a vector: its signals come to us, to be kept as pending."""
        found = self._vectors.get(vector)
        if found is not None and found.routed:
            self._signal(vector, found.own_fd)

    def _signal(self, vector: int, eventfd: int) -> None:
        if self._signalled.get(vector) == eventfd:
            return
        self._signalled.pop(vector, None)
        if self._irqs.try_eventfds(vector, [eventfd]):
            self._signalled[vector] = eventfd

    def _grow(self, count: int) -> None:
        """Reserve more vectors of a device that cannot while some are in use.

        Where it has not as many, those that there were are had again.
        """
        before, self._reserved = self._reserved, count
        self._irqs.disable()
        if not self._signal_all():
            self._reserved = before
            self._irqs.disable()
            self._signal_all()

    def _signal_all(self) -> bool:
        """Give the device every eventfd at once; whether it took them."""
        self._signalled.clear()
        eventfds = [self._wanted(vector) for vector in range(self._reserved)]
        # Enabled without vectors, a resizable index takes those that follow one by one; else the
        # host would set all of them aside, in use or not.
        first = self._layout.resizable or not eventfds
        if first and not self._irqs.try_eventfds(0, [NO_EVENTFD]):
            return False
        if eventfds and not self._irqs.try_eventfds(0, eventfds):
            return False
        self._signalled = {v: fd for v, fd in enumerate(eventfds) if fd != NO_EVENTFD}
        return True

    def _wanted(self, vector: int) -> int:
        found = self._vectors.get(vector)
        if found is None:
            return NO_EVENTFD
        return found.own_fd if self._table.masked(vector) else found.preferred_fd

    def _fired(self, vector: int) -> None:
        if self._table.masked(vector):
            self._set_pending(vector, True)
        else:
            self._messenger.send(self._table.message(vector))

    # State

    def reset(self) -> None:
        """As after power-on: disabled, all vectors masked, no messages."""
        self._config.set(pci.MSIX_CONTROL, self._layout.entries - 1, self.offset)
        self._table.function_masked = True
        self._table.reset()
        self._show_pending()

    def save(self) -> bytes:
        """Table and pending bits."""
        return self._table.save()

    def load(self, state: bytes) -> None:
        """Take what :meth:`save` gave, while nothing is signalled.

        :raises ValueError: it is of another device.
        """
        self._table.function_masked = True
        self._table.load(state)
        self.written()
        self._show_pending()
