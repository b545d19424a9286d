# SPDX-License-Identifier: BSD-3-Clause
"""What the kernel tells of this host's PCI devices: ids, driver, IOMMU group, and who uses them.

Only reads.  A device may be unplugged at any time: where its files vanish while they are read, it
counts as not there.  Every function takes the folder that stands for ``/sys``.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyvfio.errors import DeviceNotFound

SYSFS = Path("/sys")
PROC = Path("/proc")
DEV = Path("/dev")

_BDF = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([01]?[0-9a-f])\.([0-7])", re.IGNORECASE)
_MANAGED = frozenset({"pcieport", "pci-stub"})
BRIDGE = 0x06
"""The base class of bridges: to PCI, to the host, to ISA ..."""
_BRIDGES = frozenset({0x0604, 0x0607, 0x0609})
_IFF_UP = 1


@dataclass(frozen=True, slots=True)
class HostDevice:
    """One PCI function of this host.

    :ivar bdf: domain, bus, device and function as sysfs writes them: ``0000:03:00.0``.
    :ivar class_code: 24 bits: base class, subclass, programming interface.
    :ivar driver: what it is bound to.
    :ivar iommu_group: number of its IOMMU group; None where it has none.
    :ivar numa_node: None where the platform does not tell.
    :ivar reset_methods: how the kernel can reset it, best first (Linux 5.15 and newer).
    :ivar physical_function: BDF of the SR-IOV physical function that this is a part of.
    :ivar total_vfs: how many virtual functions it can have.
    :ivar cdev: name below ``/dev/vfio/devices``; only while bound to a VFIO driver.
    """

    bdf: str
    vendor: int
    device: int
    subsystem_vendor: int
    subsystem: int
    class_code: int
    revision: int
    driver: str | None = None
    iommu_group: int | None = None
    numa_node: int | None = None
    reset_methods: tuple[str, ...] = ()
    physical_function: str | None = None
    total_vfs: int = 0
    cdev: str | None = None

    @property
    def is_virtual_function(self) -> bool:
        """Whether it is a virtual function of SR-IOV."""
        return self.physical_function is not None

    @property
    def is_bridge(self) -> bool:
        """Whether it has a bus behind it; vfio-pci takes no such device."""
        return self.class_code >> 8 in _BRIDGES

    @property
    def has_vfio_driver(self) -> bool:
        """Whether vfio-pci or one of its variants has it."""
        return self.driver is not None and is_vfio(self.driver)


Selector = Callable[[HostDevice], bool]


def is_vfio(driver: str) -> bool:
    """Whether a driver hands its devices to users: vfio-pci and variants (mlx5_vfio_pci ...)."""
    return "vfio" in driver


def noiommu(root: Path = SYSFS) -> bool:
    """Whether VFIO gives out devices without an IOMMU (the kernel's no-IOMMU mode)."""
    text = _text(root / "module/vfio/parameters/enable_unsafe_noiommu_mode")
    return text in ("Y", "1")


def normal_bdf(text: str) -> str:
    """``3:0.0`` or ``0000:03:00.0`` as sysfs writes it; without a domain it is 0000.

    :raises ValueError: it is no PCI address.
    """
    match = _BDF.fullmatch(text)
    if match is None:
        raise ValueError(f"no PCI address: {text!r} (DOMAIN:BUS:DEVICE.FUNCTION: 0000:03:00.0)")
    domain, bus, slot, function = (int(part or "0", 16) for part in match.groups())
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function}"


def device(bdf: str, root: Path = SYSFS) -> HostDevice:
    """Read one device.

    :raises ValueError: malformed address.
    :raises DeviceNotFound: there is no such device, or it went away while it was read.
    """
    name = normal_bdf(bdf)
    found = _read(root / "bus/pci/devices" / name)
    if found is None:
        raise DeviceNotFound(
            "no such PCI device",
            op="look up",
            uri=name,
            errno=errno.ENOENT,
            hint="`pyvfio list` shows what there is",
        )
    return found


def devices(root: Path = SYSFS, selectors: Iterable[Selector] = ()) -> list[HostDevice]:
    """All devices that every selector accepts, in the order of their addresses."""
    wanted = tuple(selectors)
    folder = root / "bus/pci/devices"
    names = filter(_BDF.fullmatch, _list(folder))
    found = (_read(folder / name) for name in sorted(names, key=_address))
    return [each for each in found if each and all(accepts(each) for accepts in wanted)]


def _address(bdf: str) -> list[int]:
    return [int(part, 16) for part in re.split("[:.]", bdf)]


