# SPDX-License-Identifier: BSD-3-Clause
"""Rounds, and what they say.

In a round each contender does one piece of work, a few hundredths of a second long; who is first
changes from round to round.  A ratio is made of the two pieces of one round, which had the machine
in the same state, and the result is the median of the ratios.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

Piece: TypeAlias = Callable[[int], float]
"""Does so many operations; gives their seconds."""

Rounds: TypeAlias = list[tuple[float, ...]]
"""The seconds of one operation of each contender, round by round."""


class Effort(NamedTuple):
    """How much is done for one row.

    :ivar piece: seconds of a piece of work, about.
    :ivar seconds: in all, at most.
    :ivar rounds: at least, if there is the time.
    :ivar precision: half-width, as a part of the median, of its 95 % interval that ends it early.
    """

    piece: float = 0.025
    seconds: float = 4.5
    rounds: int = 16
    precision: float = 0.008


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Those of some values; at least one."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def enough_for(piece: Piece, seconds: float, least: int) -> int:
    """How many operations take about so many seconds by the clock; warms up on the way."""
    count = least
    while True:
        started = time.monotonic()
        piece(count)
        taken = time.monotonic() - started
        if taken >= seconds / 4:
            return max(least, round(count * seconds / taken))
        count *= 2


def rounds(pieces: Sequence[Piece], effort: Effort, least: int, parts: int, done: Rounds) -> None:
    """Add rounds to ``done``, until they are enough or the time of this part of ``parts`` is over.

    :param least: operations in one piece.
    """
    deadline = time.monotonic() + effort.seconds / parts
    counts = [enough_for(piece, effort.piece, least) for piece in pieces]
    at_least = len(done) + max(1, effort.rounds // parts)
    while len(done) < at_least or not settled(done, effort):
        each = [0.0] * len(pieces)
        order = range(len(pieces))
        for which in order if len(done) % 2 == 0 else reversed(order):
            each[which] = pieces[which](counts[which]) / counts[which]
        done.append(tuple(each))
        if time.monotonic() > deadline:
            return


def settled(done: Rounds, effort: Effort) -> bool:
    """Whether the median of the ratios of the first two is known well enough."""
    if len(done) < effort.rounds:
        return False
    ratios = sorted(first / second for first, second, *_ in done)
    # The median's interval by order statistics: it asks nothing of the distribution.
    reach = math.ceil(0.98 * math.sqrt(len(ratios)))
    middle = len(ratios) // 2
    low, high = ratios[max(0, middle - reach)], ratios[min(len(ratios) - 1, middle + reach)]
    return high - low <= 2 * effort.precision * ratios[middle]
