# SPDX-License-Identifier: BSD-3-Clause
"""The model of the edu device without a server: what happens inside of it, and while it is busy."""

from __future__ import annotations

import logging
import math
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from pyvfio import models
from pyvfio.errors import BackendNotFound, DMAError
from pyvfio.memory import ByteArray
from pyvfio.models import edu
from pyvfio.models.edu import BUFFER, BUFFER_SIZE, Edu
from pyvfio.models.testdev import TestDevice
from pyvfio.server.model import DeviceModel
from pyvfio.uapi.layout import Buffer
from tests.support import eventually

TO_DEVICE, TO_HOST, WITH_IRQ = edu.DMA_RUN, edu.DMA_RUN | edu.DMA_TO_HOST, edu.DMA_IRQ


class Services:
    """A server that keeps what the model asks of it."""

    def __init__(self, model: DeviceModel) -> None:
        self.model = model
        self.memory = bytearray(1 << 16)
        self.error: DMAError | None = None
        self.during_dma: Callable[[], None] | None = None
        self.asked: list[tuple[str, int, int]] = []
        self.lock_was_free: list[bool] = []
        self.levels: list[bool] = []
        self.messages: list[int] = []
        self.uses_msi = False

    def _dma(self, verb: str, address: int, size: int) -> None:
        self.asked.append((verb, address, size))
        other = threading.Thread(target=self._try_the_lock)
        other.start()
        other.join()
        if self.during_dma is not None:
            with self.model.lock:
                self.during_dma()
        if self.error is not None:
            raise self.error

    def _try_the_lock(self) -> None:
        free = self.model.lock.acquire(timeout=0.1)
        self.lock_was_free.append(free)
        if free:
            self.model.lock.release()

    def dma_read(self, address: int, size: int) -> bytes:
        self._dma("read", address, size)
        return bytes(self.memory[address : address + size])

    def dma_write(self, address: int, data: Buffer) -> None:
        self._dma("write", address, len(data))
        self.memory[address : address + len(data)] = data

    def set_intx(self, level: bool) -> None:
        self.levels.append(level)

    def msi_enabled(self) -> bool:
        return self.uses_msi

    def send_msi(self, vector: int) -> None:
        self.messages.append(vector)

    def dma_read_into(self, address: int, buffer: Buffer) -> None:
        raise NotImplementedError

    def dma_view(
        self, address: int, size: int, writable: bool
    ) -> AbstractContextManager[ByteArray]:
        raise NotImplementedError

    def bar_memory(self, bar: int) -> ByteArray:
        raise NotImplementedError

    def msix_enabled(self) -> bool:
        raise NotImplementedError

    def send_msix(self, vector: int) -> None:
        raise NotImplementedError


@pytest.fixture
def model() -> Iterator[Edu]:
    """The model."""
    made = Edu()
    yield made
    made.close()


@pytest.fixture
def host(model: Edu) -> Services:
    """What it is hosted by."""
    services = Services(model)
    model.attach(services)
    return services


def read(model: Edu, offset: int, width: int = 4) -> int:
    """A register, as the server reads it."""
    with model.lock:
        return model.bar_read(0, offset, width)


def write(model: Edu, offset: int, value: int, width: int = 4) -> None:
    """A register, as the server writes it."""
    with model.lock:
        model.bar_write(0, offset, width, value)


def start_dma(model: Edu, source: int, destination: int, count: int, command: int) -> None:
    """Set up the DMA engine and start it."""
    write(model, edu.DMA_SOURCE, source, 8)
    write(model, edu.DMA_DESTINATION, destination, 8)
    write(model, edu.DMA_COUNT, count, 8)
    write(model, edu.DMA_COMMAND, command)


def run_dma(model: Edu, source: int, destination: int, count: int, command: int) -> None:
    """Run the DMA engine to its end."""
    start_dma(model, source, destination, count, command)
    assert eventually(lambda: not read(model, edu.DMA_COMMAND) & edu.DMA_RUN)


def is_computed(model: Edu) -> bool:
    """Whether no factorial is being computed."""
    return not read(model, edu.STATUS) & edu.STATUS_COMPUTING


# Factorials


@pytest.mark.usefixtures("host")
def test_the_busy_bit_is_set_while_it_computes(model: Edu) -> None:
    with model.lock:
        write(model, edu.FACTORIAL, 5)
        assert read(model, edu.STATUS) == edu.STATUS_COMPUTING


@pytest.mark.usefixtures("host")
def test_the_busy_bit_cannot_be_cleared(model: Edu) -> None:
    with model.lock:
        write(model, edu.FACTORIAL, 5)
        write(model, edu.STATUS, 0)
        assert read(model, edu.STATUS) == edu.STATUS_COMPUTING


