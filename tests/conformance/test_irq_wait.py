# SPDX-License-Identifier: BSD-3-Clause
"""Waiting for an interrupt in a thread: time-outs, counts, descriptors, and being woken."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pyvfio.errors import DeviceClosed, VFIOTimeout
from pyvfio.irq import IRQSet
from pyvfio.pci.device import PCIDevice
from tests.conformance.devices import QUIET, SOON, fire
from tests.support import eventually


@pytest.fixture
def irqs(testdev: PCIDevice) -> Iterator[IRQSet]:
    """Two vectors of the test device."""
    with testdev.msix.enable(2) as enabled:
        yield enabled


@pytest.fixture
def in_thread() -> Iterator[Callable[[Callable[[], int]], Future[int]]]:
    """Run a function in a thread; returns when the thread is about to call it."""
    with ThreadPoolExecutor() as pool:

        def start(function: Callable[[], int]) -> Future[int]:
            running = threading.Event()

            def run() -> int:
                running.set()
                return function()

            future = pool.submit(run)
            assert running.wait(SOON)
            time.sleep(QUIET)
            return future

        yield start


def test_zero_seconds_only_look(irqs: IRQSet) -> None:
    started = time.monotonic()
    with pytest.raises(VFIOTimeout):
        irqs[0].wait(timeout=0)
    assert time.monotonic() - started < SOON / 2


def test_zero_seconds_find_what_has_fired(irqs: IRQSet) -> None:
    irqs.trigger(0)
    assert irqs[0].wait(timeout=0) == 1


def test_a_time_out_says_what_was_waited_for(testdev: PCIDevice, irqs: IRQSet) -> None:
    with pytest.raises(VFIOTimeout) as caught:
        irqs[1].wait(timeout=0.01)
    assert str(caught.value) == (
        f"wait for MSIX vector 1 on {testdev.uri}: no interrupt within 0.01 s"
    )


def test_a_time_out_is_a_built_in_one(irqs: IRQSet) -> None:
    with pytest.raises(TimeoutError):
        irqs[0].wait(timeout=0)


def test_a_time_out_takes_its_time(irqs: IRQSet) -> None:
    started = time.monotonic()
    with pytest.raises(VFIOTimeout):
        irqs[0].wait(timeout=0.05)
    assert time.monotonic() - started >= 0.05


def test_an_interrupt_comes_after_a_time_out(testdev: PCIDevice, irqs: IRQSet) -> None:
    with pytest.raises(VFIOTimeout):
        irqs[0].wait(timeout=0)
    fire(testdev, 0)
    assert irqs[0].wait(SOON) == 1


def test_none_waits_until_it_fires(
    testdev: PCIDevice, irqs: IRQSet, in_thread: Callable[[Callable[[], int]], Future[int]]
) -> None:
    waiting = in_thread(lambda: irqs[0].wait(None))
    fire(testdev, 0)
    assert waiting.result(SOON) == 1


def test_signals_between_two_waits_are_counted(irqs: IRQSet) -> None:
    for _ in range(3):
        irqs.trigger(0)
    assert irqs[0].wait(SOON) == 3


def test_what_was_waited_for_is_gone(irqs: IRQSet) -> None:
    irqs.trigger(0)
    irqs[0].wait(SOON)
    with pytest.raises(VFIOTimeout):
        irqs[0].wait(timeout=0)


def test_the_total_adds_up(irqs: IRQSet) -> None:
    for count in (1, 2):
        for _ in range(count):
            irqs.trigger(0)
        irqs[0].wait(SOON)
    assert irqs[0].total == 3


def test_two_threads_share_the_signals_of_a_vector(
    irqs: IRQSet, in_thread: Callable[[Callable[[], int]], Future[int]]
) -> None:
    waiting = [in_thread(lambda: irqs[0].wait(SOON)) for _ in range(2)]
    irqs.trigger(0)
    assert eventually(lambda: any(future.done() for future in waiting))
    irqs.trigger(0)
    assert [future.result(SOON) for future in waiting] == [1, 1]


# Descriptors


def test_the_descriptor_becomes_readable(testdev: PCIDevice, irqs: IRQSet) -> None:
    fire(testdev, 1)
    readable, _, _ = select.select(irqs.filenos(), [], [], SOON)
    assert readable == [irqs[1].fileno()]


def test_an_irq_can_be_selected_itself(testdev: PCIDevice, irqs: IRQSet) -> None:
    fire(testdev, 0)
    readable, _, _ = select.select([irqs[0], irqs[1]], [], [], SOON)
    assert readable == [irqs[0]]


def test_the_descriptor_is_readable_until_it_is_waited_for(irqs: IRQSet) -> None:
    irqs.trigger(0)
    irqs[0].wait(SOON)
    readable, _, _ = select.select([irqs[0]], [], [], 0)
    assert readable == []


def test_descriptors_are_not_inherited(irqs: IRQSet) -> None:
    assert [os.get_inheritable(fd) for fd in irqs.filenos()] == [False, False]


# Being woken


def test_close_wakes_who_waits(
    irqs: IRQSet, in_thread: Callable[[Callable[[], int]], Future[int]]
) -> None:
    waiting = in_thread(lambda: irqs[0].wait(None))
    irqs.close()
    with pytest.raises(DeviceClosed):
        waiting.result(SOON)


def test_close_of_the_device_wakes_who_waits(
    testdev: PCIDevice, irqs: IRQSet, in_thread: Callable[[Callable[[], int]], Future[int]]
) -> None:
    waiting = in_thread(lambda: irqs[1].wait(None))
    testdev.close()
    with pytest.raises(DeviceClosed):
        waiting.result(SOON)


def test_close_wakes_everybody_who_waits(
    irqs: IRQSet, in_thread: Callable[[Callable[[], int]], Future[int]]
) -> None:
    waiting = [in_thread(lambda: irqs[0].wait(None)) for _ in range(3)]
    irqs.close()
    assert [type(future.exception(SOON)) for future in waiting] == [DeviceClosed] * 3


def test_waiting_after_close_is_refused(irqs: IRQSet) -> None:
    irqs.close()
    with pytest.raises(DeviceClosed, match="wait for MSIX vector 0"):
        irqs[0].wait(timeout=0)


def test_what_fired_before_close_is_not_delivered(irqs: IRQSet) -> None:
    irqs.trigger(0)
    irqs.close()
    with pytest.raises(DeviceClosed):
        irqs[0].wait(timeout=0)


def test_there_is_no_descriptor_after_close(irqs: IRQSet) -> None:
    irqs.close()
    with pytest.raises(DeviceClosed):
        irqs.filenos()


def test_a_set_can_be_closed_twice(irqs: IRQSet) -> None:
    irqs.close()
    irqs.close()
    assert irqs.closed


@pytest.mark.parametrize("action", ["mask", "unmask", "trigger"])
def test_a_closed_set_does_nothing_to_the_device(irqs: IRQSet, action: str) -> None:
    irqs.close()
    with pytest.raises(DeviceClosed):
        getattr(irqs, action)(0)


# The set


def test_a_set_is_a_sequence_of_vectors(irqs: IRQSet) -> None:
    assert (len(irqs), [irq.vector for irq in irqs], irqs[1].vector) == (2, [0, 1], 1)


def test_a_part_of_a_set_is_a_list(irqs: IRQSet) -> None:
    assert irqs[1:] == [irqs[1]]


@pytest.mark.parametrize("vector", [-1, 2])
def test_a_vector_that_is_not_enabled_cannot_be_triggered(irqs: IRQSet, vector: int) -> None:
    with pytest.raises(IndexError, match=f"vector {vector} of 2"):
        irqs.trigger(vector)
