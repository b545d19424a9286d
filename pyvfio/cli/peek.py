# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio peek`` and ``pyvfio poke``: registers of any region, one access of one width each."""

from __future__ import annotations

import argparse
import errno
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyvfio
from pyvfio.cli.uris import add_uri
from pyvfio.errors import RegionError
from pyvfio.pci.device import PCIDevice
from pyvfio.region import Region
from pyvfio.uapi import pci

WIDTHS = {"b": 1, "w": 2, "l": 4, "q": 8}
"""Letters for bytes of an access; configuration space has no accesses of 8."""
REGIONS = (*(f"bar{number}" for number in range(pci.NUM_BARS)), "config", "rom")
LINE = 16
_LETTERS = {width: letter for letter, width in WIDTHS.items()}
_LAST = (1 << 64) - 1
_CONFIG_WIDTH = 4
_LONGEST_SECONDS = 1e6

_EPILOG = """\
REGION is bar0 to bar5, config or rom; OFFSET counts bytes from its start; the width is
b, w, l or q for 1, 2, 4 or 8 bytes, l by default.  All numbers are hexadecimal, with or
without 0x, COUNT as well.
"""
_POKE_EPILOG = f"""\
With :MASK the register is read, the bits in MASK are changed, and it is written: two
accesses, and what the device changes between them is lost.  Without, it is written only.

{_EPILOG}"""


# The grammar; that of ``pyvfio config`` is built of the same parts


