# SPDX-License-Identifier: BSD-3-Clause
"""Figures of long runs, told at the end of all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak import LONG
from tests.soak.following import DRIVERS
from tests.support import ServerProcess

_LINES = pytest.StashKey[list[str]]()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Lines that are printed when all tests have run, where the runs are long."""
    return request.config.stash.setdefault(_LINES, [])


@pytest.fixture(params=DRIVERS)
def model(request: pytest.FixtureRequest) -> str:
    """A model that has a driver which goes along with it."""
    name: str = request.param
    return name


@pytest.fixture
def places(model: str, socket_folder: Path) -> Iterator[list[str]]:
    """The URIs of two servers of it."""
    with (
        ServerProcess(model, socket_folder / "one.sock") as one,
        ServerProcess(model, socket_folder / "other.sock") as other,
    ):
        yield [one.uri, other.uri]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash.get(_LINES, []) if LONG else []:
        terminalreporter.write_line(line)
