# SPDX-License-Identifier: BSD-3-Clause
"""For code in the guest: find PCI devices and bind them to a driver, by sysfs alone."""

from __future__ import annotations

from pathlib import Path

PCI = Path("/sys/bus/pci")


def find(ids: str) -> list[str]:
    """The addresses of all devices with these ``vendor:device`` numbers, in order.

    >>> find("1234:11e8")  # doctest: +SKIP
    ['0000:00:04.0', '0000:02:00.0', '0000:02:00.1', '0000:03:01.0']
    """
    return sorted(path.name for path in (PCI / "devices").iterdir() if _ids(path) == ids.lower())


def group(address: str) -> int:
    """The number of a device's IOMMU group."""
    return int((PCI / "devices" / address / "iommu_group").resolve(strict=True).name)


def driver(address: str) -> str | None:
    """The driver that has a device."""
    link = PCI / "devices" / address / "driver"
    return link.resolve().name if link.exists() else None


def bind(address: str, name: str = "vfio-pci") -> None:
    """Give a device that has no driver to the named one.

    :raises OSError: the driver did not take it, or another one has it.
    """
    (PCI / "devices" / address / "driver_override").write_text(f"{name}\n")
    if driver(address) is None:
        (PCI / "drivers_probe").write_text(address)
    # the probe reports no failure
    if driver(address) != name:
        raise OSError(f"{address} is not bound to {name} but to {driver(address)}")


def _ids(device: Path) -> str:
    vendor, product = (int((device / name).read_text(), 16) for name in ("vendor", "device"))
    return f"{vendor:04x}:{product:04x}"
