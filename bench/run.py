# SPDX-License-Identifier: BSD-3-Clause
"""Measures the rows, one after the other, with and without a fast path where it has one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from bench.measure import Effort, Rounds, rounds
from bench.result import Report, Result, about
from bench.rows.row import CLIENT_PATH, SERVER_PATH, Row
from bench.worker import Worker

SAMPLED = {
    ("memory", "baseline"): "bare socket",
    ("memory", "subject"): "C client, our server",
    ("read-c", "baseline"): "C client, C server",
    ("read-c", "subject"): "pyvfio, C server",
    ("together", "subject"): "pyvfio, our server",
}
"""Whose latencies are kept: sides of rows, and what they are called."""
SAMPLES, CHUNKS = 4000, 10


def measure(
    table: Sequence[Row],
    curve: Sequence[Row],
    *,
    cpus: int,
    effort: Effort,
    samples: int = SAMPLES,
    tell: Callable[[Result], None] = lambda _: None,
) -> Report:
    """Measure rows.

    :param curve: rows of which each takes a quarter of the time.
    :param samples: single latencies of each that is :data:`SAMPLED`.
    :param tell: called with each result of the table.
    """
    report = Report(about(cpus))
    with ExitStack() as stack:
        paths = ("", CLIENT_PATH, SERVER_PATH)
        workers = {off: stack.enter_context(Worker(cpus=cpus, off=off)) for off in paths}
        for row in table:
            for off in dict.fromkeys(("", row.off)):
                report.rows.append(Result.of(row, run_row(workers[off], row, effort), off))
                tell(report.rows[-1])
                _sample(report, workers[off], report.rows[-1], samples)
                workers[off].put_away()
        shorter = effort._replace(seconds=effort.seconds / 4, rounds=effort.rounds // 4)
        for row in curve:
            report.curve.append(Result.of(row, run_row(workers[""], row, shorter)))
        workers[""].put_away()
    return report


def run_row(worker: Worker, row: Row, effort: Effort) -> Rounds:
    """The rounds of a row, which stays set up."""
    done: Rounds = []
    for segment in range(row.segments):
        worker.set_up(row.name, swapped=segment % 2 == 1)
        pieces = [worker.piece("subject"), worker.piece("baseline")]
        rounds(pieces, effort, row.least, row.segments, done)
    return done


def _sample(report: Report, worker: Worker, result: Result, count: int) -> None:
    """Keep latencies of what is set up; without a path only those of the subject, whose it is."""
    names = {
        side: name + (f", {result.off}=0" if result.off else "")
        for (row, side), name in SAMPLED.items()
        if row == result.name and (side == "subject" or not result.off)
    }
    taken: dict[str, list[float]] = {side: [] for side in names}
    for _ in range(CHUNKS if names else 0):
        for side in names:
            taken[side] += worker.samples(side, max(2, count // CHUNKS))
    for side, samples in taken.items():
        report.add_samples(names[side], samples)
