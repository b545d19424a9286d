# SPDX-License-Identifier: BSD-3-Clause
"""What a function consists of while it is on a bus: made step by step, undone in reverse.

The steps and their order are those of QEMU's ``vfio_pci_realize`` and ``vfio_user_pci_realize``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from weakref import WeakSet

from pyvfio.closing import Closing
from pyvfio.emulator.bar_registers import BARRegisters
from pyvfio.emulator.bars import GuestBARs
from pyvfio.emulator.bus import Bus, BusFunction
from pyvfio.emulator.capabilities import Maker, add_capabilities
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.events import Events
from pyvfio.emulator.header import set_up_header
from pyvfio.emulator.interrupts import Interrupts
from pyvfio.emulator.msix_layout import MSIXLayout
from pyvfio.emulator.notifiers import Notifiers
from pyvfio.emulator.options import FunctionOptions
from pyvfio.emulator.quirks import Quirks, QuirkTarget
from pyvfio.emulator.reset import STOPPED, FunctionReset, power_up
from pyvfio.emulator.rom import GuestROM
from pyvfio.emulator.vga import GuestVGA
from pyvfio.errors import ConnectionLost, DeviceClosed, ResetError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID

log = logging.getLogger(__name__)


class RealizedFunction(Closing):
    """The parts of a function on a bus.

    :param function: who answers the guest for it.
    :param place: slot and number on the bus.
    :raises VFIOError: a step failed; everything was undone.
    :raises ValueError: the place is taken.
    """

    def __init__(
        self,
        dev: PCIDevice,
        options: FunctionOptions,
        bus: Bus,
        function: BusFunction,
        place: tuple[int, int],
    ) -> None:
        self.dev = dev
        self.bus = bus
        self._options = options
        self._function = function
        self._place = place
        self._undo = ExitStack()
        try:
            for step in STEPS:
                step(self)
        except BaseException:
            self._undo.close()
            raise

    # Steps, in their order

    def _stop_device(self) -> None:
        """The guest's firmware enables what it wants; until then the device leaves it alone."""
        if self.dev in _IN_USE:
            raise ValueError(f"{self.dev.uri} is realized already, as another function")
        _IN_USE.add(self.dev)
        self._undo.callback(_IN_USE.discard, self.dev)
        command = self.dev.config.get(pci.COMMAND)
        self._undo.callback(self._restore, command)
        self.dev.config.set(pci.COMMAND, command & STOPPED)
        power_up(self.dev)

    def _restore(self, command: int) -> None:
        with suppress(ConnectionLost, DeviceClosed):
            power_up(self.dev)
            self.dev.config.set(pci.COMMAND, command)

    def _make_events(self) -> None:
        self.events = Events()
        self._undo.callback(self.events.close)

    def _follow_memory(self) -> None:
        """Map the guest's memory for the device, from now on."""
        self.dma_listener = self.bus.attach(self.dev.dma, self.dev.uri)
        self._undo.callback(self.bus.detach, self.dma_listener)

    def _make_config(self) -> None:
        size = pci.EXTENDED_CONFIG_SIZE if self.bus.kind.express else pci.CONFIG_SIZE
        self.config = EmulatedConfig(self.dev.config, size, self._function.name)
        set_up_header(self.config, self._options)
        self.interrupts = Interrupts(
            self.dev.base,
            self.config,
            host=self.bus.host,
            events=self.events,
            options=self._options,
            function=self._function,
        )

    def _make_bars(self) -> None:
        self.msix_layout = MSIXLayout.probe(self.dev, self._options.msix_relocation)
        self.bars = GuestBARs(
            self.dev,
            self.msix_layout,
            self.bus.topology,
            name=self._function.name,
            on_access=self.interrupts.on_bar_access,
            mmap=self._options.mmap,
        )
        self._undo.callback(self.bars.close)
        self.registers = BARRegisters(self.config, self.bus)
        self._undo.callback(self.registers.close)
        for number, bar in self.bars.items():
            self.registers.register(number, bar.type, bar.prefetchable, bar.base, bar.moved)

    def _make_rom(self) -> None:
        self.rom = GuestROM(self.dev, self.config, self._options)
        if self.rom.region is not None:
            self.registers.register_rom(self.rom.region)

    def _make_vga(self) -> None:
        self._vga: GuestVGA | None = None
        if self._options.vga:
            self._vga = GuestVGA(self.dev, self.config, self.bus)
            self._undo.callback(self._vga.close)

    def _add_capabilities(self) -> None:
        self._undo.callback(self.interrupts.tear_down)
        self.capabilities = add_capabilities(self.config, self.bus.kind, self._makers())

    def _makers(self) -> Mapping[CapabilityID, Maker]:
        makers: dict[CapabilityID, Maker] = {CapabilityID.MSI: self.interrupts.add_msi}
        layout = self.msix_layout
        if layout is not None:
            makers[CapabilityID.MSIX] = lambda offset, size: self.interrupts.add_msix(
                layout, self.bars, offset, size
            )
        return makers

    def _set_up_quirks(self) -> None:
        target = QuirkTarget(self.config, self.bars, self.interrupts.msix_table)
        self._quirks = Quirks(target) if self._options.quirks else Quirks(target, ())
        self._undo.callback(self._quirks.close)
        self._quirks.set_up_config()
        self._quirks.set_up_bars()

    def _set_up_interrupts(self) -> None:
        self.interrupts.set_up(self.bars.set_mmaps)

    def _set_up_notifiers(self) -> None:
        notifiers = Notifiers(self.dev.base, self.bus.host, self.events, self._function)
        self._undo.callback(notifiers.close)
        notifiers.set_up()

    def _prepare_reset(self) -> None:
        self.resetting = FunctionReset(
            self.dev,
            self.config,
            capabilities=self.capabilities,
            registers=self.registers,
            interrupts=self.interrupts,
            also=(self.update_map, self.rom.forget, self._quirks.reset),
        )

    def _reset(self) -> None:
        """What a guest finds is a device after power-on; one without a reset is taken as it is."""
        try:
            self.resetting.reset()
        except ResetError as error:
            log.warning("%s: %s", self._function.name, error)

    def update_map(self) -> None:
        """Show BARs and legacy ranges where the local copy of configuration space says."""
        self.registers.update()
        if self._vga is not None:
            self._vga.update()

    def _join_bus(self) -> None:
        self._undo.callback(self.bus.remove, self._function)
        self.bus.add(self._function, *self._place)

    def close(self) -> None:
        """Undo every step, the last one first, even where one fails.  May be repeated.

        The device stays open, with its command register as it was before; what else the guest has
        set is there until it is reset.

        :raises VFIOError: the device refused something.
        """
        self._undo.close()


_IN_USE: WeakSet[PCIDevice] = WeakSet()
"""Devices that are functions of a guest now."""

STEPS: tuple[Callable[[RealizedFunction], None], ...] = (
    RealizedFunction._stop_device,
    RealizedFunction._make_events,
    RealizedFunction._follow_memory,
    RealizedFunction._make_config,
    RealizedFunction._make_bars,
    RealizedFunction._make_rom,
    RealizedFunction._make_vga,
    RealizedFunction._add_capabilities,
    RealizedFunction._set_up_quirks,
    RealizedFunction._set_up_interrupts,
    RealizedFunction._set_up_notifiers,
    RealizedFunction._prepare_reset,
    RealizedFunction._reset,
    RealizedFunction._join_bus,
)
"""What makes a function, in order; each step pushes what undoes it."""
