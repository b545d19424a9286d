# SPDX-License-Identifier: BSD-3-Clause
"""Whether what is usual is done in C, beside the general way that can do everything."""

from __future__ import annotations

import os

VARIABLE = "PYVFIO_NATIVE_SERVER"
"""The environment variable that switches it off with 0."""


def are_on() -> bool:
    """Whether it is not switched off."""
    return os.environ.get(VARIABLE) != "0"
