# SPDX-License-Identifier: BSD-3-Clause
"""Tests that need a program are left out where it is not installed."""

from __future__ import annotations

import platform
import shutil

import pytest

NEEDS = {"assembler": ("as", "ld"), "watcher": ("cc",)}
"""Markers of tests that are for x86-64, and the programs that they need."""


def pytest_configure(config: pytest.Config) -> None:
    for marker, programs in NEEDS.items():
        config.addinivalue_line("markers", f"{marker}: needs {' and '.join(programs)} for x86-64")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a program, what needs it is not run."""
    absent = [marker for marker, programs in NEEDS.items() if not all(map(_is_here, programs))]
    left_out = [item for item in items if any(map(item.get_closest_marker, absent))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _is_here(program: str) -> bool:
    return platform.machine() == "x86_64" and shutil.which(program) is not None
