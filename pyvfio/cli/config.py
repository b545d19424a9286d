# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio config``: configuration space, with the operands of ``setpci``."""

from __future__ import annotations

import argparse
import errno
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyvfio
from pyvfio.cli.peek import Scanner, Value, hexadecimal, parse_value
from pyvfio.cli.tables import size, table
from pyvfio.cli.uris import add_uri
from pyvfio.errors import RegionError, UnsupportedError
from pyvfio.pci.capabilities import Capability
from pyvfio.pci.config import ConfigSpace
from pyvfio.pci.device import PCIDevice
from pyvfio.pci.dump import address_of, dump
from pyvfio.pci.registers import PLACES, WIDTHS, Place, Shown, decode
from pyvfio.uapi import pci

_LETTERS = {width: letter for letter, width in WIDTHS.items()}
_DUMP_SIZES = {3: pci.CONFIG_SIZE, 4: pci.EXTENDED_CONFIG_SIZE}
_WRAPPER = textwrap.TextWrapper(
    96, initial_indent=" " * 8, subsequent_indent=" " * 8, break_on_hyphens=False
)
_MAX_CAPABILITY, _MAX_EXTENDED = 0xFF, 0xFFFF

_EPILOG = """\
REG is [BASE][+OFFSET][.WIDTH][@N], as setpci has it, all numbers hexadecimal:
  BASE    a name (see --dumpregs), an offset from the start, CAP_PM or CAP01 for a
          capability, ECAP_AER or ECAP1 for an extended one
  WIDTH   b, w or l for 1, 2 or 4 bytes; a named register has its own
  N       which capability of that kind, from 0
=VAL writes; with :MASK only the bits in MASK change (read, change, write); VAL,VAL
go to one register after the other.  Without =, the register is read and printed.

examples:
  pyvfio config /run/edu.sock COMMAND CAP_MSI+2.w
  pyvfio config -D /run/edu.sock COMMAND=4:4
"""


# The grammar


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand of the verb.

    :ivar place: where it is counted from.
    :ivar offset: bytes from there.
    :ivar width: bytes of one access.
    :ivar number: which of the capabilities of its kind, from 0.
    :ivar values: what to write; empty for a read.
    """

    place: Place
    offset: int
    width: int
    number: int = 0
    values: tuple[Value, ...] = ()

    @property
    def register(self) -> str:
        """The operand without its values."""
        offset = f"+{self.offset:x}" if self.offset else ""
        number = f"@{self.number:x}" if self.number else ""
        return f"{self.place}{offset}.{_LETTERS[self.width]}{number}"

    @property
    def length(self) -> int:
        """Bytes from the first to behind the last that is accessed."""
        return self.width * max(1, len(self.values))

    def __str__(self) -> str:
        return self.register + ("=" + ",".join(map(str, self.values)) if self.values else "")


def parse_operand(text: str) -> Operand:
    """Read ``REG[=VAL[:MASK][,VAL...]]``.

    :raises ValueError: it is something else; says what was expected where.
    """
    scanner = Scanner(text)
    place = _place(scanner)
    at = offset = number = 0
    width = place.width
    if scanner.accept("+"):
        at = scanner.at
        offset = scanner.number("an offset", pci.EXTENDED_CONFIG_SIZE - 1, ".@=")
    if scanner.accept("."):
        width = scanner.width(WIDTHS, "@=")
    if not width:
        raise scanner.error(f"a width ({', '.join('.' + letter for letter in WIDTHS)})")
    if place.capability is not None and scanner.accept("@"):
        number = scanner.number("the number of the capability, from 0,", 0xFFFF, "=")
    values = _values(scanner, width) if scanner.accept("=") else ()
    scanner.done("'=' or the end (@ counts capabilities)")
    operand = Operand(place, offset, width, number, values)
    _check_place(scanner, at, operand)
    return operand


def _place(scanner: Scanner) -> Place:
    name = scanner.until("+.@=").upper()
    address = hexadecimal(name)
    if address is not None:
        return Place(offset=address)
    if name in PLACES:
        return PLACES[name]
    for prefix, limit in (("CAP", _MAX_CAPABILITY), ("ECAP", _MAX_EXTENDED)):
        number = hexadecimal(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if number is not None and number <= limit:
            return Place(f"{prefix}{number:X}", capability=number, extended=prefix == "ECAP")
    raise scanner.error("a register (a name of --dumpregs, an offset, CAPxx or ECAPxxxx)", 0)


def _values(scanner: Scanner, width: int) -> tuple[Value, ...]:
    values = [parse_value(scanner, width)]
    while scanner.accept(","):
        values.append(parse_value(scanner, width))
    return tuple(values)


def _check_place(scanner: Scanner, at: int, operand: Operand) -> None:
    """The offset, which the operand has at ``at``, is in configuration space and aligned."""
    start = operand.place.offset + operand.offset
    last = pci.EXTENDED_CONFIG_SIZE - operand.length
    if start > last:
        raise scanner.error(f"a place in configuration space, at most {max(0, last):x},", at)
    if start % operand.width:
        raise scanner.error(f"a place at a multiple of the width, {operand.width} bytes,", at)


# The verb


class _DumpRegisters(argparse.Action):
    """``--dumpregs``: needs no device, so it ends the command as ``--help`` does."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print("cap pos w name")
        for place in PLACES.values():
            digits = 4 if place.extended else 2
            number = "" if place.capability is None else f"{place.capability:0{digits}x}"
            letter = _LETTERS.get(place.width, "-").upper()
            print(f"{number:>4} {place.offset:02x} {letter} {place.name}")
        parser.exit()


