# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio migrate``: have a device go on in another server, or keep it in a file.

Whose the device is, at each moment and wherever something dies, is in :mod:`pyvfio.pci.migrate`.
In short: the tool copies while the source is stopped, and one change of state, which has the
destination run, hands the device over.  Without ``--resume`` that is left to ``pyvfio migrate
resume``.  What a killed tool has left is taken up by the next ``pyvfio migrate`` of the same two,
or put back by ``pyvfio migrate resume`` of the source; ``pyvfio migrate status`` says what a device
does.

A server serves one client at a time, so a driver lets go of the device before, or migrates it
itself (:func:`pyvfio.migrate`).  The kernel resets a device that is opened or closed, so none of
its devices outlives this command.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pyvfio.cli import migrate_verbs
from pyvfio.cli.state_files import STANDARD
from pyvfio.cli.uris import URI_HELP
from pyvfio.migration_stream import READ_SIZE
from pyvfio.migration_transfer import MAX_SIZE, PRECOPY_SECONDS

_USAGE = """pyvfio migrate [options] SRC DST
       pyvfio migrate [options] save URI FILE
       pyvfio migrate [options] load URI FILE
       pyvfio migrate resume URI
       pyvfio migrate status URI"""

_EPILOG = """Options may stand anywhere among the operands.  A move leaves the source stopped; with
--resume the destination runs then, without it both are stopped.  `save` leaves the device stopped
when FILE is safe on the disk; with --keep-running it goes on, and FILE is a snapshot.  Where
anything fails before that, a source that ran goes on, and no FILE is left; behind it, the device
stays stopped, and FILE is whole.  `load` checks all of FILE before it touches the device.
A server has one client at a time: a driver lets go of its device before, or has it move itself
and works on meanwhile, with pyvfio.migrate()."""


class _Verb(NamedTuple):
    """What may stand behind ``migrate``.

    :ivar operands: how many follow.
    :ivar options: those that it takes.
    """

    run: Callable[[argparse.Namespace, list[str]], dict[str, Any]]
    operands: int
    options: frozenset[str]


_TRANSFER = frozenset(("precopy", "precopy-seconds", "piece", "max-size"))
_MOVE = _Verb(migrate_verbs.move, 2, _TRANSFER | {"resume"})
_VERBS = {
    "save": _Verb(migrate_verbs.save, 2, _TRANSFER | {"keep-running"}),
    "load": _Verb(migrate_verbs.load, 2, frozenset(("resume", "max-size"))),
    "resume": _Verb(migrate_verbs.resume, 1, frozenset()),
    "status": _Verb(migrate_verbs.status, 1, frozenset()),
}


def add_parser(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "migrate",
        help="have a device go on in another server, or save it to a file and load it",
        usage=_USAGE,
        description="Move the state of a device to another of its kind, to a file or from one.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "operands",
        nargs="+",
        metavar="OPERAND",
        help=f"{URI_HELP}.  FILE may be {STANDARD} for standard input or output",
    )
    parser.add_argument(
        "--resume", action="store_true", help="have the destination run when it has all"
    )
    parser.add_argument(
        "--precopy",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="copy most while the source runs (default: where it can be done)",
    )
    parser.add_argument(
        "--precopy-seconds",
        type=float,
        metavar="SECONDS",
        help=f"stop the source after this time at the latest (default {PRECOPY_SECONDS:g})",
    )
    parser.add_argument(
        "--piece",
        type=int,
        metavar="BYTES",
        help=f"read so many at a time (default {READ_SIZE}); some devices take no other number",
    )
    parser.add_argument(
        "--keep-running", action="store_true", help="save: have the device go on afterwards"
    )
    parser.add_argument(
        "--max-size",
        type=int,
        metavar="BYTES",
        help="give up where the state is larger; load: where a FILE that is a pipe is"
        f" (default {MAX_SIZE})",
    )
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.set_defaults(run=run, intermixed=True)


def run(args: argparse.Namespace) -> int:
    """Do what stands behind ``migrate``."""
    first, *rest = args.operands
    verb, operands = (_VERBS[first], rest) if first in _VERBS else (_MOVE, args.operands)
    _check(args, verb, operands, first if first in _VERBS else "SRC")
    with _ended_by(signal.SIGTERM, signal.SIGHUP):
        done = verb.run(args, operands)
    out = sys.stderr if done.pop("to_stderr", False) else sys.stdout
    text = done.pop("text")
    print(json.dumps(done) if args.output == "json" else text, file=out)
    return 0


def _check(args: argparse.Namespace, verb: _Verb, operands: list[str], name: str) -> None:
    if len(operands) != verb.operands:
        raise ValueError(f"migrate {name}: usage: {_USAGE}")
    given = {
        "resume": args.resume,
        "precopy": args.precopy is not None,
        "precopy-seconds": args.precopy_seconds is not None,
        "piece": args.piece is not None,
        "keep-running": args.keep_running,
        "max-size": args.max_size is not None,
    }
    for option in (option for option, there in given.items() if there):
        if option not in verb.options:
            raise ValueError(f"migrate {name}: --{option} is not for it")
    if args.precopy is False and args.precopy_seconds is not None:
        raise ValueError("migrate: --precopy-seconds and --no-precopy")
    for option, least in {"max_size": 0, "piece": 1}.items():
        if (value := getattr(args, option)) is not None and value < least:
            raise ValueError(f"migrate: --{option.replace('_', '-')} {value}: no number of bytes")
    if args.output == "json" and verb is _VERBS["save"] and operands[1] == STANDARD:
        raise ValueError("migrate save: FILE and JSON cannot both go to standard output")


@contextmanager
def _ended_by(*numbers: signal.Signals) -> Iterator[None]:
    """Have signals end the tool as Ctrl-C does: the source goes on, and no half file is left."""
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:  # nohup's
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
