# SPDX-License-Identifier: BSD-3-Clause
"""``make bench-docs``: put the last run into docs/performance.md, with its plot."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from bench.result import LATEST, Report, Result
from bench.table import for_documentation, with_table
from bench.worker import ROOT

PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "performance.svg"

mpl.use("svg")
# Text stays text, and the same run gives the same file.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pyvfio", "font.size": 9})


def main(arguments: Sequence[str] | None = None) -> None:
    """Write page and plot."""
    parser = argparse.ArgumentParser(prog="python -m bench.docs", description=__doc__)
    parser.add_argument("--json", type=Path, default=LATEST, help="the run")
    parser.add_argument("--page", type=Path, default=PAGE, help="where its table goes")
    parser.add_argument("--plot", type=Path, default=PLOT)
    args = parser.parse_args(arguments)
    if not args.json.exists():
        raise SystemExit(f"{args.json} is not there: make bench writes it")
    report = Report.read(args.json)
    draw(report, args.plot)
    text = args.page.read_text(encoding="utf-8")
    args.page.write_text(with_table(text, for_documentation(report)), encoding="utf-8")


def draw(report: Report, path: Path) -> None:
    """Latency distributions, and throughput over the size of a batch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    _draw_latency(left, report)
    _draw_throughput(right, report.curve)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_latency(axes: Any, report: Report) -> None:
    for name, quantiles in report.latency.items():
        steps = len(quantiles) + 1
        parts = [100 * (step + 1) / steps for step in range(len(quantiles))]
        style = "--" if "=0" in name else "-"
        axes.plot([seconds * 1e6 for seconds in quantiles], parts, style, label=name)
    axes.set(
        title="4-byte region read, one at a time",
        xlabel="microseconds (log)",
        ylabel="% of reads that take no longer",
        xscale="log",
    )
    axes.legend()
    axes.grid(alpha=0.3)


def _draw_throughput(axes: Any, curve: Sequence[Result]) -> None:
    for server, mark in (("c", "o-"), ("ours", "s-")):
        points = [
            (int(result.name.split("-")[1]), result)
            for result in curve
            if result.name.endswith(f"-{server}")
        ]
        where = "the C server" if server == "c" else "our server"
        for who in ("subject", "baseline"):
            rates = [1e-6 / getattr(result, who).median for _, result in points]
            name = "pyvfio" if who == "subject" else "C client"
            axes.plot([size for size, _ in points], rates, mark, label=f"{name}, {where}")
    axes.set(
        title="posted 4-byte writes",
        xlabel="writes in a call (pyvfio), messages in a send (C)",
        ylabel="million writes a second (log)",
        yscale="log",
    )
    axes.set_xscale("log", base=2)
    axes.legend()
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
