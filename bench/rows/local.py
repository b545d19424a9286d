# SPDX-License-Identifier: BSD-3-Clause
"""What no socket is part of: mapped registers, interrupts, the model's direct DMA."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench import device, sides
from bench.peers import Kind, Peers
from bench.rows.row import Make, Pair, Row, Target
from bench.sides import Run, Side
from pyvfio.memory import MemoryKind

TIMEOUT = 10.0
"""Seconds of the waits that have one."""


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
        _interrupt(None, sides.bare_waiting),
        Target(1.2, cost=True),
        least=100,
    )
    yield Row(
        "irq-timeout",
        "one process",
        f"the same with a time-out, irq.wait({TIMEOUT:g})",
        "bare poll with that time-out and os.eventfd_read",
        _interrupt(TIMEOUT, lambda fd: sides.bare_timed_waiting(fd, TIMEOUT)),
        Target(1.2, cost=True),
        least=100,
    )
    yield Row(
        "irq-timeout-read",
        "one process",
        f"the same with a time-out, irq.wait({TIMEOUT:g})",
        "bare os.eventfd_read in a thread, without one",
        _interrupt(TIMEOUT, sides.bare_waiting),
        Target(cost=True),
        least=100,
    )
    yield Row(
        "irq-any",
        "one process",
        f"eventfd write until a wait for {device.VECTORS:,} vectors runs in a thread",
        "bare epoll_wait and os.eventfd_read of one",
        _any_interrupt,
        Target(cost=True),
        least=100,
    )
    for name, register, what, target in _COPIES:
        yield Row(name, "one process", what, "memcpy", _copies(register), target, per=device.ROUND)


_COPY = Target(0.95)
_COPIES = (
    ("dma-write", device.TO_CLIENT, "model's dma_write of 1 MiB, client's memory mapped", _COPY),
    ("dma-read", device.INTO_MODEL, "model's dma_read_into of 1 MiB, the same", _COPY),
    ("dma-read-new", device.FROM_CLIENT, "model's dma_read of 1 MiB, into new bytes", Target()),
    ("dma-view", device.VIEWED, "1 MiB copied out of the model's dma_view", Target()),
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


def _interrupt(timeout: float | None, bare_waiting: Callable[[int], Side]) -> Make:
    @contextmanager
    def make(peers: Peers) -> Iterator[Pair]:
        with _eventfd() as bare, peers.open(Kind.OURS) as dev, dev.msix.enable(1) as irqs:
            yield Pair(sides.waiting(irqs[0], timeout), bare_waiting(bare))

    return make


@contextmanager
def _any_interrupt(peers: Peers) -> Iterator[Pair]:
    with (
        _eventfd() as bare,
        select.epoll() as epoll,
        peers.open(Kind.OURS) as dev,
        dev.msix.enable(device.VECTORS) as irqs,
    ):
        epoll.register(bare, select.EPOLLIN)
        any_of_them = sides.waiting_for_any(irqs, device.VECTORS // 2)
        yield Pair(any_of_them, sides.bare_polling(bare, epoll))


@contextmanager
def _eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


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
