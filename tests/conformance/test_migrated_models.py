# SPDX-License-Identifier: BSD-3-Clause
"""The models that come with the package, moved from server to server by the client's own API."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest

import pyvfio
from pyvfio.irq import IRQ
from pyvfio.memory import SharedMemory
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DeviceState
from tests.conformance.devices import (
    MEMORY,
    MEMORY_SIZE,
    MIB,
    REGISTERS,
    TO_CLIENT,
    Dev,
    Edu,
    run_dma,
)
from tests.support import ServerProcess, eventually

PAGE = 4096
BUFFER = 0x40000
RUN, TO_HOST, IRQ_WHEN_DONE, DMA_DONE = 1, 2, 4, 0x100
"""The buffer of the edu device, bits of its DMA command, and of its interrupt status."""
ROUNDS = 20
CHUNK = 1 << 20
IOVA = 0x10_0000

Pair = tuple[PCIDevice, PCIDevice]


@pytest.fixture
def pair(request: pytest.FixtureRequest, serve: Callable[..., ServerProcess]) -> Iterator[Pair]:
    """Two devices of one model."""
    model: str = request.param
    with ExitStack() as stack:
        found = [stack.enter_context(pyvfio.open(serve(model).uri)) for _ in range(2)]
        yield found[0], found[1]


def move(source: PCIDevice, target: PCIDevice, precopy: bool = False) -> int:
    """Save one device and load the other, which runs then; returns the bytes that it took."""
    size = 0
    with source.migration.save(precopy) as saved, target.migration.load() as loaded:
        while precopy and (data := saved.read(CHUNK)):
            size += loaded.write(data)
        saved.stop()
        while data := saved.read(CHUNK):
            size += loaded.write(data)
    target.migration.run()
    source.reset()
    return size


def fired(irq: IRQ) -> int:
    """How often an interrupt has fired so far."""
    try:
        return irq.wait(timeout=0)
    except pyvfio.VFIOTimeout:
        return 0


def start(dev: PCIDevice, source: int, destination: int, command: int) -> None:
    """Have an edu device copy a page."""
    dev.bus_master = True
    bar = dev.bars[0]
    bar.write64(Edu.DMA_SOURCE, source)
    bar.write64(Edu.DMA_DESTINATION, destination)
    bar.write64(Edu.DMA_COUNT, PAGE)
    bar.write64(Edu.DMA_COMMAND, command)


def finish(dev: PCIDevice) -> None:
    """Wait for the end of it, and acknowledge its interrupt."""
    bar = dev.bars[0]
    assert eventually(lambda: not bar.read64(Edu.DMA_COMMAND) & RUN)
    assert bar.read32(Edu.IRQ_STATUS) == DMA_DONE
    bar.write32(Edu.IRQ_ACK, DMA_DONE)


@pytest.mark.parametrize("pair", ["edu"], indirect=True)
def test_an_edu_device_goes_back_and_forth_while_it_works(pair: Pair) -> None:
    """Each DMA interrupts once, on whichever side it is; what it copies is there."""
    source, target = pair
    with SharedMemory(2 * PAGE) as memory, ExitStack() as stack:
        for dev in pair:
            dev.dma.map(memory, iova=IOVA)
        irqs = [stack.enter_context(dev.msi.enable(1))[0] for dev in pair]
        for turn in range(ROUNDS):
            memory.array[:PAGE] = turn + 1
            start(source, IOVA, BUFFER, RUN | IRQ_WHEN_DONE)
            move(source, target)
            finish(target)
            assert sum(map(fired, irqs)) == 1
            start(target, BUFFER, IOVA + PAGE, RUN | TO_HOST | IRQ_WHEN_DONE)
            finish(target)
            assert sum(map(fired, irqs)) == 1
            assert (memory.array[PAGE:] == turn + 1).all()
            source, target = target, source


@pytest.mark.parametrize("pair", ["testdev"], indirect=True)
def test_a_test_device_goes_back_and_forth_with_its_memory(pair: Pair) -> None:
    """With pre-copy and without; each takes along what others have written before."""
    rng = np.random.default_rng(1)
    source, target = pair
    expected = np.zeros(MEMORY_SIZE, np.uint8)
    for turn in range(4):
        at = 2 * turn * MIB
        expected[at : at + MIB] = rng.integers(0, 256, MIB, np.uint8)
        source.bars[MEMORY].write_bytes(at, expected[at : at + MIB].tobytes())
        source.bars[REGISTERS].write64(Dev.SCRATCH, turn)
        moved = move(source, target, precopy=bool(turn % 2))
        assert moved > MIB
        assert target.bars[REGISTERS].read64(Dev.SCRATCH) == turn
        assert target.bars[MEMORY].read_bytes(0, MEMORY_SIZE) == expected.tobytes()
        source, target = target, source


@pytest.mark.parametrize("pair", ["testdev"], indirect=True)
def test_what_a_device_writes_while_it_is_saved_is_known(pair: Pair) -> None:
    source, target = pair
    with source.dma.alloc(16 * PAGE) as buffer:
        assert source.dma.dirty.start() is pyvfio.DirtyKind.DEVICE
        source.bus_master = True
        with source.migration.save(precopy=True) as saved:
            while saved.read(CHUNK):
                pass
            assert run_dma(source, TO_CLIENT, buffer.iova + 3 * PAGE, 0, 2 * PAGE) == 0
            saved.stop()
            found = source.dma.dirty.report(buffer.iova, buffer.size)
            assert found.page_numbers().tolist() == [3, 4]
            while saved.read(CHUNK):
                pass
        source.dma.dirty.stop()
    assert target.migration.state is DeviceState.RUNNING


@pytest.mark.parametrize("pair", ["edu"], indirect=True)
def test_a_device_that_is_stopped_refuses_its_registers(pair: Pair) -> None:
    source, _ = pair
    source.migration.stop()
    with pytest.raises(pyvfio.RegionError) as caught:
        source.bars[0].read32(Edu.ID)
    assert caught.value.errno == errno.EBUSY
    assert source.config.vendor_id == 0x1234
    source.migration.run()
    assert source.bars[0].read32(Edu.ID) == 0x010000ED
