# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio migrate``, and the devices that it is tried with."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

import pyvfio
from pyvfio.cli.main import main
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DeviceState
from tests.conformance.devices import Dev
from tests.support import ROOT

DONE, FAILED, USAGE, UNAVAILABLE, TIMEOUT = range(5)
INTERRUPTED = 130
COMMAND = [sys.executable, "-m", "pyvfio", "migrate"]
MEMORY = 2
TOKEN, PLACE = 0x5EED_CAFE, 48 << 20


class Done(NamedTuple):
    """What a run of the command ended with."""

    status: int
    output: str
    errors: str


def run(*arguments: object) -> Done:
    """Run ``pyvfio migrate`` to its end."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            status = main(["migrate", *map(str, arguments)])
        except SystemExit as end:  # argparse's
            status = int(str(end.code))
    return Done(status, output.getvalue(), errors.getvalue())


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The same, in a process of its own."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, timeout=60, check=False, **{"capture_output": True, **options}
    )


def told(*arguments: object) -> dict[str, object]:
    """What ``pyvfio migrate -o json`` says when it succeeds."""
    done = run(*arguments, "-o", "json")
    assert done.status == DONE, done.errors
    assert done.errors == ""
    found: dict[str, object] = json.loads(done.output)
    return found


def give(dev: PCIDevice) -> None:
    """Registers, memory and a command register that a new device does not have."""
    dev.reset()
    dev.bus_master = True
    dev.bars[0].write32(Dev.SCRATCH, TOKEN)
    dev.bars[MEMORY].write32(PLACE, TOKEN)


def fill(uri: str, data: bytes) -> None:
    """Put something large into a device's memory."""
    with pyvfio.open(uri) as dev:
        dev.bars[MEMORY].write_bytes(0, data)


def has(uri: str) -> bool:
    """Whether a device that runs has all of it; it has all or nothing."""
    with pyvfio.open(uri) as dev:
        found = (
            dev.bars[0].read32(Dev.SCRATCH) == TOKEN,
            dev.bars[MEMORY].read32(PLACE) == TOKEN,
            dev.bus_master,
        )
    assert len(set(found)) == 1
    return found[0]


def digest(uri: str) -> str:
    """Stands for all that a device has: registers, memory, configuration, interrupts."""
    with pyvfio.open(uri) as dev:
        before = dev.migration.state
        with dev.migration.save() as stream:
            found = hashlib.sha256(stream.readall() or b"").hexdigest()
        dev.migration.set_state(before)
    return found


def state(uri: str) -> DeviceState:
    """What a device does."""
    with pyvfio.open(uri) as dev:
        return dev.migration.state


def states(*uris: str) -> tuple[str, ...]:
    return tuple(state(uri).name for uri in uris)
