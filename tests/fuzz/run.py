# SPDX-License-Identifier: BSD-3-Clause
"""Run targets within a budget, and say in figures how it went."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from tests.fuzz import blind, codec, corpus
from tests.fuzz.client import LiveClient
from tests.fuzz.server import LiveServer
from tests.fuzz.watch import Finding, Tally
from tests.support import ROOT

SLOW = 10
"""Seconds after which an input of the codec counts as a hang."""

_OPTIONS = ("-print_final_stats=1", f"-timeout={SLOW}", "-rss_limit_mb=1024", "-max_len=4096")
_STATISTICS = (r"number_of_executed_units:\s+(\d+)", r"cov: (\d+)", r"peak_rss_mb:\s+(\d+)")
"""Where libFuzzer's log has its figures."""


class Budget(NamedTuple):
    """How long a target runs: seconds, or messages where it is live and they are given."""

    seconds: float
    messages: int | None = None

    def left(self, started: float, sent: int) -> bool:
        """Whether there is some left."""
        if self.messages is not None:
            return sent < self.messages
        return time.monotonic() - started < self.seconds


Target = Callable[[str, Budget, int, Path], bool]
"""Runs a target by name within a budget, from a seed; writes what it finds, says if it is clean."""


def say(text: str) -> None:
    """A line for whoever watches."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# The codec


def run_codec(name: str, budget: Budget, seed: int, found: Path) -> bool:
    """A target of the codec, guided by coverage where atheris is installed."""
    if importlib.util.find_spec("atheris"):
        return _run_guided(name, budget, seed, found)
    return _run_blind(name, budget, seed, found)


def _run_guided(name: str, budget: Budget, seed: int, found: Path) -> bool:
    with tempfile.TemporaryDirectory(prefix="pyvfio-fuzz-") as folder:
        known, failed = Path(folder, "known"), Path(folder, "failed")
        known.mkdir()
        failed.mkdir()
        for number, data in enumerate(corpus.inputs(name)):
            (known / str(number)).write_bytes(data)
        options = (
            *_OPTIONS,
            f"-seed={seed}",
            f"-max_total_time={max(1, int(budget.seconds))}",
            f"-artifact_prefix={failed}/",
        )
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.guided", name, *options, str(known)],
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
        )
        failing = [path.read_bytes().hex() for path in failed.iterdir()]
    reason = "" if done.returncode == 0 else done.stderr
    corpus.add(corpus.file_of(name, found), ((data, _trouble(reason)) for data in failing))
    units, coverage, memory = (
        next(iter(re.findall(pattern, done.stderr)[-1:]), "0") for pattern in _STATISTICS
    )
    say(
        f"{name}: {units} inputs guided by coverage in {budget.seconds:.0f} s,"
        f" {coverage} edges, at most {memory} MiB, {len(failing)} failed"
    )
    if reason:
        say(reason[-4000:])
    return not reason


def _trouble(log: str) -> str:
    """The line of a log that names the exception."""
    named = [
        line for line in log.splitlines() if re.match(r"\w*(Error|Exception)\b|.*ERROR:", line)
    ]
    return named[0] if named else ""


def _run_blind(name: str, budget: Budget, seed: int, found: Path) -> bool:
    known, started, count = corpus.inputs(name), time.monotonic(), 0

    def inputs() -> Iterator[bytes]:
        nonlocal count
        while time.monotonic() - started < budget.seconds:
            yield blind.made(name, known, seed + count)
            count += 1

    failing = [(data.hex(), repr(error)) for data, error in blind.failing(name, inputs())]
    corpus.add(corpus.file_of(name, found), failing)
    say(f"{name}: {count} inputs from seeds in {budget.seconds:.0f} s, {len(failing)} failed")
    return not failing


# The live targets


def live_end(name: str, folder: Path, tally: Tally) -> LiveServer | LiveClient:
    """A live target, ready for its first connection; its socket is put into ``folder``."""
    role, _, model = name.partition("-")
    return LiveServer(model, folder, tally) if role == "server" else LiveClient(folder, tally)


def run_live(name: str, budget: Budget, seed: int, found: Path) -> bool:
    """A live target: one connection after the other."""
    tally = Tally()
    with (
        tempfile.TemporaryDirectory(prefix="pyvfio-fuzz-") as folder,
        closing(live_end(name, Path(folder), tally)) as end,
    ):
        started = time.monotonic()
        while budget.left(started, tally.sent):
            try:
                end.once(seed)
            except Finding as finding:
                tally.findings[finding.kind] += 1
                corpus.add(corpus.file_of(name, found), [(str(seed), str(finding))])
                say(f"{name}, seed {seed}: {finding}")
            seed += 1
        _say_figures(name, tally, time.monotonic() - started)
        before, settled, after = end.vitals()
    say(f"  at first: {before}; after some connections: {settled}; at last: {after}")
    return not tally.findings


def _say_figures(name: str, tally: Tally, seconds: float) -> None:
    say(
        f"{name}: {tally.sent} messages sent, {tally.received} received"
        f" ({tally.served} of them DMA) over {tally.connections} connections in {seconds:.0f} s,"
        f" {tally.sent / seconds:.0f}/s"
    )
    say(f"  answers: {', '.join(f'{count} {kind}' for kind, count in tally.errors.most_common())}")
    findings = (f"{count} {kind}" for kind, count in tally.findings.most_common())
    say(f"  found: {', '.join(findings) or 'no hang, no crash, no leak, nothing else'}")


TARGETS: dict[str, Target] = {
    **dict.fromkeys(codec.TARGETS, run_codec),
    **dict.fromkeys(("server-edu", "server-testdev", "client"), run_live),
}


def replay(name: str, line: str) -> str | None:
    """Run one input again; returns what comes of it that must not."""
    if name in codec.TARGETS:
        try:
            codec.TARGETS[name](bytes.fromhex(line))
        except Exception:
            return traceback.format_exc()
        return None
    with (
        tempfile.TemporaryDirectory(prefix="pyvfio-fuzz-") as folder,
        closing(live_end(name, Path(folder), Tally())) as end,
    ):
        try:
            end.once(int(line))
        except Finding as finding:
            return str(finding)
    return None
