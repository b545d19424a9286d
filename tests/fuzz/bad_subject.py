# SPDX-License-Identifier: BSD-3-Clause
"""The live client with a fault put in: what it raises must be found."""

from __future__ import annotations

import sys

from pyvfio.container import Container
from tests.fuzz import subject


def _fault(*where: object) -> None:
    raise KeyError(where)


if __name__ == "__main__":
    setattr(Container, "device_write", _fault)  # noqa: B010 - the fault is the point
    subject.main(sys.argv[1])
