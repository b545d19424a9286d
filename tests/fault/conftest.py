# SPDX-License-Identifier: BSD-3-Clause
"""Clients of the served models, made of hand-written bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fault import raw
from tests.fault.raw import RawClient
from tests.support import ServerProcess


@pytest.fixture(params=["C", "general"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How clients make the usual exchanges; whichever it is, nothing else may differ."""
    way: str = request.param
    monkeypatch.setenv("PYVFIO_NATIVE_CHANNEL", "1" if way == "C" else "0")
    return way


@pytest.fixture
def edu_client(edu_server: ServerProcess) -> Iterator[RawClient]:
    """A client of a freshly reset edu device."""
    with RawClient(edu_server.path) as client:
        client.negotiate()
        client.done(raw.RESET)
        yield client


@pytest.fixture
def tester(testdev_server: ServerProcess) -> Iterator[RawClient]:
    """A client of a freshly reset test device."""
    with RawClient(testdev_server.path) as client:
        client.negotiate()
        client.done(raw.RESET)
        yield client


@pytest.fixture(scope="module")
def host(socket_folder: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers that the tests of a file share."""
    with ExitStack() as servers:

        def start(model: str, *options: str) -> ServerProcess:
            path = socket_folder / f"{model.rpartition(':')[2]}-shared.sock"
            return servers.enter_context(ServerProcess(model, path, *options))

        yield start


@pytest.fixture
def path(socket_folder: Path) -> Path:
    """Where a server is started again and again."""
    return socket_folder / "again.sock"


@pytest.fixture
def served(path: Path) -> Iterator[Callable[[str], ServerProcess]]:
    """Start a model at the same path each time; the last server is stopped after the test."""
    servers: list[ServerProcess] = []

    def start(model: str = "testdev") -> ServerProcess:
        while servers:
            servers[-1].kill()
            servers.pop().stop()
        servers.append(ServerProcess(model, path))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
