# SPDX-License-Identifier: BSD-3-Clause
"""Two servers, one device of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvfio
from tests.support import ServerProcess
from tests.system.migrate.command import MEMORY, PLACE, give


@pytest.fixture(scope="package")
def servers(socket_folder: Path) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    with (
        ServerProcess("testdev", socket_folder / "from.sock") as one,
        ServerProcess("testdev", socket_folder / "to.sock") as other,
    ):
        yield one, other


@pytest.fixture
def source(servers: tuple[ServerProcess, ServerProcess]) -> str:
    """A device that runs, and has something."""
    with pyvfio.open(servers[0].uri) as dev:
        give(dev)
    return servers[0].uri


@pytest.fixture
def destination(servers: tuple[ServerProcess, ServerProcess]) -> str:
    """A device that runs, and has nothing."""
    with pyvfio.open(servers[1].uri) as dev:
        dev.reset()
        dev.bus_master = False
        dev.bars[MEMORY].write32(PLACE, 0)
    return servers[1].uri


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A name."""
    return tmp_path / "device.state"
