# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio serve``: host a device model on a vfio-user socket."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any

from pyvfio import models
from pyvfio.server.server import Server


def add_parser(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "serve",
        help="host a device model on a socket",
        description="Host a device model on a vfio-user socket, for one client after the other.",
    )
    known = ", ".join(models.MODELS)
    parser.add_argument("model", metavar="MODEL", help=f"{known}, or module:Class of your own")
    # The second name is that of the specification, "Backend Program Conventions".
    parser.add_argument(
        "--socket", "--socket-path", required=True, metavar="PATH", help="where to listen"
    )
    parser.add_argument(
        "--mode",
        type=_mode,
        default=0o600,
        metavar="OCTAL",
        help="permission bits of the socket file (default 0600)",
    )
    parser.set_defaults(run=run)


def _mode(text: str) -> int:
    mode = int(text, 8)
    if not 0 <= mode <= 0o777:
        raise ValueError
    return mode


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    # A model of one's own is looked for here first, as `python -m` does.
    sys.path.insert(0, os.getcwd())
    model = models.make(args.model)
    try:
        server = Server(model, args.socket, args.mode)
    except BaseException:
        model.close()
        raise
    with server:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        ids = f"{model.identity.vendor_id:04x}:{model.identity.device_id:04x}"
        print(f"serving {args.model} ({ids}) on vfio-user:{args.socket}", flush=True)
        server.serve_forever()
    return 0
