# SPDX-License-Identifier: BSD-3-Clause
"""Stays while the server of a device is killed, and the device is unplugged and plugged in again.

Guest and host tell each other by files in the guest's output folder.
"""

from __future__ import annotations

from pathlib import Path

from pyvfio.models import edu
from tests.guest.runner import OUTPUT
from tests.peers.guest import EDU
from tests.peers.guest.registers import enable, folder, registers
from tests.support import eventually

USED, KILLED, LOST, UNPLUGGED = "used", "killed", "lost", "unplugged"
"""The device was used; its server was killed; the guest noticed; the device has gone from it."""
STEP_SECONDS = 60.0
"""How long the other side may take; Linux waits for 5 s before it lets a device go."""


def tell(steps: Path, step: str) -> None:
    """Let the other side know of a step."""
    (steps / step).touch()


def wait_for(steps: Path, step: str) -> None:
    """Wait until the other side has done a step."""
    assert eventually((steps / step).exists, STEP_SECONDS), step


def main(steps: Path) -> None:
    """The guest's part."""
    device = folder(EDU)
    enable(device)
    with registers(device, 0) as words:
        assert words[edu.ID // 4] == edu.IDENTIFICATION
        tell(steps, USED)
        wait_for(steps, KILLED)
        assert words[edu.ID // 4] == 0xFFFF_FFFF
    tell(steps, LOST)
    assert eventually(lambda: not device.exists(), STEP_SECONDS)
    tell(steps, UNPLUGGED)
    assert eventually((device / "resource0").exists, STEP_SECONDS)
    enable(device)
    with registers(device, 0) as words:
        assert words[edu.ID // 4] == edu.IDENTIFICATION


if __name__ == "__main__":
    main(Path(OUTPUT))
