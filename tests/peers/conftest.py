# SPDX-License-Identifier: BSD-3-Clause
"""Servers and machines for tests of peers, which are left out where the peer is not given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.peers.held import Held
from tests.peers.machine import Machine
from tests.peers.qemu import COMMAND, version, vfio_user
from tests.support import ServerProcess


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "qemu(major, fault): older ones fail by a fault of theirs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a QEMU there is nothing to run here, with an old one not all."""
    folder = Path(__file__).parent
    mine = [item for item in items if item.path.is_relative_to(folder)]
    if mine and os.environ.get(COMMAND):
        major, _ = version()
        mine = [item for item in mine if any(m.args[0] > major for m in item.iter_markers("qemu"))]
    config.hook.pytest_deselected(items=mine)
    items[:] = [item for item in items if item not in mine]


@pytest.fixture
def served(serve: Callable[..., ServerProcess]) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers.  Those that a test leaves running must, after it, hold what they held when
    they were started, and end without having had anything to say.
    """
    started: list[tuple[ServerProcess, Held]] = []

    def start(model: str) -> ServerProcess:
        server = serve(model)
        started.append((server, Held.by(server)))
        return server

    yield start
    for server, before in started:
        if server.process.poll() is None:
            before.assert_again(server)
            assert server.stop() == (0, "")


@pytest.fixture
def machine(
    served: Callable[..., ServerProcess],  # noqa: ARG001 - machines go before servers
) -> Iterator[Callable[..., Machine]]:
    """Start machines; those that a test leaves running are ended after it."""
    with ExitStack() as stack:

        def start(*devices: dict[str, object], kind: str = "q35", shared: bool = True) -> Machine:
            return stack.enter_context(Machine(devices, kind=kind, shared=shared))

        yield start


@pytest.fixture
def plugged(machine: Callable[..., Machine]) -> Callable[..., Machine]:
    """Start a machine with a server's device in slot 4, with further properties of the device."""

    def start(server: ServerProcess, *, shared: bool = True, **properties: object) -> Machine:
        return machine(vfio_user(server.path, addr="4", **properties), shared=shared)

    return start
