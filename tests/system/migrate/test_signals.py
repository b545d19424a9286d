# SPDX-License-Identifier: BSD-3-Clause
"""Signals in the midst of ``pyvfio migrate``: a device that ran goes on, or waits to be run.

Whichever it does, it has all that it had before.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pyvfio
from pyvfio.errors import StateError
from pyvfio.migration_file import StateReader
from pyvfio.uapi.vfio import DeviceState
from tests.support import ROOT, ServerProcess, eventually
from tests.system.migrate.command import (
    COMMAND,
    DONE,
    INTERRUPTED,
    digest,
    fill,
    give,
    has,
    run,
    state,
)
from tests.system.migrate.models import FOLDER, PRECOPY, SAVE, START, STEPS

MODEL = "tests.system.migrate.models:Lingering"
SOON, LATER = 0.1, 20.0
"""Seconds: well within what lingers, and more than anything takes."""


@contextmanager
def slow_save(server: ServerProcess) -> Iterator[subprocess.Popen[bytes]]:
    """A save that has begun, and goes on for longer than a test takes."""
    # A pipe that nobody reads is soon full.
    reader, writer = os.pipe()
    with subprocess.Popen(
        [*COMMAND, "save", f"{server.uri}?timeout=60", "-"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
    ) as save:
        os.close(writer)
        try:
            assert os.read(reader, 1)
            yield save
        finally:
            os.close(reader)
            save.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_tool_that_is_told_to_end_has_the_source_go_on(
    number: signal.Signals, source: str, servers: tuple[ServerProcess, ServerProcess]
) -> None:
    fill(source, os.urandom(1 << 20))
    before = digest(source)
    with slow_save(servers[0]) as save:
        time.sleep(SOON)
        save.send_signal(number)
        assert save.wait(LATER) == INTERRUPTED
    assert state(source) is DeviceState.RUNNING
    assert digest(source) == before
    assert has(source)


# At each step


class Steps:
    """A device whose steps can be met.

    :ivar uri: where it is.
    """

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri = uri
        self._folder = folder
        with pyvfio.open(uri) as dev:
            give(dev)
        self.before = digest(uri)

    @contextmanager
    def tool(self, step: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        """``pyvfio migrate`` that has come to a step."""
        chosen = self._folder / step
        chosen.touch()
        with subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as tool:
            assert eventually(lambda: not chosen.exists(), LATER)
            yield tool

    def check(self, uri: str | None = None) -> None:
        """It runs, and has all that it had; where it has moved, ``uri`` is the place."""
        uri = uri or self.uri
        assert state(uri) is DeviceState.RUNNING
        assert digest(uri) == self.before
        assert has(uri)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where steps are chosen."""
    return tmp_path_factory.mktemp("steps")


@pytest.fixture(scope="module")
def lingering(socket_folder: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Two devices of the kind."""
    environment = {**os.environ, FOLDER: str(folder)}
    with (
        ServerProcess(MODEL, socket_folder / "lingers.sock", environment=environment) as one,
        ServerProcess(MODEL, socket_folder / "as-well.sock", environment=environment) as other,
    ):
        yield one.uri, other.uri


@pytest.fixture
def steps(lingering: tuple[str, str], folder: Path) -> Steps:
    return Steps(lingering[0], folder)


@pytest.fixture
def elsewhere(lingering: tuple[str, str]) -> str:
    """The other, which has nothing."""
    with pyvfio.open(lingering[1]) as dev:
        dev.reset()
    return lingering[1]


def interrupt(tool: subprocess.Popen[bytes], times: int = 1) -> str:
    """Ctrl-C, and again; returns what the tool has to say."""
    for _ in range(times):
        time.sleep(SOON)
        tool.send_signal(signal.SIGINT)
    _, said = tool.communicate(timeout=LATER)
    assert tool.returncode == INTERRUPTED
    assert b"Traceback" not in said
    return said.decode()


@pytest.mark.parametrize(("step", "times"), [(PRECOPY, 1), (SAVE, 1), (SAVE, 2)])
def test_ctrl_c_before_the_state_was_read_has_the_device_go_on(
    step: str, times: int, steps: Steps, file: Path
) -> None:
    with steps.tool(step, "save", steps.uri, file) as tool:
        interrupt(tool, times)
    steps.check()
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_a_device_goes_on_behind_a_snapshot_does_not_stop_it(
    times: int, steps: Steps, file: Path
) -> None:
    """All of its state was read, and the server has been told already."""
    with steps.tool(START, "save", steps.uri, file, "--keep-running") as tool:
        interrupt(tool, times)
    steps.check()
    assert list(file.parent.iterdir()) == []


def test_ctrl_c_while_a_stopped_device_is_run_does_not_stop_it(steps: Steps) -> None:
    with pyvfio.open(steps.uri) as dev:
        dev.migration.stop()
    with steps.tool(START, "resume", steps.uri) as tool:
        interrupt(tool)
    steps.check()


def test_ctrl_c_as_the_destination_is_run_says_that_it_has_the_device(
    steps: Steps, elsewhere: str
) -> None:
    with steps.tool(START, steps.uri, elsewhere, "--resume") as tool:
        said = interrupt(tool)
    assert f"note: {elsewhere} runs, {steps.uri} is stopped" in said
    assert state(steps.uri) is DeviceState.STOP
    steps.check(elsewhere)


def test_a_second_ctrl_c_there_leaves_the_device_with_the_destination(
    steps: Steps, elsewhere: str
) -> None:
    with steps.tool(START, steps.uri, elsewhere, "--resume") as tool:
        interrupt(tool, times=2)
    assert state(steps.uri) is DeviceState.STOP
    steps.check(elsewhere)


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_tool_leaves_no_file_and_a_device_that_has_all(
    step: str, steps: Steps, file: Path
) -> None:
    """What it has written stays, under another name, and is not taken for a saved device."""
    with steps.tool(step, "save", steps.uri, file, "--keep-running") as tool:
        tool.kill()
    (left,) = file.parent.iterdir()
    assert left.name.endswith(".part")
    assert not is_whole(left)
    found = state(steps.uri)
    assert found is (DeviceState.STOP if step == SAVE else DeviceState.RUNNING)
    if found is DeviceState.STOP:
        assert "it is whole, and waits" in run("status", steps.uri).output
        assert run("resume", steps.uri).status == DONE
    steps.check()
    assert run("save", steps.uri, file).status == DONE
    assert is_whole(file)


def is_whole(path: Path) -> bool:
    """Whether a file is a saved device, from its head to its end."""
    with path.open("rb") as file:
        try:
            for _ in StateReader(file.read, path.name).pieces():
                pass
        except StateError:
            return False
    return True
