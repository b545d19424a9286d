# SPDX-License-Identifier: BSD-3-Clause
"""What can be chosen for a function, with QEMU's defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyvfio.uapi import pci

INTX_MMAP_SECONDS = 1.1
"""How long mapped BARs stay trapped after an interrupt of the pin (``x-intx-mmap-timeout-ms``)."""

_ANY = 0xFFFF
_ID_LIMITS = {
    "vendor_id": _ANY - 1,  # all ones is "no device"
    "device_id": _ANY,
    "subsystem_vendor_id": _ANY,
    "subsystem_id": _ANY,
    "class_code": 0xFF_FFFF,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionOptions:
    """What can be chosen for a function; the defaults are those of QEMU's vfio-pci.

    :ivar vendor_id: shown to the guest instead of the device's own; so are ``device_id``,
        ``subsystem_vendor_id``, ``subsystem_id`` and ``class_code`` (24 bits).
    :ivar multifunction: whether the slot has further functions, of which this is number 0.
    :ivar mmap: whether the guest may reach mapped areas of BARs without a trap.
    :ivar rom: whether the guest sees an expansion ROM; None: unless the device is known to have a
        bad one.
    :ivar rom_file: an image to show instead of the device's ROM.
    :ivar msix_relocation: the BAR, 0 to 5, that gets the MSI-X table instead of the device's own
        place for it.
    :ivar intx_mmap_seconds: how long mapped BARs stay trapped after an interrupt of the pin; 0 is
        until the pin is disabled.
    :ivar vga: whether the legacy VGA ranges belong to the function.
    :ivar quirks: whether known oddities of devices are seen to.
    :ivar irqfd: whether interrupts are offered to the emulator as eventfds.
    :raises ValueError: an id or a BAR that does not exist.
    """

    vendor_id: int | None = None
    device_id: int | None = None
    subsystem_vendor_id: int | None = None
    subsystem_id: int | None = None
    class_code: int | None = None
    multifunction: bool = False
    mmap: bool = True
    rom: bool | None = None
    rom_file: Path | None = None
    msix_relocation: int | None = None
    intx_mmap_seconds: float = INTX_MMAP_SECONDS
    vga: bool = False
    quirks: bool = True
    irqfd: bool = True

    def __post_init__(self) -> None:
        for name, limit in _ID_LIMITS.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                raise ValueError(f"{name} {value!r} is no number")
            if value is not None and not 0 <= value <= limit:
                raise ValueError(f"{name} {value:#x}; at most {limit:#x} is possible")
        if self.rom_file is not None:
            object.__setattr__(self, "rom_file", Path(self.rom_file))  # a name will do
        if self.msix_relocation is not None and not 0 <= self.msix_relocation < pci.NUM_BARS:
            raise ValueError(f"there is no BAR {self.msix_relocation} for the MSI-X table")
        if not self.intx_mmap_seconds >= 0:
            raise ValueError(f"mapped BARs cannot stay trapped for {self.intx_mmap_seconds} s")
