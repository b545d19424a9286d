# SPDX-License-Identifier: BSD-3-Clause
"""Reset of a function: what comes before and after, and which kind of reset the device gets.

Facts: QEMU's ``vfio_pci_pre_reset``, ``vfio_pci_post_reset``, ``vfio_pci_reset``,
``vfio_pci_hot_reset_one``, ``pci_do_device_reset``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from pyvfio.emulator.bar_registers import BARRegisters
from pyvfio.emulator.capabilities import Capabilities
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.header import base_address
from pyvfio.emulator.interrupts import Interrupts
from pyvfio.errors import ResetError, UnsupportedError, VFIOError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID, Command

log = logging.getLogger(__name__)

STOPPED = ~int(Command.IO | Command.MEMORY | Command.MASTER | Command.INTX_DISABLE)
"""What of the command register a device keeps that answers and does nothing."""


def power_up(dev: PCIDevice) -> None:
    """Bring a device that has power states to D0.

    :raises VFIOError: it does not answer.
    """
    capability = dev.config.find(CapabilityID.PM)
    if capability is None:
        return
    control = dev.config.get(pci.PM_CONTROL, capability.offset)
    if not control & pci.PM_CONTROL_STATE:
        return
    dev.config.set(pci.PM_CONTROL, control & ~pci.PM_CONTROL_STATE, capability.offset)
    state = dev.config.get(pci.PM_CONTROL, capability.offset) & pci.PM_CONTROL_STATE
    if state:
        log.error("%s: it stays in power state D%d", dev.uri, state)


class FunctionReset:
    """The steps of a function's reset.

    An emulator that resets several functions at once by a hot reset of their bus calls
    :meth:`before` of each, resets the bus, and calls :meth:`after` of each.

    :param also: what else has a state of the guest's to forget; called in this order.
    """

    def __init__(
        self,
        dev: PCIDevice,
        config: EmulatedConfig,
        *,
        capabilities: Capabilities,
        registers: BARRegisters,
        interrupts: Interrupts,
        also: Sequence[Callable[[], None]],
    ) -> None:
        self._dev = dev
        self._config = config
        self._capabilities = capabilities
        self._registers = registers
        self._interrupts = interrupts
        self._also = also

    def reset(self) -> None:
        """Put device and function back to what they are after power-on.

        :raises VFIOError: the device refused, or is gone; for its guest the function is as after
            power-on all the same.
        """
        try:
            self.before()
            self._reset_device()
        finally:
            self.after()

    def before(self) -> None:
        """Stop the device: no interrupts, full power, no accesses in either direction.

        :raises VFIOError: the device does not answer.
        """
        self._interrupts.disable_all()
        command = self._config.device_get(pci.COMMAND)
        self._config.device_set(pci.COMMAND, command & STOPPED)
        power_up(self._dev)

    def after(self) -> None:
        """Have the guest find what it finds after power-on: no addresses, only the pin enabled.

        :raises VFIOError: the device does not answer.
        """
        self._interrupts.reset()
        self._config.reset()
        self._registers.reset()
        self._interrupts.enable_intx()
        for forget in self._also:
            forget()
        # What the device kept of the guest's addresses would not be those of the guest any more.
        for number in range(pci.NUM_BARS):
            self._config.device_set(base_address(number), 0)

    def resets_with(self) -> Collection[str]:
        """See :class:`~pyvfio.emulator.bus_reset.SharedReset`."""
        if not self.needs_bus_reset:
            return ()
        try:
            return self._dev.hot_reset_functions()
        except VFIOError:
            return ()  # it has no bus to reset, or its own reset will tell what is wrong

    @property
    def needs_bus_reset(self) -> bool:
        """Whether only a reset of its bus really resets the device.

        Going to D3 and back, which is all that some can do by themselves, resets little.
        """
        weak = not self._capabilities.has_flr and self._capabilities.has_pm_reset
        return not self._dev.resettable or weak

    def _reset_device(self) -> None:
        """The strongest reset that the device can have without another one being reset."""
        if not self.needs_bus_reset and self._try_function_reset():
            return
        if self._try_hot_reset():
            return
        if self._dev.resettable:
            self._dev.base.reset()
        else:
            log.info("%s: the device has no reset", self._config.name)

    def _try_function_reset(self) -> bool:
        try:
            self._dev.base.reset()
        except ResetError as error:
            log.warning("%s: %s; trying its bus", self._config.name, error)
            return False
        return True

    def _try_hot_reset(self) -> bool:
        """Reset the bus or slot, if nothing else is there."""
        try:
            if len(self._dev.hot_reset_functions()) != 1:
                return False
            self._dev.hot_reset()
        except (UnsupportedError, ResetError) as error:
            log.debug("%s: no hot reset: %s", self._config.name, error)
            return False
        return True
