# SPDX-License-Identifier: BSD-3-Clause
"""What the README shows works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyvfio
from tests.support import ROOT, ServerProcess

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def block(text: str) -> str:
    """The Python block that holds ``text``."""
    found: str
    (found,) = (code for code in BLOCKS if text in code)
    return found


def test_the_first_example_runs_against_a_served_edu(edu_server: ServerProcess) -> None:
    code = block("address_bits=28").replace("vfio-user:/tmp/edu.sock", edu_server.uri)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1234:11e8", "[0x040] MSI", "0xedcba987", "1"]


def test_the_emulator_of_the_readme_has_its_interrupt(edu_server: ServerProcess) -> None:
    code = block("class MyEmulator").replace("vfio-user:/tmp/edu.sock", edu_server.uri)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["INTA is high", "INTA is low"]


def test_the_model_of_the_readme_can_be_served_and_driven(
    tmp_path: Path, socket_folder: Path
) -> None:
    (tmp_path / "counter.py").write_text(block("class Counter"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    path = socket_folder / "counter.sock"
    with (
        ServerProcess("counter:Counter", path, environment=environment) as server,
        pyvfio.open(server.uri) as dev,
        dev.msi.enable(1) as irqs,
    ):
        dev.bars[0].write32(0x10, 42)
        assert irqs[0].wait(5) == 1
        assert dev.bars[0].read32(0x10) == 42
