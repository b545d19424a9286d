# SPDX-License-Identifier: BSD-3-Clause
"""The test device without a server: what becomes of a DMA whose client has gone meanwhile."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from pyvfio.memory import ByteArray
from pyvfio.models import testdev
from pyvfio.models.testdev import DMA_COUNT, DMA_RUN, REGISTERS, TO_DEVICE, TestDevice
from tests.support import eventually
from tests.unit.test_edu_model import Services, Slow, stops_behind_its_dma

COUNT = 16


class Host(Services):
    """What the model is hosted by, with the first bytes of its memory."""

    def __init__(self, model: TestDevice) -> None:
        super().__init__(model)
        self.bar = np.zeros(COUNT, np.uint8)

    def bar_memory(self, bar: int) -> ByteArray:
        return self.bar


@pytest.fixture
def model() -> Iterator[TestDevice]:
    """The model."""
    made = TestDevice()
    yield made
    made.close()


@pytest.fixture
def host(model: TestDevice) -> Host:
    """What it is hosted by; the client's memory is all ones."""
    services = Host(model)
    services.memory[:COUNT] = b"\xff" * COUNT
    model.attach(services)
    return services


def start(model: TestDevice) -> None:
    """Have the device read memory."""
    with model.lock:
        model.bar_write(REGISTERS, DMA_COUNT, 4, COUNT)
        model.bar_write(REGISTERS, DMA_RUN, 4, TO_DEVICE)


def result(model: TestDevice) -> int:
    """The register that starts DMA."""
    with model.lock:
        return model.bar_read(REGISTERS, DMA_RUN, 4)


def finish(model: TestDevice) -> int:
    """Wait for the end; returns the errno."""
    assert eventually(lambda: result(model) != errno.EINPROGRESS)
    return result(model)


def test_the_client_is_asked_without_the_lock(model: TestDevice, host: Host) -> None:
    start(model)
    assert finish(model) == 0
    assert (host.lock_was_free, set(host.bar.tolist())) == ([True], {0xFF})


def test_what_comes_for_a_client_that_has_gone_is_dropped(
    model: TestDevice, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testdev, "_PATIENCE", 0.01)
    host.during_dma = model.client_lost
    start(model)
    assert finish(model) == errno.ENOTCONN
    model.close()  # when it has ended
    assert result(model) == errno.ENOTCONN
    assert not host.bar.any()


def test_a_dma_that_was_not_begun_goes_with_its_client(model: TestDevice, host: Host) -> None:
    with model.lock:
        start(model)
        model.client_lost()
    assert result(model) == errno.ENOTCONN
    assert host.asked == []


def test_a_dma_that_lacks_memory_is_an_error(model: TestDevice, host: Host) -> None:
    def fail() -> None:
        raise MemoryError

    host.during_dma = fail
    start(model)
    assert finish(model) == errno.ENOMEM


class SlowHost(Slow, Host):
    """Takes its time over DMA."""


def test_a_dma_under_way_ends_before_the_device_is_stopped(model: TestDevice) -> None:
    host = SlowHost(model)
    model.attach(host)
    start(model)
    assert stops_behind_its_dma(model, host)
    assert result(model) == 0


def test_a_stopped_device_begins_nothing_until_it_runs(model: TestDevice, host: Host) -> None:
    with model.lock:
        model.stopped()
        start(model)
        saved = model.save_state()
    assert (result(model), host.asked) == (errno.EINPROGRESS, [])
    with model.lock:
        model.load_state(saved, 1)
        model.started()
    assert finish(model) == 0
    assert len(host.asked) == 1


def test_it_can_be_closed_while_a_dma_runs() -> None:
    before = threading.active_count()
    busy = TestDevice()
    busy.attach(Host(busy))
    start(busy)
    busy.close()
    assert threading.active_count() == before
