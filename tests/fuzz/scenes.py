# SPDX-License-Identifier: BSD-3-Clause
"""Requests that lead a model to where it does something: DMA, interrupts, migration."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator

from pyvfio.models import edu, testdev
from pyvfio.uapi import vfio
from pyvfio.uapi.vfio import DeviceState, Feature, FeatureFlags, PCIRegion
from pyvfio.wire import messages as m
from pyvfio.wire.header import Command
from tests.fuzz.descriptors import Descriptors
from tests.fuzz.messages import encoded, frame
from tests.fuzz.values import PAGE, edge

_BUS_MASTER = b"\x07\x04"
_READ_WRITE = 3

Sent = tuple[bytes, list[int]]


def scene(
    rng: random.Random, model: str, number: Callable[[], int], stock: Descriptors
) -> Iterator[Sent]:
    """Memory of the client is mapped, and the model made to use it; mostly, it moves as well.

    :param number: gives the next message its id.
    """
    if rng.random() < 0.5:  # it may be stopped
        yield frame(number(), Command.DEVICE_RESET, b""), []
    yield from _dma(rng, model, number, stock)
    for _ in range(rng.randrange(8)):
        command, message = rng.choice(_MOVES)(rng)
        yield frame(number(), command, encoded(message)), []


def _dma(
    rng: random.Random, model: str, number: Callable[[], int], stock: Descriptors
) -> Iterator[Sent]:
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


# Migration

Move = Callable[[random.Random], tuple[Command, m.Message]]


def _feature(flags: int, data: bytes, rng: random.Random) -> tuple[Command, m.Message]:
    argsz = rng.choice((8, 16, 24, 32, 40, 4096, 1 << 20, 1 << 20, (1 << 32) - 1))
    return Command.DEVICE_FEATURE, m.DeviceFeature(argsz, flags, data)


def _state(rng: random.Random) -> tuple[Command, m.Message]:
    wanted = rng.choice((*DeviceState, *DeviceState, edge(rng, 0xFFFF_FFFF)))
    return _feature(_SET | Feature.MIG_DEVICE_STATE, vfio.FEATURE_STATE.pack(wanted, 0), rng)


def _get(rng: random.Random) -> tuple[Command, m.Message]:
    return _feature(FeatureFlags.GET | rng.choice(tuple(Feature)), b"", rng)


def _read(rng: random.Random) -> tuple[Command, m.Message]:
    return Command.MIG_DATA_READ, m.MigDataRead(
        rng.choice((0, 1, 40, 4096, 1 << 20, edge(rng, 1 << 31)))
    )


def _write_data(rng: random.Random) -> tuple[Command, m.Message]:
    start = struct.pack("<II8sII", 1, 32, b"pyvfiodm", 1, 1)
    return Command.MIG_DATA_WRITE, m.MigDataWrite(rng.choice((b"", start, rng.randbytes(60))))


def _start_log(rng: random.Random) -> tuple[Command, m.Message]:
    ranges = [
        (PAGE * rng.randrange(64), rng.choice((PAGE, edge(rng)))) for _ in range(rng.randrange(3))
    ]
    count = rng.choice((len(ranges), len(ranges), edge(rng, 0xFFFF_FFFF)))
    data = vfio.LOGGING_CONTROL.pack(rng.choice((PAGE, edge(rng))), count, 0)
    data += b"".join(vfio.LOGGING_RANGE.pack(*entry) for entry in ranges)
    return _feature(_SET | Feature.DMA_LOGGING_START, data, rng)


def _stop_log(rng: random.Random) -> tuple[Command, m.Message]:
    return _feature(_SET | Feature.DMA_LOGGING_STOP, b"", rng)


def _report_log(rng: random.Random) -> tuple[Command, m.Message]:
    iova = rng.choice((0, PAGE * rng.randrange(64), edge(rng)))
    length, size = rng.choice((64 * PAGE, 1 << 35, edge(rng))), rng.choice((PAGE, PAGE, edge(rng)))
    data = vfio.LOGGING_REPORT.pack(iova, length, size)
    return _feature(FeatureFlags.GET | Feature.DMA_LOGGING_REPORT, data, rng)


_SET = FeatureFlags.SET
_MOVES: tuple[Move, ...] = (
    *(_state, _state, _state, _get, _read, _read, _write_data),
    *(_start_log, _stop_log, _report_log, _report_log),
)
