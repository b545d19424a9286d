# SPDX-License-Identifier: BSD-3-Clause
"""A server of raw bytes, and the client under test that is connected to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvfio
from pyvfio.pci.device import PCIDevice
from tests.fault.raw import RawServer


@pytest.fixture
def server(socket_folder: Path) -> Iterator[RawServer]:
    """A small PCI device that answers as it should, and keeps what it is sent."""
    with RawServer(socket_folder / "conformance.sock") as server:
        yield server


@pytest.fixture
def device(server: RawServer) -> Iterator[PCIDevice]:
    """The client, whose writes all want a reply."""
    with pyvfio.open(server.uri, posted_writes=False) as dev:
        yield dev
