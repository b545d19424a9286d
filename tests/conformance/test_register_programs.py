# SPDX-License-Identifier: BSD-3-Clause
"""Register programs, polling and blocks of one width, as the device sees them.

The scratch register of the test device counts its accesses and keeps the width of the last.
"""

from __future__ import annotations

import errno
import os

import pytest

from pyvfio import program
from pyvfio.errors import DeviceClosed, RegionError, VFIOTimeout
from pyvfio.pci.bars import BAR
from pyvfio.pci.device import PCIDevice
from pyvfio.program import Step
from tests.conformance.devices import MEMORY, MIB, REGISTERS, TO_CLIENT, Dev, Edu

WIDTHS = (1, 2, 4, 8)
SOON = 2.0


def run(bar: BAR, *steps: Step) -> list[int]:
    """Run a program; returns its results."""
    array = program.program(*steps)
    bar.run(array)
    results: list[int] = array["result"].tolist()
    return results


def test_edu_computes_in_one_program(edu: PCIDevice) -> None:
    results = run(
        edu.bars[0],
        program.write(Edu.LIVENESS, 0x12345678),
        program.read(Edu.LIVENESS),
        program.write(Edu.FACTORIAL, 10),
        program.poll(Edu.STATUS, 0, mask=1, timeout=SOON),
        program.read(Edu.FACTORIAL),
    )
    assert (results[1], results[4]) == (0xEDCBA987, 3628800)


def test_edu_is_polled_until_it_has_computed(edu: PCIDevice) -> None:
    bar = edu.bars[0]
    bar.write32(Edu.FACTORIAL, 12)
    assert bar.poll(Edu.STATUS, 4, 0, mask=1, timeout=SOON) & 1 == 0
    assert bar.read32(Edu.FACTORIAL) == 479001600


def test_edu_takes_an_address_in_halves(edu: PCIDevice) -> None:
    bar = edu.bars[0]
    bar.write64_lo_hi(Edu.DMA_SOURCE, 0x1_2345_6000)
    assert bar.read64_lo_hi(Edu.DMA_SOURCE) & 0xFFFFFFFF == 0x2345_6000


@pytest.mark.parametrize("width", WIDTHS)
def test_a_step_is_one_access_of_its_width(testdev: PCIDevice, width: int) -> None:
    results = run(
        testdev.bars[REGISTERS],
        program.write(Dev.SCRATCH, 0x5A, width),
        program.read(Dev.ACCESSES),
        program.read(Dev.SCRATCH, width),
        program.read(Dev.ACCESSES),
        program.read(Dev.WIDTH),
    )
    assert results == [0, 1, 0x5A, 2, width]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_modification_is_two_accesses(testdev: PCIDevice, width: int) -> None:
    bar = testdev.bars[REGISTERS]
    found = run(bar, program.modify(Dev.SCRATCH, 0x0F, 0x3C, width), program.read(Dev.ACCESSES))
    assert (found, bar.read64(Dev.SCRATCH)) == ([0, 2], 0x0C)


@pytest.mark.parametrize("number", [REGISTERS, MEMORY])
def test_halves_are_two_accesses_of_32_bits(testdev: PCIDevice, number: int) -> None:
    bar, value = testdev.bars[number], 0x8877665544332211
    bar.write64_hi_lo(Dev.SCRATCH, value)
    halves = program.read64_lo_hi(Dev.SCRATCH), program.read64_hi_lo(Dev.SCRATCH)
    assert run(bar, *halves) == [value, value]
    assert bar.read64_lo_hi(Dev.SCRATCH) == bar.read64_hi_lo(Dev.SCRATCH) == value
    if number == REGISTERS:
        assert (bar.read32(Dev.ACCESSES), bar.read32(Dev.WIDTH)) == (10, 4)


def test_a_poll_looks_until_the_device_is_done(testdev: PCIDevice) -> None:
    bar, buffer = testdev.bars[REGISTERS], testdev.dma.alloc(4096)
    testdev.bus_master = True
    results = run(
        bar,
        program.write(Dev.DMA_ADDRESS, buffer.iova, 8),
        program.write(Dev.DMA_OFFSET, 2 * MIB, 8),
        program.write(Dev.DMA_COUNT, 4096),
        program.write(Dev.DMA_RUN, TO_CLIENT),
        program.poll(Dev.DMA_RUN, 0, timeout=SOON),
    )
    assert results[4] == 0
    buffer.close()


def test_a_poll_of_a_register_has_a_time_out(testdev: PCIDevice) -> None:
    with pytest.raises(VFIOTimeout, match=r"poll bar0\+0x0 on .*: 0x54534554 after 0.01 s"):
        testdev.bars[REGISTERS].poll(Dev.ID, 4, 0, timeout=0.01)


def test_steps_go_both_ways_in_one_program(testdev: PCIDevice) -> None:
    bar = testdev.bars[MEMORY]
    mapped, trapped = bar.mappable[0].size - 4, bar.mappable[0].size
    steps = [program.write(at, at) for at in (mapped, trapped, mapped - 4, trapped + 4)]
    reads = [program.read(at) for at in (mapped - 4, mapped, trapped, trapped + 4)]
    assert run(bar, *steps, *reads)[4:] == [mapped - 4, mapped, trapped, trapped + 4]


def test_the_device_sees_nothing_of_a_program_that_makes_no_sense(testdev: PCIDevice) -> None:
    bar = testdev.bars[REGISTERS]
    with pytest.raises(RegionError, match=r"step 1: read bar0\+0x11 ") as caught:
        run(bar, program.write(Dev.SCRATCH, 1), program.read(Dev.SCRATCH + 1))
    assert (caught.value.errno, caught.value.step) == (errno.EINVAL, 1)
    assert bar.read32(Dev.ACCESSES) == 0


@pytest.mark.parametrize("number", [REGISTERS, MEMORY])
def test_nothing_runs_on_a_closed_device(testdev: PCIDevice, number: int) -> None:
    bar = testdev.bars[number]
    bar.read8(0)
    testdev.close()
    for refused in (
        lambda: run(bar, program.read(0)),
        lambda: bar.poll(0, 4, 0),
        lambda: bar.read64_lo_hi(0),
        lambda: bar.write64_hi_lo(0, 0),
    ):
        with pytest.raises(DeviceClosed):
            refused()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_block_is_accesses_of_its_width(testdev: PCIDevice, width: int) -> None:
    bar, data = testdev.bars[REGISTERS], os.urandom(8)
    bar.write_bytes(Dev.SCRATCH, data, width=width)
    assert bar.read_bytes(Dev.SCRATCH, 8, width=width) == data
    assert (bar.read32(Dev.ACCESSES), bar.read32(Dev.WIDTH)) == (2 * 8 // width, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_block_of_memory_is_the_same_both_ways(testdev: PCIDevice, width: int) -> None:
    bar, data = testdev.bars[MEMORY], os.urandom(64)
    for at in (0, bar.mappable[0].size - 32, bar.mappable[0].size):
        bar.write_bytes(at, data, width=width)
        assert bar.read_bytes(at, 64, width=width) == bar.read_bytes(at, 64) == data
