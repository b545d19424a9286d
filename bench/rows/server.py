# SPDX-License-Identifier: BSD-3-Clause
"""Servers under the C reference client, beside a bare socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from bench import sides
from bench.peers import CALLBACK, LIBVFIO_USER, REGISTER, Kind, Peers, Place
from bench.rows.client import reads
from bench.rows.row import CLIENT_PATH, SERVER_PATH, Make, Pair, Row, Target, c_read
from bench.sides import Side

JOINED = 64
"""Messages in a send."""
LIBVFIO_USER_TAKES = 0.37
"""Posted writes that libvfio-user's server takes, as a part of what a bare socket carries."""


def server() -> Iterator[Row]:
    """Our server."""
    group, ping = "server", "bare socket round trip"
    yield Row(
        "callback",
        group,
        "C client's 4-byte read, register with a callback",
        ping,
        _served(Kind.OURS, CALLBACK),
        Target(0.5),
        off=SERVER_PATH,
    )
    yield Row(
        "memory",
        group,
        "C client's 4-byte read, register that is memory",
        ping,
        _served(Kind.OURS, REGISTER[Kind.OURS]),
        Target(0.90),
        off=SERVER_PATH,
    )
    yield Row(
        "together",
        group,
        "pyvfio's 4-byte read, register that is memory",
        ping,
        _together,
        Target(0.85),
        off=CLIENT_PATH,
    )
    yield Row(
        "taken",
        group,
        f"posted writes taken by our server, {JOINED} in a send",
        f"bare socket one way x {LIBVFIO_USER_TAKES} (libvfio-user's part)",
        _taken(Kind.OURS),
        Target(1.5, unit=LIBVFIO_USER_TAKES),
        off=SERVER_PATH,
        least=2048,
    )


def _served(kind: Kind, place: Place) -> Make:
    @contextmanager
    def make(peers: Peers) -> Iterator[Pair]:
        with peers.reference(kind) as client, peers.ping() as ping:
            yield Pair(c_read(client, place), Side(ping.run, ping.samples))

    return make


@contextmanager
def _together(peers: Peers) -> Iterator[Pair]:
    with peers.open(Kind.OURS) as dev, peers.ping() as ping:
        yield Pair(sides.read32(dev, REGISTER[Kind.OURS]), Side(ping.run, ping.samples))


def _taken(kind: Kind) -> Make:
    @contextmanager
    def make(peers: Peers) -> Iterator[Pair]:
        place = REGISTER[kind]
        with peers.reference(kind) as client, peers.pipe(JOINED) as pipe:
            yield Pair(Side(lambda count: client.posted32(*place, JOINED, count)), Side(pipe.run))

    return make


def libvfio_user() -> Iterator[Row]:
    """libvfio-user's server as client and limit, where it is given."""
    if not os.environ.get(LIBVFIO_USER):
        return
    kind, ping = Kind.LIBVFIO_USER, "bare socket round trip"
    group = f"client, on {kind.value}"
    yield Row(
        "read-libvfio_user",
        group,
        "4-byte region read",
        "C client, the same",
        reads(kind),
        Target(0.95),
        off=CLIENT_PATH,
    )
    group = "libvfio-user"
    yield Row(
        "libvfio_user",
        group,
        "C client's 4-byte read, libvfio-user's server",
        ping,
        _served(kind, REGISTER[kind]),
        Target(),
    )
    yield Row(
        "taken-libvfio_user",
        group,
        f"posted writes taken by libvfio-user's server, {JOINED} in a send",
        "bare socket one way",
        _taken(kind),
        Target(),
        least=2048,
    )
    yield Row(
        "taken-both",
        group,
        f"posted writes taken by our server, {JOINED} in a send",
        "libvfio-user's server",
        _taken_by_both,
        Target(1.5),
        least=2048,
    )


@contextmanager
def _taken_by_both(peers: Peers) -> Iterator[Pair]:
    with peers.reference(Kind.OURS) as ours, peers.reference(Kind.LIBVFIO_USER) as other:
        yield Pair(
            Side(lambda count: ours.posted32(*REGISTER[Kind.OURS], JOINED, count)),
            Side(lambda count: other.posted32(*REGISTER[Kind.LIBVFIO_USER], JOINED, count)),
        )
