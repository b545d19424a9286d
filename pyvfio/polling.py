# SPDX-License-Identifier: BSD-3-Clause
"""Seconds as poll(2) takes them."""

from __future__ import annotations

_MOST = (1 << 31) - 1


def milliseconds(seconds: float | None) -> float | None:
    """What ``select.poll`` takes: at most 24 days at a time, so who waits longer loops."""
    return None if seconds is None else min(1000 * seconds, _MOST)
