# SPDX-License-Identifier: BSD-3-Clause
"""INTx: a level that masks itself when it fires, and fires again while it is asserted."""

from __future__ import annotations

import pytest

from pyvfio.errors import IRQError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.pci import Command
from tests.conformance.devices import SOON, Edu, is_quiet, set_pin


def test_both_devices_use_inta(edu: PCIDevice, testdev: PCIDevice) -> None:
    assert (edu.intx.pin, testdev.intx.pin) == (1, 1)


def test_it_is_automasked(testdev: PCIDevice) -> None:
    assert testdev.intx.automasked


def test_the_set_says_so_too(testdev: PCIDevice) -> None:
    with testdev.intx.enable() as irqs:
        assert irqs.automasked


def test_it_fires_when_the_pin_is_asserted(testdev: PCIDevice) -> None:
    with testdev.intx.enable() as irqs:
        set_pin(testdev, True)
        assert irqs[0].wait(SOON) == 1


def test_it_fires_at_once_where_the_pin_is_asserted_already(testdev: PCIDevice) -> None:
    set_pin(testdev, True)
    with testdev.intx.enable() as irqs:
        assert irqs[0].wait(SOON) == 1


def test_it_fires_once_until_it_is_unmasked(testdev: PCIDevice) -> None:
    with testdev.intx.enable() as irqs:
        set_pin(testdev, True)
        irqs[0].wait(SOON)
        set_pin(testdev, False)
        set_pin(testdev, True)
        assert is_quiet(irqs[0])


def test_unmasking_fires_again_while_the_pin_is_asserted(testdev: PCIDevice) -> None:
    with testdev.intx.enable() as irqs:
        set_pin(testdev, True)
        irqs[0].wait(SOON)
        testdev.intx.unmask()
        assert irqs[0].wait(SOON) == 1


def test_unmasking_fires_nothing_where_the_pin_was_lowered(testdev: PCIDevice) -> None:
    with testdev.intx.enable() as irqs:
        set_pin(testdev, True)
        irqs[0].wait(SOON)
        set_pin(testdev, False)
        testdev.intx.unmask()
        assert is_quiet(irqs[0])


def test_it_fires_for_each_assertion_that_is_handled(testdev: PCIDevice) -> None:
    with testdev.intx.enable() as irqs:
        for _ in range(10):
            set_pin(testdev, True)
            irqs[0].wait(SOON)
            set_pin(testdev, False)
            irqs.unmask()
        assert irqs[0].total == 10


def test_a_masked_pin_is_quiet(testdev: PCIDevice) -> None:
    with testdev.intx.enable() as irqs:
        testdev.intx.mask()
        set_pin(testdev, True)
        assert is_quiet(irqs[0])


def test_a_masked_pin_fires_when_it_is_unmasked(testdev: PCIDevice) -> None:
    with testdev.intx.enable() as irqs:
        testdev.intx.mask()
        set_pin(testdev, True)
        testdev.intx.unmask()
        assert irqs[0].wait(SOON) == 1


def test_what_came_and_went_while_masked_is_forgotten(testdev: PCIDevice) -> None:
    with testdev.intx.enable() as irqs:
        irqs.mask()
        set_pin(testdev, True)
        set_pin(testdev, False)
        irqs.unmask()
        assert is_quiet(irqs[0])


def test_a_mask_does_not_outlive_its_set(testdev: PCIDevice) -> None:
    with testdev.intx.enable() as irqs:
        irqs.mask()
    with testdev.intx.enable() as irqs:
        set_pin(testdev, True)
        assert irqs[0].wait(SOON) == 1


@pytest.mark.parametrize("masked", [False, True])
def test_the_status_bit_follows_the_pin_masked_or_not(testdev: PCIDevice, masked: bool) -> None:
    seen = []
    with testdev.intx.enable() as irqs:
        if masked:
            irqs.mask()
        for level in (False, True, False):
            set_pin(testdev, level)
            seen.append(testdev.intx.asserted)
    assert seen == [False, True, False]


def test_the_status_bit_follows_the_pin_where_it_is_not_enabled(testdev: PCIDevice) -> None:
    set_pin(testdev, True)
    assert testdev.intx.asserted


def test_the_disable_bit_of_the_command_register_holds_it_back(testdev: PCIDevice) -> None:
    with testdev.intx.enable() as irqs:
        testdev.config.command |= Command.INTX_DISABLE
        set_pin(testdev, True)
        quiet = is_quiet(irqs[0])
        testdev.config.command &= ~Command.INTX_DISABLE
        assert (quiet, irqs[0].wait(SOON)) == (True, 1)


def test_trigger_signals_without_the_device(testdev: PCIDevice) -> None:
    with testdev.intx.enable() as irqs:
        irqs.trigger()
        assert (irqs[0].wait(SOON), testdev.intx.asserted) == (1, False)


def test_the_pin_stays_as_it_is_when_the_set_is_closed(testdev: PCIDevice) -> None:
    with testdev.intx.enable():
        set_pin(testdev, True)
    assert testdev.intx.asserted


def test_there_is_one_vector(testdev: PCIDevice) -> None:
    with pytest.raises(IRQError, match="the device has 1 vectors"):
        testdev.intx.enable(2)


def test_enabling_twice_is_refused(testdev: PCIDevice) -> None:
    with testdev.intx.enable(), pytest.raises(IRQError, match="INTX is enabled"):
        testdev.intx.enable()


def test_enabling_leaves_bus_mastering_alone(testdev: PCIDevice) -> None:
    testdev.bus_master = False
    with testdev.intx.enable():
        assert not testdev.bus_master


@pytest.mark.parametrize("action", ["mask", "unmask"])
def test_it_cannot_be_masked_where_it_is_not_enabled(testdev: PCIDevice, action: str) -> None:
    with pytest.raises(IRQError, match=f"^{action} irq 0"):
        getattr(testdev.intx, action)()


def test_edu_asserts_the_pin_until_every_bit_is_acknowledged(edu: PCIDevice) -> None:
    bar, seen = edu.bars[0], []
    bar.write32(Edu.IRQ_RAISE, 0b11)
    for bit in (0b01, 0b10):
        seen.append(edu.intx.asserted)
        bar.write32(Edu.IRQ_ACK, bit)
    seen.append(edu.intx.asserted)
    assert seen == [True, True, False]


def test_edu_fires(edu: PCIDevice) -> None:
    with edu.intx.enable() as irqs:
        edu.bars[0].write32(Edu.IRQ_RAISE, 1)
        assert irqs[0].wait(SOON) == 1
