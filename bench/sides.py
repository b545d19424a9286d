# SPDX-License-Identifier: BSD-3-Clause
"""What is timed: the loops in Python.  Each takes a count, and gives the seconds of so many."""

from __future__ import annotations

import itertools
import os
import select
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from bench.peers import Place
from pyvfio.irq import IRQ, IRQSet
from pyvfio.memory import SharedMemory
from pyvfio.pci.bars import BAR
from pyvfio.pci.device import PCIDevice

PAGE = 4096

Run: TypeAlias = Callable[[int], float]


class Side(NamedTuple):
    """A subject or a baseline.

    :ivar run: does ``count`` operations; gives their seconds.
    :ivar samples: the same, with the seconds of each; only where single ones can be told apart.
    """

    run: Run
    samples: Callable[[int], list[float]] | None = None


def repeated(call: Callable[[int], object], argument: int) -> Run:
    """``call(argument)`` again and again, with as little around it as Python has."""

    def run(count: int) -> float:
        started = time.perf_counter()
        for _ in itertools.repeat(None, count):
            call(argument)
        return time.perf_counter() - started

    return run


def read32(device: PCIDevice, place: Place) -> Side:
    """Register reads by pyvfio."""
    read, offset = device.bars[place.region].read32, place.offset

    def samples(count: int) -> list[float]:
        taken = []
        for _ in itertools.repeat(None, count):
            started = time.perf_counter()
            read(offset)
            taken.append(time.perf_counter() - started)
        return taken

    return Side(repeated(read, offset), samples)


def write32(device: PCIDevice, place: Place) -> Side:
    """Register writes by pyvfio, each waited for."""
    bar = device.bars[place.region]
    bar.posted = False
    return Side(repeated(lambda value: bar.write32(place.offset, value), 1))


def posted32(device: PCIDevice, place: Place) -> Side:
    """Posted register writes by pyvfio, and a read behind all of them."""
    bar, offset = device.bars[place.region], place.offset
    bar.posted = True
    write = bar.write32

    def run(count: int) -> float:
        started = time.perf_counter()
        for value in range(count):
            write(offset, value)
        bar.read32(offset)
        return time.perf_counter() - started

    return Side(run)


def many32(device: PCIDevice, place: Place, size: int, *, posted: bool) -> Side:
    """Register writes by pyvfio, ``size`` to a call; then a read, where they are posted."""
    bar = device.bars[place.region]
    bar.posted = posted
    offsets = np.full(size, place.offset, np.uint64)
    values = np.arange(size, dtype=np.uint32)

    def run(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count // size):
            _write_many(bar, offsets, values)
        if rest := count % size:
            _write_many(bar, offsets[:rest], values[:rest])
        if posted:
            bar.read32(place.offset)
        return time.perf_counter() - started

    return Side(run)


def _write_many(bar: BAR, offsets: Any, values: Any) -> None:
    many = getattr(bar, "write_many", None)
    if many is not None:
        many(offsets, values, 4)
        return
    write = bar.write32  # a commit from before there was one call for many
    for offset, value in zip(offsets.tolist(), values.tolist(), strict=True):
        write(offset, value)


def read_bulk(device: PCIDevice, place: Place, size: int) -> Side:
    """Reads of ``size`` bytes by pyvfio into memory of the caller."""
    bar, target = device.bars[place.region], bytearray(size)

    def run(count: int) -> float:
        started = time.perf_counter()
        for _ in itertools.repeat(None, count):
            bar.read_into(place.offset, target)
        return time.perf_counter() - started

    return Side(run)


def map_and_unmap(device: PCIDevice, memory: SharedMemory, iova: int, pages: int) -> Side:
    """Batches by pyvfio of ``pages`` maps, and as many unmaps."""
    dma = device.dma
    at = [(iova + PAGE * page, PAGE * page) for page in range(pages)]

    def run(count: int) -> float:
        started = time.perf_counter()
        for _ in itertools.repeat(None, count):
            with dma.batch():
                for address, offset in at:
                    dma.map(memory, iova=address, offset=offset, size=PAGE)
                for address, _ in at:
                    dma.unmap(address, PAGE)
        return time.perf_counter() - started

    return Side(run)


def map_and_unmap_many(device: PCIDevice, memory: SharedMemory, iova: int, pages: int) -> Side:
    """The same with a call for all maps, and one for all unmaps."""
    dma = device.dma
    if not hasattr(dma, "map_many"):  # a commit from before there was one call for many
        return map_and_unmap(device, memory, iova, pages)
    offsets = np.arange(pages, dtype=np.uint64) * PAGE
    iovas = iova + offsets

    def run(count: int) -> float:
        started = time.perf_counter()
        for _ in itertools.repeat(None, count):
            with dma.batch():
                dma.map_many(memory, iovas, offsets, PAGE)
                dma.unmap_many(iovas, PAGE)
        return time.perf_counter() - started

    return Side(run)


def map_many(device: PCIDevice, memory: SharedMemory, iova: int, pages: int) -> Side:
    """One map of ``pages`` that are made together."""
    dma = device.dma
    offsets = np.arange(pages, dtype=np.uint64) * PAGE
    iovas = iova + offsets

    def once() -> float:
        started = time.perf_counter()
        dma.map_many(memory, iovas, offsets, PAGE)
        taken = time.perf_counter() - started
        dma.unmap_many(iovas, PAGE)
        return taken / pages

    return Side(lambda count: sum(once() for _ in range(count)))


def waiting(irq: IRQ, timeout: float | None = None) -> Side:
    """From the write of an interrupt's eventfd until its waiter, another thread, runs."""
    return _woken(irq.fileno(), partial(irq.wait, timeout))


def waiting_for_any(irqs: IRQSet, vector: int) -> Side:
    """The same with one that waits for all vectors of a set."""
    return _woken(irqs[vector].fileno(), irqs.wait)


def bare_waiting(fd: int) -> Side:
    """The same with a bare blocking eventfd."""
    return _woken(fd, lambda: os.eventfd_read(fd))


def bare_timed_waiting(fd: int, timeout: float) -> Side:
    """The same with a poll that has a time-out before it."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)

    def wait() -> None:
        poller.poll(1000 * timeout)
        os.eventfd_read(fd)

    return _woken(fd, wait)


def bare_polling(fd: int, epoll: select.epoll) -> Side:
    """The same with an epoll instance that the eventfd is in, and nothing else."""

    def wait() -> None:
        epoll.poll()
        os.eventfd_read(fd)

    return _woken(fd, wait)


def _woken(fd: int, wait: Callable[[], object]) -> Side:
    def samples(count: int) -> list[float]:
        woken: list[float] = []
        seen = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)

        def waiter() -> None:
            try:
                for _ in itertools.repeat(None, count):
                    wait()
                    woken.append(time.perf_counter())
                    os.eventfd_write(seen, 1)
            finally:
                os.eventfd_write(seen, count)  # nobody waits for one that has failed

        thread = threading.Thread(target=waiter)
        thread.start()
        try:
            written = []
            for _ in itertools.repeat(None, count):
                written.append(time.perf_counter())
                os.eventfd_write(fd, 1)
                os.eventfd_read(seen)
        finally:
            thread.join()
            os.close(seen)
        return [after - before for before, after in zip(written, woken, strict=True)]

    return Side(lambda count: sum(samples(count)), samples)
