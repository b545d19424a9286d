# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio serve``: host a device model on a vfio-user socket."""

from __future__ import annotations

import argparse
import contextlib
import grp
import os
import pwd
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pyvfio import models
from pyvfio.server.credentials import Allowed
from pyvfio.server.listener import DEFAULT_MODE, Listener
from pyvfio.server.quotas import Quotas
from pyvfio.server.server import Server

_ENDING = (signal.SIGTERM, signal.SIGINT)
_NO_ID = (1 << 32) - 1
_SIZE = re.compile(r"(\d+)([KMGT]?)", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_QUOTAS = {
    "max_maps": "DMA maps at one time",
    "max_mapped": "bytes of its memory mapped at one time",
    "max_descriptors": "eventfds kept for it",
    "max_data": "bytes of data in one message",
    "max_queued": "bytes of requests queued while the model waits for its memory",
    "max_state": "bytes of a model's own state loaded at a migration",
}
"""Quotas -> what their options say; the options are named like them."""


def add_parser(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "serve",
        help="host a device model on a socket",
        description="Host a device model on a vfio-user socket, for one client after the other.",
    )
    known = ", ".join(models.MODELS)
    parser.add_argument("model", metavar="MODEL", help=f"{known}, or module:Class of your own")
    # --socket-path and --fd are those of the specification, "Backend Program Conventions".
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", "--socket-path", metavar="PATH", help="where to listen")
    where.add_argument(
        "--fd",
        type=int,
        metavar="FDNUM",
        help="an inherited socket, which listens, or is connected to the only client",
    )
    parser.add_argument(
        "--mode",
        type=_mode,
        metavar="OCTAL",
        help=f"permission bits of the socket file (default {DEFAULT_MODE:04o})",
    )
    parser.add_argument(
        "--group",
        type=_group,
        metavar="GROUP",
        help="group of the socket file, by name or number (default: the process's own)",
    )
    _add_allowed(parser)
    _add_quotas(parser)
    parser.set_defaults(run=run)


def _add_allowed(parser: argparse.ArgumentParser) -> None:
    options = parser.add_argument_group(
        "who may connect",
        "By name or number, may be repeated; a client needs to match one of them.  Without any,"
        " the permissions of the socket file decide alone.",
    )
    options.add_argument(
        "--allow-uid", type=_user, action="append", default=[], metavar="USER", help="this user"
    )
    options.add_argument(
        "--allow-gid",
        type=_group,
        action="append",
        default=[],
        metavar="GROUP",
        help="members of this group",
    )


def _add_quotas(parser: argparse.ArgumentParser) -> None:
    options = parser.add_argument_group(
        "what one client may take", "Sizes in bytes, or with K, M, G, T."
    )
    known = Quotas()
    for name, what in _QUOTAS.items():
        options.add_argument(
            f"--{name.replace('_', '-')}",
            type=_size,
            default=getattr(known, name),
            metavar="N",
            help=f"{what} (default {getattr(known, name)})",
        )


def _mode(text: str) -> int:
    mode = int(text, 8)
    if not 0 <= mode <= 0o777:
        raise ValueError
    return mode


def _size(text: str) -> int:
    """An integer with a unit."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"no size: {text!r}")
    return int(found[1]) * _UNITS[found[2].upper()]


def _user(text: str) -> int:
    return _id(text, lambda: pwd.getpwnam(text).pw_uid)


def _group(text: str) -> int:
    return _id(text, lambda: grp.getgrnam(text).gr_gid)


def _id(text: str, look_up: Callable[[], int]) -> int:
    """The number of a user or group, given as it is or by name."""
    if text.isdecimal() and int(text) < _NO_ID:
        return int(text)
    try:
        return look_up()
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no {text!r}") from None


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    quotas = Quotas(**{name: getattr(args, name) for name in _QUOTAS})
    # A model of one's own is looked for here first, as `python -m` does.
    sys.path.insert(0, os.getcwd())
    model = models.make(args.model)
    try:
        server = Server(model, _listener(args), quotas=quotas, allow=_allowed(args))
    except BaseException:
        model.close()
        raise
    with server:
        where = f"fd {args.fd}" if args.socket is None else f"vfio-user:{args.socket}"
        ids = f"{model.identity.vendor_id:04x}:{model.identity.device_id:04x}"
        with _stopped_by_signals(server):
            print(f"serving {args.model} ({ids}) on {where}", flush=True)
            server.serve_forever()
    return 0


@contextlib.contextmanager
def _stopped_by_signals(server: Server) -> Iterator[None]:
    """Have SIGTERM and SIGINT stop the server.

    A thread hears of them.  A handler runs when the main thread is back from its system call, which
    may be never where the signal came just before the call.
    """
    heard, told = socket.socketpair()
    with heard, told:
        told.setblocking(False)
        signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        for number in _ENDING:
            signal.signal(number, lambda *_: None)
        thread = threading.Thread(target=_stop_when_told, args=(heard, server), name="signals")
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            told.close()
            thread.join()


def _stop_when_told(heard: socket.socket, server: Server) -> None:
    while number := heard.recv(1):
        if number[0] in _ENDING:
            server.stop()


def _listener(args: argparse.Namespace) -> Listener:
    if args.socket is not None:
        mode = DEFAULT_MODE if args.mode is None else args.mode
        return Listener.at(args.socket, mode, args.group)
    if args.mode is not None or args.group is not None:
        raise ValueError("serve: --mode and --group are for a socket file of its own, not for --fd")
    return Listener.inherited(args.fd)


def _allowed(args: argparse.Namespace) -> Allowed | None:
    if not args.allow_uid and not args.allow_gid:
        return None
    return Allowed(frozenset(args.allow_uid), frozenset(args.allow_gid))
