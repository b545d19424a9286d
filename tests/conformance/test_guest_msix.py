# SPDX-License-Identifier: BSD-3-Clause
"""MSI-X of the test device as the guest of an emulator has it: table and pending bits are ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from pyvfio.emulator.msix_layout import MSIXLayout
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.vfio import PCIIRQ, IRQSetFlags
from tests.conformance.devices import TABLE, VECTORS, fire
from tests.emulated import ADDRESS, BAR_SPACING, EmulatedFunction, RecordingHost

ENABLE, MASK_ALL = pci.MSIX_CONTROL_ENABLE, pci.MSIX_CONTROL_MASK_ALL
ONES = (1 << 64) - 1

Calls = list[tuple[PCIIRQ, int, list[bool] | None]]
"""Each SET_IRQS: index, first vector, and for each vector whether it has an eventfd."""


@pytest.fixture
def guest(testdev: PCIDevice) -> Iterator[EmulatedFunction]:
    """A test device whose guest has done nothing yet but to allow memory accesses."""
    with EmulatedFunction(testdev) as function:
        function.set_up()
        yield function


@pytest.fixture
def taker(testdev: PCIDevice) -> Iterator[EmulatedFunction]:
    """The same of an emulator that takes eventfds."""
    with EmulatedFunction(testdev, RecordingHost(takes=True)) as function:
        function.set_up()
        yield function


@pytest.fixture
def fixed(testdev: PCIDevice) -> Iterator[EmulatedFunction]:
    """The same of a device that cannot add vectors while some are in use."""
    layout = MSIXLayout.probe(testdev)
    assert layout is not None
    with EmulatedFunction(testdev, layout=replace(layout, resizable=False)) as function:
        function.set_up()
        yield function


@pytest.fixture
def calls(testdev: PCIDevice, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the device is asked from now on."""
    seen: Calls = []
    set_irqs = testdev.base.set_irqs

    def note(
        index: int,
        action: IRQSetFlags,
        start: int,
        count: int,
        *,
        eventfds: Sequence[int] | None = None,
    ) -> None:
        fds = None if eventfds is None else [fd >= 0 for fd in eventfds]
        seen.append((PCIIRQ(index), start, fds))
        set_irqs(index, action, start, count, eventfds=eventfds)

    monkeypatch.setattr(testdev.base, "set_irqs", note)
    return seen


def fires(guest: EmulatedFunction, vector: int) -> None:
    """The device sends a vector, which comes to us."""
    fire(guest.dev, vector)
    assert guest.signalled()


def device_enabled(guest: EmulatedFunction) -> bool:
    """Whether the device itself is in MSI-X mode."""
    control = guest.config.device_get(pci.MSIX_CONTROL, guest.at[0x11])
    return bool(control & ENABLE)


# The capability and the table


def test_the_guest_sees_the_capability_disabled(guest: EmulatedFunction) -> None:
    at = guest.at[0x11]
    assert guest.config.read(at + 2, 2) == VECTORS - 1
    assert guest.config.read(at + 4, 4) == TABLE
    assert guest.config.read(at + 8, 4) == 0x800 | TABLE


def test_the_guest_can_write_two_bits_of_it(guest: EmulatedFunction) -> None:
    at = guest.at[0x11]
    for offset in (2, 6, 8, 10):
        guest.config.write(at + offset, 2, 0x3FFF)
    assert guest.config.read(at + 2, 2) == VECTORS - 1
    assert (guest.config.read(at + 4, 4), guest.config.read(at + 8, 4)) == (TABLE, 0x800 | TABLE)
    guest.control_msix(0xFFFF)
    assert guest.config.read(at + 2, 2) == ENABLE | MASK_ALL | VECTORS - 1


def test_all_vectors_are_masked_at_first(guest: EmulatedFunction) -> None:
    entries = [guest.memory.read_bytes(guest.entry(vector), 16) for vector in range(VECTORS)]
    assert entries == [bytes(12) + b"\1\0\0\0"] * VECTORS


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_the_table_is_read_and_written_in_any_width(guest: EmulatedFunction, width: int) -> None:
    data = bytes(range(1, 13))
    at = guest.entry(2)
    for offset in range(0, 8, width):
        value = int.from_bytes(data[offset : offset + width], "little")
        guest.memory.write(at + offset, width, value)
        assert guest.memory.read(at + offset, width) == value
    assert guest.memory.read_bytes(at, 8) == data[:8]


def test_the_device_s_own_table_is_left_alone(guest: EmulatedFunction) -> None:
    before = guest.dev.bars[TABLE].read_bytes(0, 16 * VECTORS)
    guest.unmask(1)
    assert guest.dev.bars[TABLE].read_bytes(0, 16 * VECTORS) == before