@pytest.mark.usefixtures("host")
def test_the_busy_bit_cannot_be_set(model: Edu) -> None:
    write(model, edu.STATUS, 0xFFFF_FFFF)
    assert read(model, edu.STATUS) == edu.STATUS_IRQ


@pytest.mark.usefixtures("host")
def test_a_number_is_not_taken_while_it_computes(model: Edu) -> None:
    with model.lock:
        write(model, edu.FACTORIAL, 5)
        write(model, edu.FACTORIAL, 6)
    assert eventually(lambda: is_computed(model))
    assert read(model, edu.FACTORIAL) == 120


def test_a_factorial_raises_an_interrupt_where_it_was_asked_for(model: Edu, host: Services) -> None:
    write(model, edu.STATUS, edu.STATUS_IRQ)
    write(model, edu.FACTORIAL, 3)
    assert eventually(lambda: is_computed(model))
    assert (host.levels, read(model, edu.IRQ_STATUS)) == ([True], edu.FACTORIAL_IRQ)


def test_a_factorial_raises_nothing_where_it_was_not(model: Edu, host: Services) -> None:
    write(model, edu.FACTORIAL, 3)
    assert eventually(lambda: is_computed(model))
    assert (host.levels, read(model, edu.IRQ_STATUS)) == ([], 0)


# Interrupts


def test_bits_add_up_while_the_pin_is_asserted(model: Edu, host: Services) -> None:
    write(model, edu.IRQ_RAISE, 0b01)
    write(model, edu.IRQ_RAISE, 0b10)
    assert (read(model, edu.IRQ_STATUS), host.levels) == (0b11, [True, True])


def test_the_pin_is_lowered_with_the_last_bit(model: Edu, host: Services) -> None:
    write(model, edu.IRQ_RAISE, 0b11)
    write(model, edu.IRQ_ACK, 0b01)
    before = list(host.levels)
    write(model, edu.IRQ_ACK, 0b10)
    assert (before, host.levels) == ([True], [True, False])


def test_raising_no_bits_raises_nothing(model: Edu, host: Services) -> None:
    write(model, edu.IRQ_RAISE, 0)
    assert host.levels == []


def test_a_message_takes_the_place_of_the_pin(model: Edu, host: Services) -> None:
    host.uses_msi = True
    write(model, edu.IRQ_RAISE, 1)
    write(model, edu.IRQ_ACK, 1)
    assert (host.messages, host.levels) == ([0], [])


# DMA


def test_dma_copies_from_the_host_and_back(model: Edu, host: Services) -> None:
    host.memory[0x1000:0x1100] = bytes(range(256))
    run_dma(model, 0x1000, BUFFER + 16, 256, TO_DEVICE)
    run_dma(model, BUFFER + 16, 0x2000, 256, TO_HOST)
    assert host.memory[0x2000:0x2100] == bytes(range(256))


def test_addresses_have_28_bits(model: Edu, host: Services) -> None:
    run_dma(model, 0xF_F000_1000, BUFFER, 16, TO_DEVICE)
    run_dma(model, BUFFER, 0xF_F000_2000, 16, TO_HOST)
    assert host.asked == [("read", 0x1000, 16), ("write", 0x2000, 16)]


@pytest.mark.parametrize(
    ("start", "count"),
    [
        (BUFFER - 1, 2),
        (BUFFER, BUFFER_SIZE + 1),
        (BUFFER + BUFFER_SIZE, 1),
        (0, 16),
        (BUFFER, (1 << 64) - 1),
        ((1 << 64) - 1, 1),
    ],
)
@pytest.mark.parametrize("command", [TO_DEVICE, TO_HOST])
def test_dma_that_leaves_the_buffer_moves_nothing(
    model: Edu, host: Services, start: int, count: int, command: int
) -> None:
    to_host = command == TO_HOST
    run_dma(model, start if to_host else 0x1000, 0x1000 if to_host else start, count, command)
    assert host.asked == []


@pytest.mark.parametrize("count", [0, BUFFER_SIZE])
def test_dma_of_the_whole_buffer_or_nothing(model: Edu, host: Services, count: int) -> None:
    run_dma(model, 0x1000, BUFFER, count, TO_DEVICE)
    assert host.asked == [("read", 0x1000, count)]


@pytest.mark.parametrize("command", [TO_DEVICE, TO_HOST])
def test_dma_that_fails_goes_unnoticed(model: Edu, host: Services, command: int) -> None:
    host.error = DMAError("not mapped")
    source, destination = (BUFFER, 0x1000) if command == TO_HOST else (0x1000, BUFFER)
    run_dma(model, source, destination, 16, command | WITH_IRQ)
    assert read(model, edu.IRQ_STATUS) == edu.DMA_DONE_IRQ


