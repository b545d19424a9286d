# SPDX-License-Identifier: BSD-3-Clause
"""Clients made of hand-written bytes; guests whose memory a device follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyvfio.emulator.dma_listener import DMAListener
from pyvfio.emulator.memory import RAMRegion
from pyvfio.pci.device import PCIDevice
from tests.conformance.guest_memory import PAGE, Guest
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


@pytest.fixture(scope="module")
def movable(host: Callable[..., ServerProcess]) -> ServerProcess:
    """A server of a device that migrates, with registers and without pre-copy."""
    return host("tests.fault.migrating:Movable")


@pytest.fixture(scope="module")
def streaming(host: Callable[..., ServerProcess]) -> ServerProcess:
    """A server of a device that sends its registers in pre-copy."""
    return host("tests.fault.migrating:Streaming")


@pytest.fixture
def guest() -> Guest:
    """A guest without memory."""
    return Guest()


@pytest.fixture
def blocks() -> Iterator[list[RAMRegion]]:
    """RAM of one page each."""
    found = [RAMRegion(f"ram{number}", PAGE) for number in range(4)]
    yield found
    for block in found:
        block.close()


@pytest.fixture
def listener(device: PCIDevice, guest: Guest) -> Iterator[DMAListener]:
    """The maps of a test's device follow the guest's memory."""
    found = DMAListener(device.dma, device.uri)
    found.attach(guest.space)
    yield found
    found.detach()
