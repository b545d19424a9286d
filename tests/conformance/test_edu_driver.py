# SPDX-License-Identifier: BSD-3-Clause
"""A driver of a real device: everything that ``EduDriver`` offers, polled and with interrupts."""

from __future__ import annotations

import math

import pytest

from pyvfio.drivers.edu import DMA_IRQ, FACTORIAL_IRQ, EduDriver
from pyvfio.errors import UnsupportedError, VFIOTimeout
from pyvfio.pci.device import PCIDevice
from tests.conformance.devices import SOON, Edu, is_quiet

NUMBERS = pytest.mark.parametrize("number", [*range(13), 13, 20, 33, 34, 35, 100, 0xFFFF_FFFF])


@pytest.fixture
def driver(edu: PCIDevice) -> EduDriver:
    """The driver on a device that was reset; QEMU's multiplies 2^32 times for a factorial."""
    return EduDriver(edu, timeout=60)


def low_word_of_factorial(number: int) -> int:
    """n! modulo 2^32; from 34 on it is a multiple of 2^32."""
    return math.factorial(min(number, 34)) % (1 << 32)


def test_another_device_is_refused(testdev: PCIDevice) -> None:
    with pytest.raises(UnsupportedError, match="1b36:0005 is no edu device"):
        EduDriver(testdev)


def test_identification(driver: EduDriver) -> None:
    assert driver.identification == 0x010000ED


def test_liveness_inverts(driver: EduDriver) -> None:
    assert driver.liveness(0x0F0F_1234) == 0xF0F0_EDCB


@NUMBERS
def test_a_factorial_is_polled_for(driver: EduDriver, number: int) -> None:
    assert driver.factorial(number) == low_word_of_factorial(number)


@NUMBERS
def test_a_factorial_is_waited_for(edu: PCIDevice, driver: EduDriver, number: int) -> None:
    with edu.msi.enable() as irqs:
        assert driver.factorial(number, irqs) == low_word_of_factorial(number)


def test_a_factorial_is_waited_for_on_the_pin(edu: PCIDevice, driver: EduDriver) -> None:
    with edu.intx.enable() as irqs:
        found = driver.factorial(6, irqs)
        assert (found, irqs[0].total, edu.intx.asserted) == (720, 1, False)


def test_a_polled_factorial_fires_nothing(edu: PCIDevice, driver: EduDriver) -> None:
    with edu.msi.enable() as irqs:
        driver.factorial(3, irqs)
        driver.factorial(4)
        assert is_quiet(irqs[0])


def test_an_interrupt_is_acknowledged(edu: PCIDevice, driver: EduDriver) -> None:
    with edu.msi.enable() as irqs:
        driver.factorial(3, irqs)
        assert driver.irq_status == 0


def test_the_status_tells_one_interrupt_from_the_other(driver: EduDriver) -> None:
    driver.raise_irq(DMA_IRQ | FACTORIAL_IRQ)
    driver.acknowledge(FACTORIAL_IRQ)
    assert driver.irq_status == DMA_IRQ


def test_the_buffer_is_where_the_device_reaches_it(driver: EduDriver) -> None:
    with driver.alloc() as buffer:
        assert (buffer.size, buffer.iova >> 28) == (4096, 0)


def test_a_dma_turns_bus_mastering_on(edu: PCIDevice, driver: EduDriver) -> None:
    edu.bus_master = False
    with driver.alloc() as buffer:
        driver.to_device(buffer)
    assert edu.bus_master


def test_a_dma_is_waited_for_on_the_pin(edu: PCIDevice, driver: EduDriver) -> None:
    with edu.intx.enable() as irqs, driver.alloc() as buffer:
        driver.to_device(buffer, 2048, irqs)
        assert (irqs[0].total, driver.irq_status) == (1, 0)


def test_an_interrupt_that_does_not_come_times_out(edu: PCIDevice) -> None:
    hasty = EduDriver(edu, timeout=0.02)
    with edu.msi.enable() as irqs:
        edu.bus_master = False
        with pytest.raises(VFIOTimeout, match=r"within 0\.02 s"):
            hasty.factorial(3, irqs)


def test_the_device_stays_the_callers(edu: PCIDevice, driver: EduDriver) -> None:
    del driver
    assert edu.bars[0].read32(Edu.ID) == 0x010000ED


def test_several_interrupts_in_turn(edu: PCIDevice, driver: EduDriver) -> None:
    with edu.msi.enable() as irqs:
        for bit in range(8):
            driver.raise_irq(1 << bit)
            irqs[0].wait(SOON)
        assert (driver.irq_status, irqs[0].total) == (0xFF, 8)
