# SPDX-License-Identifier: BSD-3-Clause
"""INTx: the level-triggered interrupt pin."""

from __future__ import annotations

from pyvfio.pci.irqs import InterruptKind
from pyvfio.uapi.pci import Status
from pyvfio.uapi.vfio import PCIIRQ, IRQFlags, IRQSetFlags


class INTx(InterruptKind):
    """The interrupt pin of a device.

    Where it is automasked, each interrupt masks it until :meth:`unmask`; while the device still
    asserts the pin it fires again at once, so have the device lower it first.
    """

    index = PCIIRQ.INTX
    needs_bus_master = False

    @property
    def pin(self) -> int:
        """1 to 4 for INTA to INTD, 0 for none."""
        return self._config.interrupt_pin

    @property
    def asserted(self) -> bool:
        """Whether the device asserts the pin now, masked or not (status register, bit 3)."""
        return bool(self._config.status & Status.INTERRUPT)

    @property
    def automasked(self) -> bool:
        """Whether an interrupt masks the pin until :meth:`unmask`."""
        return bool(self.info.flags & IRQFlags.AUTOMASKED)

    def mask(self) -> None:
        """Keep the pin from firing."""
        self._base.set_irqs(self.index, IRQSetFlags.MASK, 0, 1)

    def unmask(self) -> None:
        """Let the pin fire; at once if it is asserted."""
        self._base.set_irqs(self.index, IRQSetFlags.UNMASK, 0, 1)
