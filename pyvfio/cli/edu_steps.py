# SPDX-License-Identifier: BSD-3-Clause
"""What the demo does with an edu device: one step after the other, each with what was seen."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pyvfio.drivers.edu import BUFFER_SIZE, TRANSFER, EduDriver
from pyvfio.errors import ConnectionLost, VFIOError, VFIOTimeout
from pyvfio.irq import IRQ
from pyvfio.pci.device import PCIDevice

QUIET_SECONDS = 0.1
"""How long a masked interrupt is given to show that it does not fire."""
MSI_COUNT = 100


class Step(NamedTuple):
    """A step that was done: what it saw, whether that is right, and how long it took."""

    name: str
    value: str
    ok: bool
    milliseconds: float

    @property
    def verdict(self) -> str:
        """``ok`` or ``FAILED``."""
        return "ok" if self.ok else "FAILED"


class Seen(NamedTuple):
    """What a step saw, and whether that is right."""

    value: str
    ok: bool


def run_steps(dev: PCIDevice) -> Iterator[Step]:
    """Drive the device; a step that fails is told, and the next one tried.

    :raises ConnectionLost: the device is gone.
    :raises UnsupportedError: it is no edu device.
    """
    driver = EduDriver(dev)
    for name, step in _STEPS:
        started = time.perf_counter()
        try:
            seen = step(driver)
        except ConnectionLost:
            raise
        except VFIOError as error:
            seen = Seen(str(error), False)
        yield Step(name, *seen, 1000 * (time.perf_counter() - started))


def _identification(driver: EduDriver) -> Seen:
    value = driver.identification
    return Seen(f"{value:#010x}, version {value >> 24}.{value >> 16 & 0xFF}", value & 0xFF == 0xED)


def _liveness(driver: EduDriver) -> Seen:
    value = secrets.randbits(32)
    answer = driver.liveness(value)
    return Seen(f"{value:#010x} -> {answer:#010x}", answer == value ^ 0xFFFF_FFFF)


def _factorial(driver: EduDriver) -> Seen:
    return _check_factorial(10, driver.factorial(10))


def _factorial_msi(driver: EduDriver) -> Seen:
    with driver.dev.msi.enable(1) as irqs:
        answer = driver.factorial(12, irqs)
        seen = _check_factorial(12, answer)
        return Seen(f"{seen.value}, {irqs[0].total} interrupt", seen.ok and irqs[0].total == 1)


def _check_factorial(number: int, answer: int) -> Seen:
    return Seen(f"{number}! = {answer}", answer == math.factorial(number) & 0xFFFF_FFFF)


def _dma(driver: EduDriver) -> Seen:
    data, came_back = secrets.token_bytes(BUFFER_SIZE), b""
    with driver.alloc() as source, driver.alloc() as destination:
        for start in range(0, BUFFER_SIZE, TRANSFER):
            source.array[:TRANSFER] = list(data[start : start + TRANSFER])
            driver.to_device(source)
            driver.from_device(destination)
            came_back += destination.array[:TRANSFER].tobytes()
        where = f"iova {source.iova:#x} to {destination.iova:#x}"
    different = sum(a != b for a, b in zip(data, came_back, strict=True))
    return Seen(f"{where}, {different} of {len(data)} differ", different == 0)


def _dma_msi(driver: EduDriver) -> Seen:
    with driver.dev.msi.enable(1) as irqs, driver.alloc() as buffer:
        driver.to_device(buffer, irqs=irqs)
        driver.from_device(buffer, irqs=irqs)
        return Seen(f"{irqs[0].total} interrupts for 2 transfers", irqs[0].total == 2)


def _msi(driver: EduDriver) -> Seen:
    with driver.dev.msi.enable(1) as irqs:
        for number in range(1, MSI_COUNT + 1):
            driver.raise_irq(number)
            irqs[0].wait(driver.timeout)
            driver.acknowledge(0xFFFF_FFFF)
        total = irqs[0].total
    return Seen(f"{MSI_COUNT} raised, {total} received", total == MSI_COUNT)


def _intx(driver: EduDriver) -> Seen:
    intx = driver.dev.intx
    with intx.enable() as irqs:
        seen = []
        driver.raise_irq(1)
        seen.append(("fires", _fires(irqs[0], driver.timeout)))
        seen.append(("masks itself", not _fires(irqs[0], QUIET_SECONDS)))
        intx.unmask()
        seen.append(("fires on unmask", _fires(irqs[0], driver.timeout)))
        driver.acknowledge(1)
        intx.unmask()
        seen.append(("then quiet", not _fires(irqs[0], QUIET_SECONDS)))
    return _verdict(seen)


def _intx_mask(driver: EduDriver) -> Seen:
    intx = driver.dev.intx
    with intx.enable() as irqs:
        seen = []
        intx.mask()
        driver.raise_irq(1)
        seen.append(("masked, quiet", not _fires(irqs[0], QUIET_SECONDS)))
        intx.unmask()
        seen.append(("unmasked, fires", _fires(irqs[0], driver.timeout)))
        driver.acknowledge(1)
    return _verdict(seen)


def _fires(irq: IRQ, timeout: float) -> bool:
    try:
        irq.wait(timeout)
    except VFIOTimeout:
        return False
    return True


def _verdict(seen: list[tuple[str, bool]]) -> Seen:
    wrong = [what for what, ok in seen if not ok]
    return Seen(
        f"not so: {'; '.join(wrong)}" if wrong else ", ".join(w for w, _ in seen), not wrong
    )


def _reset(driver: EduDriver) -> Seen:
    if not driver.dev.resettable:
        return Seen("the device has no reset", True)
    before = driver.liveness(0)
    driver.dev.reset()
    after = driver.dev.bars[0].read32(0x04)
    return Seen(
        f"liveness register {before:#010x} -> {after:#x}", (before, after) == (0xFFFF_FFFF, 0)
    )


_STEPS: tuple[tuple[str, Callable[[EduDriver], Seen]], ...] = (
    ("identification", _identification),
    ("liveness inverts", _liveness),
    ("factorial, polled", _factorial),
    ("factorial, MSI", _factorial_msi),
    ("DMA 4 KiB there and back", _dma),
    ("DMA, MSI", _dma_msi),
    ("MSI counted", _msi),
    ("INTx", _intx),
    ("INTx masked", _intx_mask),
    ("reset", _reset),
)

STEP_NAMES = tuple(name for name, _ in _STEPS)
"""All steps, in order."""
