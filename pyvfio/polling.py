# SPDX-License-Identifier: BSD-3-Clause
"""Seconds as poll(2) and ppoll(2) take them."""

from __future__ import annotations

_MOST = (1 << 31) - 1


def milliseconds(seconds: float | None) -> float | None:
    """What ``select.poll`` takes: at most 24 days at a time, so who waits longer loops."""
    return None if seconds is None else min(1000 * seconds, _MOST)


def nanoseconds(seconds: float | None) -> int:
    """What C takes: -1 is for ever, and so long a time is cut that who waits longer loops."""
    return -1 if seconds is None else int(1e9 * min(max(seconds, 0.0), _MOST / 1000))
