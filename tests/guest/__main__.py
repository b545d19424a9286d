# SPDX-License-Identifier: BSD-3-Clause
"""``python -m tests.guest``: run a command or a shell in the guest, or only fetch its files.

Exits with the command's status; with 124 if the guest was stopped at its time limit, 125 if it died
and 126 if it cannot be booted on this machine.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.guest import packages, runner
from tests.guest.errors import GuestError
from tests.guest.fetch import fetch

RUN_SECONDS = 600.0
SHELL_SECONDS = 8 * 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    chosen = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if chosen.verb == "fetch":
            files = fetch()
            packages.say(f"{packages.qemu()}, kernel {files.version} in {files.folder}")
            return 0
        if chosen.keep:
            return in_guest(chosen, chosen.keep)
        with tempfile.TemporaryDirectory(prefix="pyvfio-guest-") as folder:
            return in_guest(chosen, Path(folder))
    except GuestError as error:
        packages.say(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def in_guest(chosen: argparse.Namespace, output: Path) -> int:
    """Run what was chosen, with its files in ``output``."""
    if chosen.verb == "shell":
        packages.say("Ctrl-D or exit ends the guest")
        return runner.shell(timeout=chosen.timeout, output=output)
    echo = sys.stdout.buffer
    return runner.run(chosen.command, timeout=chosen.timeout, output=output, echo=echo).returncode


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m tests.guest", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run a command in the guest, in the current folder")
    shell = verbs.add_parser("shell", help="a shell in the guest on this terminal")
    verbs.add_parser("fetch", help="get the guest's files into the cache, and do no more")
    run.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    for verb, seconds in ((run, RUN_SECONDS), (shell, SHELL_SECONDS)):
        verb.add_argument("--timeout", type=float, default=seconds, metavar="SECONDS")
        verb.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the guest's output")
    return top


if __name__ == "__main__":
    sys.exit(main())
