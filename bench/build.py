# SPDX-License-Identifier: BSD-3-Clause
"""Builds the C baselines, with the compiler that builds the package's C parts."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).parent / "c"
BUILT = Path(__file__).parent / "built"
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra")
LIBRARY = ("limits.c", "client.c")
PEER = ("peer.c", "limits.c", "server.c")


class Baselines(NamedTuple):
    """What was built.

    :ivar library: shared object with the C reference client and the bare loops.
    :ivar peer: program for the other ends, and the C reference server.
    """

    library: Path
    peer: Path


def compiler() -> list[str]:
    """The command that setuptools compiles extensions with."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def build(folder: Path = BUILT) -> Baselines:
    """Build what has changed since it was built last.

    :raises RuntimeError: the compiler does not take it; with what it says.
    """
    folder = folder / _fingerprint()
    built = Baselines(folder / "baselines.so", folder / "peer")
    if not built.peer.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _compile(built.library, LIBRARY, "-shared", "-fPIC")
        _compile(built.peer, PEER)
    return built


def _fingerprint() -> str:
    digest = hashlib.sha256(" ".join([*compiler(), *FLAGS]).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(target: Path, sources: tuple[str, ...], *options: str) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [*compiler(), *FLAGS, *options, "-o", str(made), *sources]
        try:
            done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False)
        except OSError as error:
            raise RuntimeError(f"{command[0]}: {error.strerror}") from error
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)}:\n{done.stderr}")
        made.replace(target)  # another run may be building the same
