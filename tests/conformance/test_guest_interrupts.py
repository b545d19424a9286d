# SPDX-License-Identifier: BSD-3-Clause
"""Interrupts of the edu device as the guest of an emulator has them: pin and MSI."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvfio import eventfd
from pyvfio.emulator.options import FunctionOptions
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.pci import Command
from pyvfio.uapi.vfio import PCIIRQ
from tests.conformance.devices import Edu
from tests.emulated import ADDRESS, EmulatedFunction, RecordingHost
from tests.support import open_fds

NO_IRQFD = FunctionOptions(irqfd=False)


@pytest.fixture
def guest(edu: PCIDevice) -> Iterator[EmulatedFunction]:
    """An edu device whose guest has done nothing yet but to allow memory accesses."""
    with EmulatedFunction(edu) as function:
        function.set_up()
        yield function


@pytest.fixture
def taker(edu: PCIDevice) -> Iterator[EmulatedFunction]:
    """The same of an emulator that takes eventfds."""
    with EmulatedFunction(edu, RecordingHost(takes=True)) as function:
        function.set_up()
        yield function


def raise_irq(guest: EmulatedFunction) -> None:
    """The device wants an interrupt."""
    guest.dev.bars[0].write32(Edu.IRQ_RAISE, 1)


def acknowledge(guest: EmulatedFunction) -> None:
    """The guest's driver has the device lower its interrupt."""
    guest.dev.bars[0].write32(Edu.IRQ_ACK, 1)


# The pin


def test_the_pin_is_enabled_from_the_start(guest: EmulatedFunction) -> None:
    assert guest.interrupts.mode is PCIIRQ.INTX


def test_an_interrupt_asserts_the_pin_and_traps_the_bars(guest: EmulatedFunction) -> None:
    raise_irq(guest)
    assert guest.signalled()
    assert guest.host.levels == [(1, True)]
    assert guest.mmaps == [False]


def test_an_access_to_a_bar_is_the_end_of_the_interrupt(guest: EmulatedFunction) -> None:
    raise_irq(guest)
    assert guest.signalled()
    acknowledge(guest)
    guest.interrupts.on_bar_access()
    assert not guest.host.level
    assert guest.quiet()


def test_a_pin_that_is_still_asserted_then_interrupts_again(guest: EmulatedFunction) -> None:
    raise_irq(guest)
    assert guest.signalled()
    guest.interrupts.on_bar_access()
    assert guest.signalled()
    assert guest.host.levels == [(1, True), (1, False), (1, True)]


def test_accesses_without_an_interrupt_mean_nothing(guest: EmulatedFunction) -> None:
    guest.interrupts.on_bar_access()
    assert guest.host.levels == []
    raise_irq(guest)
    assert guest.signalled()


def test_a_pin_that_the_command_register_disables_is_low(guest: EmulatedFunction) -> None:
    raise_irq(guest)
    assert guest.signalled()
    guest.command(Command.MEMORY | Command.INTX_DISABLE)
    assert not guest.host.level
    guest.command(Command.MEMORY)
    assert guest.host.level


# MSI


def test_msi_replaces_the_pin(guest: EmulatedFunction) -> None:
    guest.enable_msi(data=0x4041)
    assert guest.interrupts.mode is PCIIRQ.MSI
    raise_irq(guest)
    assert guest.signalled()
    assert (guest.host.messages, guest.host.levels) == ([(ADDRESS, 0x4041)], [])


def test_the_message_is_what_the_guest_has_written_last(guest: EmulatedFunction) -> None:
    guest.enable_msi(data=1)
    guest.enable_msi(data=2)
    raise_irq(guest)
    assert guest.signalled()
    assert guest.host.messages == [(ADDRESS, 2)]


def test_without_msi_there_is_the_pin_again(guest: EmulatedFunction) -> None:
    guest.enable_msi()
    guest.disable_msi()
    assert guest.interrupts.mode is PCIIRQ.INTX
    raise_irq(guest)
    assert guest.signalled()
    assert (guest.host.messages, guest.host.level) == ([], True)


def test_enabling_msi_lowers_the_pin(guest: EmulatedFunction) -> None:
    raise_irq(guest)
    assert guest.signalled()
    guest.enable_msi()
    assert not guest.host.level
    assert guest.mmaps == [False, True]


def test_nothing_is_left_however_often_the_mode_changes(guest: EmulatedFunction) -> None:
    before = len(open_fds())
    for _ in range(5):
        guest.enable_msi()
        guest.disable_msi()
        guest.interrupts.disable_all()
        guest.interrupts.disable_all()
        assert guest.interrupts.mode is None
        guest.interrupts.enable_intx()
    assert len(open_fds()) == before


def test_with_nothing_enabled_nothing_comes(guest: EmulatedFunction) -> None:
    guest.interrupts.disable_all()
    raise_irq(guest)
    assert guest.quiet()


# An emulator that takes eventfds


def test_a_pin_whose_eventfd_is_taken_goes_past_us(taker: EmulatedFunction) -> None:
    raise_irq(taker)
    assert taker.routed()
    assert (taker.host.levels, taker.mmaps) == ([], [])


def test_the_emulator_s_end_of_interrupt_unmasks_the_pin(taker: EmulatedFunction) -> None:
    raise_irq(taker)
    assert taker.routed()
    eventfd.signal(taker.host.routes[-1].resample)
    taker.events.dispatch(0.03)  # where the device cannot take that eventfd itself
    assert taker.routed()


def test_a_pin_that_leads_elsewhere_is_offered_again(taker: EmulatedFunction) -> None:
    taker.interrupts.reroute_pin()
    assert [route.open for route in taker.host.routes] == [False, True]
    raise_irq(taker)
    assert taker.routed()


def test_a_pin_that_is_not_taken_any_more_comes_to_us(taker: EmulatedFunction) -> None:
    taker.host.takes = False
    raise_irq(taker)
    taker.interrupts.reroute_pin()
    assert not taker.host.routes[0].open
    assert taker.signalled()
    assert taker.host.level


def test_messages_whose_eventfd_is_taken_go_past_us(taker: EmulatedFunction) -> None:
    taker.enable_msi(data=5)
    assert taker.host.routes[-1].messages == [(ADDRESS, 5)]
    raise_irq(taker)
    assert taker.routed()
    assert taker.host.messages == []


def test_the_emulator_hears_of_another_message(taker: EmulatedFunction) -> None:
    taker.enable_msi(data=5)
    taker.enable_msi(data=6)
    assert taker.host.routes[-1].messages[-1] == (ADDRESS, 6)


def test_routes_end_with_the_mode(taker: EmulatedFunction) -> None:
    taker.enable_msi()
    taker.interrupts.disable_all()
    assert [route.open for route in taker.host.routes] == [False, False]


def test_an_emulator_is_not_asked_where_the_user_forbids_it(edu: PCIDevice) -> None:
    with EmulatedFunction(edu, RecordingHost(takes=True), NO_IRQFD) as guest:
        guest.set_up()
        guest.enable_msi()
        assert guest.host.routes == []
        raise_irq(guest)
        assert guest.signalled()
        assert len(guest.host.messages) == 1
