# SPDX-License-Identifier: BSD-3-Clause
"""``make bench-compare BASE=COMMIT``: this tree beside another commit, in turns.

The other commit is checked out and built in a folder of its own, and is measured with the rows of
this tree: client, server and model interface are its own.  A row that it cannot do is left out.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.__main__ import add_choice, choose
from bench.measure import Effort, Rounds, Spread, rounds
from bench.rows import rows
from bench.rows.row import Row
from bench.table import duration, padded, widths_of
from bench.worker import ROOT, Worker, WorkerError

HEADS = ("what", "base", "this tree", "faster", "quartiles", "C, base", "C, this tree")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("base", metavar="COMMIT", help="what this tree is compared with")
    add_choice(parser)
    args = parser.parse_args(arguments)
    chosen = choose(rows(), args.row)
    with checkout(args.base) as base:
        table = compare(base, chosen, cpus=args.cpus, effort=Effort(seconds=args.seconds))
    widths = widths_of([HEADS, *table])
    print("\n".join(padded(row, widths) for row in [HEADS, *table]))
    print("\nC is the row's baseline, where it stands beside either: the same code.")


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A commit in a folder of its own, built, with this tree's ``bench``.

    :raises SystemExit: there is no such commit, or it cannot be built; with what git or the
        compiler says.
    """
    with tempfile.TemporaryDirectory(prefix="bench-base-") as folder:
        tree = Path(folder) / "tree"
        _must("git", "worktree", "add", "--detach", str(tree), commit, cwd=ROOT)
        try:
            shutil.rmtree(tree / "bench", ignore_errors=True)
            leave = shutil.ignore_patterns("built", "results", "__pycache__")
            shutil.copytree(ROOT / "bench", tree / "bench", ignore=leave)
            shutil.copy(ROOT / "tests" / "support.py", tree / "tests")
            _must(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tree)
            yield tree
        finally:
            _must("git", "worktree", "remove", "--force", str(tree), cwd=ROOT)


def _must(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")


def compare(
    base: Path, table: Sequence[Row], *, cpus: int, effort: Effort
) -> list[tuple[str, ...]]:
    """The lines of the result."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(tree, cpus=cpus)) for tree in (base, ROOT)]
        return [_line(row, workers, effort) for row in table]


def _line(row: Row, workers: Sequence[Worker], effort: Effort) -> tuple[str, ...]:
    done: Rounds = []
    for segment in range(row.segments):
        try:
            for worker in workers:
                worker.set_up(row.name, swapped=segment % 2 == 1)
        except WorkerError as error:
            return (row.what, f"cannot: {error}", *[""] * (len(HEADS) - 2))
        pieces = [worker.piece(side) for side in ("subject", "baseline") for worker in workers]
        rounds(pieces, effort, row.least, row.segments, done)
    for worker in workers:
        worker.put_away()
    return _cells(row, done)


def _cells(row: Row, done: Rounds) -> tuple[str, ...]:
    faster = Spread.of([before / after for before, after, *_ in done])
    before, after, c_before, c_after = (
        duration(Spread.of([each[n] / row.per for each in done]).median) for n in range(4)
    )
    return (
        f"{row.what} ({row.name})",
        before,
        after,
        f"{faster.median:.2f} x",
        f"{faster.low:.2f} - {faster.high:.2f}",
        c_before,
        c_after,
    )


if __name__ == "__main__":
    main()
