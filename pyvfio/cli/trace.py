# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio trace``: print what ``--trace`` or ``PYVFIO_TRACE`` has written, for people."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from pyvfio.cli.trace_line import Line
from pyvfio.cli.trace_summary import Summary
from pyvfio.errors import OperationError, operation_error
from pyvfio.wire.header import Command

MAX_LINE = 1 << 20
"""Bytes of a line; what is longer is not of a trace."""
FOLLOW_SECONDS = 0.1
"""How often a file is looked at for more."""

_RED, _PLAIN = "\x1b[31m", "\x1b[0m"

_EPILOG = """Columns: seconds since the first line, process, end, number of its connection,
direction, twin socket, message id. A line that starts with ! tells of an error."""


def add_parser(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "trace",
        help="print a trace of vfio-user messages",
        description="Print the messages that `pyvfio --trace FILE VERB ...`, or a program with"
        " PYVFIO_TRACE=FILE, has exchanged over vfio-user sockets, and a summary: how many of each"
        " command, and the percentiles of the time that replies took.",
        epilog=_EPILOG,
    )
    parser.add_argument("file", metavar="FILE", help="the trace; - for standard input")
    parser.add_argument(
        "-c",
        "--command",
        action="append",
        type=_command,
        metavar="NAME",
        help="only this command, such as REGION_READ; may be given several times",
    )
    parser.add_argument("-e", "--errors", action="store_true", help="only what went wrong")
    parser.add_argument("--role", choices=("client", "server"), help="only what this end saw")
    parser.add_argument("--socket", choices=("main", "twin"), help="only this socket")
    parser.add_argument(
        "--channel", metavar="TEXT", help="only channels with TEXT in their name, such as a path"
    )
    parser.add_argument("--pid", type=int, help="only what this process saw")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on as the file grows, until Ctrl-C"
    )
    parser.add_argument("-s", "--summary", action="store_true", help="the summary alone")
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="errors in red; auto: on a terminal, unless NO_COLOR is set",
    )
    parser.add_argument(
        "-o",
        "--output",
        choices=("text", "json"),
        default="text",
        help="json: the lines that were chosen, as they are, or the rows of the summary",
    )
    parser.set_defaults(run=run)


def _command(text: str) -> str:
    name = text.upper()
    if name not in Command.__members__:
        raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(Command.__members__)}")
    return name


def run(args: argparse.Namespace) -> int:
    """Print the trace."""
    summary = Summary()
    with _opened(args.file) as file:
        try:
            _print_lines(args, _lines(file, args.follow), summary)
        except KeyboardInterrupt:
            if not args.follow:
                raise
    if args.output == "json":
        if args.summary:
            print(*map(json.dumps, summary.records()), sep="\n")
    else:
        print("" if args.summary else "\n", summary.as_text(), sep="", end="")
    # What has lines, but none of a trace, is something else.
    return 1 if summary.foreign and not summary.lines else 0


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; its errors are told apart here
    except OSError as error:
        raise operation_error(error, OperationError, op="trace", uri=path) from error
    with file:
        yield file


def _lines(file: BinaryIO, follow: bool) -> Iterator[bytes]:
    """The lines of a file; with ``follow`` also those that are still to come."""
    follow = follow and stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    line = b""
    while True:
        piece = file.readline(MAX_LINE)
        line += piece
        if line.endswith(b"\n") or len(line) >= MAX_LINE or (line and not piece and not follow):
            yield line
            line = b""
        elif not piece:
            if not follow:
                return
            time.sleep(FOLLOW_SECONDS)
            if os.fstat(file.fileno()).st_size < file.tell():
                file.seek(0)  # somebody has begun it anew
                line = b""


def _print_lines(args: argparse.Namespace, lines: Iterator[bytes], summary: Summary) -> None:
    colored = args.output == "text" and _colored(args.color)
    since = None
    for data in lines:
        try:
            line = Line.parse(data)
        except ValueError:
            summary.foreign += 1
            continue
        summary.lines += 1
        since = line["mono"] if since is None else since
        if not _chosen(args, line):
            continue
        summary.add(line)
        if args.summary:
            continue
        text = line.text if args.output == "json" else line.row(since)
        print(f"{_RED}{text}{_PLAIN}" if colored and line.bad else text, flush=args.follow)


def _chosen(args: argparse.Namespace, line: Line) -> bool:
    return (
        (args.command is None or line.get("command") in args.command)
        and (line.bad or not args.errors)
        and args.role in (None, line["role"])
        and args.socket in (None, line["socket"])
        and (args.channel is None or args.channel in line["channel"])
        and args.pid in (None, line["pid"])
    )


def _colored(choice: str) -> bool:
    if choice == "auto":
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return choice == "always"
