# SPDX-License-Identifier: BSD-3-Clause
"""Seconds as poll(2) and its kin take them."""

from __future__ import annotations

_MOST = (1 << 31) - 1
_LONGEST = _MOST / 1000


def milliseconds(seconds: float | None) -> float | None:
    """What ``select.poll`` takes: at most 24 days at a time, so who waits longer loops."""
    return None if seconds is None else min(1000 * seconds, _MOST)


def seconds_at_most(seconds: float | None) -> float | None:
    """What ``select.epoll`` takes, as long."""
    return None if seconds is None else min(seconds, _LONGEST)


def nanoseconds(seconds: float) -> int:
    """What C takes, as long."""
    if 0.0 <= seconds <= _LONGEST:
        return int(1e9 * seconds)
    return int(1e9 * min(max(seconds, 0.0), _LONGEST))
