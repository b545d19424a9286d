# SPDX-License-Identifier: BSD-3-Clause
"""Figures of long runs, told at the end of all."""

from __future__ import annotations

import pytest

from tests.soak import LONG

_LINES = pytest.StashKey[list[str]]()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Lines that are printed when all tests have run, where the runs are long."""
    return request.config.stash.setdefault(_LINES, [])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash.get(_LINES, []) if LONG else []:
        terminalreporter.write_line(line)
