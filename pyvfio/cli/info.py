# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio info``: what a device is and has."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pyvfio
from pyvfio.cli.describe import as_text, describe
from pyvfio.cli.uris import add_uri


def add_parser(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("info", help="print what a device is and has", description=__doc__)
    add_uri(parser)
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="tables, or JSON"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the device."""
    with pyvfio.open(args.uri) as dev:
        found = describe(dev)
    print(json.dumps(found, indent=2) if args.output == "json" else as_text(found), end="")
    if args.output == "json":
        print()
    return 0
