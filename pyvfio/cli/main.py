# SPDX-License-Identifier: BSD-3-Clause
"""The command line's frame: verbs, exit codes, and how errors are told."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Sequence

from pyvfio import __version__
from pyvfio.cli import (
    bind,
    config,
    demo,
    doctor,
    info,
    irq,
    list_devices,
    migrate,
    peek,
    reset,
    serve,
    trace,
)
from pyvfio.cli.state_files import STANDARD
from pyvfio.errors import BackendError, ConnectionLost, OpenError, VFIOError, VFIOTimeout
from pyvfio.transport.trace import VARIABLE, start

DONE, FAILED, USAGE, UNAVAILABLE, TIMEOUT = range(5)
INTERRUPTED = 130

_VERBS = (
    demo,
    list_devices,
    bind,
    doctor,
    info,
    config,
    peek,
    irq,
    reset,
    migrate,
    serve,
    trace,
)

_EPILOG = """exit status: 0 done, 1 failed, 2 usage, 3 device or backend unavailable, 4 time-out"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyvfio",
        description="Drive PCI devices through VFIO, and serve device models over vfio-user.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"pyvfio {__version__}")
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="log what happens; twice for more"
    )
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="append each vfio-user message to FILE, for `pyvfio trace FILE` to print; the same as"
        f" {VARIABLE}=FILE in the environment",
    )
    verbs = parser.add_subparsers(title="verbs", dest="verb", required=True, metavar="VERB")
    for verb in _VERBS:
        verb.add_parser(verbs)
    return parser


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for; ends the program where that is no usage.

    argparse takes operands up to the first option behind them, and reports the others as it does
    unknown options.  A verb that has all of its own in ``operands`` gets them.
    """
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    marked = rest.index("--") if "--" in rest else len(rest)
    unknown = [text for text in rest[:marked] if text.startswith("-") and text != STANDARD]
    if rest and (unknown or not getattr(args, "intermixed", False)):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        args.operands += rest[:marked] + rest[marked + 1 :]
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = _parsed(arguments)
    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    logging.basicConfig(
        level=levels[min(args.verbose, len(levels) - 1)],
        format="pyvfio: %(levelname)s: %(message)s",
    )
    try:
        if args.trace is not None:
            if not args.trace:
                raise ValueError("--trace needs the name of a file")
            os.environ[VARIABLE] = os.path.abspath(args.trace)  # processes that we start as well
        start()
        status: int = args.run(args)
    except VFIOError as error:
        _tell(error)
        return _status_of(error)
    except ValueError as error:
        print(f"pyvfio: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt as error:
        _tell_notes(error)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return status


def _tell(error: VFIOError) -> None:
    where = " on ".join(part for part in (error.op, error.uri) if part)
    number = "" if error.errno is None else f" [{errno.errorcode.get(error.errno, error.errno)}]"
    print(f"pyvfio: {where}{': ' if where else ''}{error.reason}{number}", file=sys.stderr)
    _tell_notes(error)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def _tell_notes(error: BaseException) -> None:
    """What became of a device where something was given up."""
    for note in getattr(error, "__notes__", ()):
        print(f"note: {note}", file=sys.stderr)


def _status_of(error: VFIOError) -> int:
    if isinstance(error, VFIOTimeout):
        return TIMEOUT
    if isinstance(error, BackendError | OpenError | ConnectionLost):
        return UNAVAILABLE
    return FAILED
