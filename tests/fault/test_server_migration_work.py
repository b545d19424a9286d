# SPDX-License-Identifier: BSD-3-Clause
"""What a device is doing when it is stopped: DMA, delays, kicks and interrupts, each done once.

Specification: "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE"; ``linux/vfio.h``, ``enum
vfio_device_mig_state``: a stopped device must not interrupt, reach for memory, or change.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.fault import raw
from tests.fault.clients import (
    BAR0,
    BAR1,
    BUFFER,
    DMA_COMMAND,
    DMA_COUNT,
    DMA_DESTINATION,
    DMA_RUN,
    DMA_SOURCE,
    DMA_TO_HOST,
    IOVA,
    IRQ_ACK,
    IRQ_RAISE,
    PAGE,
    TEST_FIRE,
    TEST_PIN,
    TO_DEVICE,
    ClientMemory,
    eventfds,
    finish_edu_dma,
    finish_test_dma,
    have_test_device_ask,
    memfd,
    pattern,
    prepare_test_dma,
    start_test_dma,
)
from tests.fault.moving import connected, go, load, read_all, save, state, to_state, write_all
from tests.fault.raw import RawClient, fired
from tests.fault.raw_migration import (
    ERROR,
    RESUMING,
    RUNNING,
    STOP,
    STOP_COPY,
)
from tests.support import ServerProcess, eventually

DMA_IRQ, IRQ_STATUS, STATUS, FACTORIAL = 4, 0x24, 0x20, 0x08
STATUS_COMPUTING, STATUS_IRQ, DMA_DONE_IRQ = 0x01, 0x80, 0x100
TURNS, FAILED = 0x00, 0x08
ROUNDS = 40


@pytest.fixture(scope="module")
def edus(host: Callable[..., ServerProcess]) -> tuple[ServerProcess, ServerProcess]:
    """Two servers of the edu device."""
    return host("edu"), host("pyvfio.models.edu:Edu")


@pytest.fixture(scope="module")
def tests_(host: Callable[..., ServerProcess]) -> tuple[ServerProcess, ServerProcess]:
    """Two servers of the test device."""
    return host("testdev"), host("pyvfio.models.testdev:TestDevice")


@pytest.fixture(scope="module")
def careless(host: Callable[..., ServerProcess]) -> ServerProcess:
    """A server of a device whose thread knows nothing of migration."""
    return host("tests.fault.migrating:Careless")


def assign(client: RawClient, index: int, fds: list[int], start: int = 0) -> None:
    """Have vectors signal eventfds."""
    client.done(raw.SET_IRQS, raw.irq_set(raw.EVENTFD | raw.TRIGGER, index, start, len(fds)), fds)


def assign_all(client: RawClient, fds: list[int]) -> None:
    """The pin, MSI 3 and MSI-X 2 of the careless device."""
    assign(client, raw.INTX, fds[:1])
    assign(client, raw.MSI, fds[1:2], 3)
    assign(client, raw.MSIX, fds[2:3], 2)


def counts(fds: list[int], seconds: float = 0) -> list[int]:
    """How often each eventfd was signalled."""
    return [fired(fd, seconds) for fd in fds]


def quiet(fds: list[int]) -> bool:
    """Whether no eventfd is signalled for a while."""
    time.sleep(0.05)
    return counts(fds) == [0] * len(fds)


def map_file(client: RawClient, fd: int, size: int = PAGE) -> None:
    client.done(raw.DMA_MAP, raw.dma_map(IOVA, size), [fd])


# DMA of the models


def start_edu(client: RawClient, command: int) -> None:
    """Copy a page between the buffer and the client's memory; the command has no reply."""
    client.enable_bus_master()
    to_host = command & DMA_TO_HOST
    client.write64(BAR0, DMA_SOURCE, BUFFER if to_host else IOVA)
    client.write64(BAR0, DMA_DESTINATION, IOVA if to_host else BUFFER)
    client.write64(BAR0, DMA_COUNT, PAGE)
    run = raw.register_write(BAR0, DMA_COMMAND, command.to_bytes(4, "little"))
    client.send(raw.frame(raw.REGION_WRITE, run, flags=raw.NO_REPLY))