@pytest.mark.parametrize("source", [BUFFER, BUFFER - 1], ids=["refused", "outside the buffer"])
def test_dma_that_fails_is_no_warning(
    model: Edu, host: Services, caplog: pytest.LogCaptureFixture, source: int
) -> None:
    """A guest could fill its host's log."""
    caplog.set_level(logging.INFO, edu.log.name)
    host.error = DMAError("not mapped")
    run_dma(model, source, 0x1000, 16, TO_HOST)
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_dma_raises_an_interrupt_where_it_was_asked_for(model: Edu, host: Services) -> None:
    run_dma(model, 0x1000, BUFFER, 16, TO_DEVICE | WITH_IRQ)
    assert (host.levels, read(model, edu.IRQ_STATUS)) == ([True], edu.DMA_DONE_IRQ)


def test_dma_raises_nothing_where_it_was_not(model: Edu, host: Services) -> None:
    run_dma(model, 0x1000, BUFFER, 16, TO_DEVICE)
    assert host.levels == []


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("register", [edu.DMA_SOURCE, edu.DMA_DESTINATION, edu.DMA_COUNT])
def test_registers_of_a_running_dma_cannot_be_written(model: Edu, register: int) -> None:
    with model.lock:
        start_dma(model, 0x1000, BUFFER, 16, TO_DEVICE)
        before = read(model, register, 8)
        write(model, register, 0x5555, 8)
        assert read(model, register, 8) == before


def test_a_command_without_run_starts_nothing(model: Edu, host: Services) -> None:
    start_dma(model, 0x1000, BUFFER, 16, edu.DMA_IRQ)
    assert (read(model, edu.DMA_COMMAND), host.asked) == (0, [])


def test_a_second_command_is_dropped_while_one_runs(model: Edu, host: Services) -> None:
    with model.lock:
        start_dma(model, 0x1000, BUFFER, 16, TO_DEVICE)
        write(model, edu.DMA_COMMAND, TO_HOST)
    assert eventually(lambda: not read(model, edu.DMA_COMMAND) & edu.DMA_RUN)
    assert host.asked == [("read", 0x1000, 16)]


def test_the_host_is_asked_without_the_lock(model: Edu, host: Services) -> None:
    run_dma(model, 0x1000, BUFFER, 16, TO_DEVICE)
    run_dma(model, BUFFER, 0x1000, 16, TO_HOST)
    assert host.lock_was_free == [True, True]


# Migration


class Slow(Services):
    """Takes its time over DMA."""

    def __init__(self, model: DeviceModel) -> None:
        super().__init__(model)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def _dma(self, verb: str, address: int, size: int) -> None:
        self.begun.set()
        assert self.go_on.wait(5)


def stop(model: DeviceModel) -> None:
    """As the server stops a model."""
    with model.lock:
        model.stopped()


def stops_behind_its_dma(model: DeviceModel, host: Slow) -> bool:
    """Whether a model that has begun a DMA comes to rest when it is over, and not before."""
    assert host.begun.wait(5)
    stopping = threading.Thread(target=stop, args=(model,))
    stopping.start()
    stopping.join(0.05)
    waited = stopping.is_alive()
    host.go_on.set()
    stopping.join()
    return waited


def test_a_dma_under_way_ends_before_the_device_is_stopped(model: Edu) -> None:
    host = Slow(model)
    model.attach(host)
    start_dma(model, 0x1000, BUFFER, 16, TO_DEVICE | WITH_IRQ)
    assert stops_behind_its_dma(model, host)
    assert not read(model, edu.DMA_COMMAND) & edu.DMA_RUN
    assert (host.levels, read(model, edu.IRQ_STATUS)) == ([True], edu.DMA_DONE_IRQ)


def test_a_stopped_device_begins_nothing_until_it_runs(model: Edu, host: Services) -> None:
    with model.lock:
        start_dma(model, 0x1000, BUFFER, 16, TO_DEVICE)
        write(model, edu.FACTORIAL, 5)
        model.stopped()
        saved = model.save_state()
    assert (host.asked, is_computed(model)) == ([], False)
    with model.lock:
        assert model.save_state() == saved
        model.started()
    assert eventually(lambda: is_computed(model))
    assert eventually(lambda: not read(model, edu.DMA_COMMAND) & edu.DMA_RUN)
    assert host.asked == [("read", 0x1000, 16)]


@pytest.mark.parametrize("size", [0, 1, -1])
def test_a_state_of_another_size_is_refused(model: Edu, size: int) -> None:
    with pytest.raises(struct.error):
        model.load_state(model.save_state()[:size], 1)


# Reset and the end


