# SPDX-License-Identifier: BSD-3-Clause
"""MSI-X: every vector has an eventfd of its own, and what is masked waits in the pending bits."""

from __future__ import annotations

import errno
import random
import select

import pytest

from pyvfio.errors import IRQError, UnsupportedError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.pci import CapabilityID
from tests.conformance.devices import QUIET, SOON, TABLE, VECTORS, fire, is_quiet, set_pin

MASK_ALL = 0x4000


def test_the_capability_says_where_the_table_is(testdev: PCIDevice) -> None:
    msix = testdev.msix
    assert (msix.count, msix.table_size, msix.table, msix.pba) == (
        VECTORS,
        VECTORS,
        (TABLE, 0),
        (TABLE, 0x800),
    )


def test_a_device_without_msix_has_no_vectors(edu: PCIDevice) -> None:
    assert edu.msix.count == 0


def test_a_device_without_msix_cannot_enable_it(edu: PCIDevice) -> None:
    with pytest.raises(UnsupportedError, match="no MSIX"):
        edu.msix.enable()


def test_a_device_without_msix_has_no_table(edu: PCIDevice) -> None:
    with pytest.raises(UnsupportedError, match="capability"):
        _ = edu.msix.table


def test_each_vector_fires_its_own_eventfd(testdev: PCIDevice) -> None:
    order = random.sample(range(VECTORS), VECTORS)
    fired = []
    with testdev.msix.enable(VECTORS) as irqs:
        for vector in order:
            fire(testdev, vector)
            readable, _, _ = select.select(list(irqs), [], [], SOON)
            fired.append([(irq.vector, irq.wait(0)) for irq in readable])
    assert fired == [[(vector, 1)] for vector in order]


def test_the_last_vector_that_is_enabled_fires(testdev: PCIDevice) -> None:
    with testdev.msix.enable(5) as irqs:
        fire(testdev, 4)
        assert irqs[4].wait(SOON) == 1


def test_a_vector_that_is_not_enabled_fires_nothing(testdev: PCIDevice) -> None:
    with testdev.msix.enable(4) as irqs:
        fire(testdev, 4)
        readable, _, _ = select.select(list(irqs), [], [], QUIET)
        assert readable == []


@pytest.mark.parametrize("count", [-1, 0, VECTORS + 1, 2048])
def test_a_number_of_vectors_that_the_device_lacks_is_refused(
    testdev: PCIDevice, count: int
) -> None:
    with pytest.raises(IRQError, match=f"the device has {VECTORS} vectors"):
        testdev.msix.enable(count)


def test_a_refused_enable_leaves_bus_mastering_as_it_was(testdev: PCIDevice) -> None:
    testdev.bus_master = False
    with pytest.raises(IRQError):
        testdev.msix.enable(VECTORS + 1)
    assert not testdev.bus_master


def test_enabling_twice_is_refused(testdev: PCIDevice) -> None:
    with testdev.msix.enable(2), pytest.raises(IRQError, match="MSIX is enabled") as caught:
        testdev.msix.enable(2)
    assert caught.value.errno == errno.EBUSY


def test_intx_cannot_be_enabled_beside_msix(testdev: PCIDevice) -> None:
    with testdev.msix.enable(1), pytest.raises(IRQError, match="MSIX is enabled"):
        testdev.intx.enable()


def test_msix_cannot_be_enabled_beside_intx(testdev: PCIDevice) -> None:
    with testdev.intx.enable(), pytest.raises(IRQError, match="INTX is enabled"):
        testdev.msix.enable(1)


def test_a_refused_second_enable_leaves_the_first_at_work(testdev: PCIDevice) -> None:
    with testdev.msix.enable(1) as irqs:
        with pytest.raises(IRQError):
            testdev.msix.enable(2)
        fire(testdev, 0)
        assert irqs[0].wait(SOON) == 1


def test_it_can_be_enabled_again_with_more_vectors(testdev: PCIDevice) -> None:
    testdev.msix.enable(1).close()
    with testdev.msix.enable(VECTORS) as irqs:
        fire(testdev, VECTORS - 1)
        assert irqs[VECTORS - 1].wait(SOON) == 1


def test_another_kind_can_be_enabled_after_it(testdev: PCIDevice) -> None:
    testdev.msix.enable(1).close()
    with testdev.intx.enable() as irqs:
        set_pin(testdev, True)
        assert irqs[0].wait(SOON) == 1


def test_enabling_turns_bus_mastering_on(testdev: PCIDevice) -> None:
    testdev.bus_master = False
    with testdev.msix.enable(1):
        assert testdev.bus_master


def test_it_says_whether_it_is_enabled(testdev: PCIDevice) -> None:
    seen = [testdev.msix.enabled]
    with testdev.msix.enable(1):
        seen += [testdev.msix.enabled, testdev.intx.enabled]
    seen.append(testdev.msix.enabled)
    assert seen == [False, True, False, False]


def test_a_vector_that_was_disabled_is_not_delivered_later(testdev: PCIDevice) -> None:
    testdev.msix.enable(1).close()
    fire(testdev, 0)
    with testdev.msix.enable(1) as irqs:
        assert is_quiet(irqs[0])


