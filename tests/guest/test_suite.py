# SPDX-License-Identifier: BSD-3-Clause
"""The real kernel's VFIO, in a guest: the conformance suite and what only real devices show."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.runner import OUTPUT, run

LIMIT = 400.0
"""Seconds that the guest may take, boot included."""


@pytest.mark.timeout(LIMIT + 60)
def test_the_kernel_backend_passes_the_suite(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    command = [sys.executable, "-m", "tests.guest.suite", f"--junitxml={OUTPUT}/junit.xml"]
    result = run(command, timeout=LIMIT, output=tmp_path)
    (suite,) = ET.parse(tmp_path / "junit.xml").getroot().iter("testsuite")
    record_property("on the kernel's VFIO, in the guest", suite.get("tests"))
    assert result.returncode == 0, result.console
    assert int(suite.get("tests", "0")) > 100
    assert suite.get("skipped") == "0"
