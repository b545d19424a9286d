# SPDX-License-Identifier: BSD-3-Clause
"""What INTx, MSI and MSI-X have in common: a device uses one of them at a time."""

from __future__ import annotations

import errno

from pyvfio.base import VFIOBase
from pyvfio.errors import IRQError, UnsupportedError
from pyvfio.irq import IRQSet
from pyvfio.pci.config import ConfigSpace
from pyvfio.uapi.pci import Command
from pyvfio.uapi.vfio import PCIIRQ
from pyvfio.vectors import IRQInfo


class InterruptMode:
    """Which kind of interrupt of a device is enabled, if any."""

    def __init__(self) -> None:
        self.active: IRQSet | None = None

    def check_free(self, wanted: PCIIRQ, uri: str) -> None:
        """Raise :class:`IRQError` where another kind, or the same, is enabled."""
        if self.active is not None and not self.active.closed:
            raise IRQError(
                f"{PCIIRQ(self.active.index).name} is enabled, one kind at a time can be",
                op=f"enable {wanted.name}",
                uri=uri,
                errno=errno.EBUSY,
                hint="close its IRQSet first",
            )


class InterruptKind:
    """INTx, MSI or MSI-X of a device.

    :cvar index: its VFIO interrupt index.
    :cvar needs_bus_master: it is sent as a write to memory.
    """

    index: PCIIRQ
    needs_bus_master = True

    def __init__(self, base: VFIOBase, config: ConfigSpace, mode: InterruptMode) -> None:
        self._base = base
        self._config = config
        self._mode = mode
        self._info: IRQInfo | None = None

    @property
    def info(self) -> IRQInfo:
        """What the device says of it, asked once."""
        if self._info is None:
            self._info = self._base.irq_info(self.index)
        return self._info

    @property
    def count(self) -> int:
        """Vectors that can be enabled; 0 where the device has none of this kind."""
        return self.info.count

    @property
    def enabled(self) -> bool:
        """Whether this is the kind that is enabled now.

        The enable bit in configuration space does not tell: the kernel shows what was written.
        """
        active = self._mode.active
        return active is not None and active.index == self.index and not active.closed

    def enable(self, count: int = 1) -> IRQSet:
        """Enable vectors 0 to ``count`` - 1; disabled when the set is closed.

        Message-signalled interrupts are writes to memory, so bus mastering is enabled for them.

        :raises UnsupportedError: the device has no interrupt of this kind.
        :raises IRQError: it has fewer vectors, or another kind is enabled.
        """
        if not self.count:
            raise UnsupportedError(
                f"the device has no {self.index.name}", op="enable", uri=self._base.uri
            )
        self._mode.check_free(self.index, self._base.uri)
        irqs = self._base.enable_irqs(self.index, count)
        self._mode.active = irqs
        if self.needs_bus_master:
            try:
                self._config.command |= Command.MASTER
            except BaseException:
                irqs.close()
                raise
        return irqs