def test_a_dma_that_has_not_begun_is_done_on_the_other_side_once(
    edus: tuple[ServerProcess, ServerProcess],
) -> None:
    """The stop follows at once: mostly within the device's delay of 1 ms."""
    taken_along = 0
    with memfd(PAGE, pattern(PAGE)) as fd, eventfds(2) as irqs:
        for _ in range(ROUNDS):
            with connected(edus[0]) as one, connected(edus[1]) as other:
                for client, irq in ((one, irqs[0]), (other, irqs[1])):
                    map_file(client, fd)
                    assign(client, raw.MSI, [irq])
                start_edu(one, DMA_RUN | DMA_IRQ)
                stream = save(one)
                before = fired(irqs[0], 0)
                load(other, stream)
                assert fired(irqs[1], 0) == 0
                go(other, RUNNING)
                if not before:
                    assert fired(irqs[1]) == 1
                    taken_along += 1
                finish_edu_dma(other)
                assert other.read32(BAR0, IRQ_STATUS) == DMA_DONE_IRQ
                assert counts(irqs) == [0, 0]
                start_edu(other, DMA_RUN | DMA_TO_HOST)
                finish_edu_dma(other)
                assert os.pread(fd, PAGE, 0) == pattern(PAGE)
    assert taken_along


def test_a_dma_under_way_is_finished_before_the_device_is_stopped(
    tests_: tuple[ServerProcess, ServerProcess],
) -> None:
    """The client is asked for its memory while it waits for the answer to its SET."""
    with connected(tests_[0]) as client, connected(tests_[1]) as other:
        asked = have_test_device_ask(client)
        client.send(raw.frame(raw.DEVICE_FEATURE, to_state(STOP_COPY), number=77))
        assert client.quiet()
        ClientMemory(IOVA, pattern(PAGE)).answer(client, asked)
        assert client.receive().number == 77
        load(other, read_all(client))
        go(other, RUNNING)
        assert finish_test_dma(other) == 0
        assert other.read(2, 0, PAGE) == pattern(PAGE)


def test_a_dma_whose_client_does_not_answer_fails_before_the_stop(
    tests_: tuple[ServerProcess, ServerProcess],
) -> None:
    with connected(tests_[0]) as client:
        asked = have_test_device_ask(client)
        client.send(raw.frame(raw.DEVICE_FEATURE, to_state(STOP), number=77))
        client.send(raw.refusal(asked, errno.EIO))
        assert client.receive().number == 77
        go(client, RUNNING)
        assert finish_test_dma(client) == errno.EIO


def test_a_client_that_leaves_while_the_device_stops_is_no_loss(
    tests_: tuple[ServerProcess, ServerProcess],
) -> None:
    with connected(tests_[0]) as client:
        have_test_device_ask(client)
        client.send(raw.frame(raw.DEVICE_FEATURE, to_state(STOP), number=77))
    with connected(tests_[0], reset=False) as client:
        assert state(client) == STOP
        go(client, RUNNING)


def test_a_factorial_is_computed_once(edus: tuple[ServerProcess, ServerProcess]) -> None:
    with connected(edus[0]) as one, connected(edus[1]) as other, eventfds(2) as irqs:
        for client, irq in ((one, irqs[0]), (other, irqs[1])):
            client.enable_bus_master()
            assign(client, raw.MSI, [irq])
        one.write32(BAR0, STATUS, STATUS_IRQ)
        write = raw.register_write(BAR0, FACTORIAL, (10).to_bytes(4, "little"))
        one.send(raw.frame(raw.REGION_WRITE, write, flags=raw.NO_REPLY))
        load(other, save(one))
        go(other, RUNNING)
        assert eventually(lambda: not other.read32(BAR0, STATUS) & STATUS_COMPUTING)
        assert other.read32(BAR0, FACTORIAL) == 3628800
        assert sum(counts(irqs, 0.1)) == 1


