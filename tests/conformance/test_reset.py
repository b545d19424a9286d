# SPDX-License-Identifier: BSD-3-Clause
"""Reset: the device forgets, what VFIO set up stays."""

from __future__ import annotations

import pytest

from pyvfio.errors import ResetError, UnsupportedError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.pci import Command
from tests.conformance.devices import (
    MEMORY,
    REGISTERS,
    SOON,
    TO_DEVICE,
    Dev,
    Edu,
    fire,
    is_quiet,
    run_dma,
    set_pin,
)


def test_the_test_device_can_be_reset(testdev: PCIDevice) -> None:
    assert testdev.resettable


def test_a_device_that_cannot_be_reset_says_so(edu: PCIDevice) -> None:
    refused = False
    try:
        edu.reset()
    except UnsupportedError:
        refused = True
    assert edu.resettable != refused


def test_a_device_that_is_on_no_bus_of_its_own_has_no_hot_reset(edu: PCIDevice) -> None:
    for question in (edu.hot_reset_functions, edu.hot_reset):
        with pytest.raises((UnsupportedError, ResetError)):
            question()


@pytest.mark.parametrize("register", [Dev.SCRATCH, Dev.ACCESSES, Dev.WIDTH, Dev.DMA_COUNT])
def test_registers_of_the_test_device_go_back_to_their_defaults(
    testdev: PCIDevice, register: Dev
) -> None:
    bar = testdev.bars[REGISTERS]
    bar.write32(Dev.SCRATCH, 5)
    bar.write32(Dev.DMA_COUNT, 5)
    testdev.reset()
    assert bar.read32(register) == 0


@pytest.mark.parametrize("enabled", [False, True])
def test_bus_mastering_stays_as_it_was(testdev: PCIDevice, enabled: bool) -> None:
    testdev.bus_master = enabled
    testdev.reset()
    assert testdev.bus_master == enabled


def test_the_command_register_stays_as_it_was(testdev: PCIDevice) -> None:
    testdev.config.command |= Command.INTX_DISABLE
    before = testdev.config.command
    testdev.reset()
    after = testdev.config.command
    testdev.config.command &= ~Command.INTX_DISABLE
    assert after == before


def test_dma_memory_stays_mapped(testdev: PCIDevice) -> None:
    testdev.bus_master = True
    with testdev.dma.alloc(4096) as buffer:
        buffer.array[:] = 0x6D
        testdev.reset()
        assert run_dma(testdev, TO_DEVICE, buffer.iova, 0, 4096) == 0
    assert testdev.bars[MEMORY].read8(4095) == 0x6D


def test_msi_stays_enabled(edu: PCIDevice) -> None:
    with edu.msi.enable() as irqs:
        if edu.resettable:
            edu.reset()
        edu.bars[0].write32(Edu.IRQ_RAISE, 1)
        assert irqs[0].wait(SOON) == 1


def test_msix_stays_enabled(testdev: PCIDevice) -> None:
    with testdev.msix.enable(32) as irqs:
        testdev.reset()
        fire(testdev, 17)
        assert irqs[17].wait(SOON) == 1


def test_intx_stays_enabled(testdev: PCIDevice) -> None:
    with testdev.intx.enable() as irqs:
        testdev.reset()
        set_pin(testdev, True)
        assert irqs[0].wait(SOON) == 1


def test_the_pin_is_lowered(testdev: PCIDevice) -> None:
    set_pin(testdev, True)
    testdev.reset()
    assert not testdev.intx.asserted


def test_nothing_fires_by_itself(testdev: PCIDevice) -> None:
    with testdev.msix.enable(1) as irqs:
        testdev.reset()
        assert is_quiet(irqs[0])


def test_a_device_can_be_reset_many_times(testdev: PCIDevice) -> None:
    bar = testdev.bars[REGISTERS]
    for value in range(1, 51):
        bar.write32(Dev.SCRATCH, value)
        testdev.reset()
    assert bar.read32(Dev.SCRATCH) == 0
