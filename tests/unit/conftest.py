# SPDX-License-Identifier: BSD-3-Clause
"""Tests that need a program are left out where it is not installed."""

from __future__ import annotations

import platform
import shutil

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "assembler: needs GNU as and ld for x86")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without an assembler, what needs it is not run."""
    if platform.machine() == "x86_64" and shutil.which("as") and shutil.which("ld"):
        return
    left_out = [item for item in items if item.get_closest_marker("assembler")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
