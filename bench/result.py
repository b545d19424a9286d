# SPDX-License-Identifier: BSD-3-Clause
"""The result of a row, and of a run, as it is kept."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import Rounds, Spread
from bench.rows.row import Row

LATEST = Path(__file__).parent / "results" / "latest.json"
QUANTILES = 200
"""Steps of a latency distribution."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a row came to.

    :ivar off: the path that was switched off, if any.
    :ivar target: as it is shown; empty without one.
    :ivar ratio: median and quartiles; baseline to subject, or the other way round for a cost.
    :ivar subject: seconds of one operation.
    :ivar baseline: the same.
    :ivar reached: whether the target was; None without one.
    :ivar rounds: how many the medians are of.
    """

    name: str
    group: str
    what: str
    baseline_is: str
    off: str
    target: str
    ratio: Spread
    subject: Spread
    baseline: Spread
    reached: bool | None
    rounds: int

    @classmethod
    def of(cls, row: Row, done: Rounds, off: str = "") -> Result:
        """The result of a row's rounds."""
        ratio = Spread.of([row.target.ratio(*pair) for pair in done])
        return cls(
            name=row.name,
            group=row.group,
            what=row.what,
            baseline_is=row.baseline,
            off=off,
            target=str(row.target),
            ratio=ratio,
            subject=Spread.of([subject / row.per for subject, _ in done]),
            baseline=Spread.of([baseline / row.per for _, baseline in done]),
            reached=row.target.reached_by(ratio.median),
            rounds=len(done),
        )

    @classmethod
    def restored(cls, kept: dict[str, Any]) -> Result:
        """A result that was kept."""
        spreads = {name: Spread(*kept[name]) for name in ("ratio", "subject", "baseline")}
        return cls(**{**kept, **spreads})


@dataclass(slots=True)
class Report:
    """A whole run.

    :ivar about: when, where, which commit.
    :ivar latency: name -> quantiles of the seconds of single operations.
    """

    about: dict[str, str]
    rows: list[Result] = field(default_factory=list)
    curve: list[Result] = field(default_factory=list)
    latency: dict[str, list[float]] = field(default_factory=dict)

    def add_samples(self, name: str, samples: list[float]) -> None:
        """Keep a latency distribution."""
        self.latency[name] = statistics.quantiles(samples, n=QUANTILES, method="inclusive")

    def write(self, path: Path) -> None:
        """Keep the run."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Report:
        """A run that was kept."""
        kept = json.loads(path.read_text(encoding="utf-8"))
        rows, curve = (list(map(Result.restored, kept[name])) for name in ("rows", "curve"))
        return cls(kept["about"], rows, curve, kept["latency"])


def about(cpus: int) -> dict[str, str]:
    """When, where, and what is measured."""
    where = {1: "both ends on one CPU", 2: "the ends on a CPU each"}
    return {
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": f"{_processor()}, {os.cpu_count()} CPUs, Linux {platform.release()}",
        "python": platform.python_version(),
        "placement": where[cpus],
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
