# SPDX-License-Identifier: BSD-3-Clause
"""Requests that lead a model to where it does something: DMA, interrupts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from pyvfio.models import edu, testdev
from pyvfio.uapi.vfio import PCIRegion
from pyvfio.wire import messages as m
from pyvfio.wire.header import Command
from tests.fuzz.descriptors import Descriptors
from tests.fuzz.messages import encoded, frame
from tests.fuzz.values import PAGE

_BUS_MASTER = b"\x07\x04"
_READ_WRITE = 3

Sent = tuple[bytes, list[int]]


def scene(
    rng: random.Random, model: str, number: Callable[[], int], stock: Descriptors
) -> Iterator[Sent]:
    """Memory of the client is mapped, and the model made to use it.

    :param number: gives the next message its id.
    """
    address, count = PAGE * rng.randrange(64), rng.choice((0, 1, 8, 4096, 5000, 70_000))
    size = PAGE * (1 + count // PAGE)
    fds = [stock.file] if rng.random() < 0.4 else []
    map_ = m.DMAMap(_READ_WRITE, 0, address, size)
    yield frame(number(), Command.DMA_MAP, encoded(map_)), fds
    yield _write(number(), PCIRegion.CONFIG, 4, _BUS_MASTER)
    steps = _SCENES.get(model, _testdev)
    for offset, width, value in steps(rng, address, count):
        yield _write(number(), PCIRegion.BAR0, offset, value.to_bytes(width, "little"))


def _write(number: int, region: int, offset: int, data: bytes) -> Sent:
    write = m.RegionWrite(offset, region, data)
    return frame(number, Command.REGION_WRITE, encoded(write)), []


def _edu(rng: random.Random, address: int, count: int) -> Iterator[tuple[int, int, int]]:
    to_host = rng.randrange(2)
    ends = (edu.BUFFER, address) if to_host else (address, edu.BUFFER)
    yield edu.DMA_SOURCE, 8, ends[0]
    yield edu.DMA_DESTINATION, 8, ends[1]
    yield edu.DMA_COUNT, 8, count
    yield edu.DMA_COMMAND, 8, edu.DMA_RUN | rng.choice((0, edu.DMA_IRQ)) | 2 * to_host
    yield edu.FACTORIAL, 4, rng.choice((0, 1, 20, 0xFFFF, 0xFFFF_FFFF))


def _testdev(rng: random.Random, address: int, count: int) -> Iterator[tuple[int, int, int]]:
    yield testdev.DMA_ADDRESS, 8, address
    yield testdev.DMA_OFFSET, 8, PAGE * rng.randrange(8)
    yield testdev.DMA_COUNT, 4, count
    yield testdev.DMA_RUN, 4, rng.choice((1, 2))
    yield testdev.FIRE, 4, rng.randrange(40)
    yield testdev.PIN, 4, rng.randrange(2)


_SCENES = {"edu": _edu, "testdev": _testdev}
