# SPDX-License-Identifier: BSD-3-Clause
"""Runs in the guest: the demo on the kernel backend, one JSON line a step."""

from __future__ import annotations

import sys

from pyvfio.cli.main import main
from tests.guest import inside

(ADDRESS, *_) = inside.find("1234:11e8")
inside.bind(ADDRESS)
sys.exit(main(["demo", "-o", "json", f"vfio:{ADDRESS}"]))
