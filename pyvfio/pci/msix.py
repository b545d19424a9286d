# SPDX-License-Identifier: BSD-3-Clause
"""MSI-X: up to 2,048 vectors, with a table and pending bits in a BAR."""

from __future__ import annotations

from typing import NamedTuple

from pyvfio.errors import UnsupportedError
from pyvfio.pci.irqs import InterruptKind
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID
from pyvfio.uapi.vfio import PCIIRQ, IRQFlags


class Location(NamedTuple):
    """A place in a BAR: its number, and bytes from its start."""

    bar: int
    offset: int


class MSIX(InterruptKind):
    """MSI-X of a device.  The table is programmed by the kernel or the server, not by drivers."""

    index = PCIIRQ.MSIX

    @property
    def resizable(self) -> bool:
        """Whether more vectors can be enabled without disabling those in use."""
        return not self.info.flags & IRQFlags.NORESIZE

    @property
    def table_size(self) -> int:
        """Vectors in the table."""
        control = self._config.get(pci.MSIX_CONTROL, self._capability())
        return (control & pci.MSIX_CONTROL_SIZE) + 1

    @property
    def table(self) -> Location:
        """Where the table is: 16 bytes a vector."""
        return self._location(pci.MSIX_TABLE)

    @property
    def pba(self) -> Location:
        """Where the pending bits are: one a vector, in 64-bit words."""
        return self._location(pci.MSIX_PBA)

    def _location(self, register: pci.Register) -> Location:
        value = self._config.get(register, self._capability())
        return Location(value & pci.MSIX_BIR, value & ~pci.MSIX_BIR)

    def _capability(self) -> int:
        capability = self._config.find(CapabilityID.MSIX)
        if capability is None:
            raise UnsupportedError(
                "the device has no MSI-X capability", op="MSI-X", uri=self._base.uri
            )
        return capability.offset
