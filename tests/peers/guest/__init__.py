# SPDX-License-Identifier: BSD-3-Clause
"""Programs that run in a guest of QEMU's, on devices that pyvfio serves outside of it."""

from __future__ import annotations

EDU, TESTDEV = "1234:11e8", "1b36:0005"