# Vectors


def test_enabled_without_vectors_the_device_is_in_msix_mode(guest: EmulatedFunction) -> None:
    guest.control_msix(ENABLE)
    assert guest.interrupts.mode is PCIIRQ.MSIX
    assert device_enabled(guest)


def test_a_vector_that_is_unmasked_sends_its_message(guest: EmulatedFunction) -> None:
    guest.control_msix(ENABLE)
    guest.unmask(3)
    fires(guest, 3)
    assert guest.host.messages == [(ADDRESS, 0x103)]


def test_vectors_unmasked_before_are_there_when_msix_is_enabled(guest: EmulatedFunction) -> None:
    guest.unmask(0)
    guest.unmask(VECTORS - 1)
    guest.control_msix(ENABLE)
    fires(guest, VECTORS - 1)
    fires(guest, 0)
    assert guest.host.messages == [(ADDRESS, 0x100 + VECTORS - 1), (ADDRESS, 0x100)]


def test_a_message_above_4_gib_is_sent_whole(guest: EmulatedFunction) -> None:
    guest.memory.write(guest.entry(0), 8, 0x1_2345_6789_ABC0)
    guest.memory.write(guest.entry(0) + 8, 8, 0xFFFF_FFFF)  # data, and the mask bit cleared
    guest.control_msix(ENABLE)
    fires(guest, 0)
    assert guest.host.messages == [(0x1_2345_6789_ABC0, 0xFFFF_FFFF)]


def test_another_message_counts_from_the_next_interrupt_on(guest: EmulatedFunction) -> None:
    guest.control_msix(ENABLE)
    guest.unmask(0, data=1)
    guest.unmask(0, data=2)
    fires(guest, 0)
    assert guest.host.messages == [(ADDRESS, 2)]


def test_a_vector_that_was_never_unmasked_is_not_signalled(guest: EmulatedFunction) -> None:
    guest.control_msix(ENABLE)
    guest.unmask(1)
    fire(guest.dev, 0)
    fire(guest.dev, 2)
    assert guest.quiet()


def test_without_msix_there_is_the_pin_again(guest: EmulatedFunction) -> None:
    guest.control_msix(ENABLE)
    guest.unmask(0)
    guest.control_msix(0)
    assert guest.interrupts.mode is PCIIRQ.INTX
    assert not device_enabled(guest)
    fire(guest.dev, 0)
    assert guest.quiet()


# Masks and pending bits


def test_a_masked_vector_that_fires_is_pending_and_sent_when_unmasked(
    guest: EmulatedFunction,
) -> None:
    guest.control_msix(ENABLE)
    guest.unmask(5)
    guest.mask(5)
    fires(guest, 5)
    assert guest.host.messages == []
    assert guest.pending_bits() == 1 << 5
    guest.unmask(5)
    assert guest.host.messages == [(ADDRESS, 0x105)]


def test_pending_bits_are_emulated_while_there_are_some(guest: EmulatedFunction) -> None:
    guest.control_msix(ENABLE)
    guest.unmask(5)
    guest.unmask(6)
    assert guest.pending_bits() == ONES  # there is nothing of ours
    for vector in (5, 6):
        guest.mask(vector)
        fires(guest, vector)
    guest.unmask(5)
    assert guest.pending_bits() == 1 << 6
    guest.unmask(6)
    assert guest.pending_bits() == ONES


def test_pending_bits_cannot_be_written(guest: EmulatedFunction) -> None:
    guest.control_msix(ENABLE)
    guest.unmask(5)
    guest.mask(5)
    fires(guest, 5)
    guest.memory.write(TABLE * BAR_SPACING + 0x800, 8, 0)
    assert guest.pending_bits() == 1 << 5


def test_what_fires_twice_while_masked_is_sent_once(guest: EmulatedFunction) -> None:
    guest.control_msix(ENABLE)
    guest.unmask(5)
    guest.mask(5)
    fires(guest, 5)
    fires(guest, 5)
    guest.unmask(5)
    assert guest.host.messages == [(ADDRESS, 0x105)]


def test_all_vectors_can_be_masked_at_once(guest: EmulatedFunction) -> None:
    guest.control_msix(ENABLE)
    guest.unmask(1)
    guest.unmask(2)
    guest.mask(2)
    guest.control_msix(ENABLE | MASK_ALL)
    fire(guest.dev, 1)
    fire(guest.dev, 2)
    guest.control_msix(ENABLE)
    while not guest.quiet():
        pass
    assert guest.host.messages == [(ADDRESS, 0x101)]
    assert guest.pending_bits() == 1 << 2


