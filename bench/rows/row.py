# SPDX-License-Identifier: BSD-3-Clause
"""One line of the result: a subject, the baseline that it is compared with, and the target."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from bench.baseline import CClient
from bench.peers import Peers, Place
from bench.sides import Side


class Target(NamedTuple):
    """How a ratio is made, and what it is to reach.

    :ivar bound: the least of a speed, the most of a cost; None for what is only shown.
    :ivar cost: the ratio is subject to baseline; else it is baseline to subject, a speed.
    :ivar unit: the ratio is shown, and bound, as a multiple of it.
    :ivar slack: of what is the same on both sides, and so is to be as fast.
    """

    bound: float | None = None
    cost: bool = False
    unit: float = 1.0
    slack: float | None = None

    def ratio(self, subject: float, baseline: float) -> float:
        """The ratio of two times."""
        found = subject / baseline if self.cost else baseline / subject
        return found / self.unit

    def reached_by(self, ratio: float) -> bool | None:
        """Whether a ratio is good enough, as it is shown: with two digits; None without a bound."""
        shown = round(ratio, 2)
        if self.bound is None:
            return None
        if self.slack is not None:
            return abs(shown - self.bound) < self.slack + 1e-9
        return shown <= self.bound if self.cost else shown >= self.bound

    def __str__(self) -> str:
        if self.bound is None:
            return ""
        if self.slack is not None:
            return f"{self.bound:.2f} +- {self.slack}"
        return f"{'<=' if self.cost else '>='} {self.bound:g}"


class Pair(NamedTuple):
    """The two that take turns."""

    subject: Side
    baseline: Side


CLIENT_PATH = "PYVFIO_NATIVE_CHANNEL"
"""The C path of a client's messages."""
SERVER_PATH = "PYVFIO_NATIVE_SERVER"
"""The fast path of a server's register accesses."""

Make: TypeAlias = Callable[[Peers], AbstractContextManager[Pair]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result.

    :ivar name: as the command line takes it.
    :ivar group: which part of the table it belongs to.
    :ivar off: also measured without a fast path: the environment variable that 0 switches it off
        by; see :data:`CLIENT_PATH`, :data:`SERVER_PATH`.
    :ivar least: operations in one piece.
    :ivar segments: how often it is set up anew, with the servers swapped.
    :ivar per: operations that the seconds of one are divided by, for what is shown.
    """

    name: str
    group: str
    what: str
    baseline: str
    make: Make
    target: Target
    off: str = ""
    least: int = 1
    segments: int = 4
    per: int = 1


def c_read(client: CClient, place: Place) -> Side:
    """Register reads by the C reference client."""
    return Side(
        lambda count: client.read32(*place, count),
        lambda count: client.read32_samples(*place, count),
    )
