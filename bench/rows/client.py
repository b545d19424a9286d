# SPDX-License-Identifier: BSD-3-Clause
"""Our client beside the C reference client, on the same servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench import sides
from bench.baseline import CClient
from bench.peers import REGISTER, Kind, Peers, Place
from bench.rows.row import CLIENT_PATH, Make, Pair, Row, Target, c_read
from bench.sides import PAGE, Side
from pyvfio.memory import MemoryKind, SharedMemory
from pyvfio.pci.device import PCIDevice

MIB = 1 << 20
IOVA = 1 << 32
PAGES = 1000
BATCH = 256
"""Writes in a call, where they are batched."""


def client() -> Iterator[Row]:
    """All of them, on each server that is always there."""
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
        f"DMA map and unmap, {PAGES:,} in a call",
        "one by one",
        _dma(kind, sides.map_and_unmap_many),
        Target(2.0),
        per=PAGES,
    )
    yield row(
        "dma-calls",
        f"DMA map and unmap, {PAGES:,} calls in a batch",
        "one by one",
        _dma(kind, sides.map_and_unmap),
        Target(),
        per=PAGES,
    )


def _beside(
    kind: Kind, ours: Callable[[PCIDevice, Place], Side], other: Callable[[CClient, Place], Side]
) -> Make:
    """Our client on one server of a kind, the C client on the other."""

    @contextmanager
    def make(peers: Peers) -> Iterator[Pair]:
        with peers.open(kind) as dev, peers.reference(kind) as client:
            yield Pair(ours(dev, REGISTER[kind]), other(client, REGISTER[kind]))

    return make


def reads(kind: Kind) -> Make:
    """4-byte reads by both."""
    return _beside(kind, sides.read32, c_read)


def _writes(kind: Kind) -> Make:
    return _beside(
        kind,
        sides.write32,
        lambda client, place: Side(lambda count: client.write32(*place, count)),
    )


def _posted(kind: Kind) -> Make:
    return _beside(
        kind,
        sides.posted32,
        lambda client, place: Side(lambda count: client.posted32(*place, 1, count)),
    )


def batches(kind: Kind, size: int, joined: int | None = None) -> Make:
    """Posted writes, ``size`` in a call of ours.

    :param joined: messages in a send of the C client's; as many by default.
    """
    return _beside(
        kind,
        lambda dev, place: sides.many32(dev, place, size, posted=True),
        lambda client, place: Side(lambda count: client.posted32(*place, joined or size, count)),
    )


def _in_flight(kind: Kind) -> Make:
    return _beside(
        kind,
        lambda dev, place: sides.many32(dev, place, BATCH, posted=False),
        lambda client, place: Side(lambda count: client.in_flight32(*place, count)),
    )


def _bulk(kind: Kind) -> Make:
    target = bytearray(MIB)
    return _beside(
        kind,
        lambda dev, place: sides.read_bulk(dev, place, MIB),
        lambda client, place: Side(lambda count: client.read_bulk(*place, target, count)),
    )


def _dma(kind: Kind, ours: Callable[[PCIDevice, SharedMemory, int, int], Side]) -> Make:
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

            yield Pair(ours(dev, memory, IOVA, PAGES), Side(one_by_one))

    return make
