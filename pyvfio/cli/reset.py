# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio reset``: reset a device."""

from __future__ import annotations

import argparse
from typing import Any

import pyvfio
from pyvfio.cli.uris import add_uri


def add_parser(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "reset",
        help="reset a device",
        description="Reset a device; its command register stays as it is.  Prints nothing: the"
        " exit status is 0 where it was reset, 1 where it cannot be or refused.",
    )
    add_uri(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reset the device."""
    with pyvfio.open(args.uri) as dev:
        dev.reset()
    return 0
