# SPDX-License-Identifier: BSD-3-Clause
"""How costs grow with what there is of something."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench import device, sides
from bench.peers import REGISTER, Kind, Peers
from bench.rows.row import Pair, Row, Target
from bench.sides import PAGE, Run, Side
from pyvfio.memory import MemoryKind, SharedMemory

IOVA = 1 << 32
MANY_MAPS = 60_000
TOGETHER, FEWER_TOGETHER = 10_000, 1_000
SOME_VECTORS = 256


def growth() -> Iterator[Row]:
    """All of them."""
    yield Row(
        "maps",
        "growth",
        f"4-byte read with {MANY_MAPS:,} DMA maps",
        "with 1",
        _many_maps,
        Target(0.95),
        segments=1,
    )
    yield Row(
        "commit",
        "growth",
        f"each DMA map of {TOGETHER:,} in a commit",
        f"of {FEWER_TOGETHER:,}",
        _commits,
        Target(1.2, cost=True),
    )
    yield Row(
        "vectors",
        "growth",
        f"open() for each vector enabled, {device.VECTORS:,} of them",
        f"{SOME_VECTORS} of them",
        _many_vectors,
        Target(1.2, cost=True),
        segments=1,
    )


@contextmanager
def _many_maps(peers: Peers) -> Iterator[Pair]:
    place = REGISTER[Kind.OURS]
    with (
        SharedMemory(PAGE, MemoryKind.MEMFD) as memory,
        peers.open(Kind.OURS, 0, secure_dma=True) as full,
        peers.open(Kind.OURS, 1, secure_dma=True) as empty,
    ):
        empty.dma.map(memory, iova=IOVA)
        with full.dma.batch():
            for page in range(MANY_MAPS):
                full.dma.map(memory, iova=IOVA + 2 * PAGE * page)
        yield Pair(sides.read32(full, place), sides.read32(empty, place))


@contextmanager
def _commits(peers: Peers) -> Iterator[Pair]:
    with (
        SharedMemory(TOGETHER * PAGE, MemoryKind.MEMFD) as memory,
        peers.open(Kind.OURS, 0) as many,
        peers.open(Kind.OURS, 1) as fewer,
    ):
        yield Pair(
            sides.map_many(many, memory, IOVA, TOGETHER),
            sides.map_many(fewer, memory, IOVA, FEWER_TOGETHER),
        )


@contextmanager
def _many_vectors(peers: Peers) -> Iterator[Pair]:
    def opening(vectors: int) -> float:
        started = time.perf_counter()
        with peers.open(Kind.OURS) as dev, dev.msix.enable(vectors):
            pass
        return time.perf_counter() - started

    def each_of(vectors: int) -> Run:
        """The cost of a vector more: what one costs is that of opening."""
        return lambda count: sum(
            (opening(vectors) - opening(1)) / (vectors - 1) for _ in range(count)
        )

    yield Pair(Side(each_of(device.VECTORS)), Side(each_of(SOME_VECTORS)))
