# SPDX-License-Identifier: BSD-3-Clause
"""Stays while the server of a device is killed, and the device is unplugged and plugged in again.

Guest and host tell each other by files in the guest's output folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from pyvfio.models import edu
from tests.guest import inside
from tests.guest.runner import OUTPUT
from tests.peers.guest import EDU
from tests.peers.guest.registers import enabled, registers
from tests.support import eventually

USED, KILLED, LOST, UNPLUGGED = "used", "killed", "lost", "unplugged"
"""The device was used; its server was killed; the guest noticed; the device has gone from it."""
STEP_SECONDS = 60.0
"""How long the other side may take; Linux waits for 5 s before it lets a device go."""


def tell(folder: Path, step: str) -> None:
    """Let the other side know of a step."""
    (folder / step).touch()


def wait_for(folder: Path, step: str) -> None:
    """Wait until the other side has done a step."""
    assert eventually((folder / step).exists, STEP_SECONDS), step


def main(folder: Path) -> None:
    """The guest's part."""
    with registers(enabled(EDU), 0) as words:
        assert words[edu.ID // 4] == edu.IDENTIFICATION
        tell(folder, USED)
        wait_for(folder, KILLED)
        assert words[edu.ID // 4] == 0xFFFF_FFFF
    tell(folder, LOST)
    assert eventually(lambda: not inside.find(EDU), STEP_SECONDS)
    tell(folder, UNPLUGGED)
    assert eventually(lambda: bool(inside.find(EDU)), STEP_SECONDS)
    assert eventually(lambda: os.access(inside.PCI / "devices" / inside.find(EDU)[0] / "enable", 0))
    with registers(enabled(EDU), 0) as words:
        assert words[edu.ID // 4] == edu.IDENTIFICATION


if __name__ == "__main__":
    main(Path(OUTPUT))
