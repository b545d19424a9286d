# SPDX-License-Identifier: BSD-3-Clause
"""Source, destination or the tool is killed at a random moment of ``pyvfio migrate``.

Afterwards exactly one side has the device, all of it; which one is told by the states of both, by
the table in :mod:`pyvfio.pci.migrate`.  Moments are seeded: half of them lie anywhere in the time
that a migration takes, half just behind the begin of a step of that table, since the last of them
are short.  The tool's trace tells which step each of them was in.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import pyvfio
from pyvfio.cli.main import main
from pyvfio.cli.trace_line import Line
from pyvfio.migration import Migration
from pyvfio.pci.device import PCIDevice
from pyvfio.transport.trace import VARIABLE
from pyvfio.uapi.vfio import FEATURE_STATE, DeviceState, Feature
from tests.conformance.devices import Dev
from tests.soak import LONG
from tests.soak.test_sudden_death import Strike
from tests.support import ROOT, ServerProcess, eventually

KILLS = 200 if LONG else 3
TOOL, SOURCE, DESTINATION = VICTIMS = ("tool", "source", "destination")
NOBODY = "nobody"
IN_TIME = 20.0
EARLIEST_LATE, LATEST = 0.8, 1.15
"""When somebody is killed, in parts of the time that all takes: mostly around the end, where each
step is short."""
BEHIND_STEP = 0.006
"""Seconds behind the begin of a step, at most."""
MOST, FAIR = 5 * KILLS, KILLS // 2
"""Moments at most, and how many must lie in a migration: on a busy machine some come late."""
OPTIONS = ("--precopy", "--no-precopy")
"""Most of the state goes while the source runs, or all while it is stopped."""

BEFORE, BEHIND, PRECOPY = "before it begins", "behind its end", "in pre-copy"
STEPS = {
    (DESTINATION, DeviceState.RESUMING): "as the load begins",
    (SOURCE, DeviceState.PRE_COPY): PRECOPY,
    (SOURCE, DeviceState.STOP_COPY): "as the source is stopped, and the rest copied",
    (DESTINATION, DeviceState.STOP): "as the destination checks it all",
    (SOURCE, DeviceState.STOP): "as the source comes to rest",
    (DESTINATION, DeviceState.RUNNING): "as the destination is run",
}
"""What was told to go where last, and what is being done then."""

MEMORY, AREA_SIZE = 2, 8 << 20
DATA = np.random.default_rng(6).bytes(AREA_SIZE - 8)


class Two:
    """Two servers of the test device, which are started again when they were killed.

    :ivar trace: what the last tool has said to both.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.trace = folder / "trace"
        self._servers: dict[str, ServerProcess] = {}
        for name in (SOURCE, DESTINATION):
            self.start(name)

    def start(self, name: str) -> None:
        """A new device."""
        if name in self._servers:
            self._servers[name].stop()
        self._servers[name] = ServerProcess("testdev", self._folder / f"{name}.sock")

    def __getitem__(self, name: str) -> ServerProcess:
        return self._servers[name]

    def stop(self) -> None:
        for server in self._servers.values():
            server.stop()


@pytest.fixture
def two(socket_folder: Path) -> Iterator[Two]:
    two = Two(socket_folder)
    yield two
    two.stop()


def give(dev: PCIDevice, token: int) -> None:
    """A new device gets a token at both ends of all that it has."""
    dev.reset()
    dev.bus_master = bool(token)
    dev.bars[0].write32(Dev.SCRATCH, token)
    memory = dev.bars[MEMORY]
    memory.write_bytes(4, DATA)
    memory.write32(0, token)
    memory.write32(AREA_SIZE - 4, token)


def token_of(dev: PCIDevice) -> int:
    """What a device that runs was given; it has all of it."""
    memory = dev.bars[MEMORY]
    found = {
        dev.bars[0].read32(Dev.SCRATCH),
        memory.read32(0),
        memory.read32(AREA_SIZE - 4),
    }
    assert len(found) == 1
    token = found.pop()
    assert dev.bus_master is bool(token)
    assert memory.read_bytes(4, len(DATA)) == DATA
    return token