class Scanner:
    """Reads an operand from left to right; errors name the operand and the position, from 1."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def accept(self, literal: str) -> bool:
        """Step over ``literal`` if it comes next."""
        found = self.text.startswith(literal, self.at)
        self.at += len(literal) if found else 0
        return found

    def until(self, ends: str) -> str:
        """What comes before the first of the characters ``ends``, or before the end."""
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in ends:
            self.at += 1
        return self.text[start : self.at]

    def number(self, what: str, limit: int, ends: str) -> int:
        """A hexadecimal number of at most ``limit``."""
        start = self.at
        value = hexadecimal(self.until(ends))
        if value is None or value > limit:
            raise self.error(f"{what} in hexadecimal, at most {limit:x},", start)
        return value

    def width(self, letters: Mapping[str, int], ends: str) -> int:
        """Bytes of an access, from their letter."""
        start = self.at
        width = letters.get(self.until(ends).lower())
        if width is None:
            raise self.error(f"one of {', '.join(letters)}", start)
        return width

    def done(self, expected: str) -> None:
        """Raise unless everything was read."""
        if self.at < len(self.text):
            raise self.error(expected)

    def error(self, expected: str, at: int | None = None) -> ValueError:
        """What to raise where something else stands at ``at``, by default here."""
        at = self.at if at is None else at
        found = repr(self.text[at:]) if at < len(self.text) else "the end"
        return ValueError(f"{self.text!r}: expected {expected} at position {at + 1}, found {found}")


def hexadecimal(text: str) -> int | None:
    """What hexadecimal digits stand for, with or without 0x; None where it is something else."""
    return int(text, 16) if re.fullmatch(r"(?:0[xX])?[0-9a-fA-F]+", text) else None


@dataclass(frozen=True, slots=True)
class Value:
    """A value to write; with a mask, only its bits are changed."""

    value: int
    mask: int | None = None

    def __str__(self) -> str:
        return f"{self.value:x}" if self.mask is None else f"{self.value:x}:{self.mask:x}"

    def replaces_all(self, width: int) -> bool:
        """Whether the old contents of ``width`` bytes do not matter."""
        return self.mask is None or self.mask == (1 << 8 * width) - 1

    def merged(self, old: int) -> int:
        """What to write where ``old`` stands."""
        if self.mask is None:
            return self.value
        return (old & ~self.mask) | (self.value & self.mask)


def parse_value(scanner: Scanner, width: int) -> Value:
    """Read ``VAL[:MASK]``; both fit into ``width`` bytes."""
    limit = (1 << 8 * width) - 1
    value = scanner.number("a value", limit, ":,")
    mask = scanner.number("a mask", limit, ",") if scanner.accept(":") else None
    return Value(value, mask)


@dataclass(frozen=True, slots=True)
class Location:
    """A register of a region: its name, bytes from its start, bytes of an access."""

    region: str
    offset: int
    width: int

    def __str__(self) -> str:
        return f"{self.region}+{self.offset:x}.{_LETTERS[self.width]}"


def parse_location(text: str) -> Location:
    """Read ``REGION+OFFSET[.WIDTH]``.

    :raises ValueError: it is something else; says what was expected where.
    """
    scanner = Scanner(text)
    location = _location(scanner)
    scanner.done("the end")
    return location


def parse_write(text: str) -> tuple[Location, Value]:
    """Read ``REGION+OFFSET[.WIDTH]=VAL[:MASK]``; raises as :func:`parse_location` does."""
    scanner = Scanner(text)
    location = _location(scanner)
    if not scanner.accept("="):
        raise scanner.error("'='")
    value = parse_value(scanner, location.width)
    scanner.done("the end")
    return location, value


def _location(scanner: Scanner) -> Location:
    region = scanner.until("+.=").lower()
    if region not in REGIONS:
        raise scanner.error(f"one of {', '.join(REGIONS)}", 0)
    if not scanner.accept("+"):
        raise scanner.error("'+' and an offset")
    start = scanner.at
    offset = scanner.number("an offset", _LAST, ".=")
    known = {k: v for k, v in WIDTHS.items() if region != "config" or v <= _CONFIG_WIDTH}
    width = scanner.width(known, "=") if scanner.accept(".") else WIDTHS["l"]
    if offset % width:
        raise scanner.error(f"an offset that is a multiple of the width, {width} bytes,", start)
    return Location(region, offset, width)


# The verbs


def add_parser(verbs: Any) -> None:
    """Add both verbs to the command line."""
    peek = verbs.add_parser(
        "peek",
        help="read registers of a region",
        description="Read COUNT registers in a row, each with one access of exactly that width.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_uri(peek)
    peek.add_argument("location", metavar="REGION+OFFSET[.WIDTH]", help="for instance bar0+10.l")
    peek.add_argument(
        "count", metavar="COUNT", nargs="?", default="1", help="registers in a row (default 1)"
    )
    peek.add_argument(
        "--watch",
        type=_seconds,
        metavar="SECONDS",
        help="read again and again until interrupted; after the first time, print changes only",
    )
    peek.set_defaults(run=run_peek)
    poke = verbs.add_parser(
        "poke",
        help="write registers of a region",
        description="Write registers in the order given, each with one access of exactly that"
        " width.\nNothing is written where one of the operands is wrong.",
        epilog=_POKE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_uri(poke)
    poke.add_argument("writes", metavar="REGION+OFFSET[.WIDTH]=VAL[:MASK]", nargs="+")
    poke.set_defaults(run=run_poke)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise ValueError
    return seconds


def run_peek(args: argparse.Namespace) -> int:
    """Read and print."""
    location, count = parse_location(args.location), hexadecimal(args.count)
    if not count:
        raise ValueError(f"{args.count!r}: expected a COUNT in hexadecimal, at least 1")
    with pyvfio.open(args.uri) as dev:
        region = _region(dev, location, count)
        if args.watch is not None:
            _watch(region, location, count, args.watch)
        else:
            for line in _lines(region, location, count):
                print(line)
    return 0


def run_poke(args: argparse.Namespace) -> int:
    """Write."""
    writes = [parse_write(text) for text in args.writes]
    with pyvfio.open(args.uri) as dev:
        regions = [_region(dev, location, 1) for location, _ in writes]
        for region, (location, value) in zip(regions, writes, strict=True):
            offset, width = location.offset, location.width
            old = 0 if value.replaces_all(width) else region.read(offset, width)
            region.write(offset, width, value.merged(old))
    return 0


def _region(dev: PCIDevice, location: Location, count: int) -> Region:
    """The region of a location, in which ``count`` accesses have room."""
    region: Region | None
    if location.region == "config":
        region = dev.config
    elif location.region == "rom":
        region = dev.rom
    else:
        region = dev.bars[REGIONS.index(location.region)]
    if region is None:
        reason, number = "the device has no expansion ROM", errno.ENXIO
    elif location.offset + count * location.width > region.size:
        reason, number = f"outside of the region, which has {region.size:#x} bytes", errno.EINVAL
    else:
        return region
    what = f"{location}, {count:#x} in a row" if count > 1 else str(location)
    raise RegionError(reason, op=what, uri=dev.uri, errno=number)


def _lines(region: Region, location: Location, count: int) -> Iterator[str]:
    """The registers in lines of 16 bytes, each with its offset; one alone is only its value."""
    offset, width = location.offset, location.width
    if count == 1:
        yield _read(region, offset, width)
        return
    end = offset + count * width
    digits = max(4, len(f"{end - 1:x}"))
    for start in range(offset, end, LINE):
        places = range(start, min(start + LINE, end), width)
        values = " ".join(_read(region, at, width) for at in places)
        yield f"{start:0{digits}x}: {values}"


def _read(region: Region, offset: int, width: int) -> str:
    return f"{region.read(offset, width):0{2 * width}x}"


def _watch(region: Region, location: Location, count: int, seconds: float) -> None:
    """Print what changed, each line with the seconds since the start; ends when interrupted."""
    started = time.monotonic()
    before: dict[int, str] = {}
    while True:
        for number, line in enumerate(_lines(region, location, count)):
            if before.get(number) != line:
                before[number] = line
                print(f"{time.monotonic() - started:10.3f}  {line}", flush=True)
        time.sleep(seconds)
