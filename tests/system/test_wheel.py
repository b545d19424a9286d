# SPDX-License-Identifier: BSD-3-Clause
"""An installed wheel works as the checkout does."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed; returns what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_demo_of_an_installed_wheel_outside_of_the_tree(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.so", "*.o"))
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("pyvfio-*.whl")
    assert "pyvfio/emulator/firmware/edu.bin" in zipfile.ZipFile(wheel).namelist()
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    run(environment / "bin/python", "-m", "pip", "install", "-q", wheel, cwd=tmp_path)
    printed = run(environment / "bin/pyvfio", "demo", cwd=tmp_path)
    assert "Everything is as it should be." in printed
