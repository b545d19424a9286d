# SPDX-License-Identifier: BSD-3-Clause
"""Two servers in one process share nothing: what one client or model does, the other never sees."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from pyvfio.models.testdev import TestDevice
from pyvfio.server.model import DeviceModel
from pyvfio.server.quotas import Quotas
from pyvfio.server.server import Server
from tests.fault import raw
from tests.fault.clients import (
    BAR0,
    BAR2,
    IOVA,
    PAGE,
    TEST_FIRE,
    TEST_SCRATCH,
    TO_CLIENT,
    TO_DEVICE,
    eventfds,
    in_step,
    memfd,
    pattern,
    run_test_dma,
)
from tests.fault.models import Small
from tests.fault.raw import RawClient, fired


class Hosted(NamedTuple):
    """A server in a thread of this process."""

    server: Server
    thread: threading.Thread

    @classmethod
    def start(cls, model: DeviceModel, path: Path, quotas: Quotas | None = None) -> Hosted:
        """Host a model."""
        server = Server(model, str(path), quotas=quotas)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        return cls(server, thread)

    def stop(self) -> None:
        """Serve no longer."""
        self.server.stop()
        self.thread.join()
        self.server.close()


@contextmanager
def two_hosted(
    folder: Path, models: Sequence[DeviceModel], quotas: Quotas | None = None
) -> Iterator[tuple[tuple[Hosted, RawClient], ...]]:
    """Two servers, each with a client; the first with quotas of its own."""
    with ExitStack() as stack:
        found = []
        for number, model in enumerate(models):
            path = folder / f"server-{number}.sock"
            hosted = Hosted.start(model, path, None if number else quotas)
            stack.callback(hosted.stop)
            client = stack.enter_context(RawClient(path))
            client.negotiate()
            found.append((hosted, client))
        yield tuple(found)


class Stuck(Small):
    """Keeps its lock, in a callback, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = threading.Event()
        self.go = threading.Event()

    def bar_read(self, bar: int, offset: int, width: int) -> int | Future[int]:
        self.stuck.set()
        self.go.wait()
        return 7


@pytest.fixture
def clients(socket_folder: Path) -> Iterator[tuple[RawClient, RawClient]]:
    """A client each of two test devices; the first may have one map only."""
    models = (TestDevice(), TestDevice())
    with two_hosted(socket_folder, models, Quotas(max_maps=1)) as ((_, one), (_, other)):
        for client in (one, other):
            client.enable_bus_master()
        yield one, other


def test_registers_and_memory_are_each_models_own(clients: tuple[RawClient, RawClient]) -> None:
    for client, data in zip(clients, (b"the one ", b"another "), strict=True):
        client.write(BAR0, TEST_SCRATCH, data)
        client.write(BAR2, 0, data)
    assert [client.read(BAR0, TEST_SCRATCH, 8) for client in clients] == [b"the one ", b"another "]
    assert [client.read(BAR2, 0, 8) for client in clients] == [b"the one ", b"another "]


def test_the_same_address_is_each_clients_own_memory(clients: tuple[RawClient, RawClient]) -> None:
    one, other = clients
    with memfd(PAGE, pattern(PAGE)) as source, memfd(PAGE) as destination:
        one.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [source])
        other.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [destination])
        assert run_test_dma(one, TO_DEVICE) == 0
        assert run_test_dma(other, TO_CLIENT) == 0
        assert one.read(BAR2, 0, PAGE) == pattern(PAGE)
        assert os.pread(destination, PAGE, 0) == bytes(PAGE)


def test_quotas_are_each_servers_own(clients: tuple[RawClient, RawClient]) -> None:
    one, other = clients
    for client in clients:
        client.done(raw.DMA_MAP, raw.dma_map(0, PAGE))
    assert one.refused(raw.DMA_MAP, raw.dma_map(PAGE, PAGE)) == errno.ENOSPC
    other.done(raw.DMA_MAP, raw.dma_map(PAGE, PAGE))


def test_interrupts_go_to_their_own_client(clients: tuple[RawClient, RawClient]) -> None:
    with eventfds(2) as fds:
        for client, fd in zip(clients, fds, strict=True):
            request = raw.irq_set(raw.EVENTFD | raw.TRIGGER, raw.MSIX, 0, 1)
            client.done(raw.SET_IRQS, request, [fd])
        clients[1].write32(BAR0, TEST_FIRE, 0)
        assert [fired(fd, 0) for fd in fds] == [0, 1]


def test_a_reset_is_of_one_device(clients: tuple[RawClient, RawClient]) -> None:
    one, other = clients
    other.write(BAR0, TEST_SCRATCH, b"remember")
    one.done(raw.RESET)
    assert other.read(BAR0, TEST_SCRATCH, 8) == b"remember"


def test_a_client_that_is_cut_off_leaves_the_other_alone(
    clients: tuple[RawClient, RawClient],
) -> None:
    one, other = clients
    one.send(b"\xff" * 4096)
    assert one.ended()
    assert in_step(other)


def test_a_model_that_keeps_its_lock_stops_only_its_own_client(socket_folder: Path) -> None:
    model = Stuck()
    with two_hosted(socket_folder, (model, Small())) as ((_, waiting), (_, client)):
        try:
            waiting.send(raw.frame(raw.REGION_READ, raw.region_range(BAR0, 0, 8)))
            assert model.stuck.wait(raw.SECONDS)
            client.write64(BAR0, 0, 42)
            assert client.read(BAR0, 0, 1) == b"\x2a"
            client.done(raw.RESET)
            assert waiting.quiet()
        finally:
            model.go.set()
        assert waiting.receive().payload[16:] == b"\7" + bytes(7)


def test_a_server_that_stops_leaves_the_other_alone(socket_folder: Path) -> None:
    with two_hosted(socket_folder, (Small(), Small())) as ((first, one), (_, other)):
        first.stop()
        assert one.ended()
        assert in_step(other)
