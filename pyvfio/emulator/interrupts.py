# SPDX-License-Identifier: BSD-3-Clause
"""The interrupts of a function: one of pin, MSI and MSI-X at a time, as the guest chooses.

Where the guest has neither MSI nor MSI-X enabled it has the pin, if there is one.  Facts: QEMU's
``vfio_pci_write_config``, ``vfio_disable_interrupts``, ``vfio_interrupt_setup``,
``vfio_pci_load_config``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from pyvfio.base import VFIOBase
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.events import Events
from pyvfio.emulator.host import Host, Requester
from pyvfio.emulator.intx import GuestINTx
from pyvfio.emulator.irq_index import IRQIndex
from pyvfio.emulator.memory import MMIORegion
from pyvfio.emulator.memory.calls import Calls
from pyvfio.emulator.messages import Messenger
from pyvfio.emulator.msi import GuestMSI
from pyvfio.emulator.msix import GuestMSIX, TableBAR
from pyvfio.emulator.msix_layout import MSIXLayout
from pyvfio.emulator.options import FunctionOptions
from pyvfio.errors import StateError, VFIOError
from pyvfio.uapi import pci
from pyvfio.uapi.vfio import PCIIRQ

log = logging.getLogger(__name__)


class Interrupts:
    """What a function has of interrupts; nothing is enabled before :meth:`set_up`.

    Whatever a guest does, what the device refuses is logged and raises nothing.  What the host's
    code raises goes to whoever made the access, or dispatches events; by then everything else is
    done.

    :param function: who asks the host.
    """

    def __init__(
        self,
        base: VFIOBase,
        config: EmulatedConfig,
        *,
        host: Host,
        events: Events,
        options: FunctionOptions,
        function: Requester,
    ) -> None:
        self._config = config
        self._host = host
        self._events = events
        self._options = options
        self._function = function
        self._irqs = {index: IRQIndex(base, index, function.name) for index in PCIIRQ}
        self._messenger = Messenger(host, function, events, config, options.irqfd)
        self._intx: GuestINTx | None = None
        self._msi: GuestMSI | None = None
        self._msix: GuestMSIX | None = None
        self._mode: PCIIRQ | None = None

    @property
    def mode(self) -> PCIIRQ | None:
        """INTX, MSI or MSIX, whichever the device signals now; None where it is none."""
        return self._mode

    @property
    def msix_table(self) -> MMIORegion | None:
        """The MSI-X table that the guest sees; None without MSI-X."""
        return None if self._msix is None else self._msix.table

    # Set-up

    def add_msi(self, offset: int, size: int) -> bool:
        """Have the guest see the MSI capability at ``offset``.

        :param size: bytes that belong to the capability at most.
        :returns: False where it has not as much room as it says.
        :raises RegionError: it cannot be read.
        """
        control = self._config.device_get(pci.MSI_CONTROL, offset)
        irqs = self._irqs[PCIIRQ.MSI]
        msi = GuestMSI(self._config, offset, control, irqs, self._messenger)
        if not self._has_room(offset, msi.size, size):
            return False
        msi.add_to_config()
        self._msi = msi
        return True

    def add_msix(
        self, layout: MSIXLayout, bars: Mapping[int, TableBAR], offset: int, size: int
    ) -> bool:
        """Have the guest see the MSI-X capability at ``offset``, and its table in a BAR.

        :returns: as :meth:`add_msi`.
        """
        if not self._has_room(offset, GuestMSIX.size, size):
            return False
        irqs, name = self._irqs[PCIIRQ.MSIX], self._function.name
        self._msix = GuestMSIX(
            self._config, offset, layout, bars, irqs=irqs, messenger=self._messenger, name=name
        )
        self._msix.add_to_bars()
        self._msix.add_to_config()
        return True

    def _has_room(self, offset: int, needed: int, size: int) -> bool:
        has_room = needed <= size and offset + needed <= pci.CONFIG_SIZE
        if not has_room:
            log.warning("%s: no room for a capability at %#x", self._function.name, offset)
        return has_room

    def set_up(self, set_mmaps: Callable[[bool], None]) -> None:
        """Follow the guest from now on, with the pin enabled; the last step.

        :param set_mmaps: traps what is mapped of the BARs (False), or lets it go again (True).
        :raises VFIOError: the device has a pin and refuses to signal it; nothing is left enabled.
        :raises OSError: no descriptor is left.
        """
        self._intx = GuestINTx(
            self._config,
            self._irqs[PCIIRQ.INTX],
            host=self._host,
            events=self._events,
            function=self._function,
            options=self._options,
            set_mmaps=set_mmaps,
        )
        self._start_intx()
        if self._msi is not None:
            self._config.watch(self._msi.offset, self._msi.size, self._msi_written)
        if self._msix is not None:
            self._config.watch(self._msix.offset, self._msix.size, self._msix_written)
        self._config.watch(*pci.COMMAND, self._command_written)

    def tear_down(self) -> None:
        """Disable everything and follow the guest no longer.  May be repeated."""
        for watcher in (self._command_written, self._msix_written, self._msi_written):
            self._config.unwatch(watcher)
        try:
            self.disable_all()
        finally:
            if self._msi is not None:
                self._irqs[PCIIRQ.MSI].attempt("put back", self._msi.remove_from_config)
            if self._msix is not None:
                self._msix.remove_from_bars()

    # What the guest does

    def _msi_written(self, before: bytes, after: bytes) -> None:
        assert self._msi is not None
        was_enabled = bool(_control(before) & pci.MSI_CONTROL_ENABLE)
        calls = Calls()
        calls.make(self._msi.written)
        if self._msi.enabled and not was_enabled:
            calls.make(self._start_msi)
        elif was_enabled and not self._msi.enabled:
            calls.make(self._fall_back, PCIIRQ.MSI)
        calls.make(self._msi.deliver_pending)
        calls.end()

    def _msix_written(self, before: bytes, after: bytes) -> None:
        assert self._msix is not None
        was_enabled = bool(_control(before) & pci.MSIX_CONTROL_ENABLE)
        calls = Calls()
        if was_enabled and not self._msix.enabled:
            calls.make(self._fall_back, PCIIRQ.MSIX)
        calls.make(self._msix.written)
        if self._msix.enabled and not was_enabled:
            calls.make(self._start_msix)
        calls.make(self._msix.deliver_pending)
        calls.end()

    def _command_written(self, before: bytes, after: bytes) -> None:
        assert self._intx is not None
        self._intx.show_level()

    def on_bar_access(self) -> None:
        """The guest has read or written a BAR with a trap: it has served the pin's interrupt."""
        if self._mode is PCIIRQ.INTX and self._intx is not None:
            self._intx.end_of_interrupt()

    def reroute_pin(self) -> None:
        """The pin leads elsewhere now: the host is asked again whether it takes its signals."""
        if self._mode is PCIIRQ.INTX and self._intx is not None:
            self._intx.reroute()

    # One mode at a time

    def _start(self, mode: PCIIRQ, enable: Callable[[], None]) -> None:
        """Change over to a mode, none if the device or the host's code fails to enable it."""
        calls = Calls()
        calls.make(self.disable_all)
        if calls.make(enable):
            self._mode = mode
        calls.end()

    def _start_intx(self) -> None:
        if self._intx is not None and self._intx.number:
            self._start(PCIIRQ.INTX, self._intx.enable)
        else:
            self.disable_all()

    def _start_msi(self) -> None:
        assert self._msi is not None
        try:
            self._start(PCIIRQ.MSI, self._msi.enable)
        except (VFIOError, OSError) as error:
            # No specification knows of this.  Without an interrupt a guest may find out by itself.
            self._irqs[PCIIRQ.MSI].report("enable", error)

    def _start_msix(self) -> None:
        assert self._msix is not None
        self._start(PCIIRQ.MSIX, self._msix.enable)

    def _fall_back(self, mode: PCIIRQ) -> None:
        """The guest has disabled MSI or MSI-X."""
        if self._mode in (mode, None):
            self.enable_intx()

    def enable_intx(self) -> None:
        """Have the device signal its pin, if it has one, and nothing else; a refusal is logged."""
        try:
            self._start_intx()
        except (VFIOError, OSError) as error:
            self._irqs[PCIIRQ.INTX].report("enable", error)

    def disable_all(self) -> None:
        """Have the device signal nothing.  May be repeated."""
        modes = {PCIIRQ.INTX: self._intx, PCIIRQ.MSI: self._msi, PCIIRQ.MSIX: self._msix}
        calls = Calls()
        while self._mode is not None:  # a host told of the pin may let its guest enable another
            mode, self._mode = self._mode, None
            found = modes[mode]
            assert found is not None
            calls.make(found.disable)
        calls.end()

    # State

    def reset(self) -> None:
        """MSI and MSI-X as after power-on; nothing is signalled (:meth:`enable_intx` is next)."""
        calls = Calls()
        calls.make(self.disable_all)
        for found in (self._msi, self._msix):
            if found is not None:
                calls.make(found.reset)
        calls.end()

    def save(self) -> bytes:
        """What configuration space does not hold: MSI-X table and pending bits.

        Signals that wait for :meth:`Events.dispatch` are not in it.
        """
        return b"" if self._msix is None else self._msix.save()

    def check(self, state: bytes) -> None:
        """Raise :class:`StateError` where :meth:`load` could not take a state."""
        expected = len(self.save())
        if len(state) != expected:
            reason = f"{len(state)} bytes of MSI-X state instead of {expected}"
            raise StateError(reason, op="load state", uri=self._function.name)

    def load(self, state: bytes) -> None:
        """Take what :meth:`save` gave, and enable what configuration space says is enabled.

        Configuration space was loaded before, and the command register written to the device.

        :raises StateError: as :meth:`check`.
        """
        self.check(state)
        calls = Calls()
        calls.make(self.disable_all)
        if self._msi is not None:
            calls.make(self._msi.written)
        if self._msix is not None:
            calls.make(self._msix.load, state)
        calls.make(self._start_enabled)
        for found in (self._msi, self._msix):
            if found is not None:
                calls.make(found.deliver_pending)
        calls.end()

    def _start_enabled(self) -> None:
        """Enable what configuration space says is enabled."""
        if self._msi is not None and self._msi.enabled:
            self._start_msi()
        elif self._msix is not None and self._msix.enabled:
            self._start_msix()
        else:
            self.enable_intx()


def _control(capability: bytes) -> int:
    """The control register in the bytes of an MSI or MSI-X capability."""
    at, width = pci.MSI_CONTROL
    return int.from_bytes(capability[at : at + width], "little")