def test_vfio_cannot_mask_a_vector(testdev: PCIDevice) -> None:
    with testdev.msix.enable(1) as irqs, pytest.raises(IRQError, match="mask irq 2"):
        irqs.mask(0)


def test_trigger_signals_a_vector_without_the_device(testdev: PCIDevice) -> None:
    with testdev.msix.enable(3) as irqs:
        irqs.trigger(2)
        readable, _, _ = select.select(list(irqs), [], [], SOON)
        assert readable == [irqs[2]]


# Masks in the table and in the capability


class Masking:
    """The mask and pending bits of a device with MSI-X, as its driver finds them."""

    def __init__(self, dev: PCIDevice) -> None:
        self._dev = dev
        capability = dev.config.find(CapabilityID.MSIX)
        assert capability is not None
        self._control = capability.offset + 2

    def mask(self, vector: int, masked: bool) -> None:
        """Write the mask bit of a table entry."""
        bar, offset = self._dev.msix.table
        self._dev.bars[bar].write32(offset + 16 * vector + 12, masked)

    def mask_all(self, masked: bool) -> None:
        """Write the function mask, in the control register of the capability."""
        kept = self._dev.config.read16(self._control) & ~MASK_ALL
        self._dev.config.write16(self._control, kept | MASK_ALL if masked else kept)

    def pending(self) -> list[int]:
        """The vectors whose pending bit is set."""
        bar, offset = self._dev.msix.pba
        bits = self._dev.bars[bar].read64(offset)
        return [vector for vector in range(64) if bits >> vector & 1]


def test_a_masked_vector_is_quiet_and_pending(testdev: PCIDevice) -> None:
    masking = Masking(testdev)
    with testdev.msix.enable(VECTORS) as irqs:
        masking.mask(9, True)
        fire(testdev, 9)
        assert (is_quiet(irqs[9]), masking.pending()) == (True, [9])


def test_a_pending_vector_fires_when_it_is_unmasked(testdev: PCIDevice) -> None:
    masking = Masking(testdev)
    with testdev.msix.enable(VECTORS) as irqs:
        masking.mask(9, True)
        fire(testdev, 9)
        masking.mask(9, False)
        assert (irqs[9].wait(SOON), masking.pending()) == (1, [])


def test_a_vector_that_became_pending_twice_fires_once(testdev: PCIDevice) -> None:
    masking = Masking(testdev)
    with testdev.msix.enable(1) as irqs:
        masking.mask(0, True)
        fire(testdev, 0)
        fire(testdev, 0)
        masking.mask(0, False)
        assert irqs[0].wait(SOON) == 1


def test_unmasking_fires_nothing_that_is_not_pending(testdev: PCIDevice) -> None:
    masking = Masking(testdev)
    with testdev.msix.enable(1) as irqs:
        masking.mask(0, True)
        masking.mask(0, False)
        assert is_quiet(irqs[0])


def test_a_mask_holds_back_its_own_vector_only(testdev: PCIDevice) -> None:
    masking = Masking(testdev)
    with testdev.msix.enable(2) as irqs:
        masking.mask(0, True)
        fire(testdev, 1)
        assert irqs[1].wait(SOON) == 1


def test_the_function_mask_holds_back_every_vector(testdev: PCIDevice) -> None:
    masking = Masking(testdev)
    with testdev.msix.enable(VECTORS) as irqs:
        masking.mask_all(True)
        fire(testdev, 3)
        fire(testdev, 31)
        assert (is_quiet(irqs[3]), masking.pending()) == (True, [3, 31])


def test_pending_vectors_fire_when_the_function_mask_is_cleared(testdev: PCIDevice) -> None:
    masking = Masking(testdev)
    with testdev.msix.enable(VECTORS) as irqs:
        masking.mask_all(True)
        fire(testdev, 3)
        fire(testdev, 31)
        masking.mask_all(False)
        fired = [irqs[3].wait(SOON), irqs[31].wait(SOON)]
        assert (fired, masking.pending()) == ([1, 1], [])


def test_a_vector_of_its_own_mask_stays_pending_without_the_function_mask(
    testdev: PCIDevice,
) -> None:
    masking = Masking(testdev)
    with testdev.msix.enable(1):
        masking.mask_all(True)
        masking.mask(0, True)
        fire(testdev, 0)
        masking.mask_all(False)
        assert masking.pending() == [0]


def test_a_reset_forgets_what_is_pending(testdev: PCIDevice) -> None:
    masking = Masking(testdev)
    with testdev.msix.enable(1) as irqs:
        masking.mask(0, True)
        fire(testdev, 0)
        testdev.reset()
        assert (masking.pending(), is_quiet(irqs[0])) == ([], True)


def test_pending_bits_are_read_only(testdev: PCIDevice) -> None:
    masking = Masking(testdev)
    bar, offset = testdev.msix.pba
    testdev.bars[bar].write64(offset, 0xFF)
    assert masking.pending() == []


def test_table_entries_keep_address_and_data(testdev: PCIDevice) -> None:
    bar, offset = testdev.msix.table
    testdev.bars[bar].write64(offset + 16 * 7, 0xFEE0_1000)
    testdev.bars[bar].write32(offset + 16 * 7 + 8, 0x4041)
    assert testdev.bars[bar].read_bytes(offset + 16 * 7, 12) == bytes.fromhex(
        "0010e0fe 00000000 41400000"
    )
