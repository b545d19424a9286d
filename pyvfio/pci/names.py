# SPDX-License-Identifier: BSD-3-Clause
"""Names of vendors and devices, from the system's ``pci.ids`` where there is one."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple

from pyvfio.uapi.pci import CLASS_NAMES

ENVIRONMENT = "PCI_IDS_PATH"
FILES = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids")

_BUILT_IN = {
    0x1234: ("QEMU", {0x11E8: "edu educational device"}),
    0x1AF4: ("Red Hat", {}),
    0x1B36: ("Red Hat", {0x0005: "PCI test device"}),
}
"""Virtual devices that this package brings models for; used where no file names them."""


class Names(NamedTuple):
    """What is known of ids: vendor -> name, (vendor, device) -> name."""

    vendors: dict[int, str]
    devices: dict[tuple[int, int], str]


@functools.cache
def _names() -> Names:
    names = Names({}, {})
    for vendor, (name, devices) in _BUILT_IN.items():
        names.vendors[vendor] = name
        names.devices.update({(vendor, device): text for device, text in devices.items()})
    for path in filter(None, (os.environ.get(ENVIRONMENT), *FILES)):
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
            _parse(text, names)
        except (OSError, ValueError):
            continue  # a name is a kindness; numbers are printed in any case
        break
    return names


def _parse(text: str, names: Names) -> None:
    """Lines are ``vvvv  name``, ``<tab>dddd  name``; the rest (subsystems, classes) is not used."""
    vendor = -1
    for line in text.splitlines():
        if line.startswith("C "):
            return
        number, _, name = line.strip().partition("  ")
        if not name or line.startswith(("#", "\t\t")):
            continue
        if line.startswith("\t"):
            names.devices[vendor, int(number, 16)] = name
        else:
            vendor = int(number, 16)
            names.vendors[vendor] = name


def vendor_name(vendor: int) -> str:
    """The vendor's name, or ``vendor 1234``."""
    return _names().vendors.get(vendor, f"vendor {vendor:04x}")


def device_name(vendor: int, device: int) -> str:
    """The device's name, or ``device 5678``."""
    return _names().devices.get((vendor, device), f"device {device:04x}")


def class_name(class_code: int) -> str:
    """The name of a 24-bit class code's base class."""
    base = class_code >> 16
    return CLASS_NAMES.get(base, f"class {base:02x}")
