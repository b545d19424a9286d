# SPDX-License-Identifier: BSD-3-Clause
"""Fuzz: ``python -m tests.fuzz``, or ``python -m tests.fuzz replay FILE``.

A failing input is appended to the file of its target in ``--found``; ``replay`` runs what is in
such a file, or in one of the corpus, again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz import corpus, run

FOUND = Path("fuzz-found")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz pyvfio.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument(
        "--messages", type=int, help="instead of seconds: messages to send to each live target"
    )
    parser.add_argument("--seed", type=int, default=1, help="the first one; others count up")
    parser.add_argument("--found", type=Path, default=FOUND, help="folder for failing inputs")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(run.TARGETS))
    return parser


def main(arguments: list[str]) -> int:
    """Run; 1 where something was found."""
    if arguments[:1] == ["replay"]:
        return _replay([Path(name) for name in arguments[1:]])
    parser = _parser()
    args = parser.parse_args(arguments)
    targets = args.targets or list(run.TARGETS)
    unknown = set(targets) - set(run.TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    budget = run.Budget(args.seconds / len(targets), args.messages)
    clean = [run.TARGETS[name](name, budget, args.seed, args.found) for name in targets]
    return 0 if all(clean) else 1


def _replay(paths: list[Path]) -> int:
    failed = 0
    for path in paths:
        for line in corpus.lines(path):
            trouble = run.replay(path.stem, line)
            failed += trouble is not None
            run.say(f"{path.stem} {line[:60]}: {trouble or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