def test_msix_may_be_enabled_with_all_vectors_masked(guest: EmulatedFunction) -> None:
    guest.unmask(1)
    guest.control_msix(ENABLE | MASK_ALL)
    assert device_enabled(guest)
    guest.control_msix(ENABLE)
    fires(guest, 1)
    assert guest.host.messages == [(ADDRESS, 0x101)]


def test_nothing_is_pending_after_msix_was_disabled(guest: EmulatedFunction) -> None:
    guest.control_msix(ENABLE)
    guest.unmask(5)
    guest.mask(5)
    fires(guest, 5)
    guest.control_msix(0)
    assert guest.pending_bits() == ONES
    guest.control_msix(ENABLE)
    guest.unmask(5)
    assert guest.host.messages == []


# What the device is asked


def test_the_device_is_asked_once_for_a_vector(guest: EmulatedFunction, calls: Calls) -> None:
    guest.control_msix(ENABLE)
    for _ in range(3):
        guest.unmask(2)
        guest.mask(2)
    assert calls == [
        (PCIIRQ.INTX, 0, None),
        (PCIIRQ.MSIX, 0, [False]),  # enabled without vectors
        (PCIIRQ.MSIX, 2, [True]),
    ]


def test_vectors_unmasked_before_are_asked_for_at_once(
    guest: EmulatedFunction, calls: Calls
) -> None:
    guest.unmask(1)
    guest.unmask(3)
    guest.control_msix(ENABLE)
    assert calls[1:] == [
        (PCIIRQ.MSIX, 0, [False]),
        (PCIIRQ.MSIX, 0, [False, True, False, True]),
    ]


def test_a_device_that_cannot_add_vectors_is_disabled_for_it(
    fixed: EmulatedFunction, calls: Calls
) -> None:
    fixed.unmask(1)
    fixed.control_msix(ENABLE)
    fixed.unmask(0)  # there is room for it already
    fixed.unmask(3)
    assert calls[1:] == [
        (PCIIRQ.MSIX, 0, [False, True]),
        (PCIIRQ.MSIX, 0, [True]),
        (PCIIRQ.MSIX, 0, None),
        (PCIIRQ.MSIX, 0, [True, True, False, True]),
    ]
    for vector in (0, 1, 3):
        fires(fixed, vector)
    assert [data for _, data in fixed.host.messages] == [0x100, 0x101, 0x103]


def test_such_a_device_has_masked_vectors_signalled_to_us_when_others_come(
    testdev: PCIDevice,
) -> None:
    layout = MSIXLayout.probe(testdev)
    assert layout is not None
    layout = replace(layout, resizable=False)
    with EmulatedFunction(testdev, RecordingHost(takes=True), layout=layout) as guest:
        guest.set_up()
        guest.control_msix(ENABLE)
        guest.unmask(0)
        guest.mask(0)
        guest.unmask(3)
        fires(guest, 0)
        assert guest.pending_bits() == 1


def test_vectors_there_from_the_start_are_not_asked_for_again(
    guest: EmulatedFunction, calls: Calls
) -> None:
    guest.unmask(1)
    guest.control_msix(ENABLE)
    calls.clear()
    guest.mask(1)
    guest.unmask(1)
    assert calls == []


def test_disabling_says_nothing_of_single_vectors(taker: EmulatedFunction, calls: Calls) -> None:
    taker.control_msix(ENABLE)
    taker.unmask(0)
    taker.unmask(1)
    calls.clear()
    taker.control_msix(0)
    assert [call for call in calls if call[0] is PCIIRQ.MSIX] == [(PCIIRQ.MSIX, 0, None)]


def test_such_a_device_is_enabled_without_vectors_as_well(
    fixed: EmulatedFunction, calls: Calls
) -> None:
    fixed.control_msix(ENABLE)
    assert calls[1:] == [(PCIIRQ.MSIX, 0, [False])]
    assert device_enabled(fixed)


# An emulator that takes eventfds


def test_a_vector_whose_eventfd_is_taken_goes_past_us(taker: EmulatedFunction) -> None:
    taker.control_msix(ENABLE)
    taker.unmask(4)
    assert taker.host.routes[-1].messages == [(ADDRESS, 0x104)]
    fire(taker.dev, 4)
    assert taker.routed()
    assert taker.host.messages == []


