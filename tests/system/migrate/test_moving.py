# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio migrate`` as a user meets it: moves, and whose the device is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyvfio
from pyvfio.uapi.vfio import DeviceState
from tests.support import ServerProcess
from tests.system.migrate.command import (
    DONE,
    FAILED,
    TIMEOUT,
    UNAVAILABLE,
    has,
    run,
    state,
    states,
    told,
)

# Moving


def test_a_device_moves_and_runs_on(source: str, destination: str) -> None:
    done = told(source, destination, "--resume")
    assert (done["source_state"], done["destination_state"]) == ("STOP", "RUNNING")
    assert states(source, destination) == ("STOP", "RUNNING")
    assert has(destination)
    assert done["total_bytes"] == done["precopy_bytes"] + done["stopped_bytes"]  # type: ignore[operator]
    assert done["rounds"]
    assert 0 < done["downtime_ms"] < done["ms"]  # type: ignore[operator]


def test_without_resume_both_are_stopped_and_either_can_go_on(
    source: str, destination: str
) -> None:
    done = run(source, destination)
    assert (done.status, done.errors) == (DONE, "")
    assert f"pyvfio migrate resume {destination}" in done.output
    assert f"pyvfio migrate resume {source}" in done.output
    assert states(source, destination) == ("STOP", "STOP")
    assert run("resume", destination).output == f"{destination} runs\n"
    assert has(destination)


def test_a_device_may_go_on_where_it_was(source: str, destination: str) -> None:
    assert told(source, destination)["downtime_ms"] is None
    assert told("resume", source) == {"device": source, "state": "RUNNING"}
    assert has(source)


def test_paths_stand_for_uris(source: str, destination: str) -> None:
    paths = (uri.removeprefix("vfio-user:") for uri in (source, destination))
    done = told(*paths, "--resume", "--no-precopy")
    assert (done["source"], done["destination"]) == (source, destination)
    assert done["rounds"] == []


def test_what_a_killed_tool_has_left_is_taken_up(source: str, destination: str) -> None:
    """Stopped, and a load that did not come to its end: as after a kill in the midst."""
    with pyvfio.open(source) as dev:
        dev.migration.stop()
    with pyvfio.open(destination) as dev:
        dev.migration.load()
    assert states(source, destination) == ("STOP", "ERROR")
    told(source, destination, "--resume")
    assert states(source, destination) == ("STOP", "RUNNING")
    assert has(destination)


def test_a_device_that_has_moved_is_not_moved_again(source: str, destination: str) -> None:
    told(source, destination, "--resume")
    done = run(source, destination, "--resume")
    assert done.status == FAILED
    assert "may have the device already" in done.errors
    assert f"pyvfio migrate resume {source}" in done.errors
    assert has(destination)


def test_another_kind_of_device_is_refused(source: str, edu_server: ServerProcess) -> None:
    done = run(source, edu_server.uri, "--resume")
    assert done.status == FAILED
    assert "of another device: vendor 0x1b36, not 0x1234" in done.errors
    assert states(source, edu_server.uri) == ("RUNNING", "RUNNING")
    assert has(source)


def test_a_device_that_cannot_migrate_says_so(
    source: str, serve: Callable[..., ServerProcess]
) -> None:
    other = serve("tests.fault.models:Small")
    done = run(source, other.uri)
    assert done.status == FAILED
    assert f"migrate on {other.uri}: the device cannot migrate" in done.errors


def test_who_is_not_there_costs_the_other_nothing(source: str, tmp_path: Path) -> None:
    assert run(source, tmp_path / "none.sock").status == UNAVAILABLE
    assert has(source)


def test_a_busy_server_is_a_time_out(source: str, destination: str) -> None:
    with pyvfio.open(destination):
        done = run(source, f"{destination}?timeout=0.3")
    assert done.status == TIMEOUT
    assert "hint: another client may have the device" in done.errors
    assert has(source)


# Whose it is


def test_the_status_says_what_a_device_does(source: str) -> None:
    assert "is in RUNNING" in run("status", source).output
    assert told("status", source)["can"] == ["STOP_COPY", "PRE_COPY"]


def test_a_device_that_runs_is_not_run_again(source: str) -> None:
    assert run("resume", source).output == f"{source} ran already\n"


def test_a_device_with_half_a_state_cannot_be_run(destination: str) -> None:
    with pyvfio.open(destination) as dev:
        dev.migration.load()
    done = run("resume", destination)
    assert done.status == FAILED
    assert "hint: " in done.errors
    assert "unfinished load" in run("status", destination).output
    assert state(destination) is DeviceState.ERROR


def test_looking_at_a_stopped_device_changes_nothing(source: str) -> None:
    """Opening it as a PCI device would set bits of its command register."""
    with pyvfio.open(source) as dev:
        dev.config.command = 0
        dev.migration.stop()
    run("status", source)
    run("resume", source)
    with pyvfio.open_backend(source, {}) as base:
        assert base.region(7).read16(4) == 0