def state(server: ServerProcess) -> DeviceState | None:
    """What the next client finds; None where the server is gone."""
    if server.process.poll() is not None:
        return None
    with pyvfio.open_backend(server.uri, {"timeout": IN_TIME}) as base:
        return Migration(base).state


@contextmanager
def tool(two: Two, option: str) -> Iterator[subprocess.Popen[str]]:
    """``pyvfio migrate SOURCE DESTINATION --resume``, which begins at once."""
    two.trace.unlink(missing_ok=True)
    uris = (two[SOURCE].uri, two[DESTINATION].uri)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.soak.migrating", *uris, "--resume", option],
        cwd=ROOT,
        env={**os.environ, VARIABLE: str(two.trace)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("\n")
        process.stdin.flush()
        yield process


def time_one(two: Two, option: str) -> float:
    """Seconds that a migration takes in which nobody is killed."""
    with tool(two, option) as process:
        start = time.monotonic()
        assert process.stdout is not None
        assert process.stdout.readline()
        return time.monotonic() - start


def kill_one(
    two: Two, option: str, victim: str, seconds: float, step: str | None
) -> tuple[bool, str]:
    """Begin to migrate, and kill somebody after a time.

    :param step: the time begins with this step.
    :returns: whether the tool has succeeded, and what was being done when the blow fell.
    """
    with tool(two, option) as process:
        pid = process.pid if victim == TOOL else two[victim].pid
        if step is None:
            strike = Strike(pid, signal.SIGKILL, seconds)
        else:
            strike = AimedStrike(two, step, pid, signal.SIGKILL, seconds)
        strike.wait()  # before it is reaped, whose number may be another's then
        _, said = process.communicate(timeout=IN_TIME)
        assert "Traceback" not in said
    if victim != TOOL:
        two[victim].process.wait()
    return process.returncode == 0, step_at(two, strike.moment)


# What the tool does


def step_at(two: Two, moment: float) -> str:
    """What the tool was doing at a moment (``time.monotonic()``)."""
    step = BEFORE
    for text in two.trace.read_bytes().splitlines() if two.trace.exists() else ():
        line = Line.parse(text)
        if line["mono"] > moment:
            break
        step = step_of(two, line) or step
    return step


def step_of(two: Two, line: Line) -> str | None:
    """The step that begins with a message, if one does."""
    fields = line.get("fields") or {}
    if (fields.get("feature"), fields.get("methods")) != (Feature.MIG_DEVICE_STATE, "SET"):
        return None
    data = bytes.fromhex(fields["data"]["hex"])
    told = DeviceState(FEATURE_STATE.unpack_from(data).device_state)
    name = SOURCE if str(two[SOURCE].path) in line["channel"] else DESTINATION
    if line["type"] == "command":
        return STEPS[name, told]
    return BEHIND if (name, told) == (DESTINATION, DeviceState.RUNNING) else None


class AimedStrike(Strike):
    """A strike some seconds behind the begin of a step, or when the tool has nothing more to say.

    :param step: the step.
    """

    def __init__(self, two: Two, step: str, pid: int, number: int, seconds: float) -> None:
        self._two, self._step = two, step
        super().__init__(pid, number, seconds)

    def _run(self, pid: int, number: int, seconds: float) -> None:
        begun = eventually(self._two.trace.exists, IN_TIME) and self._await_step()
        super()._run(pid, number, seconds if begun else 0)

    def _await_step(self) -> bool:
        deadline = time.monotonic() + IN_TIME
        with self._two.trace.open("rb") as trace:
            text = b""
            while time.monotonic() < deadline:
                text += trace.readline()
                if not text.endswith(b"\n"):
                    time.sleep(0.0005)
                    continue
                if step_of(self._two, Line.parse(text)) in (self._step, BEHIND):
                    return True
                text = b""
        return False


def owner(here: DeviceState | None, there: DeviceState | None) -> str:
    """Who has the device, by the table."""
    if here is DeviceState.RUNNING:
        return SOURCE
    if here is DeviceState.STOP:
        moved = there in (DeviceState.RUNNING, DeviceState.STOP)
        return DESTINATION if moved else SOURCE
    assert here is None, here
    return DESTINATION if there in (DeviceState.RUNNING, DeviceState.STOP) else NOBODY


def check_owner(two: Two, victim: str, token: int, done: bool) -> str:
    """One has the device, all of it; the other does not, or does not run."""
    found = {name: state(two[name]) for name in (SOURCE, DESTINATION)}
    name = owner(found[SOURCE], found[DESTINATION])
    if name == NOBODY:
        assert (victim, found[DESTINATION], done) == (SOURCE, DeviceState.ERROR, False)
        return "lost with the source before it was copied"
    other = SOURCE if name == DESTINATION else DESTINATION
    assert name == DESTINATION or not done or victim == DESTINATION
    if found[name] is DeviceState.STOP:
        assert main(["migrate", "resume", two[name].uri]) == 0
    with pyvfio.open(two[name].uri, timeout=IN_TIME) as dev:
        assert dev.migration.state is DeviceState.RUNNING
        had = token_of(dev)
    if had != token:
        assert (victim, had, done, name) == (SOURCE, 0, False, DESTINATION)
        return "lost with the source before it began"
    if found[other] is DeviceState.RUNNING:
        with pyvfio.open(two[other].uri, timeout=IN_TIME) as dev:
            assert token_of(dev) == 0
    return f"{name}, {'which ran' if found[name] is DeviceState.RUNNING else 'stopped'}"


def check_next_run(two: Two, token: int) -> str:
    """The next run of a tool that was killed moves the device, or says that it has moved."""
    before = state(two[SOURCE]), state(two[DESTINATION])
    moved = before == (DeviceState.STOP, DeviceState.RUNNING)
    arguments = ["migrate", two[SOURCE].uri, two[DESTINATION].uri, "--resume"]
    assert main(arguments) == (1 if moved else 0)
    assert state(two[SOURCE]) is DeviceState.STOP
    with pyvfio.open(two[DESTINATION].uri, timeout=IN_TIME) as dev:
        assert token_of(dev) == token
    return "moved" if moved else "moved by the next run"


def moment_of(rng: random.Random, option: str, takes: float) -> tuple[float, str | None]:
    """Seconds, and the step with which they begin, if not with the migration itself."""
    if rng.random() < 0.5:
        return takes * rng.uniform(rng.choice((0, EARLIEST_LATE)), LATEST), None
    steps = [step for step in STEPS.values() if option == "--precopy" or step != PRECOPY]
    return rng.uniform(0, rng.choice((0, BEHIND_STEP))), rng.choice(steps)


def prepare(two: Two, token: int) -> None:
    """Both run; the source has a token, the destination has none."""
    for name, given in ((SOURCE, token), (DESTINATION, 0)):
        if two[name].process.poll() is not None:
            two.start(name)
        with pyvfio.open(two[name].uri, timeout=IN_TIME) as dev:
            give(dev, given)


@pytest.mark.timeout(60 + 15 * KILLS)
def test_whoever_is_killed_one_side_has_the_device(two: Two, figures: list[str]) -> None:
    found: dict[str, Counter[str]] = {victim: Counter() for victim in VICTIMS}
    steps: Counter[str] = Counter()
    takes = {}
    for option in OPTIONS:
        prepare(two, 1)
        takes[option] = time_one(two, option)
    for number in range(MOST):
        inside = steps.total() - steps[BEFORE] - steps[BEHIND]
        if number >= KILLS and inside >= FAIR:
            break
        victim, token = VICTIMS[number % len(VICTIMS)], number + 1
        rng = random.Random(f"migration {number}")
        option = rng.choice(OPTIONS)
        prepare(two, token)
        done, step = kill_one(two, option, victim, *moment_of(rng, option, takes[option]))
        steps[step] += 1
        if victim == TOOL and rng.random() < 0.5:
            found[victim][check_next_run(two, token)] += 1
        else:
            found[victim][check_owner(two, victim, token, done)] += 1
    assert inside >= FAIR
    for step in (BEFORE, *STEPS.values(), BEHIND):
        figures.append(f"killed {step}: {steps[step]}")
    for victim, ends in found.items():
        told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
        figures.append(f"{victim} killed, the device is: {told}")