def _read(folder: Path) -> HostDevice | None:
    ids = [_number(folder / name) for name in ("vendor", "device", "class")]
    vendor, number, class_code = ids
    if vendor is None or number is None or class_code is None:
        return None
    group = _link(folder / "iommu_group")
    numa = _number(folder / "numa_node")
    read = HostDevice(
        bdf=folder.name,
        vendor=vendor,
        device=number,
        subsystem_vendor=_number(folder / "subsystem_vendor") or 0,
        subsystem=_number(folder / "subsystem_device") or 0,
        class_code=class_code,
        revision=_number(folder / "revision") or 0,
        driver=_link(folder / "driver"),
        iommu_group=int(group) if group else None,
        numa_node=None if numa is None or numa < 0 else numa,
        reset_methods=tuple((_text(folder / "reset_method") or "").split()),
        physical_function=_link(folder / "physfn"),
        total_vfs=_number(folder / "sriov_totalvfs") or 0,
        cdev=_cdev(folder / "vfio-dev"),
    )
    # Without this, a device that went away half-way would seem to have neither driver nor group.
    return read if folder.exists() else None


def _cdev(folder: Path) -> str | None:
    # A kernel without device nodes (CONFIG_VFIO_DEVICE_CDEV) has the entry too, but no number.
    return next((name for name in _list(folder) if (folder / name / "dev").exists()), None)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None  # ENOENT: never there, or gone; ENODEV: gone since it was opened


def _number(path: Path) -> int | None:
    try:
        return int(_text(path) or "", 0)
    except ValueError:
        return None


def _link(path: Path) -> str | None:
    try:
        return Path(os.readlink(path)).name
    except OSError:
        return None


