# SPDX-License-Identifier: BSD-3-Clause
"""What a driver has set in configuration space, for a device that goes on elsewhere.

Put back are the registers of the header that software writes: the command register, without which
the device neither answers nor masters the bus, BARs and ROM address, and what firmware keeps there
(cache line size, latency timer, interrupt line).  QEMU's ``vfio_pci_load_config`` writes the
command register, too; what else it has is its guest's.  Enable bits of MSI and MSI-X follow the
interrupts that a driver enables; link and power control belong to the place where a device is, and
are left.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass
from struct import Struct

from pyvfio.errors import MigrationError, RegionError, StateError
from pyvfio.migration_file import DeviceIDs
from pyvfio.pci.config import ConfigSpace
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Command, Register

_LAYOUT = Struct(f"<H{pci.NUM_BARS}IIBBB")
_BARS = tuple(
    Register(pci.BASE_ADDRESS_0.offset + 4 * number, pci.BASE_ADDRESS_0.width)
    for number in range(pci.NUM_BARS)
)
_FIRMWARE = (pci.CACHE_LINE_SIZE, pci.LATENCY_TIMER, pci.INTERRUPT_LINE)
_NEEDED = Command.IO | Command.MEMORY | Command.MASTER
"""Bits without which the device is not what it was."""


def ids_of(config: ConfigSpace) -> DeviceIDs:
    """Which kind of device it is."""
    return DeviceIDs(
        config.vendor_id,
        config.device_id,
        config.subsystem_vendor_id,
        config.subsystem_id,
        config.class_code,
        config.revision_id,
    )


@dataclass(frozen=True)
class SavedConfig:
    """The registers.

    :ivar command: command register.
    :ivar bars: base address registers 0 to 5.
    :ivar rom: expansion ROM address.
    :ivar firmware: cache line size, latency timer, interrupt line.
    """

    command: int
    bars: tuple[int, ...]
    rom: int
    firmware: tuple[int, ...]

    @classmethod
    def of(cls, config: ConfigSpace) -> SavedConfig:
        """What a device has now."""
        return cls(
            int(config.command),
            tuple(config.get(register) for register in _BARS),
            config.get(pci.ROM_ADDRESS),
            tuple(config.get(register) for register in _FIRMWARE),
        )

    def pack(self) -> bytes:
        """As bytes, little-endian."""
        return _LAYOUT.pack(self.command, *self.bars, self.rom, *self.firmware)

    @classmethod
    def unpack(cls, data: bytes, name: str) -> SavedConfig:
        """Read what :meth:`pack` gave.

        :param name: where it comes from, for errors.
        :raises StateError: it is something else.
        """
        if len(data) != _LAYOUT.size:
            reason = f"configuration registers of {len(data)} bytes instead of {_LAYOUT.size}"
            raise StateError(reason, op="read saved state", uri=name)
        command, *bars, rom, cache, latency, line = _LAYOUT.unpack(data)
        return cls(command, tuple(bars), rom, (cache, latency, line))

    def put(self, config: ConfigSpace, uri: str) -> None:
        """Have a device be set up so; what has come along with its own state is not written again.

        :param uri: the device, for errors.
        :raises MigrationError: it does not take the command register.
        :raises RegionError: an access failed.
        """
        registers = (*_BARS, pci.ROM_ADDRESS, *_FIRMWARE, pci.COMMAND)
        values = (*self.bars, self.rom, *self.firmware, self.command)
        for register, value in zip(registers, values, strict=True):
            if config.get(register) != value:
                config.set(register, value)
        missing = (config.command ^ self.command) & _NEEDED
        if missing:
            raise MigrationError(
                f"the command register stays {int(config.command):#06x}, not {self.command:#06x}",
                op="put back configuration registers",
                uri=uri,
                errno=errno.EIO,
            )


class LatestConfig:
    """The registers of a source, as they were when they could be read last.

    Some servers (libvfio-user's) refuse that in STOP_COPY, so it is tried at each step until then.

    :param config: of the source, which can be read now.
    """

    def __init__(self, config: ConfigSpace) -> None:
        self._config = config
        self.saved = SavedConfig.of(config)

    def look(self) -> None:
        """Read them again, if the device lets itself be read."""
        with suppress(RegionError):
            self.saved = SavedConfig.of(self._config)
