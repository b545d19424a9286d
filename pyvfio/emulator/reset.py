# SPDX-License-Identifier: BSD-3-Clause
"""Reset of a function: what comes before and after, and which kind of reset the device gets.

Facts: QEMU's ``vfio_pci_pre_reset``, ``vfio_pci_post_reset``, ``vfio_pci_reset``,
``vfio_pci_hot_reset_one``, ``pci_do_device_reset``.
"""

from __future__ import annotations

import logging

from pyvfio.emulator.bar_registers import BARRegisters
from pyvfio.emulator.capabilities import Capabilities
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.header import base_address
from pyvfio.emulator.interrupts import Interrupts
from pyvfio.emulator.quirks import Quirks
from pyvfio.errors import ResetError, UnsupportedError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Command

log = logging.getLogger(__name__)

STOPPED = ~int(Command.IO | Command.MEMORY | Command.MASTER | Command.INTX_DISABLE)
"""What of the command register a device keeps that answers and does nothing."""


class FunctionReset:
    """The steps of a function's reset.

    An emulator that resets several functions at once by a hot reset of their bus calls
    :meth:`before` of each, resets the bus, and calls :meth:`after` of each.
    """

    def __init__(
        self,
        dev: PCIDevice,
        config: EmulatedConfig,
        *,
        capabilities: Capabilities,
        registers: BARRegisters,
        interrupts: Interrupts,
        quirks: Quirks,
    ) -> None:
        self._dev = dev
        self._config = config
        self._capabilities = capabilities
        self._registers = registers
        self._interrupts = interrupts
        self._quirks = quirks

    def reset(self) -> None:
        """Put device and function back to what they are after power-on.

        :raises ResetError: the device refused; the function is as after power-on all the same.
        :raises ConnectionLost: the device is gone.
        """
        self.before()
        try:
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
        self._power_up()

    def _power_up(self) -> None:
        offset = self._capabilities.pm
        if offset is None:
            return
        control = self._config.device_get(pci.PM_CONTROL, offset)
        if not control & pci.PM_CONTROL_STATE:
            return
        self._config.device_set(pci.PM_CONTROL, control & ~pci.PM_CONTROL_STATE, offset)
        state = self._config.device_get(pci.PM_CONTROL, offset) & pci.PM_CONTROL_STATE
        if state:
            log.error("%s: it stays in power state D%d", self._config.name, state)

    def after(self) -> None:
        """Have the guest find what it finds after power-on: no addresses, only the pin enabled.

        :raises VFIOError: the device does not answer.
        """
        self._interrupts.reset()
        self._config.reset()
        self._registers.reset()
        # What the device kept of the guest's addresses would not be those of the guest any more.
        for number in range(pci.NUM_BARS):
            self._config.device_set(base_address(number), 0)
        self._interrupts.enable_intx()
        self._quirks.reset()

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
