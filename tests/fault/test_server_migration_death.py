# SPDX-License-Identifier: BSD-3-Clause
"""A migration in whose midst somebody is killed: what is left is one whole device, or none half.

Specification: "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE", "Socket Disconnection Behavior".
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.fault import raw
from tests.fault.clients import BAR0, BAR2, TEST_SCRATCH, pattern
from tests.fault.moving import (
    connected,
    go,
    load,
    read_some,
    refuses,
    save,
    state,
    write_all,
)
from tests.fault.raw import RawClient
from tests.fault.raw_migration import (
    ERROR,
    RESUMING,
    RUNNING,
    STOP,
    STOP_COPY,
)
from tests.support import ROOT, ServerProcess

ROUNDS = 12
LONGEST = 0.03
"""Seconds until somebody is killed, at most; all of a migration takes about that long."""

PIECE = 1 << 20
DATA = pattern(PIECE)
PIECES = 8

TOOL = """
import sys
from tests.fault import raw
from tests.fault.moving import go, load, save
from tests.fault.raw import RawClient
from tests.fault.raw_migration import RUNNING

with RawClient(sys.argv[1]) as one, RawClient(sys.argv[2]) as other:
    one.negotiate()
    other.negotiate()
    print("begins", flush=True)
    load(other, save(one))
    go(other, RUNNING)
    one.done(raw.RESET)
"""
"""Moves a device from one server to another, and clears it where it was."""


@pytest.fixture
def servers(serve: Callable[..., ServerProcess]) -> tuple[ServerProcess, ServerProcess]:
    """Two servers of the test device."""
    return serve("testdev"), serve("testdev")


def give(client: RawClient, token: int) -> None:
    """Put a token and a few MiB into a device."""
    client.write32(BAR0, TEST_SCRATCH, token)
    for piece in range(PIECES):
        client.write(BAR2, piece * PIECE, DATA)
    client.write32(BAR2, 0, token)
    client.write32(BAR2, PIECES * PIECE - 4, token)


def has(client: RawClient, token: int) -> bool:
    """Whether a device that runs has the token, all of it."""
    ends = client.read32(BAR2, 0), client.read32(BAR2, PIECES * PIECE - 4)
    found = (client.read32(BAR0, TEST_SCRATCH), *ends)
    if found[0] != token:
        return False
    assert found == (token, token, token)
    inside = DATA[4:-4]
    assert client.read(BAR2, 4, len(inside)) == inside
    assert client.read(BAR2, (PIECES - 1) * PIECE + 4, len(inside)) == inside
    return True


def forget(client: RawClient) -> None:
    """A device that has nothing of the last round."""
    client.done(raw.RESET)
    for at in (0, PIECES * PIECE - 4):
        client.write32(BAR2, at, 0)


def test_the_tool_is_killed(servers: tuple[ServerProcess, ServerProcess]) -> None:
    """Whoever comes next finds one device to go on with, by the states alone."""
    rng = random.Random(1)
    owners = set()
    for token in range(1, ROUNDS + 1):
        with connected(servers[0]) as one, connected(servers[1]) as other:
            give(one, token)
            forget(other)
        kill_the_tool(servers, rng.uniform(0, LONGEST))
        with connected(servers[0], reset=False) as one, connected(servers[1], reset=False) as other:
            owners.add(take_over(one, other, token))
    assert "source" in owners


def kill_the_tool(servers: tuple[ServerProcess, ServerProcess], delay: float) -> None:
    """Begin a migration and end it after a time."""
    command = [sys.executable, "-c", TOOL, *(str(server.path) for server in servers)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as tool:
        assert tool.stdout is not None
        assert tool.stdout.readline()
        time.sleep(delay)
        tool.kill()


def take_over(one: RawClient, other: RawClient, token: int) -> str:
    """Have the device run on one side; returns which."""
    states = state(one), state(other)
    if states[1] == STOP:  # loaded, not run: no other has it but the source, which is stopped
        assert states[0] == STOP
        go(other, RUNNING)
        assert has(other, token)
        return "target, as it was loaded"
    if states[1] == RUNNING and has(other, token):
        # It was told to run: the source stands still, or was cleared.
        assert states[0] == STOP or not has(one, token)
        return "target"
    assert states[1] in (RUNNING, ERROR)
    if states[0] == STOP:
        go(one, RUNNING)
    assert has(one, token)
    return "source"


def test_the_target_is_killed(serve: Callable[..., ServerProcess]) -> None:
    """The source runs on with all it had."""
    rng = random.Random(2)
    source = serve("testdev")
    with connected(source) as one:
        for token in range(1, 5):
            give(one, token)
            target = serve("testdev")
            killer = threading.Timer(rng.uniform(0, LONGEST), target.kill)
            with RawClient(target.path) as other:
                other.negotiate()
                killer.start()
                with suppress(EOFError, ConnectionError):
                    load(other, save(one))
            killer.join()
            go(one, RUNNING)
            assert has(one, token)


def test_the_source_is_killed(serve: Callable[..., ServerProcess]) -> None:
    """The target has it all, or is in ERROR and says so."""
    rng = random.Random(3)
    target = serve("testdev")
    for token in range(1, 5):
        source = serve("testdev")
        with connected(source) as one, connected(target) as other:
            give(one, token)
            forget(other)
            killer = threading.Timer(rng.uniform(0, LONGEST), source.kill)
            killer.start()
            go(other, RESUMING)
            whole = pass_on(one, other)
            killer.join()
            if whole:
                go(other, RUNNING)
                assert has(other, token)
            else:
                assert refuses(other, RUNNING)
                assert state(other) == ERROR
                other.done(raw.RESET)
                assert not has(other, token)


def pass_on(one: RawClient, other: RawClient) -> bool:
    """Give a device's state to another piece by piece; returns whether it came to its end."""
    try:
        go(one, STOP_COPY)
        while piece := read_some(one, PIECE // 4):
            write_all(other, piece)
    except (EOFError, ConnectionError):
        return False
    return True