def _list(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def group_members(group: int, root: Path = SYSFS) -> tuple[str, ...]:
    """The devices of an IOMMU group; not all need be PCI devices."""
    return tuple(_list(root / f"kernel/iommu_groups/{group}/devices"))


def blockers(group: int, root: Path = SYSFS) -> tuple[tuple[str, str], ...]:
    """(name, driver) of each device that keeps a group from being used: none, and it is viable.

    The kernel (``iommu_group_claim_dma_owner()``, Linux 5.19 and newer) accepts a group when each
    of its devices has no driver or one that leaves DMA alone (``driver_managed_dma``): VFIO's own,
    pci-stub, and pcieport on bridges.
    """
    folder = root / f"kernel/iommu_groups/{group}/devices"
    drivers = ((name, _link(folder / name / "driver")) for name in _list(folder))
    return tuple(
        (name, driver)
        for name, driver in drivers
        if driver is not None and driver not in _MANAGED and not is_vfio(driver)
    )


def device_nodes(found: HostDevice, dev: Path = DEV) -> tuple[Path, ...]:
    """The device nodes that belong to a bound device: its group's, and its own if it has one."""
    nodes = []
    if found.iommu_group is not None:
        unsafe = dev / f"vfio/noiommu-{found.iommu_group}"
        nodes.append(unsafe if unsafe.exists() else dev / f"vfio/{found.iommu_group}")
    if found.cdev is not None:
        nodes.append(dev / "vfio/devices" / found.cdev)
    return tuple(nodes)


# Selectors


def by_slot(text: str) -> Selector:
    """A selector in the notation of ``lspci -s``: ``[[[[domain]:]bus]:][device][.[function]]``.

    Parts are hexadecimal; one that is left out or ``*`` accepts all.

    :raises ValueError: malformed, or a part out of range.
    """
    head, colon, tail = text.rpartition(":")
    domain, _, bus = head.rpartition(":") if colon else ("", "", "")
    slot, _, function = tail.partition(".")
    parts = (
        _part(domain, 0x7FFF_FFFF, "domain", text),
        _part(bus, 0xFF, "bus", text),
        _part(slot, 0x1F, "device", text),
        _part(function, 7, "function", text),
    )

    def accepts(found: HostDevice) -> bool:
        address = _address(found.bdf)
        return all(want in (None, have) for want, have in zip(parts, address, strict=True))

    return accepts


def by_id(text: str) -> Selector:
    """A selector in the notation of ``lspci -d``: ``[vendor]:[device][:class[:interface]]``.

    Parts are hexadecimal; one that is left out or ``*`` accepts all.  In the class (16 bits) and
    the programming interface (8 bits) an ``x`` stands for any digit: ``::02xx``.

    :raises ValueError: malformed, or a part out of range.
    """
    vendor_text, colon, rest = text.partition(":")
    device_text, _, rest = rest.partition(":")
    class_text, _, interface_text = rest.partition(":")
    if not colon:
        raise ValueError(f"no selector of ids: {text!r} ([VENDOR]:[DEVICE][:CLASS])")
    vendor = _part(vendor_text, 0xFFFF, "vendor", text)
    number = _part(device_text, 0xFFFF, "device", text)
    pattern = _digits(class_text, 4, text) + _digits(interface_text, 2, text)

    def accepts(found: HostDevice) -> bool:
        digits = f"{found.class_code:06x}"
        return (
            vendor in (None, found.vendor)
            and number in (None, found.device)
            and all(want in ("x", have) for want, have in zip(pattern, digits, strict=True))
        )

    return accepts


def _part(text: str, most: int, what: str, whole: str) -> int | None:
    if text in ("", "*"):
        return None
    if not re.fullmatch("(?:0[xX])?[0-9a-fA-F]+", text) or int(text, 16) > most:
        raise ValueError(f"{what} {text!r} of {whole!r} is no hexadecimal number up to {most:x}")
    return int(text, 16)


def _digits(text: str, count: int, whole: str) -> str:
    if text in ("", "*"):
        return "x" * count
    if not re.fullmatch(f"[0-9a-fA-FxX]{{1,{count}}}", text):
        raise ValueError(f"{text!r} of {whole!r} is not {count} hexadecimal digits or x")
    return text.lower().rjust(count, "0")


# Who uses a device


def uses(
    found: HostDevice, root: Path = SYSFS, proc: Path = PROC, dev: Path = DEV
) -> tuple[str, ...]:
    """What on this host would break if the device's driver were taken away; a phrase each.

    Looked at: block devices below it (mounted, swapped on, part of a dm or md device, or opened
    exclusively by somebody), network interfaces that are up, its virtual functions, and VFIO users
    of its group.
    """
    below = (root / "bus/pci/devices" / found.bdf).resolve()
    disks = [disk for disk in _class(root, "block") if _is_below(disk, below)]
    taken = {**_mounts(proc, dev), **_swaps(proc, dev)}
    phrases = [phrase for disk in disks for phrase in _claims(disk, taken, root)]
    if not phrases:
        busy = (disk.name for disk in disks if _is_busy(dev / disk.name, os.O_EXCL))
        phrases += [f"{name} is opened exclusively by somebody" for name in busy]
    for interface in _class(root, "net"):
        flags = _number(interface / "flags") or 0
        if flags & _IFF_UP and _is_below(interface, below):
            phrases.append(f"network interface {interface.name} is up")
    if functions := _number(below / "sriov_numvfs"):
        phrases.append(f"virtual functions of it are enabled: {functions}")
    if found.has_vfio_driver:
        nodes = device_nodes(found, dev)[:1]
        phrases += [f"a process has {node} open" for node in nodes if _is_busy(node, os.O_RDWR)]
    return tuple(phrases)


def _class(root: Path, kind: str) -> list[Path]:
    folder = root / "class" / kind
    return [(folder / name).resolve() for name in _list(folder)]


def _is_below(path: Path, below: Path) -> bool:
    """Whether a device hangs below another, also through an NVMe subsystem of several paths."""
    if path.is_relative_to(below):
        return True
    for parent in path.parents:
        if re.fullmatch(r"nvme-subsys\d+", parent.name):
            controllers = (parent / name for name in _list(parent))
            return any(each.resolve().is_relative_to(below) for each in controllers)
    return False


def _claims(disk: Path, taken: Mapping[str, str], root: Path) -> Iterator[str]:
    name = disk.name
    how = taken.get(_text(disk / "dev") or name) or taken.get(name)
    if how is not None:
        yield f"{name} is {how}"
    for holder in _list(disk / "holders"):
        further = ", ".join(_claims(root / "class/block" / holder, taken, root))
        yield f"{name} is part of {holder}{f' ({further})' if further else ''}"


def _mounts(proc: Path, dev: Path) -> dict[str, str]:
    """Device number, and name of the source (btrfs has numbers of its own) -> ``mounted on /``."""
    found: dict[str, str] = {}
    for line in (_text(proc / "self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, sources = before.split(" "), after.split(" ")
        if len(fields) > 4 and len(sources) > 1:
            for name in (fields[2], _block_name(sources[1], dev)):
                found.setdefault(name, f"mounted on {_unescape(fields[4])}")
    return found


def _swaps(proc: Path, dev: Path) -> dict[str, str]:
    lines = (_text(proc / "swaps") or "").splitlines()[1:]
    return {_block_name(line.split()[0], dev): "used as swap" for line in lines if line}


def _block_name(source: str, dev: Path) -> str:
    """The kernel's name of ``/dev/mapper/x`` or ``/dev/disk/by-uuid/x``."""
    path = _unescape(source)
    return (dev / path[5:]).resolve().name if path.startswith("/dev/") else path


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _is_busy(node: Path, flags: int) -> bool:
    try:
        os.close(os.open(node, flags | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False
