# SPDX-License-Identifier: BSD-3-Clause
"""``make bench``: what a register access, a bulk read and DMA maps cost.

Subject and baseline take turns, round after round, so that both meet the same load; the ratio of
their medians is the result, the absolute figures are an order of magnitude.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyvfio
from pyvfio.native import mmio
from pyvfio.pci.bars import BAR
from pyvfio.pci.device import PCIDevice
from tests.support import ServerProcess

ROUNDS = 15
REQUEST, REPLY = 32, 36
"""Bytes on the wire of a 4-byte REGION_READ and of its reply."""
MIB = 1 << 20
MANY = 1000


class Job(NamedTuple):
    """One line of the result: a subject and what it is compared with."""

    what: str
    baseline: str
    subject: Callable[[], object]
    reference: Callable[[], object]
    repeat: int


def main() -> None:
    """Run all and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "testdev.sock"
        with (
            ServerProcess("testdev", path) as server,
            pyvfio.open(server.uri) as dev,
            echo_peer() as ping,
        ):
            rows = [measure(job) for job in jobs(dev, ping)]
    heads = ("what", "median us", "spread", "baseline", "median us", "spread", "ratio")
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    for row in (heads, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def jobs(dev: PCIDevice, ping: Callable[[], None]) -> Iterator[Job]:
    """What is measured."""
    registers, memory = dev.bars[0], dev.bars[2]
    yield from posted_writes(registers)  # before a region is mapped, which ends them
    yield Job(
        "4-byte region read",
        "bare socket round trip",
        lambda: registers.read32(0x000),
        ping,
        500,
    )
    view = memory.view(0, MIB)
    read32 = mmio.READ[4]
    address = int(view.__array_interface__["data"][0])
    yield Job(
        "4-byte mapped read",
        "bare call of the C accessor",
        lambda: memory.read32(0),
        lambda: read32(address),
        20000,
    )
    source, target = bytes(MIB), bytearray(MIB)

    def copy() -> None:
        target[:] = source

    trapped = memory.mappable[0].size
    yield Job(
        "1 MiB region read",
        "memcpy",
        lambda: memory.read_bytes(trapped, MIB),
        copy,
        20,
    )
    buffer = pyvfio.SharedMemory(4096)

    def map_and_unmap() -> None:
        dev.dma.unmap(dev.dma.map(buffer), buffer.size)

    def ping_twice() -> None:
        ping()
        ping()

    yield Job("DMA map and unmap", "two bare round trips", map_and_unmap, ping_twice, 200)

    def one_by_one() -> None:
        for iova in [dev.dma.map(buffer) for _ in range(MANY)]:
            dev.dma.unmap(iova, buffer.size)

    def in_a_batch() -> None:
        with dev.dma.batch():
            one_by_one()

    what = f"{MANY} maps and unmaps"
    yield Job(f"{what} in a batch", "one by one", in_a_batch, one_by_one, 1)
    buffer.close()


def posted_writes(registers: BAR) -> Iterator[Job]:
    """Writes that are not waited for, beside those that are."""

    def write(posted: bool) -> Callable[[], None]:
        def write_many() -> None:
            registers.posted = posted
            for value in range(MANY):
                registers.write32(0x010, value)
            registers.read32(0x010)

        return write_many

    yield Job(f"{MANY} posted writes and a read", "writes waited for", write(True), write(False), 1)


def measure(job: Job) -> tuple[str, ...]:
    """The line of a job."""
    subject, reference = [], []
    for _ in range(ROUNDS):
        subject.append(_microseconds(job.subject, job.repeat))
        reference.append(_microseconds(job.reference, job.repeat))
    ratio = statistics.median(reference) / statistics.median(subject)
    return (job.what, *_figures(subject), job.baseline, *_figures(reference), f"{ratio:.2f}")


def _figures(samples: list[float]) -> tuple[str, str]:
    return f"{statistics.median(samples):.2f}", f"{min(samples):.2f}-{max(samples):.2f}"


def _microseconds(call: Callable[[], object], repeat: int) -> float:
    started = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - started) / repeat * 1e6


@contextmanager
def echo_peer() -> Iterator[Callable[[], None]]:
    """A process that answers 32 bytes with 36; yields one round trip with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    child = os.fork()
    if not child:
        ours.close()
        while theirs.recv(REQUEST):
            theirs.sendall(bytes(REPLY))
        os._exit(0)
    theirs.close()

    def ping() -> None:
        ours.sendall(bytes(REQUEST))
        ours.recv(REPLY)

    try:
        yield ping
    finally:
        ours.close()
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
