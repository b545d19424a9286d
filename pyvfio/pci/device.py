# SPDX-License-Identifier: BSD-3-Clause
"""``PCIDevice``: what :func:`pyvfio.open` returns."""

from __future__ import annotations

from collections.abc import Sequence

from pyvfio.base import VFIOBase
from pyvfio.closing import Closing
from pyvfio.container import Container
from pyvfio.errors import OpenError, UnsupportedError
from pyvfio.features import Features
from pyvfio.irq import IRQSet
from pyvfio.migration import Migration
from pyvfio.pci.bars import BARs
from pyvfio.pci.config import ConfigSpace
from pyvfio.pci.intx import INTx
from pyvfio.pci.irqs import InterruptMode
from pyvfio.pci.msi import MSI
from pyvfio.pci.msix import MSIX
from pyvfio.pci.reset import reset_function
from pyvfio.reconnection import Reconnection
from pyvfio.region import Region
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType, Command
from pyvfio.uapi.vfio import PCIIRQ, DeviceFlags, PCIRegion
from pyvfio.vectors import DeviceIO

MIN_REGIONS = PCIRegion.CONFIG + 1
"""Regions that a PCI device has at least: six BARs, the ROM, configuration space."""
MIN_IRQS = 3
"""Interrupt indexes that a PCI device has at least: INTx, MSI, MSI-X."""


class PCIDevice(Closing):
    """A PCI function on any backend.

    Opening it enables memory and I/O decoding for the BARs it has; bus mastering is left as it is
    (see :attr:`bus_master`).

    :param base: the opened device; it is closed with this object.
    :ivar config: configuration space.
    :ivar bars: the BARs that are implemented, by number.
    :ivar intx: the interrupt pin.
    :ivar msi: MSI.
    :ivar msix: MSI-X.
    :ivar migration: saves the device's state, and loads it into another.
    :raises UnsupportedError: it is no PCI device.
    """

    def __init__(self, base: VFIOBase) -> None:
        self.base = base
        info = base.info
        if (
            not info.flags & DeviceFlags.PCI
            or info.num_regions < MIN_REGIONS
            or info.num_irqs < MIN_IRQS
        ):
            raise UnsupportedError(
                f"no PCI device ({info.flags!r}, {info.num_regions} regions,"
                f" {info.num_irqs} interrupt indexes)",
                op="open",
                uri=base.uri,
            )
        config = base.region(PCIRegion.CONFIG, ConfigSpace)
        assert isinstance(config, ConfigSpace)
        self.config = config
        self.bars = BARs(base, config)
        mode = InterruptMode()
        self.intx = INTx(base, config, mode)
        self.msi = MSI(base, config, mode)
        self.msix = MSIX(base, config, mode)
        self.migration = Migration(base)
        self._ids = _ids(base.device_io)
        self._enable_decoding()

    def _enable_decoding(self) -> None:
        wanted = Command(0)
        for bar in self.bars.values():
            wanted |= Command.IO if bar.type is BARType.IO else Command.MEMORY
        command = self.config.command
        if wanted & ~int(command):
            self.config.command = command | wanted

    def reconnect(self, timeout: float = 0.0) -> Reconnection:
        """Reach the device again whose server was started again, or closed the connection.

        As :meth:`VFIOBase.reconnect`; the command register is put back as well, so that the device
        answers and masters the bus as before.

        :param timeout: seconds to wait for the server to start.
        :raises UnsupportedError: the backend cannot lose its device and find it again.
        :raises OpenError: the server cannot be reached, or serves another device.
        :raises ConnectionLost: it is gone again.
        """
        command = self.config.known_command
        done = self.base.reconnect(timeout, self._check_ids)
        if self.config.command != command:
            self.config.command = command
        return done

    def _check_ids(self, device_io: DeviceIO) -> None:
        found = _ids(device_io)
        if found != self._ids:
            raise OpenError(
                "another device answers: {:04x}:{:04x} instead of {:04x}:{:04x}".format(
                    *found, *self._ids
                ),
                op="reconnect",
                uri=self.uri,
            )

    @property
    def uri(self) -> str:
        """What was opened."""
        return self.base.uri

    @property
    def dma(self) -> Container:
        """The device's IO address space: DMA memory is allocated and mapped here."""
        return self.base.dma

    @property
    def features(self) -> Features:
        """What the device can do besides what every device can (``VFIO_DEVICE_FEATURE``)."""
        return self.base.features

    @property
    def rom(self) -> Region | None:
        """The expansion ROM, or None."""
        region = self.base.region(PCIRegion.ROM)
        return region if region.size else None

    @property
    def bus_master(self) -> bool:
        """Whether the device may access memory, which DMA and MSI need."""
        return bool(self.config.command & Command.MASTER)

    @bus_master.setter
    def bus_master(self, enabled: bool) -> None:
        command, bit = int(self.config.command), int(Command.MASTER)
        self.config.command = command | bit if enabled else command & ~bit

    @property
    def resettable(self) -> bool:
        """Whether the device can be reset."""
        return bool(self.base.info.flags & DeviceFlags.RESET)

    def reset(self) -> None:
        """Reset the function; DMA maps, enabled interrupts and the command register stay.

        :raises UnsupportedError: the device cannot be reset.
        :raises ResetError: it refused.
        """
        reset_function(self.base, self.config)

    def hot_reset(self) -> None:
        """Reset the bus or slot of the device, with every device there.

        :raises UnsupportedError: the backend has no buses.
        :raises ResetError: it refused, or somebody else owns a device that would be reset.
        """
        self.base.hot_reset()

    def hot_reset_functions(self) -> Sequence[str]:
        """The PCI addresses of what :meth:`hot_reset` resets, this device's among them.

        :raises UnsupportedError: the backend has no buses.
        :raises ResetError: the device is in no bus or slot that can be reset.
        """
        return self.base.hot_reset_functions()

    def flush(self) -> None:
        """Return when every posted write has been carried out; see :attr:`Region.posted`.

        :raises ConnectionLost: the device is gone; what became of them is not known.
        :raises VFIOTimeout: it does not answer.
        """
        self.base.flush()

    def watch_release(self) -> IRQSet:
        """One interrupt that fires when the host asks for the device back (an unbind, a removal).

        The host waits until the device is closed; it is asked again from time to time.

        :raises IRQError: the device cannot tell.
        """
        return self.base.enable_irqs(PCIIRQ.REQ, 1)

    def watch_errors(self) -> IRQSet:
        """One interrupt that fires when the device reports an error that it cannot correct (AER).

        :raises IRQError: the device cannot tell.
        """
        return self.base.enable_irqs(PCIIRQ.ERR, 1)

    @property
    def lost(self) -> bool:
        """Whether the device is gone; :meth:`reconnect` may find it again."""
        return self.base.lost

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self.base.closed

    def close(self) -> None:
        """Disable interrupts, release DMA memory and BARs, let the device go.  May be repeated."""
        self.base.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "lost" if self.lost else "open"
        return f"<PCIDevice {self.uri} {state}>"


def _ids(device_io: DeviceIO) -> tuple[int, int]:
    """Vendor and device id."""
    data = device_io.region_read(PCIRegion.CONFIG, pci.VENDOR_ID.offset, 4)
    return int.from_bytes(data[:2], "little"), int.from_bytes(data[2:], "little")
