# SPDX-License-Identifier: BSD-3-Clause
"""Clients of the served models, made of hand-written bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fault import raw
from tests.fault.raw import RawClient
from tests.support import ServerProcess


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
