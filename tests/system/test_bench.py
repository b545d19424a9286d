# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark: each row runs and does what it says, and its arithmetic is right."""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import compare, sides
from bench.measure import Effort, Rounds, Spread, enough_for, rounds, settled
from bench.peers import REGISTER, Kind, Peers, Place, Placement
from bench.result import QUANTILES, Report, Result
from bench.rows import curve, rows
from bench.rows.checks import SAME
from bench.rows.row import CLIENT_PATH, SERVER_PATH, Row, Target
from bench.run import SAMPLED, measure
from bench.table import BEGIN, END, duration, for_documentation, for_terminal, with_table
from bench.worker import ROOT, Worker, WorkerError
from pyvfio.pci.device import PCIDevice

ONCE = Effort(piece=0.0, seconds=0.0, rounds=1)
"""The least that can be done."""


@pytest.fixture(scope="module")
def report() -> Report:
    """All rows, each as short as can be."""
    return measure(rows(), curve(), cpus=1, effort=ONCE, samples=20)


# Rows


@pytest.mark.timeout(300)
def test_every_row_is_measured(report: Report) -> None:
    assert {result.name for result in report.rows} == {row.name for row in rows()}
    assert {result.name for result in report.curve} == {row.name for row in curve()}


def test_what_has_a_fast_path_is_also_measured_without_it(report: Report) -> None:
    without = [(result.name, result.off) for result in report.rows if result.off]
    assert without == [(row.name, row.off) for row in rows() if row.off]
    assert {off for _, off in without} == {CLIENT_PATH, SERVER_PATH}


def test_everything_takes_time(report: Report) -> None:
    grown = "vectors"  # a difference of times, which a single round may find to be negative
    results = [result for result in (*report.rows, *report.curve) if result.name != grown]
    assert all(result.subject.low > 0 and result.baseline.low > 0 for result in results)


def test_latencies_of_all_that_is_sampled_are_kept(report: Report) -> None:
    assert set(SAMPLED.values()) < set(report.latency)
    for quantiles in report.latency.values():
        assert len(quantiles) == QUANTILES - 1
        assert 0 < quantiles[0] <= quantiles[-1]


def test_a_run_that_was_kept_is_the_same(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "run.json"
    report.write(path)
    assert Report.read(path) == report


def test_every_row_stands_in_both_tables(report: Report) -> None:
    for text in (for_terminal(report.rows), for_documentation(report)):
        assert all(row.what in text and str(row.target) in text for row in rows())


def test_two_trees_are_compared_row_by_row() -> None:
    chosen = [row for row in rows() if row.name == "read-c"]
    ((what, base, head, *_),) = compare.compare(ROOT, chosen, cpus=1, effort=ONCE)
    assert what == "4-byte region read (read-c)"
    assert base.endswith("s")
    assert head.endswith("s")


def test_a_row_that_a_commit_cannot_do_is_left_out() -> None:
    row = Row("no-such-row", "group", "what", "baseline", rows()[0].make, Target())
    ((what, why, *_),) = compare.compare(ROOT, [row], cpus=1, effort=ONCE)
    assert (what, why) == ("what", "cannot: KeyError: \"no row 'no-such-row'\"")


def test_a_commit_that_there_is_not() -> None:
    with pytest.raises(SystemExit, match="no-such-commit"), compare.checkout("no-such-commit"):
        pass


def test_a_worker_that_ends_is_an_error() -> None:
    with Worker() as worker:
        worker.names()
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="ended with status -9"):
            worker.names()


# What the sides do


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """Servers to measure."""
    with Peers(tmp_path_factory.mktemp("bench"), Placement.of(2)) as found:
        for kind, which in itertools.product((Kind.OURS, Kind.C), (0, 1)):
            found.reference(kind, which).close()  # they run from now on
        yield found


def value_at(dev: PCIDevice, place: Place) -> int:
    """What a register has now."""
    return dev.bars[place.region].read32(place.offset)


@pytest.mark.parametrize("kind", [Kind.OURS, Kind.C])
def test_every_write_of_ours_is_done(peers: Peers, kind: Kind) -> None:
    place = REGISTER[kind]
    with peers.open(kind) as dev:
        sides.posted32(dev, place).run(17)
        assert value_at(dev, place) == 16
        sides.many32(dev, place, 7, posted=True).run(17)  # 0 to 6, 0 to 6, 0 to 2
        assert value_at(dev, place) == 2
        sides.many32(dev, place, 8, posted=False).run(17)
        assert value_at(dev, place) == 0
        sides.write32(dev, place).run(1)
        assert value_at(dev, place) == 1