def test_a_test_device_takes_along_what_has_not_begun(
    tests_: tuple[ServerProcess, ServerProcess],
) -> None:
    """Loaded in the middle: the stream of a device that was stopped says that there is one."""
    with memfd(PAGE, pattern(PAGE)) as fd, connected(tests_[0]) as client:
        map_file(client, fd)
        prepare_test_dma(client)
        with connected(tests_[1]) as other:
            map_file(other, fd)
            start_test_dma(client, TO_DEVICE)
            load(other, save(client))
            go(other, RUNNING)
            assert finish_test_dma(other) == 0
            assert other.read(2, 0, PAGE) == pattern(PAGE)


# DMA of threads that know nothing of it


def start_turn(client: RawClient) -> None:
    """Have the careless device do something, with a write that has no reply."""
    write = raw.register_write(BAR0, 0, bytes(8))
    client.send(raw.frame(raw.REGION_WRITE, write, flags=raw.NO_REPLY))


def finishes(client: RawClient, turn: int) -> bool:
    """Whether the careless device gets so far."""
    return eventually(lambda: client.read32(BAR0, TURNS) == turn)


def test_dma_waits_while_the_device_is_stopped(careless: ServerProcess) -> None:
    with memfd(PAGE) as fd, connected(careless) as client, eventfds(3) as irqs:
        client.enable_bus_master()
        map_file(client, fd)
        assign_all(client, irqs)
        for turn in range(1, ROUNDS):
            start_turn(client)
            go(client, STOP)
            before = os.pread(fd, 8, 0)
            counts(irqs)
            time.sleep(0.002)
            assert os.pread(fd, 8, 0) == before
            assert counts(irqs) == [0, 0, 0]
            go(client, RUNNING)
            assert finishes(client, turn)
            assert os.pread(fd, 8, 0) == turn.to_bytes(8, "little")


def test_a_thread_that_waits_fails_when_the_device_is_reset(careless: ServerProcess) -> None:
    with connected(careless) as client:
        client.enable_bus_master()
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
        memory, tries = ClientMemory(IOVA, bytes(PAGE)), 0
        while client.read32(BAR0, FAILED) != errno.ECANCELED:
            start_turn(client)
            client.send(raw.frame(raw.DEVICE_FEATURE, to_state(STOP), number=77))
            memory.answer_until_reply(client)  # the thread may be faster
            client.done(raw.RESET)
            client.enable_bus_master()
            tries += 1
            assert tries < 1000
        assert state(client) == RUNNING


def test_a_thread_that_waits_fails_when_another_state_is_loaded(careless: ServerProcess) -> None:
    with memfd(PAGE) as fd, connected(careless) as client:
        idle = save(client)
        client.done(raw.RESET)
        client.enable_bus_master()
        map_file(client, fd)
        tries = 0
        while client.read32(BAR0, FAILED) != errno.ECANCELED:
            start_turn(client)
            go(client, STOP, RESUMING)  # the thread may be faster
            write_all(client, idle)
            go(client, STOP)
            os.pwrite(fd, bytes(8), 0)
            go(client, RUNNING)
            client.enable_bus_master()
            tries += 1
            assert tries < 1000


def test_a_server_ends_while_a_thread_waits(serve: Callable[..., ServerProcess]) -> None:
    server = serve("tests.fault.migrating:Careless")
    with connected(server) as client:
        client.enable_bus_master()
        go(client, STOP, RUNNING)
        for _ in range(3):
            start_turn(client)
        go(client, STOP)
        status, said = server.stop()
    assert (status, said) == (0, "")


# Interrupts


def test_interrupts_are_held_and_delivered_once(careless: ServerProcess) -> None:
    """Each turn fires once, before the stop or after it, and never in between."""
    with memfd(PAGE) as fd, connected(careless) as client, eventfds(3) as irqs:
        client.enable_bus_master()
        map_file(client, fd)
        assign_all(client, irqs)
        seen = [0, 0, 0]
        for turn in range(1, ROUNDS):
            start_turn(client)
            go(client, STOP)
            seen = [a + b for a, b in zip(seen, counts(irqs), strict=True)]
            assert counts(irqs) == [0, 0, 0]
            go(client, RUNNING)
            assert finishes(client, turn)
            seen = [a + b for a, b in zip(seen, counts(irqs), strict=True)]
            assert seen[1:] == [turn, turn]


