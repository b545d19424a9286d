# SPDX-License-Identifier: BSD-3-Clause
"""``GuestFunction``: a VFIO device as a PCI function of an emulator's guest."""

from __future__ import annotations

from collections.abc import Collection

from pyvfio.closing import Closing
from pyvfio.emulator.bus import Bus
from pyvfio.emulator.config_dump import describe as describe_config
from pyvfio.emulator.events import Events
from pyvfio.emulator.options import FunctionOptions
from pyvfio.emulator.realized import RealizedFunction
from pyvfio.emulator.state import FunctionState, check_same_function, load_config
from pyvfio.pci.device import PCIDevice
from pyvfio.reconnection import Reconnection
from pyvfio.uapi import pci
from pyvfio.uapi.layout import Buffer


class GuestFunction(Closing):
    """A device, on any backend, as a PCI function of a guest: QEMU's ``vfio-pci``.

    ::

        with pyvfio.open(uri) as dev, GuestFunction(dev) as function:
            function.realize(bus, slot=3)
            ...

    The emulator has the guest's configuration accesses carried out by :meth:`config_read` and
    :meth:`config_write` (or by its :class:`Bus`); BARs are in the bus's address spaces where the
    guest puts them; interrupts come to the bus's :class:`Host` when :attr:`events` is dispatched.

    Calls come one at a time: an emulator with threads holds its own lock around them.  While it is
    realized, interrupts, configuration space and the command register of the device are the
    function's; the program leaves them alone.

    :param dev: the device; the caller closes it, after the function.
    :param options: what is shown of it.
    :param name: how messages call it; its URI by default.
    """

    def __init__(
        self, dev: PCIDevice, options: FunctionOptions | None = None, name: str = ""
    ) -> None:
        self.dev = dev
        self.options = options if options is not None else FunctionOptions()
        self._name = name or dev.uri
        self._parts: RealizedFunction | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return self._name

    @property
    def multifunction(self) -> bool:
        """Whether it says that its slot has further functions."""
        return self.options.multifunction

    # Life

    def realize(self, bus: Bus, slot: int, number: int = 0) -> None:
        """Put the function on a bus, at slot 0 to 31 as number 0 to 7.

        Guest memory is mapped for the device from now on.  The device is reset, if it can be, and
        leaves whatever it did for the program.

        :raises ValueError: it is realized already, or the device is as another function, or the
            place is taken, or ``rom_file`` holds no ROM.
        :raises OSError: ``rom_file`` cannot be read, or no descriptor is left.
        :raises UnsupportedError: the device cannot be shown as the options ask for.
        :raises VFIOError: the device or the container refused a step.  Nothing is left of it, and
            it may be tried again.
        """
        if self._parts is not None:
            raise ValueError(f"{self.name} is realized already")
        bus.check_free(slot, number)
        self._parts = RealizedFunction(self.dev, self.options, bus, self, (slot, number))

    def unrealize(self) -> None:
        """Take the function off its bus, and its memory away from the device.  May be repeated.

        The command register of the device is as it was before; what else the guest has set is there
        until a reset.  The function may be realized again.

        :raises VFIOError: the device refused something; the function is gone all the same.
        """
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.close()

    def close(self) -> None:
        """As :meth:`unrealize`."""
        self.unrealize()

    @property
    def realized(self) -> RealizedFunction:
        """Its parts; raises :class:`ValueError` where it is on no bus."""
        if self._parts is None:
            raise ValueError(f"{self.name} is not realized")
        return self._parts

    @property
    def events(self) -> Events:
        """What it waits for; the emulator polls and dispatches it.

        :raises ValueError: it is on no bus.
        """
        return self.realized.events

    # The guest's accesses

    def config_read(self, offset: int, width: int) -> int:
        """A read of the guest from configuration space, of 1, 2 or 4 bytes.

        :returns: all ones where the device does not answer, or nothing is there.
        :raises ValueError: no access has that width, or it is on no bus.
        """
        return self.realized.config.read(offset, width)

    def config_write(self, offset: int, width: int, value: int) -> None:
        """A write of the guest to configuration space; what the device refuses is logged.

        :raises ValueError: no access has that width, the value does not fit, or it is on no bus.
        """
        self.realized.config.write(offset, width, value)

    # Reset

    def reset(self) -> None:
        """As after power-on, device and all that the guest has set.

        :raises VFIOError: the device refused, or is gone; for the guest it is as after power-on.
        :raises ValueError: it is on no bus.
        """
        self.realized.resetting.reset()

    def resets_with(self) -> Collection[str]:
        """The PCI addresses of what is reset with it where only a hot reset really resets it."""
        return self.realized.resetting.resets_with()

    def before_reset(self) -> None:
        """An emulator is about to reset the bus of the device, by :meth:`hot_reset` of one there.

        :raises VFIOError: the device does not answer.
        """
        self.realized.resetting.before()

    def hot_reset(self) -> None:
        """Reset the bus of the device, with all that is there; raises as the device's does."""
        self.dev.hot_reset()

    def after_reset(self) -> None:
        """The bus of the device was reset: the guest finds the function as after power-on.

        :raises VFIOError: the device does not answer.
        """
        self.realized.resetting.after()

    def pin_rerouted(self) -> None:
        """The interrupt pin leads elsewhere in the machine now: the host is asked for it again.

        :raises ValueError: it is on no bus.
        """
        self.realized.interrupts.reroute_pin()

    # State

    def save(self) -> bytes:
        """The emulated state: configuration space and MSI-X table.  The device's is not in it.

        Interrupts that the device has signalled are delivered first.

        :raises ValueError: it is on no bus.
        """
        parts = self.realized
        parts.events.dispatch()
        return FunctionState(bytes(parts.config.local), parts.interrupts.save()).pack()

    def load(self, state: Buffer) -> None:
        """Take over what :meth:`save` gave of a function of the same kind and options.

        The state of the device is loaded before.

        :raises StateError: it is damaged, newer, or of another kind of function; nothing changes.
        :raises VFIOError: the device refused something.
        :raises ValueError: it is on no bus.
        """
        parts = self.realized
        found = FunctionState.unpack(state, self.name)
        check_same_function(parts.config, found.config)
        parts.interrupts.check(found.interrupts)
        parts.interrupts.disable_all()
        load_config(parts.config, found.config)
        try:
            parts.config.device_set(pci.COMMAND, parts.config.get(pci.COMMAND))
        finally:  # the guest sees what it was told to see, whatever the device does
            parts.update_map()
            parts.interrupts.load(found.interrupts)

    def reconnect(self, timeout: float = 0.0) -> Reconnection:
        """Reach the device again whose server was started again, as :meth:`PCIDevice.reconnect`.

        Guest memory is mapped again and the interrupts are enabled that the guest has enabled.
        What the device itself has forgotten is for the guest to find out; a reset helps it.

        :param timeout: seconds to wait for the server to start.
        :raises VFIOError: as :meth:`PCIDevice.reconnect`.
        """
        parts = self.realized
        parts.events.dispatch()
        with parts.bus.detached(parts.dma_listener):
            done = self.dev.reconnect(timeout)
        parts.rom.forget()
        parts.interrupts.load(parts.interrupts.save())
        return done

    def describe(self) -> str:
        """What the guest has made of it, as text: where its BARs are, which interrupt it uses, and
        which bytes of configuration space are emulated.

        :raises ValueError: it is on no bus.
        """
        parts = self.realized
        mode = parts.interrupts.mode
        lines = [f"{self.name}: {'no interrupt' if mode is None else mode.name}"]
        for number, bar in parts.bars.items():
            address = parts.registers.address(number)
            where = "not seen" if address is None else f"at {address:#x}"
            lines.append(f"BAR {number}: {bar.type.value}, {bar.size:#x} bytes, {where}")
        return "\n".join([*lines, describe_config(parts.config)])

    def __repr__(self) -> str:
        return f"<GuestFunction {self.name} {'realized' if self._parts else 'not realized'}>"
