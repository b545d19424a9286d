# SPDX-License-Identifier: BSD-3-Clause
"""What no socket is part of: mapped registers, interrupts, the model's direct DMA."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench import device, sides
from bench.peers import Kind, Peers
from bench.rows.row import Make, Pair, Row, Target
from bench.sides import Run, Side
from pyvfio.memory import MemoryKind


def local() -> Iterator[Row]:
    """All of them."""
    yield Row(
        "mapped",
        "one process",
        "4-byte read of a mapped BAR",
        "bare cffi call of the same accessor",
        _mapped,
        Target(3.0, cost=True),
        least=1000,
    )
    yield Row(
        "memoryview",
        "one process",
        "4-byte read of a mapped BAR",
        "memoryview.cast('I')[i]",
        _memoryview,
        Target(cost=True),
        least=1000,
    )
    yield Row(
        "irq",
        "one process",
        "eventfd write until irq.wait() runs in a thread",
        "bare os.eventfd_read in a thread",
        _interrupt,
        Target(1.2, cost=True),
        least=100,
    )
    for name, register, what in (
        ("dma-write", device.TO_CLIENT, "model's dma_write of 1 MiB, client's memory mapped"),
        ("dma-read", device.FROM_CLIENT, "model's dma_read of 1 MiB, client's memory mapped"),
    ):
        yield Row(
            name, "one process", what, "memcpy", _copies(register), Target(0.95), per=device.ROUND
        )


@contextmanager
def _mapped(peers: Peers) -> Iterator[Pair]:
    from pyvfio.native._native import lib  # noqa: PLC0415 - not all commits have it under this name

    with peers.open(Kind.OURS) as dev:
        bar = dev.bars[device.MAPPED]
        address = device.address_of(bar.view())
        accessor = lib.pyvfio_read32
        yield Pair(Side(sides.repeated(bar.read32, 0)), Side(sides.repeated(accessor, address)))


@contextmanager
def _memoryview(peers: Peers) -> Iterator[Pair]:
    with peers.open(Kind.OURS) as dev:
        bar = dev.bars[device.MAPPED]
        words = bar.view().data.cast("I")

        def items(count: int) -> float:
            started = time.perf_counter()
            for _ in range(count):
                words[0]
            return time.perf_counter() - started

        try:
            yield Pair(Side(sides.repeated(bar.read32, 0)), Side(items))
        finally:
            words.release()


@contextmanager
def _interrupt(peers: Peers) -> Iterator[Pair]:
    bare = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        with peers.open(Kind.OURS) as dev, dev.msix.enable(1) as irqs:
            yield Pair(sides.waiting(irqs[0]), sides.bare_waiting(bare))
    finally:
        os.close(bare)


def _copies(register: int) -> Make:
    @contextmanager
    def make(peers: Peers) -> Iterator[Pair]:
        with peers.open(Kind.OURS) as dev:
            dev.bus_master = True
            buffer = dev.dma.alloc(device.COPY, kind=MemoryKind.MEMFD)
            registers = dev.bars[device.REGISTERS]
            registers.write64(device.ADDRESS, buffer.iova)

            def timed_by_the_model(which: int) -> Run:
                return lambda count: sum(registers.read64(which) * 1e-9 for _ in range(count))

            yield Pair(Side(timed_by_the_model(register)), Side(timed_by_the_model(device.MEMCPY)))
            buffer.close()

    return make
