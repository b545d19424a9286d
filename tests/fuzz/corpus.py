# SPDX-License-Identifier: BSD-3-Clause
"""Inputs in files, one a line: hex for a target of the codec, a seed for a live one.

A file is named after its target.  Behind ``#`` stands what the input is about.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"
"""Inputs that found something, and inputs that reach much of the code."""


def lines(path: Path) -> list[str]:
    """The inputs in a file, none where there is no such file."""
    if not path.exists():
        return []
    found = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in found if line]


def file_of(target: str, folder: Path = FOLDER) -> Path:
    """Where a target's inputs are."""
    return folder / f"{target}.txt"


def inputs(target: str) -> list[bytes]:
    """What there is for a target of the codec."""
    return [bytes.fromhex(line) for line in lines(file_of(target))]


def add(path: Path, found: Iterable[tuple[str, str]]) -> None:
    """Append inputs, each with what it is about."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for line, about in found:
            file.write(f"{line}  # {' '.join(about.split())[:200]}\n")
