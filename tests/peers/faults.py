# SPDX-License-Identifier: BSD-3-Clause
"""What QEMU 10.1.0 gets wrong by itself, and the tests that this makes impossible with it."""

from __future__ import annotations

import pytest

SHORT_COUNT = pytest.mark.qemu(11, "in DMA_READ and DMA_WRITE its count has 4 bytes instead of 8")
NO_UNPLUG = pytest.mark.qemu(11, "a device with MSI-X never goes when it is unplugged")
SLOW = pytest.mark.qemu(11, "every request to a server that has gone waits for its time-out")
NO_HANG_UP = pytest.mark.qemu(11, "it stays connected when it has lost step")

SHARED_OR_NOT = [
    pytest.param(True, id="mapped"),
    pytest.param(False, id="by messages", marks=SHORT_COUNT),
]
"""Guest memory that is not shared comes without a descriptor: by DMA_READ and DMA_WRITE alone."""
