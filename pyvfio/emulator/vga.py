# SPDX-License-Identifier: BSD-3-Clause
"""The legacy ranges of a VGA device: memory and ports that no BAR says.

Facts: QEMU's ``vfio_populate_vga``, ``pci_register_vga``, ``pci_update_vga``.
"""

from __future__ import annotations

from typing import NamedTuple

from pyvfio.closing import Closing
from pyvfio.emulator.bus import Bus
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.memory import MemoryRegion, MMIORegion
from pyvfio.emulator.trapped import TrappedRegion
from pyvfio.errors import UnsupportedError
from pyvfio.pci.device import PCIDevice
from pyvfio.region import Region
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Command
from pyvfio.uapi.vfio import PCIRegion, RegionFlags

_PRIORITY = 1
"""Of the ranges over what else is on the bus, as that of BARs."""


class _Window(NamedTuple):
    """A legacy range; the offset in the device's VGA region is its address."""

    address: int
    size: int
    decoded: Command
    """What of the command register has the function answer there."""


_WINDOWS = (
    _Window(0xA0000, 0x20000, Command.MEMORY),
    _Window(0x3B0, 0x0C, Command.IO),
    _Window(0x3C0, 0x20, Command.IO),
)
_REGION_SIZE = max(window.address + window.size for window in _WINDOWS)


class GuestVGA(Closing):
    """The legacy ranges of a function, as long as the guest has it decode memory and ports.

    :param config: configuration space; its command register is followed.
    :param bus: where the ranges appear.
    :raises UnsupportedError: the device has no VGA region, or not a whole one.
    """

    def __init__(self, dev: PCIDevice, config: EmulatedConfig, bus: Bus) -> None:
        region = _vga_region(dev)
        self._config = config
        self._bus = bus
        self._windows = [(window, _show(window, region, config.name)) for window in _WINDOWS]
        with bus.topology.transaction():
            self.update()
            for window, shown in self._windows:
                self._space(window).add(shown, window.address, _PRIORITY)
        config.watch(pci.COMMAND.offset, pci.COMMAND.width, self._command_written)

    def _space(self, window: _Window) -> MemoryRegion:
        return self._bus.memory if window.decoded is Command.MEMORY else self._bus.io

    def _command_written(self, before: bytes, after: bytes) -> None:
        self.update()

    def update(self) -> None:
        """Have the ranges seen that the local copy of the command register says."""
        command = self._config.get(pci.COMMAND)
        with self._bus.topology.transaction():
            for window, shown in self._windows:
                shown.enabled = bool(command & window.decoded)

    def close(self) -> None:
        """Take the ranges out of the memory map.  May be repeated."""
        self._config.unwatch(self._command_written)
        with self._bus.topology.transaction():
            for window, shown in self._windows:
                self._space(window).remove(shown)
        self._windows = []


def _vga_region(dev: PCIDevice) -> Region:
    """The device's VGA region, checked."""
    if dev.base.info.num_regions <= PCIRegion.VGA:
        raise _refused(dev, "the device has no VGA region")
    region = dev.base.region(PCIRegion.VGA)
    flags = region.info.flags
    if not flags & RegionFlags.READ or not flags & RegionFlags.WRITE or region.size < _REGION_SIZE:
        raise _refused(dev, f"its VGA region has {region.size:#x} bytes, {flags!r}")
    return region


def _refused(dev: PCIDevice, reason: str) -> UnsupportedError:
    return UnsupportedError(reason, op="set up VGA", uri=dev.uri)


def _show(window: _Window, region: Region, name: str) -> MMIORegion:
    handler = TrappedRegion(region, name, start=window.address)
    return MMIORegion(f"{name} VGA {window.address:#x}", window.size, handler)
