# SPDX-License-Identifier: BSD-3-Clause
"""The command of a QEMU that has ``-device vfio-user-pci``, and the options that it takes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

COMMAND = "PYVFIO_QEMU"
"""The command of a QEMU of version 10.1 or newer, such as ``qemu-system-x86_64``.  It sees this
machine's files at their places, and its process is QEMU's: a script ends with ``exec``."""

RAM = "ram0"
"""The id of the memory backend."""


def command() -> list[str]:
    """The words of :data:`COMMAND`."""
    return shlex.split(os.environ[COMMAND])


def version() -> tuple[int, int]:
    """Major and minor version of that QEMU."""
    done = subprocess.run([*command(), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version (\d+)\.(\d+)", done.stdout)
    assert found, done.stdout
    return int(found[1]), int(found[2])


def vfio_user(path: Path, **properties: object) -> dict[str, object]:
    """A ``vfio-user-pci`` device on the server's socket, with further properties.

    >>> vfio_user(Path("/run/edu.sock"), addr="4")["driver"]
    'vfio-user-pci'
    """
    socket = {"type": "unix", "path": str(path)}
    chosen = {name.replace("_", "-"): value for name, value in properties.items()}
    return {"driver": "vfio-user-pci", "socket": socket, **chosen}


def device_options(*devices: dict[str, object]) -> list[str]:
    """``-device`` for each."""
    return [word for device in devices for word in ("-device", json.dumps(device))]


def memory_options(mebibytes: int, *, shared: bool = True) -> list[str]:
    """Guest memory; shared, QEMU sends a descriptor of it to the server with each DMA_MAP."""
    kind = "memory-backend-memfd,share=on" if shared else "memory-backend-ram,share=off"
    return [
        *("-m", str(mebibytes), "-machine", f"memory-backend={RAM}"),
        *("-object", f"{kind},id={RAM},size={mebibytes}M"),
    ]
