# SPDX-License-Identifier: BSD-3-Clause
"""A device's BARs by sysfs, without a driver."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.guest import inside

PAGE = 4096


def folder(ids: str) -> Path:
    """The folder of the device with these ids."""
    (address,) = inside.find(ids)
    return inside.PCI / "devices" / address


def enable(device: Path) -> None:
    """Have a device answer on the bus."""
    (device / "enable").write_text("1")


@contextmanager
def registers(device: Path, bar: int, offset: int = 0) -> Iterator[memoryview]:
    """A page of a BAR, as words of 32 bits that are read and written one at a time."""
    with (
        (device / f"resource{bar}").open("r+b", buffering=0) as file,
        mmap.mmap(file.fileno(), PAGE, offset=offset) as page,
        memoryview(page) as octets,
        octets.cast("I") as words,
    ):
        yield words
