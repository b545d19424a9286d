# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio irq``: enable interrupts and print each as it comes."""

from __future__ import annotations

import argparse
import json
import select
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyvfio
from pyvfio.cli.uris import add_uri
from pyvfio.errors import UnsupportedError, VFIOTimeout
from pyvfio.irq import IRQSet
from pyvfio.pci.device import PCIDevice
from pyvfio.pci.irqs import InterruptKind

KINDS = ("msix", "msi", "intx")
"""Best first: without --kind it is the first of these that the device has."""
LOOPBACK_SECONDS = 5.0
LONGEST_SECONDS = 1e6
"""What poll() can wait for, which counts milliseconds in 31 bits."""

_EPILOG = """exit status: 4 where fewer interrupts than --count came within --timeout; without
--count, where none came"""


@dataclass(frozen=True, slots=True)
class Event:
    """Signals of one vector.

    :ivar count: how many since the last event of the vector; more than 1 where they came faster
        than they were looked at.
    :ivar ms: milliseconds since the interrupts were enabled.
    """

    vector: int
    count: int
    ms: float


def add_parser(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "irq",
        help="wait for interrupts and print them",
        description="Enable interrupts and print each as it comes: its vector, how often it fired,"
        " and milliseconds since the start.  The pin (INTx) is unmasked again after each one; a"
        " device that keeps asserting it fires again at once.",
        epilog=_EPILOG,
    )
    add_uri(parser)
    parser.add_argument("--kind", choices=KINDS, help="default: the first of these it has")
    parser.add_argument(
        "--vectors", type=_positive, metavar="N", help="enable vectors 0 to N-1 (default 1)"
    )
    parser.add_argument(
        "--count", type=_positive, metavar="N", help="stop after N interrupts (default: never)"
    )
    parser.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="stop after this time (default: never)"
    )
    parser.add_argument(
        "--trigger",
        type=_vector,
        metavar="VECTOR",
        help="signal VECTOR through the loop-back of kernel or server, COUNT times, each after the"
        f" last came; then --count is 1 and --timeout {LOOPBACK_SECONDS:g} by default",
    )
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="json: an object a line"
    )
    parser.set_defaults(run=run)


def _vector(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= LONGEST_SECONDS:
        raise ValueError
    return seconds


def run(args: argparse.Namespace) -> int:
    """Print interrupts until enough came, the time is over, or the user has seen enough."""
    trigger, count, timeout = args.trigger, args.count, args.timeout
    vectors = args.vectors or 1 + (trigger or 0)
    if trigger is not None:
        if trigger >= vectors:
            raise ValueError(f"--trigger {trigger}: expected a vector below --vectors {vectors}")
        count = count or 1
        timeout = LOOPBACK_SECONDS if timeout is None else timeout
    came = 0
    with pyvfio.open(args.uri) as dev:
        kind = _kind(dev, args.kind)
        with kind.enable(vectors) as irqs:
            for event in _events(irqs, timeout, trigger):
                came += event.count
                print(_as_text(event, args.output), flush=True)
                if count is not None and came >= count:
                    return 0
    if came < (count or 1):
        raise VFIOTimeout(
            f"{came} of {count or 1} interrupts within {timeout:g} s",
            op=f"wait for {kind.index.name}",
            uri=args.uri,
        )
    return 0


def _kind(dev: PCIDevice, wanted: str | None) -> InterruptKind:
    kinds: dict[str, InterruptKind] = {"msix": dev.msix, "msi": dev.msi, "intx": dev.intx}
    if wanted is not None:
        return kinds[wanted]
    for name in KINDS:
        if kinds[name].count:
            return kinds[name]
    raise UnsupportedError("the device has no interrupts", op="enable", uri=dev.uri)


def _events(irqs: IRQSet, timeout: float | None, trigger: int | None) -> Iterator[Event]:
    """What fires, until the time is over; without a time, for ever."""
    started = time.monotonic()
    poller = select.poll()
    by_fd = {irq.fileno(): irq for irq in irqs}
    for fd in by_fd:
        poller.register(fd, select.POLLIN)
    while True:
        if trigger is not None:
            irqs.trigger(trigger)
        left = None if timeout is None else max(0.0, started + timeout - time.monotonic())
        for fd, _ in poller.poll(None if left is None else 1000 * left):
            irq = by_fd[fd]
            count = irq.wait(0)
            yield Event(irq.vector, count, 1000 * (time.monotonic() - started))
            if irqs.automasked:
                irqs.unmask(irq.vector)
        if timeout is not None and time.monotonic() >= started + timeout:
            return


def _as_text(event: Event, output: str) -> str:
    if output == "json":
        return json.dumps(asdict(event))
    return f"vector {event.vector:<4}  count {event.count:<4}  {event.ms:10.3f} ms"
