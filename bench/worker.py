# SPDX-License-Identifier: BSD-3-Clause
"""The process that measures: one commit, with or without a fast path, pinned to its CPU.

Its parent says line by line, as JSON, what to do, and is idle meanwhile; so rounds of one process
can take turns with those of another, which has another commit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from bench.peers import Peers, Placement
from bench.rows import curve, rows
from bench.rows.row import CLIENT_PATH, Pair, Row

ROOT = Path(__file__).parent.parent


class WorkerError(RuntimeError):
    """The worker could not do it; with what it says."""


class Worker:
    """Such a process, as its parent has it.

    :param tree: the checkout whose ``pyvfio`` and ``bench`` it imports.
    :param cpus: 1 or 2, see :class:`~bench.peers.Placement`.
    :param off: the environment variable of a path that is switched off, see
        :class:`~bench.rows.row.Row`.
    """

    def __init__(self, tree: Path = ROOT, *, cpus: int = 1, off: str = "") -> None:
        environment = {**os.environ, off: "0"} if off else None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", "--cpus", str(cpus), "--off", off],
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def names(self) -> list[str]:
        """The rows that its commit has, and that can be measured here."""
        return list(self._ask("names"))

    def set_up(self, row: str, swapped: bool = False) -> None:
        """Get a row ready, in place of the one before.

        :raises WorkerError: it cannot be measured.
        """
        self._ask("set_up", row=row, swapped=swapped)

    def piece(self, side: str) -> Callable[[int], float]:
        """The piece of work of the ``subject`` or ``baseline`` of the row."""
        return lambda count: float(self._ask("run", side=side, count=count))

    def samples(self, side: str, count: int) -> list[float]:
        """The seconds of single operations; none where they cannot be told apart."""
        return list(self._ask("samples", side=side, count=count))

    def put_away(self) -> None:
        """Have done with the row."""
        self._ask("put_away")

    def _ask(self, what: str, **how: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"what": what, **how}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; so says the next line
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"the worker ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["answer"]

    def close(self) -> None:
        """End the process, and with it its servers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended before
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server:
    """The process itself: carries out what its parent says."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._rows = {row.name: row for row in (*rows(), *curve())}
        self._ready = ExitStack()
        self._pair: Pair | None = None

    def names(self) -> list[str]:
        return list(self._rows)

    def set_up(self, row: str, swapped: bool) -> None:
        self.put_away()
        found: Row | None = self._rows.get(row)
        if found is None:
            raise KeyError(f"no row {row!r}")
        self._peers.swapped = swapped
        self._pair = self._ready.enter_context(found.make(self._peers))

    def run(self, side: str, count: int) -> float:
        return float(getattr(self._pair, side).run(count))

    def samples(self, side: str, count: int) -> list[float]:
        samples = getattr(self._pair, side).samples
        return [] if samples is None else list(samples(count))

    def put_away(self) -> None:
        self._pair = None
        self._ready.close()

    def serve(self, asked: TextIO, answers: TextIO) -> None:
        """Until the parent hangs up."""
        with self._ready:
            for line in asked:
                how = json.loads(line)
                try:
                    answer = {"answer": getattr(self, how.pop("what"))(**how)}
                except Exception as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                answers.write(json.dumps(answer) + "\n")
                answers.flush()


def main() -> None:
    """Measure for the parent."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpus", type=int, choices=(1, 2), default=1)
    parser.add_argument("--off", default="")
    args = parser.parse_args()
    placement = Placement.of(args.cpus)
    servers = dict(os.environ)
    if args.off == CLIENT_PATH:
        del servers[CLIENT_PATH]  # theirs stays on
    os.sched_setaffinity(0, {placement.client})
    # 2,048 interrupts are 2,048 descriptors at each end.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        Peers(Path(folder), placement, servers) as peers,
        os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers,
    ):
        _Server(peers).serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
