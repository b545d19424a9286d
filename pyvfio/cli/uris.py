# SPDX-License-Identifier: BSD-3-Clause
"""What users type for a device: a URI, or the path of a socket."""

from __future__ import annotations

import argparse

URI_HELP = "vfio-user:PATH, or just the path of a socket"


def as_uri(text: str) -> str:
    """The URI that ``text`` stands for: a path with a slash is a vfio-user socket."""
    scheme, colon, _ = text.partition(":")
    if "/" in text and (not colon or "/" in scheme):
        return f"vfio-user:{text}"
    return text


def add_uri(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Give a verb its device argument."""
    parser.add_argument(
        "uri", type=as_uri, metavar="URI", nargs="?" if optional else None, help=URI_HELP
    )