def test_while_it_is_masked_it_comes_to_us(taker: EmulatedFunction) -> None:
    taker.control_msix(ENABLE)
    taker.unmask(4)
    taker.mask(4)
    fires(taker, 4)
    assert taker.pending_bits() == 1 << 4
    taker.unmask(4, data=7)
    assert taker.host.messages == [(ADDRESS, 7)]
    assert taker.host.routes[-1].messages[-1] == (ADDRESS, 7)
    fire(taker.dev, 4)
    assert taker.routed()


def test_masking_all_brings_every_vector_to_us(taker: EmulatedFunction) -> None:
    taker.control_msix(ENABLE)
    taker.unmask(0)
    taker.unmask(1)
    taker.control_msix(ENABLE | MASK_ALL)
    taker.control_msix(ENABLE)
    fire(taker.dev, 1)
    assert taker.routed(2)


def test_routes_end_when_msix_is_disabled(taker: EmulatedFunction) -> None:
    taker.control_msix(ENABLE)
    taker.unmask(0)
    taker.unmask(1)
    taker.control_msix(0)
    assert [route.open for route in taker.host.routes[1:3]] == [False, False]
    assert taker.host.routes[3].resample >= 0  # the pin's, again


# State


def test_a_saved_state_comes_back(guest: EmulatedFunction) -> None:
    guest.control_msix(ENABLE)
    guest.unmask(3)
    guest.unmask(4)
    guest.mask(4)
    fires(guest, 4)
    state, config = guest.interrupts.save(), bytes(guest.config.local)
    guest.interrupts.reset()
    assert guest.interrupts.mode is None
    assert guest.pending_bits() == ONES
    guest.config.local[:] = config
    guest.interrupts.load(state)
    assert guest.interrupts.mode is PCIIRQ.MSIX
    assert guest.pending_bits() == 1 << 4
    fires(guest, 3)
    guest.unmask(4, data=9)
    assert guest.host.messages == [(ADDRESS, 0x103), (ADDRESS, 9)]


def test_a_state_with_msix_disabled_sends_nothing_of_what_is_pending(
    guest: EmulatedFunction,
) -> None:
    guest.unmask(0)
    state = bytearray(guest.interrupts.save())
    state[16 * VECTORS] = 1  # pending bit 0
    guest.interrupts.load(bytes(state))
    assert guest.host.messages == []
    guest.control_msix(ENABLE)
    assert guest.host.messages == [(ADDRESS, 0x100)]


def test_a_state_without_msix_enabled_leaves_the_pin(guest: EmulatedFunction) -> None:
    state = guest.interrupts.save()
    guest.control_msix(ENABLE)
    guest.config.set(pci.MSIX_CONTROL, VECTORS - 1, guest.at[0x11])
    guest.interrupts.load(state)
    assert guest.interrupts.mode is PCIIRQ.INTX


@pytest.mark.parametrize("state", [b"", bytes(100), bytes(16 * VECTORS + 9)])
def test_a_state_of_another_device_is_refused_and_changes_nothing(
    guest: EmulatedFunction, state: bytes
) -> None:
    guest.control_msix(ENABLE)
    guest.unmask(3)
    with pytest.raises(ValueError, match=f"{len(state)} bytes"):
        guest.interrupts.load(state)
    fires(guest, 3)
    assert guest.host.messages == [(ADDRESS, 0x103)]


def test_a_reset_masks_every_vector(guest: EmulatedFunction) -> None:
    guest.control_msix(ENABLE)
    guest.unmask(3)
    guest.interrupts.reset()
    guest.interrupts.enable_intx()
    assert guest.config.read(guest.at[0x11] + 2, 2) == VECTORS - 1
    assert guest.memory.read_bytes(guest.entry(3), 16) == bytes(12) + b"\1\0\0\0"
    assert guest.interrupts.mode is PCIIRQ.INTX


def test_a_table_elsewhere_works_as_well(testdev: PCIDevice) -> None:
    layout = MSIXLayout.probe(testdev, 5)
    assert layout is not None
    bar = layout.new_bar(5)
    assert bar is not None
    with EmulatedFunction(testdev, layout=layout, new_bars={5: bar.size}) as guest:
        guest.set_up()
        guest.control_msix(ENABLE)
        guest.unmask(2)
        fires(guest, 2)
        assert guest.host.messages == [(ADDRESS, 0x102)]
        guest.mask(2)
        fires(guest, 2)
        assert guest.pending_bits() == 1 << 2
        assert guest.config.read(guest.at[0x11] + 4, 4) == 5


def test_nothing_is_left_over_a_bar_in_the_end(testdev: PCIDevice) -> None:
    guest = EmulatedFunction(testdev)
    guest.set_up()
    guest.close()
    guest.interrupts.tear_down()
    assert guest.bars[TABLE].base.regions == ()
