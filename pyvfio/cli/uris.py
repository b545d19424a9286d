# SPDX-License-Identifier: BSD-3-Clause
"""What users type for a device: a URI, or the path of a socket."""

from __future__ import annotations

import argparse
import re

URI_HELP = "vfio:BDF or vfio-user:PATH, or just the BDF or the path; options as ?NAME=VALUE"

_BDF = re.compile(r"([0-9a-fA-F]{1,4}:)?[0-9a-fA-F]{1,2}:[0-9a-fA-F]{1,2}\.[0-7](\?|$)")


def as_uri(text: str) -> str:
    """The URI that ``text`` stands for: a PCI address, or the path of a vfio-user socket."""
    if _BDF.match(text):
        return f"vfio:{text}"
    scheme, colon, _ = text.partition(":")
    if "/" in text and (not colon or "/" in scheme):
        return f"vfio-user:{text}"
    return text


def add_uri(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Give a verb its device argument."""
    parser.add_argument(
        "uri", type=as_uri, metavar="URI", nargs="?" if optional else None, help=URI_HELP
    )
