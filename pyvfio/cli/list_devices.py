# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio list``: the PCI devices of this host, and whether they can be driven."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from pyvfio.backends.ioctl import sysfs
from pyvfio.backends.ioctl.binding import HOST, Host
from pyvfio.backends.ioctl.sysfs import HostDevice
from pyvfio.cli.tables import table
from pyvfio.pci import names

_NO_GROUPS = (
    "no device of this host has an IOMMU group, so none can be driven through VFIO: turn the IOMMU"
    " on in the firmware and on the kernel's command line; `pyvfio doctor` says what is missing"
)


def add_parser(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "list",
        help="list the PCI devices of this host",
        description="List the PCI devices of this host: ids, driver, IOMMU group. A group is"
        " viable when no other driver of the host holds a device of it.",
    )
    parser.add_argument(
        "-s",
        "--slot",
        type=_selector_type(sysfs.by_slot),
        metavar="[[[DOMAIN:]BUS:]][DEVICE][.FUNCTION]",
        help="only these addresses, as of lspci; hexadecimal, * for all",
    )
    parser.add_argument(
        "-d",
        "--device",
        type=_selector_type(sysfs.by_id),
        metavar="[VENDOR]:[DEVICE][:CLASS]",
        help="only these ids, as of lspci; hexadecimal, * for all, x in a class for any digit",
    )
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="a table, or JSON"
    )
    parser.add_argument(
        "-v", "--verbose", action="count", default=argparse.SUPPRESS, help="all there is to know"
    )
    parser.set_defaults(run=run, host=HOST)


def _selector_type(parse: Any) -> Any:
    def convert(text: str) -> sysfs.Selector:
        try:
            selector: sysfs.Selector = parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return selector

    return convert


def run(args: argparse.Namespace) -> int:
    """Print the devices."""
    host: Host = args.host
    everything = sysfs.devices(host.root)
    selectors = [accepts for accepts in (args.slot, args.device) if accepts is not None]
    found = [each for each in everything if all(accepts(each) for accepts in selectors)]
    if args.output == "json":
        print(json.dumps([_record(each, host) for each in found], indent=2))
    elif args.verbose:
        print("\n".join(_paragraph(each, host) for each in found), end="")
    else:
        heads = ["address", "ids", "driver", "group", "viable", "class", "name"]
        print(table("PCI devices", heads, [_row(each, host) for each in found]), end="")
    if everything and all(each.iommu_group is None for each in everything):
        print(f"hint: {_NO_GROUPS}", file=sys.stderr)
    return 0


def _name(found: HostDevice) -> str:
    vendor = names.vendor_name(found.vendor)
    return f"{vendor} {names.device_name(found.vendor, found.device)}"


def _blockers(found: HostDevice, host: Host) -> tuple[tuple[str, str], ...]:
    return () if found.iommu_group is None else sysfs.blockers(found.iommu_group, host.root)


def _record(found: HostDevice, host: Host) -> dict[str, Any]:
    record = dataclasses.asdict(found)
    class_code = record.pop("class_code")
    return record | {
        "vendor_name": names.vendor_name(found.vendor),
        "device_name": names.device_name(found.vendor, found.device),
        "class": class_code,
        "class_name": names.class_name(class_code),
        "viable": None if found.iommu_group is None else not _blockers(found, host),
        "blockers": [list(blocker) for blocker in _blockers(found, host)],
    }


def _row(found: HostDevice, host: Host) -> list[str]:
    viable = "no" if _blockers(found, host) else "yes"
    return [
        found.bdf,
        f"{found.vendor:04x}:{found.device:04x}",
        found.driver or "-",
        "-" if found.iommu_group is None else str(found.iommu_group),
        "-" if found.iommu_group is None else viable,
        names.class_name(found.class_code),
        _name(found),
    ]


def _paragraph(found: HostDevice, host: Host) -> str:
    lines = [
        f"{found.bdf}  {found.vendor:04x}:{found.device:04x}  {_name(found)}"
        f"  (rev {found.revision:02x})",
        f"  class {found.class_code:06x} {names.class_name(found.class_code)},"
        f" subsystem {found.subsystem_vendor:04x}:{found.subsystem:04x}",
        f"  driver {found.driver or 'none'}",
        *_group_lines(found, host),
    ]
    if found.numa_node is not None:
        lines.append(f"  NUMA node {found.numa_node}")
    if found.reset_methods:
        lines.append(f"  reset by {', '.join(found.reset_methods)}")
    if found.physical_function is not None:
        lines.append(f"  virtual function of {found.physical_function}")
    if found.total_vfs:
        lines.append(f"  can have {found.total_vfs} virtual functions")
    return "\n".join(lines) + "\n"


def _group_lines(found: HostDevice, host: Host) -> list[str]:
    if found.iommu_group is None:
        return ["  no IOMMU group"]
    blockers = [f"{name} is bound to {driver}" for name, driver in _blockers(found, host)]
    others = [n for n in sysfs.group_members(found.iommu_group, host.root) if n != found.bdf]
    lines = [
        f"  IOMMU group {found.iommu_group}, with {', '.join(others) or 'no other device'}",
        f"  not viable: {'; '.join(blockers)}" if blockers else "  viable",
    ]
    if found.has_vfio_driver:
        nodes = sysfs.device_nodes(found, host.dev)
        lines.append(f"  nodes {', '.join(str(node) for node in nodes)}")
    return lines