def add_parser(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "config",
        help="show, read and write configuration space",
        description="Show configuration space, or read and write registers in the order given.\n"
        "Nothing is written where one of the operands is wrong.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-D", "--dry-run", action="store_true", help="show what would be written, write nothing"
    )
    parser.add_argument("--dumpregs", action=_DumpRegisters, nargs=0, help="list names and exit")
    parser.add_argument(
        "-x",
        dest="hexdump",
        action="count",
        default=0,
        help="hexdump of the header, as lspci -F reads it; -xxx 256 bytes, -xxxx 4096",
    )
    parser.add_argument(
        "-o",
        "--output",
        choices=("text", "json"),
        default="text",
        help="what is shown without REG: for people, or JSON",
    )
    add_uri(parser)
    parser.add_argument("operands", metavar="REG[=VAL[:MASK],...]", nargs="*", help="see below")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show, read or write configuration space."""
    operands = [parse_operand(text) for text in args.operands]
    if sum((bool(operands), bool(args.hexdump), args.output == "json")) > 1:
        raise ValueError("config: expected only one of REG, -x and -o json")
    with pyvfio.open(args.uri) as dev:
        if operands:
            _execute(dev, operands, args.dry_run)
        elif args.hexdump:
            length = _DUMP_SIZES.get(min(args.hexdump, 4), pci.HEADER_SIZE)
            print(dump(dev.config, address_of(args.uri), length), end="")
        else:
            found = decode(dev)
            print(json.dumps(found, indent=2) if args.output == "json" else _as_text(found))
    return 0


def _execute(dev: PCIDevice, operands: Sequence[Operand], dry_run: bool) -> None:
    capabilities = list(dev.config.capabilities())
    places = [_locate(dev, operand, capabilities) for operand in operands]
    for operand, start in zip(operands, places, strict=True):
        if operand.values:
            _write(dev.config, operand, start, dry_run)
        else:
            print(f"{dev.config.read(start, operand.width):0{2 * operand.width}x}")


def _write(config: ConfigSpace, operand: Operand, start: int, dry_run: bool) -> None:
    width, digits = operand.width, 2 * operand.width
    for position, value in enumerate(operand.values):
        at = start + position * width
        must_read = dry_run or not value.replaces_all(width)
        old = config.read(at, width) if must_read else 0
        new = value.merged(old)
        if dry_run:
            print(f"{operand.register} @{at:02x}: {old:0{digits}x} -> {new:0{digits}x}")
        else:
            config.write(at, width, new)


# Where a register is on this device


def _locate(dev: PCIDevice, operand: Operand, capabilities: Sequence[Capability]) -> int:
    """The register's offset from the start of configuration space.

    :raises UnsupportedError: the device has no such capability or register.
    :raises RegionError: it is outside of the capability, or of configuration space.
    """
    place, start, limit = operand.place, operand.place.offset + operand.offset, dev.config.size
    kind = dev.config.header_type & 0x7F
    if place.headers and kind not in place.headers:
        reason = f"a header of type {kind} has no such register"
        raise UnsupportedError(reason, op=operand.register, uri=dev.uri)
    outside, hint = f"configuration space, which is at 0 to {limit - 1:x}", ""
    if place.capability is not None:
        capability = _capability(dev, operand, capabilities)
        start += capability.offset
        if start + operand.length <= limit:
            limit = _end(capability, capabilities, limit)
            outside = f"the capability, which is at {capability.offset:x} to {limit - 1:x}"
            hint = f"{start:x}.{_LETTERS[operand.width]} is the same place, whatever it belongs to"
    if start + operand.length > limit:
        raise RegionError(
            f"outside of {outside}", op=operand.register, uri=dev.uri, errno=errno.EINVAL, hint=hint
        )
    return start


def _capability(dev: PCIDevice, operand: Operand, capabilities: Sequence[Capability]) -> Capability:
    place = operand.place
    kind = [c for c in capabilities if c.extended == place.extended]
    same = [c for c in kind if c.id == place.capability]
    if operand.number < len(same):
        return same[operand.number]
    raise UnsupportedError(
        f"the device has {len(same) or 'no'} {place}{', counted from @0' if same else ''}",
        op=operand.register,
        uri=dev.uri,
        hint=f"it has {', '.join(map(_name, kind)) or 'no capability of this sort'}",
    )


def _name(capability: Capability) -> str:
    """What to type for a capability."""
    for place in PLACES.values():
        if (place.capability, place.extended) == (capability.id, capability.extended):
            return place.name
    return f"{'ECAP' if capability.extended else 'CAP'}{capability.id:X}"


def _end(capability: Capability, capabilities: Sequence[Capability], limit: int) -> int:
    """Where the room of a capability ends: at the next one, or with its part of the space."""
    last = limit if capability.extended else min(limit, pci.CONFIG_SIZE)
    return min([last, *(c.offset for c in capabilities if c.offset > capability.offset)])


# The decoded view


def _as_text(found: dict[str, Any]) -> str:
    """The record of :func:`~pyvfio.pci.registers.decode` for people."""
    pin = found["interrupt_pin"]
    return "\n".join(
        [
            found["uri"],
            f"  {found['vendor']:04x}:{found['device']:04x}  {found['vendor_name']}"
            f" {found['device_name']}  (rev {found['revision']:02x})",
            f"  class {found['class']:06x} {found['class_name']},"
            f" subsystem {found['subsystem_vendor']:04x}:{found['subsystem']:04x}",
            f"  command {found['command']['value']:04x}  {' '.join(found['command']['bits'])}",
            f"  status  {found['status']['value']:04x}  {' '.join(found['status']['bits'])}",
            f"  header type {found['header_type']}, cache line {found['cache_line_bytes']} bytes,"
            f" latency timer {found['latency_timer']},"
            f" interrupt {f'INT{pin + 9:X}' if pin else 'none'}",
            "",
            _bar_table(found),
            "Capabilities" if found["capabilities"] else "Capabilities: none",
            *(_capability_text(capability) for capability in found["capabilities"]),
        ]
    )


def _bar_table(found: dict[str, Any]) -> str:
    rows = [
        [
            f"bar{bar['number']}",
            f"{bar['address']:#x}",
            size(bar["size"]),
            bar["type"] + (", prefetchable" if bar["prefetchable"] else ""),
        ]
        for bar in found["bars"]
    ]
    return table("BARs", ["bar", "address", "size", "type"], rows)


def _capability_text(capability: dict[str, Any]) -> str:
    version = f" v{capability['version']}" if capability["extended"] else ""
    digits = 4 if capability["extended"] else 2
    head = f"  [{capability['offset']:03x}] {capability['id']:0{digits}x} {capability['name']}"
    fields = ", ".join(_field_text(*field) for field in capability["fields"].items())
    return "\n".join([head + version, *_WRAPPER.wrap(fields)])


def _field_text(name: str, value: Shown) -> str:
    return f"{name}{'+' if value else '-'}" if isinstance(value, bool) else f"{name} {value}"
