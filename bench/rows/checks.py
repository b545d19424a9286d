# SPDX-License-Identifier: BSD-3-Clause
"""The same beside itself: what a ratio is worth, here and now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bench import sides
from bench.peers import REGISTER, Kind, Peers
from bench.rows.row import Pair, Row, Target, c_read
from bench.sides import Side

SAME = Target(1.0, slack=0.03)


def checks() -> Iterator[Row]:
    """What should be 1."""

    @contextmanager
    def two_pings(peers: Peers) -> Iterator[Pair]:
        with peers.ping() as one, peers.ping() as other:
            yield Pair(Side(one.run, one.samples), Side(other.run))

    @contextmanager
    def two_clients(peers: Peers) -> Iterator[Pair]:
        place = REGISTER[Kind.OURS]
        with peers.reference(Kind.OURS, 0) as one, peers.reference(Kind.OURS, 1) as other:
            yield Pair(c_read(one, place), c_read(other, place))

    @contextmanager
    def two_devices(peers: Peers) -> Iterator[Pair]:
        place = REGISTER[Kind.OURS]
        with peers.open(Kind.OURS, 0) as one, peers.open(Kind.OURS, 1) as other:
            yield Pair(sides.read32(one, place), sides.read32(other, place))

    whats = {
        "same-socket": ("bare socket round trip", two_pings),
        "same-c": ("C client's 4-byte read, our server", two_clients),
        "same-python": ("pyvfio's 4-byte read, our server", two_devices),
    }
    for name, (what, make) in whats.items():
        yield Row(name, "self-check", what, "itself", make, SAME)
