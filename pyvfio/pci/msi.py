# SPDX-License-Identifier: BSD-3-Clause
"""MSI: up to 32 vectors, described in configuration space."""

from __future__ import annotations

from pyvfio.pci.irqs import InterruptKind
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID
from pyvfio.uapi.vfio import PCIIRQ


class MSI(InterruptKind):
    """Message-signalled interrupts of a device."""

    index = PCIIRQ.MSI

    @property
    def is_64bit(self) -> bool:
        """Whether messages may go to addresses above 4 GiB."""
        return bool(self._control() & pci.MSI_CONTROL_64BIT)

    def _control(self) -> int:
        capability = self._config.find(CapabilityID.MSI)
        return 0 if capability is None else self._config.get(pci.MSI_CONTROL, capability.offset)
