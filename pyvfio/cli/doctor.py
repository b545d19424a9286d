# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio doctor``: whether this host can give devices to user space, and what would mend it."""

from __future__ import annotations

import argparse
import enum
import json
import os
import platform
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pyvfio.backends.ioctl import sysfs
from pyvfio.backends.ioctl.binding import HOST, Host
from pyvfio.cli.tables import size

UNAVAILABLE = 3
CAP_IPC_LOCK = 14
LITTLE_MEMLOCK = 64 << 20
"""Bytes below which many a driver's buffers do not fit; the default of distributions is 8 MiB."""

_MODULES = {
    "vfio": "class/vfio",
    "vfio_iommu_type1": None,
    "vfio_pci": "bus/pci/drivers/vfio-pci",
}
"""Module -> what else in sysfs shows that it is there, built in."""
_UNSAFE = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
_NOIOMMU = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"


class Verdict(enum.StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


class Check(NamedTuple):
    """One check: what was found, and the command that mends it."""

    name: str
    verdict: Verdict
    found: str
    mend: str = ""


def add_parser(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "doctor",
        help="check what driving devices of this host needs",
        description="Check what driving PCI devices of this host needs, and say what mends it."
        " Exit status 3 if something is missing. vfio-user needs none of it.",
    )
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="lines, or JSON"
    )
    parser.set_defaults(run=run, host=HOST)


def run(args: argparse.Namespace) -> int:
    """Print the checks; 3 where one failed."""
    found = list(checks(args.host))
    if args.output == "json":
        print(json.dumps([check._asdict() for check in found], indent=2))
    else:
        for check in found:
            print(f"{check.verdict:<5} {check.name:<24} {check.found}")
            if check.mend:
                print(f"{'':<30} mend: {check.mend}")
    return UNAVAILABLE if any(check.verdict is Verdict.FAIL for check in found) else 0


def checks(host: Host = HOST) -> Iterator[Check]:
    """All checks, in the order in which they build on one another."""
    yield Check("kernel", Verdict.OK, platform.release())
    yield iommu(host)
    yield groups(host)
    yield interrupt_remapping(host)
    yield no_iommu_mode(host)
    for name in _MODULES:
        yield module(name, host)
    yield container_node(host)
    yield iommufd(host)
    yield bound_devices(host)
    yield memlock(host)


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def iommu(host: Host) -> Check:
    """Is there an IOMMU, and does the kernel use it?"""
    found = _entries(host.root / "class/iommu")
    if found:
        return Check("IOMMU", Verdict.OK, ", ".join(found))
    tables = _entries(host.root / "firmware/acpi/tables")
    if "DMAR" in tables:
        mend = "add intel_iommu=on to the kernel's command line, and start again"
        return Check("IOMMU", Verdict.FAIL, "Intel VT-d is there, the kernel leaves it off", mend)
    if "IVRS" in tables:
        mend = "remove amd_iommu=off or iommu=off from the kernel's command line, and start again"
        return Check("IOMMU", Verdict.FAIL, "AMD-Vi is there, the kernel leaves it off", mend)
    mend = (
        "turn it on in the firmware (VT-d, AMD-Vi, IOMMU, SMMU); in a virtual machine give it one:"
        " qemu-system-x86_64 -M q35,kernel-irqchip=split -device intel-iommu,intremap=on"
    )
    return Check("IOMMU", Verdict.FAIL, "none, or the firmware hides it", mend)


def groups(host: Host) -> Check:
    """Are there IOMMU groups?"""
    found = _entries(host.root / "kernel/iommu_groups")
    if not found:
        mend = "as for the IOMMU"
        return Check("IOMMU groups", Verdict.FAIL, "none: no device can be opened", mend)
    return Check("IOMMU groups", Verdict.OK, f"{len(found)}")


def interrupt_remapping(host: Host, machine: str | None = None) -> Check:
    """Can a device's interrupts be confined?  Without, type1 refuses each group with EPERM."""
    name = "interrupt remapping"
    machine = machine or platform.machine()
    if machine not in ("x86_64", "i686"):
        return Check(name, Verdict.OK, f"not a question on {machine}")
    if not _entries(host.root / "class/iommu"):
        return Check(name, Verdict.WARN, "not to be had without an IOMMU")
    if re.search(r"\bIR-(IO-APIC|PCI-MSI)", _text(host.proc / "interrupts")):
        return Check(name, Verdict.OK, "on")
    parameter = host.root / "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
    if _text(parameter).strip() in ("Y", "1"):
        return Check(
            name, Verdict.WARN, "off; a device may raise any interrupt", f"echo N > {_UNSAFE}"
        )
    mend = (
        "turn it on in the firmware (with x2APIC), remove intremap=off from the command line; or,"
        f" for devices that are trusted: echo Y > {_UNSAFE}"
    )
    return Check(name, Verdict.FAIL, "off, and unsafe interrupts are not allowed", mend)


def no_iommu_mode(host: Host) -> Check:
    """Does the kernel give out devices that no IOMMU confines?"""
    if sysfs.noiommu(host.root):
        found = "on: a device without an IOMMU may be opened and can reach all memory"
        return Check("no-IOMMU mode", Verdict.WARN, found, f"echo N > {_NOIOMMU}")
    return Check("no-IOMMU mode", Verdict.OK, "off")


