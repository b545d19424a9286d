# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio demo``: the edu driver step by step, against a model in another process."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyvfio
from pyvfio.cli.describe import as_text, describe
from pyvfio.cli.uris import add_uri
from pyvfio.drivers.edu import BUFFER_SIZE, TRANSFER, EduDriver
from pyvfio.errors import BackendUnavailable, ConnectionLost, VFIOError, VFIOTimeout
from pyvfio.irq import IRQ
from pyvfio.pci.device import PCIDevice

START_SECONDS = 30.0
QUIET_SECONDS = 0.1
"""How long a masked interrupt is given to show that it does not fire."""
MSI_COUNT = 100


class Seen(NamedTuple):
    """What a step saw, and whether that is right."""

    value: str
    ok: bool


def add_parser(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "demo",
        help="drive an edu device, step by step",
        description="Drive an edu device step by step and show what was seen. Without a URI, a"
        " model is served by another process for the time of the demo.",
    )
    add_uri(parser, optional=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; 1 where a step saw something else than it should."""
    if args.uri is not None:
        return _drive(args.uri)
    with _served("edu") as uri:
        return _drive(uri)


@contextlib.contextmanager
def _served(model: str) -> Iterator[str]:
    """A model in another process; yields its URI."""
    with tempfile.TemporaryDirectory(prefix="pyvfio-") as folder:
        path = os.path.join(folder, f"{model}.sock")
        command = [sys.executable, "-m", "pyvfio", "serve", model, "--socket", path]
        print(f"$ pyvfio serve {model} --socket {path} &")
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout is not None
                ready, _, _ = select.select([server.stdout], [], [], START_SECONDS)
                if not ready or not server.stdout.readline():
                    raise BackendUnavailable("the server did not start", op="serve", uri=model)
                yield f"vfio-user:{path}"
            finally:
                server.terminate()


def _drive(uri: str) -> int:
    print(f"pyvfio.open({uri!r})\n")
    with pyvfio.open(uri) as dev:
        print(as_text(describe(dev)))
        print("Driver")
        failed = [name for name, ok in _run_steps(dev) if not ok]
    if failed:
        print(f"\nFAILED: {', '.join(failed)}")
        return 1
    print("\nEverything is as it should be.")
    return 0


def _run_steps(dev: PCIDevice) -> Iterator[tuple[str, bool]]:
    driver = EduDriver(dev)
    for name, step in _STEPS:
        started = time.perf_counter()
        try:
            seen = step(driver)
        except ConnectionLost:
            raise
        except VFIOError as error:
            seen = Seen(str(error), False)
        spent = 1000 * (time.perf_counter() - started)
        verdict = "ok" if seen.ok else "FAILED"
        print(f"  {name:<26} {seen.value:<68} {verdict:<6} {spent:8.1f} ms", flush=True)
        yield name, seen.ok


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
        where = f"iova {source.iova:#x} -> device -> {destination.iova:#x}"
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
        seen.append(("still asserted, fires on unmask", _fires(irqs[0], driver.timeout)))
        driver.acknowledge(1)
        intx.unmask()
        seen.append(("lowered, quiet", not _fires(irqs[0], QUIET_SECONDS)))
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
        f"not so: {'; '.join(wrong)}" if wrong else "; ".join(w for w, _ in seen), not wrong
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
