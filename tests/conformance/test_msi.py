# SPDX-License-Identifier: BSD-3-Clause
"""MSI, on the edu device, which has one vector."""

from __future__ import annotations

import errno

import pytest

import pyvfio
from pyvfio.errors import IRQError, UnsupportedError
from pyvfio.pci.device import PCIDevice
from tests.conformance.devices import SOON, Edu, is_quiet


def test_it_fires(edu: PCIDevice) -> None:
    with edu.msi.enable() as irqs:
        edu.bars[0].write32(Edu.IRQ_RAISE, 1)
        assert irqs[0].wait(SOON) == 1


def test_each_message_counts(edu: PCIDevice) -> None:
    with edu.msi.enable() as irqs:
        for _ in range(20):
            edu.bars[0].write32(Edu.IRQ_RAISE, 1)
            irqs[0].wait(SOON)
        assert irqs[0].total == 20


def test_the_capability_is_described(edu: PCIDevice) -> None:
    assert (edu.msi.count, edu.msi.is_64bit) == (1, True)


def test_one_set_holds_one_vector(edu: PCIDevice) -> None:
    with edu.msi.enable(1) as irqs:
        assert [irq.vector for irq in irqs] == [0]


def test_more_vectors_than_the_device_has_are_refused(edu: PCIDevice) -> None:
    with pytest.raises(IRQError, match="the device has 1 vectors"):
        edu.msi.enable(2)


def test_a_device_without_msi_cannot_enable_it(testdev: PCIDevice) -> None:
    with pytest.raises(UnsupportedError, match="no MSI"):
        testdev.msi.enable()


def test_a_device_without_msi_is_described(testdev: PCIDevice) -> None:
    assert (testdev.msi.count, testdev.msi.is_64bit) == (0, False)


def test_enabling_twice_is_refused(edu: PCIDevice) -> None:
    with edu.msi.enable(), pytest.raises(IRQError, match="close its IRQSet first") as caught:
        edu.msi.enable()
    assert caught.value.errno == errno.EBUSY


def test_intx_cannot_be_enabled_beside_msi(edu: PCIDevice) -> None:
    with edu.msi.enable(), pytest.raises(IRQError, match="MSI is enabled"):
        edu.intx.enable()


def test_msi_cannot_be_enabled_beside_intx(edu: PCIDevice) -> None:
    with edu.intx.enable(), pytest.raises(IRQError, match="INTX is enabled"):
        edu.msi.enable()


def test_it_says_whether_it_is_enabled(edu: PCIDevice) -> None:
    seen = [edu.msi.enabled]
    with edu.msi.enable():
        seen += [edu.msi.enabled, edu.intx.enabled]
    seen.append(edu.msi.enabled)
    assert seen == [False, True, False, False]


def test_the_device_uses_its_pin_again_after_close(edu: PCIDevice) -> None:
    edu.msi.enable().close()
    edu.bars[0].write32(Edu.IRQ_RAISE, 1)
    assert edu.intx.asserted


def test_the_device_uses_its_pin_again_when_it_was_closed_itself(edu: PCIDevice) -> None:
    edu.msi.enable()
    edu.close()
    with pyvfio.open(edu.uri) as again:
        again.bars[0].write32(Edu.IRQ_RAISE, 1)
        assert again.intx.asserted


def test_a_message_without_bus_mastering_is_lost(edu: PCIDevice) -> None:
    with edu.msi.enable() as irqs:
        edu.bus_master = False
        edu.bars[0].write32(Edu.IRQ_RAISE, 1)
        edu.bus_master = True
        assert is_quiet(irqs[0])


def test_it_does_not_assert_the_pin(edu: PCIDevice) -> None:
    with edu.msi.enable():
        edu.bars[0].write32(Edu.IRQ_RAISE, 1)
        assert not edu.intx.asserted


def test_trigger_signals_without_the_device(edu: PCIDevice) -> None:
    with edu.msi.enable() as irqs:
        irqs.trigger()
        assert (irqs[0].wait(SOON), edu.bars[0].read32(Edu.IRQ_STATUS)) == (1, 0)


def test_it_masks_nothing_by_itself(edu: PCIDevice) -> None:
    with edu.msi.enable() as irqs:
        assert not irqs.automasked
