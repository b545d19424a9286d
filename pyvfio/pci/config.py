# SPDX-License-Identifier: BSD-3-Clause
"""Configuration space: the header's registers by name, and the capabilities."""

from __future__ import annotations

from collections.abc import Iterator

import numpy.typing as npt

from pyvfio.pci import capabilities
from pyvfio.pci.capabilities import Capability
from pyvfio.region import Region
from pyvfio.uapi import pci
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.pci import CapabilityID, Command, ExtendedCapabilityID, Register, Status


class ConfigSpace(Region):
    """The configuration region of a PCI device.  Its accesses are never posted or mapped."""

    _known_command = bytes(pci.COMMAND.width)

    @property
    def name(self) -> str:
        return "config"

    def get(self, register: Register, base: int = 0) -> int:
        """Read a register, of the header or of the capability at ``base``."""
        return self.read(base + register.offset, register.width)

    def set(self, register: Register, value: int, base: int = 0) -> None:
        """Write a register, of the header or of the capability at ``base``."""
        self.write(base + register.offset, register.width, value)

    @property
    def vendor_id(self) -> int:
        """Who made the device."""
        return self.get(pci.VENDOR_ID)

    @property
    def device_id(self) -> int:
        """The vendor's number for it."""
        return self.get(pci.DEVICE_ID)

    @property
    def subsystem_vendor_id(self) -> int:
        """Who made the board."""
        return self.get(pci.SUBSYSTEM_VENDOR_ID)

    @property
    def subsystem_id(self) -> int:
        """The board maker's number for it."""
        return self.get(pci.SUBSYSTEM_ID)

    @property
    def revision_id(self) -> int:
        """Revision of the device."""
        return self.get(pci.REVISION_ID)

    @property
    def class_code(self) -> int:
        """24 bits: base class, subclass, programming interface."""
        return self.read32(pci.REVISION_ID.offset) >> 8

    @property
    def header_type(self) -> int:
        """Layout of the header; bit 7 is set on a multi-function device."""
        return self.get(pci.HEADER_TYPE)

    @property
    def interrupt_pin(self) -> int:
        """1 to 4 for INTA to INTD, 0 for none."""
        return self.get(pci.INTERRUPT_PIN)

    @property
    def interrupt_line(self) -> int:
        """Where firmware says the pin is routed to."""
        return self.get(pci.INTERRUPT_LINE)

    @property
    def status(self) -> Status:
        """Status register."""
        return Status(self.get(pci.STATUS))

    @property
    def command(self) -> Command:
        """Command register: which accesses the device answers and makes."""
        value = self.get(pci.COMMAND)
        self._known_command = value.to_bytes(pci.COMMAND.width, "little")
        return Command(value)

    @command.setter
    def command(self, value: int) -> None:
        self.set(pci.COMMAND, value)

    @property
    def known_command(self) -> Command:
        """The command register as it was last read or written, for a device that has lost it."""
        return Command(int.from_bytes(self._known_command, "little"))

    writes_in_c = False

    def _write_register(self, offset: int, width: int, value: int) -> None:
        super()._write_register(offset, width, value)
        self._know(offset, value.to_bytes(width, "little"))

    def _write_trapped(self, offset: int, data: Buffer) -> None:
        super()._write_trapped(offset, data)
        self._know(offset, data)

    def write_many(self, offsets: npt.ArrayLike, values: npt.ArrayLike, width: int = 4) -> None:
        super().write_many(offsets, values, width)
        self._known_command = self.read_bytes(pci.COMMAND.offset, pci.COMMAND.width)

    def _know(self, offset: int, data: Buffer) -> None:
        written, start = bytearray(self._known_command), pci.COMMAND.offset
        for at, byte in enumerate(data, offset):
            if start <= at < start + len(written):
                written[at - start] = byte
        self._known_command = bytes(written)

    def capabilities(self) -> Iterator[Capability]:
        """All capabilities: the conventional list, then the extended one."""
        yield from capabilities.conventional(self)
        yield from capabilities.extended(self)

    def find(self, wanted: CapabilityID | ExtendedCapabilityID) -> Capability | None:
        """The first capability of a kind, or None."""
        is_extended = isinstance(wanted, ExtendedCapabilityID)
        for capability in self.capabilities():
            if capability.id == wanted and capability.extended == is_extended:
                return capability
        return None