@pytest.mark.parametrize("kind", [Kind.OURS, Kind.C])
def test_every_write_of_the_c_client_is_done(peers: Peers, kind: Kind) -> None:
    place = REGISTER[kind]

    def value() -> int:
        data = bytearray(4)
        client.read_bulk(*place, data, 1)
        return int.from_bytes(data, "little")

    with peers.reference(kind, 0) as client:
        client.write32(*place, 5)
        assert value() == 4
        client.posted32(*place, 1, 7)
        assert value() == 6
        client.posted32(*place, 64, 100)
        assert value() == 99
        client.in_flight32(*place, 200)
        assert value() == 199


@pytest.mark.parametrize("kind", [Kind.OURS, Kind.C])
def test_bulk_is_what_the_device_has(peers: Peers, kind: Kind) -> None:
    place, size = REGISTER[kind], 3 << 20  # three messages
    expected = bytes(range(256)) * (size // 256)
    with peers.open(kind, 0) as dev:
        dev.bars[place.region].write_bytes(place.offset, expected)
    data = bytearray(size)
    with peers.reference(kind, 0) as client:
        client.read_bulk(*place, data, 1)
    assert data == expected


def test_an_answer_that_is_an_error_ends_the_measurement(peers: Peers) -> None:
    for kind in (Kind.OURS, Kind.C):
        with peers.reference(kind) as client, pytest.raises(OSError, match="baseline") as raised:
            client.read32(8, 0, 1)
        assert raised.value.errno == errno.EINVAL


def test_servers_are_swapped(peers: Peers) -> None:
    place = REGISTER[Kind.C]
    with peers.reference(Kind.C, 0) as one, peers.reference(Kind.C, 1) as other:
        one.write32(*place, 12)
        other.write32(*place, 34)
    peers.swapped = True
    try:
        with peers.open(Kind.C, 0) as dev:
            assert value_at(dev, place) == 33
    finally:
        peers.swapped = False


# Arithmetic


def test_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == (7.0, 7.0, 7.0)


@pytest.mark.parametrize(
    ("target", "subject", "baseline", "ratio", "reached"),
    [
        (Target(0.95), 2.0, 1.0, 0.5, False),
        (Target(0.95), 1.0, 0.95, 0.95, True),
        (Target(1.2, cost=True), 1.0, 2.0, 0.5, True),
        (Target(1.2, cost=True), 2.5, 2.0, 1.25, False),
        (Target(1.5, unit=0.37), 1.0, 0.555, 1.5, True),
        (Target(1.5, unit=0.37), 1.0, 0.37, 1.0, False),
        (SAME, 1.0, 1.03, 1.03, True),
        (SAME, 1.0, 0.96, 0.96, False),
        (Target(), 1.0, 1.0, 1.0, None),
    ],
)
def test_a_ratio_and_whether_it_reaches_its_target(
    target: Target, subject: float, baseline: float, ratio: float, reached: bool | None
) -> None:
    found = target.ratio(subject, baseline)
    assert found == pytest.approx(ratio)
    assert target.reached_by(found) is reached


def test_a_result_is_made_of_the_ratios_of_each_round() -> None:
    row = Row("name", "group", "what", "baseline", rows()[0].make, Target(0.9), per=10)
    result = Result.of(row, [(10.0, 5.0), (40.0, 40.0), (20.0, 30.0)])
    assert result.ratio.median == 1.0
    assert (result.subject.median, result.baseline.median) == (2.0, 3.0)
    assert result.reached


def test_who_is_first_takes_turns() -> None:
    calls: list[str] = []

    def piece(name: str) -> Callable[[int], float]:
        def run(count: int) -> float:
            calls.append(name)
            return float(count)

        return run

    done: Rounds = []
    effort = Effort(piece=0.0, seconds=60.0, rounds=4, precision=1.0)
    rounds([piece("a"), piece("b")], effort, 3, 1, done)
    assert calls[2:] == ["a", "b", "b", "a", "a", "b", "b", "a"]  # the first two are to warm up
    assert done == [(1.0, 1.0)] * 4


def test_a_median_that_is_well_known_ends_a_row_and_no_other() -> None:
    effort = Effort(rounds=16, precision=0.01)
    steady: Rounds = [(1.0, 1.0)] * 16
    wild: Rounds = [(1.0, 1.0), (1.0, 2.0)] * 8
    assert settled(steady, effort)
    assert not settled(steady[:15], effort)
    assert not settled(wild, effort)


def test_a_piece_is_at_least_so_many_operations() -> None:
    assert enough_for(float, 0.0, 512) == 512


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.0, "2 s"), (0.0125, "12.5 ms"), (1e-6, "1 us"), (4.56e-8, "45.6 ns"), (1e-11, "0.01 ns")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_table_takes_the_place_of_the_one_before() -> None:
    page = f"before\n{BEGIN}old\n{END}after\n"
    assert with_table(page, "new") == f"before\n{BEGIN}new\n{END}after\n"
    with pytest.raises(SystemExit, match="the page has no"):
        with_table("before\nafter\n", "new")


def test_the_page_has_a_place_for_the_table() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page.index(BEGIN) < page.index(END)