def test_what_is_fired_behind_the_stop_goes_along(
    careless: ServerProcess, serve: Callable[..., ServerProcess]
) -> None:
    """A thread's DMA is ended before the stop is; what it does then is held, MSI included."""
    second = serve("tests.fault.migrating:Careless")
    with connected(careless) as one, connected(second) as other, eventfds(6) as irqs:
        one.enable_bus_master()
        one.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
        assign_all(one, irqs[:3])
        start_turn(one)
        asked = one.receive()
        one.send(raw.frame(raw.DEVICE_FEATURE, to_state(STOP), number=77))
        assert one.quiet()
        ClientMemory(IOVA, bytes(PAGE)).answer(one, asked)
        assert one.receive().number == 77
        time.sleep(0.05)  # for the thread to come to its interrupts
        load(other, save(one))
        assign_all(other, irqs[3:])
        assert counts(irqs) == [0] * 6
        go(other, RUNNING)
        assert counts(irqs) == [0, 0, 0, 1, 1, 1]
        assert other.read32(BAR0, TURNS) == 1


def test_pending_vectors_and_the_pin_go_along(
    tests_: tuple[ServerProcess, ServerProcess],
) -> None:
    with connected(tests_[0]) as one, connected(tests_[1]) as other, eventfds(3) as irqs:
        one.enable_bus_master()
        assign(one, raw.MSIX, irqs[:1], 4)
        one.write32(BAR0, TEST_FIRE, 5)  # no eventfd: masked
        one.write32(BAR0, TEST_PIN, 1)
        load(other, save(one))
        assert other.read(BAR1, 0x800, 8) == (1 << 5).to_bytes(8, "little")
        assign(other, raw.MSIX, irqs[1:2], 5)
        assign(other, raw.INTX, irqs[2:])
        assert quiet(irqs)
        go(other, RUNNING)
        assert counts(irqs) == [0, 1, 1]
        assert other.read(BAR1, 0x800, 8) == bytes(8)


@pytest.fixture
def pending(tests_: tuple[ServerProcess, ServerProcess]) -> Iterator[tuple[RawClient, list[int]]]:
    """A client of a test device that was loaded with the vector 5 pending; two eventfds."""
    with connected(tests_[0]) as one, connected(tests_[1]) as other, eventfds(2) as irqs:
        one.enable_bus_master()
        assign(one, raw.MSIX, irqs[:1], 4)
        one.write32(BAR0, TEST_FIRE, 5)
        load(other, save(one))
        yield other, irqs


def test_held_interrupts_wait_for_their_eventfds(pending: tuple[RawClient, list[int]]) -> None:
    client, irqs = pending
    go(client, RUNNING)
    assign(client, raw.MSIX, irqs[1:], 5)
    assert counts(irqs) == [0, 1]


def test_an_index_may_be_disabled_before_it_is_enabled_for_what_is_held(
    pending: tuple[RawClient, list[int]],
) -> None:
    """Clients do so, to be sure, when they set up interrupts."""
    client, irqs = pending
    client.done(raw.SET_IRQS, raw.irq_set(raw.NONE | raw.TRIGGER, raw.MSIX, 0, 0))
    assign(client, raw.MSIX, irqs[1:], 5)
    go(client, RUNNING)
    assert counts(irqs) == [0, 1]


def test_what_a_client_leaves_of_a_stopped_device_is_there_for_the_next(
    tests_: tuple[ServerProcess, ServerProcess],
) -> None:
    """Of one that runs, its client takes pending bits, the table and the enable bit along."""
    with connected(tests_[0]) as one, eventfds(1) as irqs:
        one.enable_bus_master()
        assign(one, raw.MSIX, irqs, 4)
        one.write32(BAR0, TEST_FIRE, 5)
        go(one, STOP)
        before = one.read(raw.CONFIG, 0, 256)
    with connected(tests_[0], reset=False) as client, eventfds(1) as irqs:
        assert client.read(raw.CONFIG, 0, 256) == before
        assert client.read(BAR1, 0x800, 8) == (1 << 5).to_bytes(8, "little")
        assign(client, raw.MSIX, irqs, 5)
        go(client, RUNNING)
        assert counts(irqs) == [1]


