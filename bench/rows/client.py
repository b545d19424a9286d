# SPDX-License-Identifier: BSD-3-Clause
"""Our client beside the C reference client, on the same servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench import sides
from bench.peers import REGISTER, Kind, Peers
from bench.rows.row import CLIENT_PATH, Make, Pair, Row, Target, c_read
from bench.sides import PAGE, Side
from pyvfio.memory import MemoryKind, SharedMemory

MIB = 1 << 20
IOVA = 1 << 32
PAGES = 1000
BATCH = 256
"""Writes in a call, where they are batched."""


def client() -> Iterator[Row]:
    for kind in (Kind.OURS, Kind.C):
        yield from _client_of(kind)


def _client_of(kind: Kind) -> Iterator[Row]:
    def row(name: str, what: str, baseline: str, make: Make, target: Target, **more: Any) -> Row:
        name, group = f"{name}-{kind.name.lower()}", f"client, on {kind.value}"
        return Row(name, group, what, f"C client, {baseline}", make, target, **more)

    yield row("read", "4-byte region read", "the same", reads(kind), Target(0.95), off=CLIENT_PATH)
    yield row("write", "4-byte region write", "the same", _writes(kind), Target())
    yield row(
        "posted",
        "posted 4-byte writes",
        "the same",
        _posted(kind),
        Target(0.90),
        off=CLIENT_PATH,
        least=512,
    )
    yield row(
        "batched",
        f"posted 4-byte writes, {BATCH} in a call",
        "one by one",
        batches(kind, BATCH, joined=1),
        Target(3.0),
        least=512,
    )
    yield row(
        "flight",
        f"4-byte writes with replies, {BATCH} in a call",
        "64 in flight",
        _in_flight(kind),
        Target(0.90),
        least=BATCH,
    )
    yield row("bulk", "1 MiB region read", "the same", _bulk(kind), Target(0.95), off=CLIENT_PATH)
    yield row(
        "dma",
        f"DMA map and unmap, {PAGES:,} in a batch",
        "one by one",
        _dma(kind),
        Target(2.0),
        per=PAGES,
    )


def reads(kind: Kind) -> Make:
    @contextmanager
    def make(peers: Peers) -> Iterator[Pair]:
        place = REGISTER[kind]
        with peers.open(kind) as dev, peers.reference(kind) as client:
            yield Pair(sides.read32(dev, place), c_read(client, place))

    return make


def _writes(kind: Kind) -> Make:
    @contextmanager
    def make(peers: Peers) -> Iterator[Pair]:
        place = REGISTER[kind]
        with peers.open(kind) as dev, peers.reference(kind) as client:
            yield Pair(sides.write32(dev, place), Side(lambda count: client.write32(*place, count)))

    return make


def _posted(kind: Kind) -> Make:
    @contextmanager
    def make(peers: Peers) -> Iterator[Pair]:
        place = REGISTER[kind]
        with peers.open(kind) as dev, peers.reference(kind) as client:
            yield Pair(
                sides.posted32(dev, place),
                Side(lambda count: client.posted32(*place, 1, count)),
            )

    return make


def batches(kind: Kind, size: int, joined: int | None = None) -> Make:
    @contextmanager
    def make(peers: Peers) -> Iterator[Pair]:
        place = REGISTER[kind]
        with peers.open(kind) as dev, peers.reference(kind) as client:
            yield Pair(
                sides.many32(dev, place, size, posted=True),
                Side(lambda count: client.posted32(*place, joined or size, count)),
            )

    return make


def _in_flight(kind: Kind) -> Make:
    @contextmanager
    def make(peers: Peers) -> Iterator[Pair]:
        place = REGISTER[kind]
        with peers.open(kind) as dev, peers.reference(kind) as client:
            yield Pair(
                sides.many32(dev, place, BATCH, posted=False),
                Side(lambda count: client.in_flight32(*place, count)),
            )

    return make


def _bulk(kind: Kind) -> Make:
    @contextmanager
    def make(peers: Peers) -> Iterator[Pair]:
        place, target = REGISTER[kind], bytearray(MIB)
        with peers.open(kind) as dev, peers.reference(kind) as client:
            yield Pair(
                sides.read_bulk(dev, place, MIB),
                Side(lambda count: client.read_bulk(*place, target, count)),
            )

    return make


def _dma(kind: Kind) -> Make:
    @contextmanager
    def make(peers: Peers) -> Iterator[Pair]:
        with (
            SharedMemory(PAGES * PAGE, MemoryKind.MEMFD) as memory,
            peers.open(kind) as dev,
            peers.reference(kind) as client,
        ):

            def one_by_one(count: int) -> float:
                rounds = range(count)
                return sum(client.map_and_unmap(memory.fd, PAGE, IOVA, PAGES) for _ in rounds)

            yield Pair(sides.map_and_unmap(dev, memory, IOVA, PAGES), Side(one_by_one))

    return make
