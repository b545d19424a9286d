# SPDX-License-Identifier: BSD-3-Clause
"""Long runs: traffic of every kind at once, and ends that die or stand still at random moments.

``PYVFIO_SOAK=SECONDS`` makes them long; ``make soak`` sets it and prints the figures.
"""

from __future__ import annotations

import os

SOAK = "PYVFIO_SOAK"
"""Seconds that each run of traffic takes; sets the number of random moments to its full as well."""

LONG = SOAK in os.environ
SECONDS = float(os.environ.get(SOAK, "1.5"))
