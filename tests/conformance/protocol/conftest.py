# SPDX-License-Identifier: BSD-3-Clause
"""Runs each test of a server on every server that there is and that it can run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.conformance.protocol.device import Device
from tests.conformance.protocol.faults import known_fault
from tests.conformance.protocol.peers import OWN, PEERS, Host, running
from tests.fault import raw
from tests.fault.raw import RawClient

NOBODY = "nobody"
"""Stands for the server of a test that none of the servers can run."""


def pytest_configure(config: pytest.Config) -> None:
    for mark in (
        "spec(*titles): the sections of the vfio-user specification that the test is about",
        "needs(*traits): the test runs on servers with these traits only",
    ):
        config.addinivalue_line("markers", mark)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test on the servers that have what it needs."""
    if "peer" in metafunc.fixturenames:
        needed = {
            trait for mark in metafunc.definition.iter_markers("needs") for trait in mark.args
        }
        names = [name for name, peer in PEERS.items() if needed <= peer.traits]
        metafunc.parametrize("peer", names or [NOBODY], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what no server can run on; what a server is known to fail is expected to fail."""
    idle = [item for item in items if isinstance(item, pytest.Function) and _peer(item) == NOBODY]
    config.hook.pytest_deselected(items=idle)
    items[:] = [item for item in items if item not in idle]
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            name = _peer(item)
            case = item.callspec.id.removeprefix(f"{name}-").removesuffix(f"-{name}")
            fault = known_fault(name, item.originalname, case)
            if fault is not None:
                item.add_marker(pytest.mark.xfail(reason=fault.reason, strict=True))


def _peer(item: pytest.Function) -> str:
    """The name of the server that a test runs on, if it runs on one."""
    return str(item.callspec.params.get("peer", "")) if hasattr(item, "callspec") else ""


class Hosts:
    """The servers that take a while to start: one for all tests, started when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, Host] = {}
        self._stack = ExitStack()

    def get(self, name: str) -> Host:
        """The one server of a name."""
        if name not in self._running:
            host = self._stack.enter_context(running(PEERS[name], self.folder))
            self._running[name] = host
        return self._running[name]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="session")
def hosts(socket_folder: Path) -> Iterator[Hosts]:
    with closing(Hosts(socket_folder)) as found:
        yield found


@pytest.fixture
def peer(request: pytest.FixtureRequest, hosts: Hosts) -> Iterator[Host]:
    """The server under test; nobody is connected to it."""
    if PEERS[request.param] in OWN:
        yield hosts.get(request.param)
        return
    with running(PEERS[request.param], hosts.folder) as host:
        yield host


@pytest.fixture
def client(peer: Host) -> Iterator[RawClient]:
    """A client that has negotiated, of a device that was reset."""
    with peer.connect() as client:
        client.negotiate()
        client.ask(raw.RESET)  # a device that has none refuses
        yield client


@pytest.fixture
def device(client: RawClient) -> Device:
    """The device behind :func:`client`."""
    return Device(client)