def test_a_reset_clears_the_registers(model: Edu, host: Services) -> None:
    write(model, edu.LIVENESS, 5)
    write(model, edu.STATUS, edu.STATUS_IRQ)
    write(model, edu.IRQ_RAISE, 3)
    write(model, edu.DMA_SOURCE, 7, 8)
    with model.lock:
        model.reset()
    registers = (edu.LIVENESS, edu.STATUS, edu.IRQ_STATUS, edu.DMA_SOURCE)
    assert ([read(model, register) for register in registers], host.levels[-1]) == (
        [0, 0, 0, 0],
        False,
    )


def test_a_reset_keeps_the_buffer(model: Edu, host: Services) -> None:
    host.memory[0x1000:0x1004] = b"kept"
    run_dma(model, 0x1000, BUFFER, 4, TO_DEVICE)
    with model.lock:
        model.reset()
    run_dma(model, BUFFER, 0x2000, 4, TO_HOST)
    assert host.memory[0x2000:0x2004] == b"kept"


def test_a_reset_stops_a_dma_that_has_not_begun(model: Edu, host: Services) -> None:
    with model.lock:
        start_dma(model, 0x1000, BUFFER, 16, TO_DEVICE | WITH_IRQ)
        model.reset()
    run_dma(model, BUFFER, 0x3000, 1, TO_HOST)
    assert (host.asked, read(model, edu.IRQ_STATUS)) == ([("write", 0x3000, 1)], 0)


def test_a_reset_in_the_middle_of_a_dma_leaves_no_interrupt(model: Edu, host: Services) -> None:
    was_reset = threading.Event()

    def reset() -> None:
        model.reset()
        was_reset.set()

    host.during_dma = reset
    start_dma(model, 0x1000, BUFFER, 16, TO_DEVICE | WITH_IRQ)
    assert was_reset.wait(5)
    host.during_dma = None
    run_dma(model, 0x1000, BUFFER, 16, TO_DEVICE)
    assert read(model, edu.IRQ_STATUS) == 0


def test_a_client_that_leaves_takes_its_dma_along(model: Edu, host: Services) -> None:
    """Before it has begun, so that the memory of the next client is not reached."""
    with model.lock:
        start_dma(model, 0x1000, BUFFER, 16, TO_DEVICE | WITH_IRQ)
        model.client_lost()
    run_dma(model, BUFFER, 0x3000, 1, TO_HOST)
    assert (host.asked, read(model, edu.IRQ_STATUS)) == ([("write", 0x3000, 1)], 0)


@pytest.mark.usefixtures("host")
def test_a_reset_in_the_middle_of_a_factorial_drops_its_result(
    model: Edu, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, factorial = threading.Event(), math.factorial

    def reset_meanwhile(number: int) -> int:
        with model.lock:
            model.reset()
        computed.set()
        return factorial(number)

    monkeypatch.setattr(math, "factorial", reset_meanwhile)
    write(model, edu.STATUS, edu.STATUS_IRQ)
    write(model, edu.FACTORIAL, 5)
    assert computed.wait(5)
    run_dma(model, 0x1000, BUFFER, 16, TO_DEVICE)
    assert (read(model, edu.FACTORIAL), read(model, edu.STATUS)) == (0, 0)


def test_a_model_can_be_closed_while_a_dma_runs() -> None:
    before = threading.active_count()
    busy = Edu()
    busy.attach(Services(busy))
    start_dma(busy, 0x1000, BUFFER, 16, TO_DEVICE)
    busy.close()
    assert threading.active_count() == before


def test_a_model_without_a_server_says_so(model: Edu) -> None:
    with pytest.raises(RuntimeError, match="not hosted"):
        write(model, edu.IRQ_RAISE, 1)


# Models by their names


@pytest.mark.parametrize(("name", "kind"), [("edu", Edu), ("testdev", TestDevice)])
def test_a_model_is_made_by_its_name(name: str, kind: type[Edu | TestDevice]) -> None:
    made = models.make(name)
    made.close()
    assert type(made) is kind


def test_a_model_of_ones_own_is_made_by_module_and_class() -> None:
    made = models.make("pyvfio.models.testdev:TestDevice")
    made.close()
    assert isinstance(made, TestDevice)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(BackendNotFound, match="known: edu, testdev, module:Class"):
        models.make("nvme")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module_here:Model", "No module named"),
        ("pyvfio.models.edu:NoSuchModel", "NoSuchModel"),
        ("pyvfio.models.edu:ID", "not a DeviceModel"),
        ("builtins:dict", "not a DeviceModel"),
    ],
)
def test_what_is_no_model_says_why(name: str, reason: str) -> None:
    with pytest.raises(BackendNotFound, match=reason):
        models.make(name)
