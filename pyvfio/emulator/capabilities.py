# SPDX-License-Identifier: BSD-3-Clause
"""The capability lists that a guest sees: the device's, in its order, without what is hidden.

Facts: QEMU's ``vfio_pci_add_capabilities``, ``vfio_add_std_cap``, ``pci_add_capability``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pyvfio.emulator import express, original
from pyvfio.emulator.bus import BusKind
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.extended import add_extended_capabilities
from pyvfio.emulator.original import Original
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID, Register, Status

log = logging.getLogger(__name__)

Maker = Callable[[int, int], bool]
"""Called with the offset of a capability and the bytes that it may have at most, none of them
writable; prepares it, and returns whether the guest is to see it."""

_NEXT = Register(0x01, 1)
_VENDOR_HEADER = 3
"""Bytes of a vendor's capability that are the same on every device of a kind: id, next, length."""
_SINGLE = (CapabilityID.PM, CapabilityID.MSI, CapabilityID.EXP, CapabilityID.MSIX)


@dataclass(slots=True)
class Capabilities:
    """What a guest sees, and what that says of the device.

    :ivar offsets: by id, where the first of each kind is; without those that are hidden.
    :ivar has_flr: the device can be reset by itself (PCI Express or Advanced Features).
    :ivar has_pm_reset: the device is reset by going to D3 and back.
    """

    offsets: dict[int, int] = field(default_factory=dict)
    has_flr: bool = False
    has_pm_reset: bool = False

    @property
    def pm(self) -> int | None:
        """Where power management is, if the guest sees it."""
        return self.offsets.get(CapabilityID.PM)

    @property
    def msi(self) -> int | None:
        """Where MSI is, if the guest sees it."""
        return self.offsets.get(CapabilityID.MSI)

    @property
    def msix(self) -> int | None:
        """Where MSI-X is, if the guest sees it."""
        return self.offsets.get(CapabilityID.MSIX)

    @property
    def express(self) -> int | None:
        """Where the PCI Express capability is, if the guest sees it."""
        return self.offsets.get(CapabilityID.EXP)


def add_capabilities(
    config: EmulatedConfig, bus: BusKind, makers: Mapping[CapabilityID, Maker]
) -> Capabilities:
    """Make the guest's lists of the device's.

    Lists that loop, lead into the header or out of configuration space, or are made of ones end
    there; of power management, MSI, PCI Express and MSI-X the first counts.

    :param makers: set MSI and MSI-X up, which stay hidden without; may do so for others.
    :raises UnsupportedError: the function is a port or a bridge.
    """
    conventional = _ConventionalList(config, bus, makers)
    conventional.add_all()
    add_extended_capabilities(config, bus)
    return conventional.found


class _ConventionalList:
    """The making of the list of the first 256 bytes."""

    def __init__(
        self, config: EmulatedConfig, bus: BusKind, makers: Mapping[CapabilityID, Maker]
    ) -> None:
        self._config = config
        self._bus = bus
        self._seen: set[int] = set()
        self._makers: dict[int, Maker] = {
            CapabilityID.PM: self._add_power_management,
            CapabilityID.EXP: self._add_express,
            CapabilityID.AF: self._add_advanced_features,
            CapabilityID.MSI: _hide,
            CapabilityID.MSIX: _hide,
        }
        for number, maker in makers.items():
            self._makers[number] = maker
        self.found = Capabilities()

    def add_all(self) -> None:
        kept = [entry for entry in original.conventional(self._config) if self._add(entry)]
        following = 0
        for entry in reversed(kept):
            self._config.emulate(_NEXT, following, 0xFF, entry.offset)
            following = entry.offset
        self._config.emulate(pci.CAPABILITY_LIST, following, 0xFF)
        self._config.emulate(pci.STATUS, Status.CAP_LIST if kept else 0, Status.CAP_LIST)

    def _add(self, entry: Original) -> bool:
        """Prepare a capability; returns whether the guest is to see it."""
        start, end = entry.offset, entry.offset + entry.size
        self._config.emulate(_NEXT, 0, 0xFF, start)
        self._config.writable[start:end] = bytes(entry.size)
        if entry.id in self._seen and entry.id in _SINGLE:
            log.warning("%s: a second capability %#x is hidden", self._config.name, entry.id)
            return False
        self._seen.add(entry.id)
        same = _VENDOR_HEADER if entry.id == CapabilityID.VNDR else entry.size
        self._config.compared[start : start + same] = b"\xff" * same
        maker = self._makers.get(entry.id)
        if maker is not None and not maker(start, entry.size):
            log.debug("%s: capability %#x is hidden", self._config.name, entry.id)
            self._config.compared[start:end] = bytes(entry.size)
            return False
        self.found.offsets.setdefault(entry.id, entry.offset)
        return True

    def _add_power_management(self, offset: int, size: int) -> bool:
        if not self._holds("power management", offset, size, pci.PM_SIZE):
            return False
        control = self._config.get(pci.PM_CONTROL, offset)
        self.found.has_pm_reset = not control & pci.PM_CONTROL_NO_SOFT_RESET
        self._config.power.attach(offset)
        return True

    def _add_express(self, offset: int, size: int) -> bool:
        if not self._holds("PCI Express", offset, size, express.SMALLEST):
            return False
        able = self._config.get(pci.EXP_DEVICE_CAPABILITIES, offset)
        self.found.has_flr |= bool(able & pci.EXP_DEVICE_CAPABILITIES_FLR)
        return express.add_express(self._config, offset, size, self._bus)

    def _add_advanced_features(self, offset: int, size: int) -> bool:
        able = self._config.get(pci.AF_CAPABILITIES, offset)
        wanted = pci.AF_CAPABILITIES_TP | pci.AF_CAPABILITIES_FLR
        self.found.has_flr |= able & wanted == wanted
        return True

    def _holds(self, what: str, offset: int, size: int, needed: int) -> bool:
        """Whether a capability has the bytes that it needs before the next one begins."""
        if size < needed:
            log.warning(
                "%s: no room for %s at %#x, which is hidden", self._config.name, what, offset
            )
        return size >= needed


def _hide(_offset: int, _size: int) -> bool:
    return False
