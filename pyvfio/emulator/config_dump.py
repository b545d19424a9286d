# SPDX-License-Identifier: BSD-3-Clause
"""Which bytes of a guest's configuration space are not the device's, as text."""

from __future__ import annotations

from collections.abc import Iterator

from pyvfio.emulator.config import EmulatedConfig
from pyvfio.pci.dump import LINE


def describe(config: EmulatedConfig) -> str:
    """A line for each 16 bytes of which some are emulated, beginning with their offset.

    A byte is its contents where the guest reads all of it from the local copy, ``~~`` where some of
    its bits are the device's, ``--`` where all are.  The device is not asked.
    """
    lines = [
        f"{start:03x}: {' '.join(_bytes(config, start))}"
        for start in range(0, config.size, LINE)
        if any(config.emulated[start : start + LINE])
    ]
    return "\n".join(lines)


def _bytes(config: EmulatedConfig, start: int) -> Iterator[str]:
    for at in range(start, min(start + LINE, config.size)):
        mask = config.emulated[at]
        yield f"{config.local[at]:02x}" if mask == 0xFF else "~~" if mask else "--"
