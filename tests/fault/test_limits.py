# SPDX-License-Identifier: BSD-3-Clause
"""Ends that run out of descriptors or memory, at every step: a clean error, and then they go on."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import pytest

import pyvfio
from pyvfio.errors import VFIOError
from pyvfio.memory import PAGE_SIZE
from tests.fault import raw
from tests.fault.raw import RawClient
from tests.holdings import check_flat, of_server
from tests.support import ServerProcess, open_fds, run_program

Serve: TypeAlias = Callable[..., ServerProcess]

STEPS = 24
"""More descriptors than a client or a server needs for all that is tried here."""


@contextmanager
def limited(server: ServerProcess, kind: int, most: int) -> Iterator[None]:
    """A server that may not have more than ``most`` of something for a while."""
    limits = resource.prlimit(server.pid, kind)
    resource.prlimit(server.pid, kind, (most, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(server.pid, kind, limits)


# Descriptors


CLIENT = """
import os, resource, sys, threading, pyvfio

def held():
    return {name for name in os.listdir("/proc/self/fd")}

def use():
    with pyvfio.open(sys.argv[1], timeout=10) as dev:
        dev.dma.alloc(4096)
        dev.dma.alloc(4096, kind=pyvfio.MemoryKind.MEMFD)
        with dev.msix.enable(4) as irqs:
            irqs.trigger(3)
            assert irqs[3].wait(10) == 1
        dev.bars[2].view(0, 4096)[:] = 1

use()  # whatever is imported when it is needed is there now
before = held()
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
for more in range(int(sys.argv[2])):
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + more, limits[1]))
    try:
        use()
        print("done")
    except pyvfio.VFIOError as error:
        print(error)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert held() == before, held() - before
    assert threading.active_count() == 1
"""


CAUSES = ("[EMFILE]", "descriptors were lost on the way", "maximum number of files open")


def test_a_client_without_descriptors_fails_cleanly_at_every_step(
    testdev_server: ServerProcess,
) -> None:
    outcomes = run_program(CLIENT, testdev_server.uri, str(STEPS)).splitlines()
    assert len(outcomes) == STEPS
    assert outcomes[-1] == "done"
    failures = [line for line in outcomes if line != "done"]
    assert len(failures) > 5
    assert all(any(words in line for words in CAUSES) for line in failures)


def test_a_server_without_descriptors_goes_on_at_every_step(serve: Serve) -> None:
    server = serve("testdev")
    use(server)
    before = of_server(server)
    outcomes = []
    for more in range(STEPS):
        with limited(server, resource.RLIMIT_NOFILE, len(open_fds(server.pid)) + more):
            outcomes.append(outcome_of(server))
        use(server)  # what was in the way is out of it
    check_flat(before, of_server(server))
    assert outcomes[0] is not None
    assert outcomes[-1] is None


def use(server: ServerProcess, timeout: float = 10) -> None:
    """All that makes a server take descriptors."""
    with pyvfio.open(server.uri, timeout=timeout) as dev:
        for _ in range(4):
            dev.dma.alloc(PAGE_SIZE)
        with dev.msix.enable(16) as irqs:
            irqs.trigger(15)
            assert irqs[15].wait(timeout) == 1


def outcome_of(server: ServerProcess) -> VFIOError | None:
    """How that ends for a client that is not patient."""
    try:
        use(server, timeout=2)
    except VFIOError as error:
        return error
    return None


# Memory


ROOMS = [0, 1 << 20, 8 << 20, 24 << 20, 64 << 20]
"""Bytes of address space that a process may have beyond what it has; a stack takes 8 MiB."""


def address_space(pid: int | str) -> int:
    """Bytes of address space that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * PAGE_SIZE


def ask_for_much(client: RawClient) -> None:
    """More than fits into the room: long answers that are not read, and maps of memory."""
    reads = raw.frame(raw.REGION_READ, raw.region_range(2, 0, 1 << 20)) * 80
    client.send(reads)
    for _ in range(80):
        assert client.receive().error in (0, errno.EIO, errno.ENOMEM)


def map_much(client: RawClient) -> None:
    fd = os.memfd_create("raw")
    try:
        os.ftruncate(fd, 256 << 20)
        reply = client.ask(raw.DMA_MAP, raw.dma_map(0, 256 << 20), [fd])
        assert reply.error == errno.ENOMEM
    finally:
        os.close(fd)


# With less, a thread may start and have no memory to say so, which Thread.start() waits for.
@pytest.mark.parametrize("demand", [ask_for_much, map_much])
@pytest.mark.parametrize("room", ROOMS[2:])
def test_a_server_without_memory_goes_on(
    serve: Serve, demand: Callable[[RawClient], None], room: int
) -> None:
    server = serve("testdev")
    use(server)
    with (
        limited(server, resource.RLIMIT_AS, address_space(server.pid) + room),
        suppress(EOFError, ConnectionError),
        RawClient(server.path) as client,
    ):
        client.negotiate()
        demand(client)
    use(server)


CLIENT_MEMORY = """
import resource, sys, pyvfio
from tests.fault.test_limits import address_space

DEMANDS = {
    "read": lambda: dev.bars[2].read_bytes(2 << 20, 30 << 20),
    "alloc": lambda: dev.dma.alloc(1 << 30),
    "open": lambda: [pyvfio.open(sys.argv[1], timeout=1) for _ in range(8)],
}

with pyvfio.open(sys.argv[1]) as dev:
    dev.bars[2].read_bytes(2 << 20, 4096)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space("self") + int(sys.argv[2]), limits[1]))
    try:
        DEMANDS[sys.argv[3]]()
    except (MemoryError, pyvfio.VFIOError) as error:
        print(type(error).__name__)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    dev.bars[0].write32(0x10, 0x12345678)
    assert dev.bars[0].read32(0x10) == 0x12345678
    dev.dma.alloc(4096)
"""


@pytest.mark.parametrize("demand", ["read", "alloc", "open"])
@pytest.mark.parametrize("room", ROOMS[:4])
def test_a_client_without_memory_goes_on(
    testdev_server: ServerProcess, demand: str, room: int
) -> None:
    said = run_program(CLIENT_MEMORY, testdev_server.uri, str(room), demand)
    assert said.split() in (["MemoryError"], ["VFIOError"], ["OpenError"], ["VFIOTimeout"])
