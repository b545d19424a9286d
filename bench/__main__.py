# SPDX-License-Identifier: BSD-3-Clause
"""``make bench``: measure, print the table, keep the run."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.measure import Effort
from bench.result import LATEST, Result
from bench.rows import curve, rows
from bench.rows.row import Row
from bench.run import measure
from bench.table import for_terminal


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add_choice(parser)
    parser.add_argument("--json", type=Path, default=LATEST, help="where the run is kept")
    parser.add_argument("--list", action="store_true", help="name the rows")
    args = parser.parse_args(arguments)
    if args.list:
        for row in rows():
            print(f"{row.name:20} {row.what}; beside: {row.baseline}")
        return
    chosen = choose(rows(), args.row)
    report = measure(
        chosen,
        () if args.row else curve(),
        cpus=args.cpus,
        effort=Effort(seconds=args.seconds),
        tell=_progress,
    )
    report.write(args.json)
    print(for_terminal(report.rows))
    print(f"\n{', '.join(report.about.values())}; kept in {args.json}")


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The options that say what is measured, and how long."""
    parser.add_argument("row", nargs="*", help="patterns of names (see --list); all by default")
    parser.add_argument(
        "--cpus", type=int, choices=(1, 2), default=1, help="both ends on one CPU (default), or two"
    )
    parser.add_argument(
        "--seconds", type=float, default=Effort().seconds, help="for a row, at most"
    )


def choose(table: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """The rows that patterns name; all without any."""
    if not patterns:
        return list(table)
    chosen = [row for row in table if any(fnmatch.fnmatch(row.name, p) for p in patterns)]
    if not chosen:
        raise SystemExit(f"no row is named {' or '.join(patterns)}")
    return chosen


def _progress(result: Result) -> None:
    if sys.stderr.isatty():
        print(f"{result.name}: {result.ratio.median:.2f}", file=sys.stderr)


if __name__ == "__main__":
    main()
