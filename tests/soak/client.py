# SPDX-License-Identifier: BSD-3-Clause
"""A client in a process of its own: ``python -m tests.soak.client URI TIMEOUT``.

Says "ready", waits for a line, opens the device and starts its traffic.  At the next line, or when
there is none to come, it lets go of everything and tells how its loads have ended.
"""

from __future__ import annotations

import sys

import pyvfio
from pyvfio.errors import VFIOError
from tests.soak.traffic import Traffic, kinds


def main(uri: str, timeout: float) -> None:
    """Run; what ended the loads goes to stdout, in one line."""
    _say("ready")
    sys.stdin.readline()
    try:
        with pyvfio.open(uri, timeout=timeout, secure_dma=True) as dev:
            traffic = Traffic(dev, patience=timeout)
            sys.stdin.readline()
            traffic.stop_loads()
    except VFIOError as error:
        _say(type(error).__name__)
    else:
        found = {kind.__name__ for _, error in traffic.ends for kind in kinds(error)}
        _say(" ".join(sorted(found)))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