def module(name: str, host: Host) -> Check:
    """Is a module loaded or built in?"""
    title = f"module {name}"
    if (host.root / "module" / name / "initstate").exists():
        return Check(title, Verdict.OK, "loaded")
    evidence = _MODULES[name]
    shown = evidence is not None and (host.root / evidence).exists()
    folder = host.modules / platform.release()
    if shown or (host.root / "module" / name).exists():
        return Check(title, Verdict.OK, "built in")
    if _lists(folder / "modules.builtin", name):
        return Check(title, Verdict.OK, "built in")
    if folder.is_dir() and not _lists(folder / "modules.dep", name):
        mend = f"start a kernel with CONFIG_{name.upper()}=m or =y"
        return Check(title, Verdict.FAIL, "this kernel was built without it", mend)
    return Check(title, Verdict.FAIL, "not loaded", f"modprobe {name}")


def _lists(path: Path, name: str) -> bool:
    """Whether a list of modules has one; file names have ``-`` where module names have ``_``."""
    pattern = rf"^[^:\n]*/{name.replace('_', '[-_]')}\.ko\b"
    return re.search(pattern, _text(path), re.MULTILINE) is not None


def container_node(host: Host) -> Check:
    """Can a container be made?"""
    node = host.dev / "vfio/vfio"
    if not node.exists():
        mend = "modprobe vfio; into an OCI container it is passed with --device /dev/vfio"
        return Check(str(node), Verdict.FAIL, "not there", mend)
    if not os.access(node, os.R_OK | os.W_OK):
        # It hands out no device: what may be driven is decided by the nodes of the groups.
        return Check(str(node), Verdict.FAIL, _who(node), f"chmod 666 {node}")
    return Check(str(node), Verdict.OK, "may be read and written")


def _who(node: Path) -> str:
    status = node.stat()
    mode = status.st_mode & 0o777
    return (
        f"mode {mode:o}, user {status.st_uid}, group {status.st_gid}:"
        f" not for this user ({os.geteuid()})"
    )


def iommufd(host: Host) -> Check:
    """Is the successor of containers there?  Nothing needs it."""
    there = (host.dev / "iommu").exists()
    nodes = _entries(host.dev / "vfio/devices")
    found = "/dev/iommu is there" if there else "not in this kernel; groups and type1 are used"
    return Check("iommufd", Verdict.OK, f"{found}; {len(nodes)} device nodes" if nodes else found)


def bound_devices(host: Host) -> Check:
    """Is a device bound, and may this user open one?"""
    bound = [each for each in sysfs.devices(host.root) if each.has_vfio_driver]
    if not bound:
        return Check("bound devices", Verdict.WARN, "none", "pyvfio bind ADDRESS")
    wrong = {each.bdf: trouble for each in bound if (trouble := _trouble(each, host))}
    if not wrong:
        return Check("bound devices", Verdict.OK, ", ".join(each.bdf for each in bound))
    found = "; ".join(f"{bdf}: {what}" for bdf, (what, _) in wrong.items())
    mend = "; ".join(dict.fromkeys(mend for _, mend in wrong.values()))
    # Somebody else's device may be none of this user's business, unless there is no other.
    verdict = Verdict.FAIL if len(wrong) == len(bound) else Verdict.WARN
    return Check("bound devices", verdict, found, mend)


def _trouble(found: sysfs.HostDevice, host: Host) -> tuple[str, str] | None:
    """What keeps a bound device from being opened, and the command against it."""
    if found.iommu_group is not None:
        blockers = sysfs.blockers(found.iommu_group, host.root)
        if blockers:
            who = ", ".join(f"{name} ({driver})" for name, driver in blockers)
            mend = f"pyvfio bind {' '.join(name for name, _ in blockers)}"
            return f"group {found.iommu_group} is not viable: {who}", mend
    for node in sysfs.device_nodes(found, host.dev)[:1]:
        if not node.exists():
            return f"no {node}", f"in an OCI container: --device {node}"
        if not os.access(node, os.R_OK | os.W_OK):
            return f"{node}: {_who(node)}", f"pyvfio bind --owner {os.geteuid()} {found.bdf}"
    return None


def memlock(host: Host) -> Check:
    """How much memory may be pinned for DMA?"""
    if _may_lock(host):
        return Check("locked memory", Verdict.OK, "no limit (CAP_IPC_LOCK)")
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Check("locked memory", Verdict.OK, "no limit")
    found = f"at most {size(soft)} for DMA (RLIMIT_MEMLOCK)"
    if soft >= LITTLE_MEMLOCK:
        return Check("locked memory", Verdict.OK, found)
    if hard == resource.RLIM_INFINITY or hard >= LITTLE_MEMLOCK:
        mend = f"ulimit -l {'unlimited' if hard == resource.RLIM_INFINITY else hard // 1024}"
    else:
        mend = "as root: prlimit --memlock=unlimited --pid $$; for good: limits.conf(5)"
    return Check("locked memory", Verdict.WARN, found, mend)


def _may_lock(host: Host) -> bool:
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", _text(host.proc / "self/status"), re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> CAP_IPC_LOCK & 1)