def test_a_pin_that_fired_fires_again_where_it_is_asserted_still(
    edus: tuple[ServerProcess, ServerProcess],
) -> None:
    with connected(edus[0]) as one, connected(edus[1]) as other, eventfds(2) as irqs:
        assign(one, raw.INTX, irqs[:1])
        assign(other, raw.INTX, irqs[1:])
        one.write32(BAR0, IRQ_RAISE, 1)
        assert counts(irqs) == [1, 0]
        load(other, save(one))
        go(other, RUNNING)
        assert counts(irqs) == [0, 1]
        other.write32(BAR0, IRQ_ACK, 1)
        other.done(raw.SET_IRQS, raw.irq_set(raw.NONE | raw.UNMASK, raw.INTX, 0, 1))
        assert counts(irqs) == [0, 0]


def test_a_device_that_is_stopped_and_runs_again_fires_nothing_twice(
    edus: tuple[ServerProcess, ServerProcess],
) -> None:
    with connected(edus[0]) as client, eventfds(1) as irqs:
        assign(client, raw.INTX, irqs)
        client.write32(BAR0, IRQ_RAISE, 1)
        assert counts(irqs) == [1]
        go(client, STOP_COPY, RUNNING)
        assert counts(irqs) == [0]


# Kicks


def kick_fds(client: RawClient) -> list[int]:
    """The eventfds of BAR 0."""
    reply = client.done(raw.GET_REGION_IO_FDS, struct.pack("<IIII", PAGE, 0, BAR0, 0))
    return list(reply.fds)


@contextmanager
def kicks(client: RawClient) -> Iterator[int]:
    """The eventfd of the first doorbell."""
    fds = kick_fds(client)
    try:
        yield fds[0]
    finally:
        raw.close(fds)


def kicked(client: RawClient) -> int:
    """How often the first doorbell of the test device was."""
    return client.read32(BAR0, 0x58)


def test_kicks_before_a_stop_are_part_of_what_is_saved(
    tests_: tuple[ServerProcess, ServerProcess],
) -> None:
    with connected(tests_[0]) as one, connected(tests_[1]) as other, kicks(one) as fd:
        for _ in range(ROUNDS):
            os.eventfd_write(fd, 1)
        load(other, save(one))
        go(other, RUNNING)
        assert kicked(other) == ROUNDS


def test_kicks_of_a_stopped_device_wait(tests_: tuple[ServerProcess, ServerProcess]) -> None:
    with connected(tests_[0]) as client, kicks(client) as fd:
        go(client, STOP)
        os.eventfd_write(fd, 3)
        time.sleep(0.05)
        go(client, RUNNING)
        assert eventually(lambda: kicked(client) == 3)


@pytest.mark.parametrize("leave", [STOP, RESUMING, ERROR])
def test_kicks_are_delivered_after_a_reset(
    tests_: tuple[ServerProcess, ServerProcess], leave: int
) -> None:
    with connected(tests_[0]) as client:
        go(client, STOP if leave == STOP else RESUMING)
    with connected(tests_[0], reset=False) as client, kicks(client) as fd:
        os.eventfd_write(fd, 2)
        client.done(raw.RESET)
        assert eventually(lambda: kicked(client) == 2)


def test_a_device_that_was_kicked_for_ever_can_be_stopped(
    tests_: tuple[ServerProcess, ServerProcess],
) -> None:
    with connected(tests_[0]) as client, kicks(client) as fd:
        os.eventfd_write(fd, (1 << 64) - 2)
        go(client, STOP)
        assert state(client) == STOP
    with connected(tests_[0]) as client:
        assert state(client) == RUNNING


def test_a_reset_of_the_function_leads_to_running(
    tests_: tuple[ServerProcess, ServerProcess],
) -> None:
    with connected(tests_[0]) as client:
        go(client, STOP_COPY)
        at = express(client)
        control = int.from_bytes(client.read(raw.CONFIG, at + 8, 2), "little") | 0x8000
        client.write(raw.CONFIG, at + 8, control.to_bytes(2, "little"))
        assert state(client) == RUNNING


def express(client: RawClient) -> int:
    """Where the PCI Express capability is."""
    at = client.read(raw.CONFIG, 0x34, 1)[0]
    while (head := client.read(raw.CONFIG, at, 2))[0] != 0x10:
        at = head[1]
    return at
