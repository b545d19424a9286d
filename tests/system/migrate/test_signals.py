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
    def save(self, step: str, file: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """``pyvfio migrate save`` that has come to a step."""
        chosen = self._folder / step
        chosen.touch()
        with subprocess.Popen(
            [*COMMAND, "save", self.uri, str(file), *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as save:
            assert eventually(lambda: not chosen.exists(), LATER)
            yield save

    def check(self) -> None:
        """It runs, and has all that it had."""
        assert state(self.uri) is DeviceState.RUNNING
        assert digest(self.uri) == self.before
        assert has(self.uri)


@pytest.fixture
def steps(socket_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steps]:
    folder = tmp_path_factory.mktemp("steps")
    environment = {**os.environ, FOLDER: str(folder)}
    path = socket_folder / "lingering.sock"
    with ServerProcess(MODEL, path, environment=environment) as server:
        yield Steps(server.uri, folder)


def interrupt(save: subprocess.Popen[bytes], times: int = 1) -> str:
    """Ctrl-C, and again; returns what the tool has to say."""
    for _ in range(times):
        time.sleep(SOON)
        save.send_signal(signal.SIGINT)
    _, said = save.communicate(timeout=LATER)
    assert save.returncode == INTERRUPTED
    assert b"Traceback" not in said
    return said.decode()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("step", [PRECOPY, SAVE])
def test_ctrl_c_before_the_state_was_read_has_the_device_go_on(
    step: str, times: int, steps: Steps, file: Path
) -> None:
    with steps.save(step, file) as save:
        interrupt(save, times)
    steps.check()
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_a_device_goes_on_behind_a_snapshot_does_not_stop_it(
    times: int, steps: Steps, file: Path
) -> None:
    """All of its state was read, and the server has been told already."""
    with steps.save(START, file, "--keep-running") as save:
        interrupt(save, times)
    steps.check()
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_tool_leaves_no_file_and_a_device_that_has_all(
    step: str, steps: Steps, file: Path
) -> None:
    """What it has written stays, under another name, and is not taken for a saved device."""
    with steps.save(step, file, "--keep-running") as save:
        save.kill()
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
