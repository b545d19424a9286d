# SPDX-License-Identifier: BSD-3-Clause
"""Waiting for an interrupt in a task of asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeVar

import pytest

from pyvfio.errors import DeviceClosed
from pyvfio.irq import IRQ, IRQSet
from pyvfio.pci.device import PCIDevice
from tests.conformance.devices import QUIET, SOON, fire

_Result = TypeVar("_Result")


def with_irq(dev: PCIDevice, use: Callable[[IRQSet], Coroutine[None, None, _Result]]) -> _Result:
    """Run a coroutine with one enabled vector; it has a few seconds."""

    async def limited(irqs: IRQSet) -> _Result:
        return await asyncio.wait_for(use(irqs), 2 * SOON)

    with dev.msix.enable(1) as irqs:
        return asyncio.run(limited(irqs))


async def waiter(irq: IRQ) -> int:
    """A task's body."""
    return await irq


async def start(irq: IRQ) -> asyncio.Task[int]:
    """A task that waits already."""
    task = asyncio.create_task(waiter(irq))
    await asyncio.sleep(0)
    return task


def test_what_has_fired_already_is_there_at_once(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> int:
        irqs.trigger(0)
        return await irqs[0]

    assert with_irq(testdev, use) == 1


def test_a_task_waits_until_it_fires(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> tuple[bool, int]:
        task = await start(irqs[0])
        await asyncio.sleep(QUIET)
        early = task.done()
        fire(testdev, 0)
        return early, await task

    assert with_irq(testdev, use) == (False, 1)


def test_signals_between_two_waits_are_counted(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> int:
        for _ in range(3):
            irqs.trigger(0)
        return await irqs[0]

    assert with_irq(testdev, use) == 3


def test_other_tasks_run_while_one_waits(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> int:
        task = await start(irqs[0])
        ticks = 0
        while not task.done():
            ticks += 1
            if ticks == 5:
                fire(testdev, 0)
            await asyncio.sleep(0.001)
        return ticks

    assert with_irq(testdev, use) >= 5


def test_an_irq_goes_into_wait_for(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> str:
        try:
            await asyncio.wait_for(irqs[0], QUIET)
        except TimeoutError:
            return "nothing fired"
        return "fired"

    assert with_irq(testdev, use) == "nothing fired"


def test_async_for_yields_each_time_it_fires(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> list[int]:
        seen: list[int] = []
        irqs.trigger(0)
        async for count in irqs[0]:
            seen.append(count)
            if len(seen) == 3:
                break
            for _ in range(len(seen) + 1):
                irqs.trigger(0)
        return seen

    assert with_irq(testdev, use) == [1, 2, 3]


def test_async_for_ends_when_the_set_is_closed(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> list[int]:
        asyncio.get_running_loop().call_later(QUIET, irqs.close)
        irqs.trigger(0)
        return [count async for count in irqs[0]]

    assert with_irq(testdev, use) == [1]


def test_one_signal_wakes_one_of_two_tasks(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> tuple[int, int]:
        tasks = [await start(irqs[0]), await start(irqs[0])]
        fire(testdev, 0)
        done, pending = await asyncio.wait(tasks, timeout=SOON, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(QUIET)
        counts = (len(done), len([task for task in pending if not task.done()]))
        fire(testdev, 0)
        await asyncio.gather(*tasks)
        return counts

    assert with_irq(testdev, use) == (1, 1)


def test_two_signals_in_turn_wake_both_tasks(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> list[int]:
        tasks = [await start(irqs[0]), await start(irqs[0])]
        fire(testdev, 0)
        await asyncio.wait(tasks, timeout=SOON, return_when=asyncio.FIRST_COMPLETED)
        fire(testdev, 0)
        return await asyncio.gather(*tasks)

    assert with_irq(testdev, use) == [1, 1]


def test_a_task_that_is_cancelled_stops(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> bool:
        task = await start(irqs[0])
        task.cancel()
        await asyncio.wait([task], timeout=SOON)
        return task.cancelled()

    assert with_irq(testdev, use)


def test_a_cancelled_task_takes_no_signal_with_it(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> int:
        task = await start(irqs[0])
        fire(testdev, 0)
        task.cancel()
        await asyncio.wait([task], timeout=SOON)
        return await irqs[0]

    assert with_irq(testdev, use) == 1


def test_cancelling_one_task_leaves_the_other_waiting(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> int:
        first, second = await start(irqs[0]), await start(irqs[0])
        first.cancel()
        await asyncio.wait([first], timeout=SOON)
        fire(testdev, 0)
        return await second

    assert with_irq(testdev, use) == 1


def test_nothing_is_left_in_the_loop(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> bool:
        finished, cancelled = await start(irqs[0]), await start(irqs[0])
        fire(testdev, 0)
        await asyncio.wait([finished, cancelled], return_when=asyncio.FIRST_COMPLETED)
        cancelled.cancel()
        await asyncio.wait([finished, cancelled], timeout=SOON)
        return asyncio.get_running_loop().remove_reader(irqs[0].fileno())

    assert not with_irq(testdev, use)


def test_close_wakes_a_task(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> BaseException | None:
        task = await start(irqs[0])
        irqs.close()
        await asyncio.wait([task], timeout=SOON)
        return task.exception()

    assert isinstance(with_irq(testdev, use), DeviceClosed)


def test_waiting_after_close_is_refused(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> None:
        irqs.close()
        with pytest.raises(DeviceClosed):
            await irqs[0]

    with_irq(testdev, use)


def test_a_thread_and_a_task_can_wait_in_turn(testdev: PCIDevice) -> None:
    async def use(irqs: IRQSet) -> tuple[int, int]:
        fire(testdev, 0)
        first = await asyncio.to_thread(irqs[0].wait, SOON)
        fire(testdev, 0)
        return first, await irqs[0]

    assert with_irq(testdev, use) == (1, 1)
