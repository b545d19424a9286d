# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio bind``, ``unbind`` and ``restore``: which driver a device of this host has."""

from __future__ import annotations

import argparse
import grp
import pwd
import sys
from collections.abc import Iterable
from typing import Any

from pyvfio.backends.ioctl import binding, sysfs
from pyvfio.backends.ioctl.binding import HOST, KEEP, Host


def add_parser(verbs: Any) -> None:
    """Add the verbs to the command line."""
    bind = _add_verb(
        verbs,
        "bind",
        "give devices to vfio-pci",
        "Give devices to vfio-pci, so that they can be opened as vfio:ADDRESS. Either all that are"
        " named are bound, or none is changed. `pyvfio restore` undoes it.",
    )
    bind.add_argument(
        "--driver", default="vfio-pci", metavar="NAME", help="another driver than vfio-pci"
    )
    bind.add_argument(
        "-U",
        "--owner",
        type=_user,
        default=KEEP,
        metavar="USER",
        help="who gets the device nodes, so that the device can be driven without root",
    )
    bind.add_argument(
        "-G",
        "--owner-group",
        type=_group_of_users,
        default=KEEP,
        metavar="GROUP",
        help="a group of users who may use the device nodes",
    )
    _add_verb(
        verbs,
        "unbind",
        "take devices from their driver",
        "Take devices from their driver; they have none afterwards.",
    )
    _add_verb(
        verbs,
        "restore",
        "give devices back to the driver they had",
        "Give devices back to the driver that they had before the first bind or unbind.",
    )


def _add_verb(verbs: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=description)
    parser.add_argument(
        "bdf",
        nargs="+",
        type=_bdf,
        metavar="ADDRESS",
        help="DOMAIN:BUS:DEVICE.FUNCTION; without a domain it is 0000",
    )
    parser.add_argument(
        "--group", action="store_true", help="also all other endpoints of the IOMMU group"
    )
    parser.add_argument(
        "--force", action="store_true", help="even if a disk is mounted, an interface is up ..."
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be written, write nothing"
    )
    parser.add_argument(
        "-v", "--verbose", action="count", default=argparse.SUPPRESS, help="show each write"
    )
    parser.set_defaults(run=run, host=HOST)
    return parser


def _bdf(text: str) -> str:
    try:
        return sysfs.normal_bdf(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _user(text: str) -> int:
    try:
        return int(text) if text.isdecimal() else pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"no such user: {text}") from None


def _group_of_users(text: str) -> int:
    try:
        return int(text) if text.isdecimal() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise argparse.ArgumentTypeError(f"no such group of users: {text}") from None


def run(args: argparse.Namespace) -> int:
    """Change the driver, and say what the devices have now."""
    host: Host = args.host
    options: dict[str, Any] = {
        "group": args.group,
        "force": args.force,
        "dry_run": args.dry_run,
        "host": host,
    }
    if args.verb == "bind":
        options |= {"owner": args.owner, "owner_group": args.owner_group}
        lines = binding.bind(args.bdf, args.driver, **options)
    else:
        change = binding.unbind if args.verb == "unbind" else binding.restore
        lines = change(args.bdf, **options)
    if args.dry_run:
        print("\n".join(lines) if lines else "nothing to do")
        return 0
    found = binding.targets(args.bdf, args.group, host)
    for each in found:
        print(_state(each, host))
    if args.verb == "bind":
        _warn(found, host)
    return 0


def _state(found: sysfs.HostDevice, host: Host) -> str:
    state = f"{found.bdf}: driver {found.driver or 'none'}"
    if found.has_vfio_driver:
        state += "".join(f", {node}" for node in sysfs.device_nodes(found, host.dev))
    return state


def _warn(found: Iterable[sysfs.HostDevice], host: Host) -> None:
    """Say which groups cannot be used yet; binding as such was done."""
    for number in {each.iommu_group for each in found if each.has_vfio_driver}:
        blockers = () if number is None else sysfs.blockers(number, host.root)
        if blockers:
            who = "; ".join(f"{name} is bound to {driver}" for name, driver in blockers)
            print(f"pyvfio: IOMMU group {number} is not viable: {who}", file=sys.stderr)
            print(f"hint: pyvfio bind {' '.join(name for name, _ in blockers)}", file=sys.stderr)
