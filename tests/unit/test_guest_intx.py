# SPDX-License-Identifier: BSD-3-Clause
"""The pin as a guest has it: what happens to mapped BARs, and what the device is asked."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from pyvfio import eventfd
from pyvfio.emulator.host import Requester
from pyvfio.emulator.options import FunctionOptions
from pyvfio.errors import IRQError
from pyvfio.uapi.pci import Command
from pyvfio.uapi.vfio import PCIIRQ, IRQSetFlags
from tests.emulated import SOON, EmulatedFunction, RecordingHost, Route
from tests.support import eventually, open_fds
from tests.unit.declared import DeclaredIO, declared

INTX = PCIIRQ.INTX
TRIGGER, MASK, UNMASK = IRQSetFlags.TRIGGER, IRQSetFlags.MASK, IRQSetFlags.UNMASK
ENABLE, DISABLE = (TRIGGER, 1, True), (TRIGGER, 0, False)
DO_MASK, DO_UNMASK = (MASK, 1, False), (UNMASK, 1, False)
RESAMPLE = (UNMASK, 1, True)


class Guest(EmulatedFunction):
    """A function with a pin that the test fires."""

    def __init__(
        self, host: RecordingHost | None = None, seconds: float = 60.0, pin: int = 1
    ) -> None:
        self.io = DeclaredIO(pin=pin)
        options = FunctionOptions(intx_mmap_seconds=seconds)
        super().__init__(declared(self.io), host, options)

    def fire(self) -> None:
        """The device asserts its pin, which comes to us."""
        self.io.fire(INTX)
        assert self.signalled()

    def asked(self) -> list[tuple[IRQSetFlags, int, bool]]:
        """What the device was asked since the last time: action, count, with eventfds."""
        calls = [(action, count, fds) for _, action, _, count, fds in self.io.calls]
        self.io.calls.clear()
        return calls


@pytest.fixture
def guest() -> Iterator[Guest]:
    with Guest() as function:
        function.set_up()
        yield function


def refusal() -> IRQError:
    return IRQError("no", errno=errno.EIO)


# Which pin


@pytest.mark.parametrize("pin", [1, 2, 3, 4])
def test_the_pin_is_the_one_that_the_device_has(pin: int) -> None:
    with Guest(pin=pin) as guest:
        guest.set_up()
        guest.fire()
        assert guest.host.levels == [(pin, True)]


@pytest.mark.parametrize("pin", [0, 5, 0xFF])
def test_a_device_without_a_pin_is_not_asked(pin: int) -> None:
    with Guest(pin=pin) as guest:
        guest.set_up()
        guest.interrupts.enable_intx()
        guest.interrupts.on_bar_access()
        guest.interrupts.reroute_pin()
        assert guest.interrupts.mode is None
        assert guest.asked() == []


def test_a_pin_that_cannot_be_enabled_fails_the_last_step() -> None:
    with Guest() as guest:
        before = open_fds()
        guest.io.errors = [refusal()]
        with pytest.raises(IRQError):
            guest.set_up()
        assert open_fds() == before
        guest.command(Command.INTX_DISABLE)  # nobody follows the guest any more
        guest.set_up()
        guest.fire()


# Mapped BARs


def test_mapped_bars_come_back_some_time_after_the_interrupt_is_served() -> None:
    with Guest(seconds=0.01) as guest:
        guest.set_up()
        guest.fire()
        guest.interrupts.on_bar_access()
        assert guest.mmaps == [False]
        assert eventually(lambda: bool(guest.events.dispatch(SOON)) and guest.mmaps[-1])
        assert guest.events.timeout is None


def test_an_interrupt_that_is_not_served_keeps_them_trapped() -> None:
    with Guest(seconds=0.001) as guest:
        guest.set_up()
        guest.fire()
        for _ in range(5):
            assert guest.signalled()  # the timer's
        assert guest.mmaps == [False]


def test_another_interrupt_keeps_them_trapped_for_as_long_again() -> None:
    with Guest(seconds=60.0) as guest:
        guest.set_up()
        for _ in range(50):
            guest.fire()
            guest.interrupts.on_bar_access()
        assert guest.mmaps == [False]
        assert guest.events.dispatch(0) == 0  # one timer, however many interrupts


def test_with_no_time_they_stay_trapped_until_the_pin_is_disabled() -> None:
    with Guest(seconds=0) as guest:
        guest.set_up()
        guest.fire()
        guest.interrupts.on_bar_access()
        assert guest.events.timeout is None
        assert guest.mmaps == [False]
        guest.interrupts.disable_all()
        assert guest.mmaps == [False, True]


def test_the_timer_ends_with_the_pin(guest: Guest) -> None:
    guest.fire()
    assert guest.events.timeout is not None
    guest.interrupts.disable_all()
    assert guest.events.timeout is None
    assert guest.mmaps == [False, True]


# What the device is asked


def test_the_device_is_asked_to_go_on_once_an_interrupt_is_served(guest: Guest) -> None:
    guest.fire()
    guest.interrupts.on_bar_access()
    guest.interrupts.on_bar_access()
    assert guest.asked() == [ENABLE, DO_UNMASK]


def test_disabling_twice_asks_once(guest: Guest) -> None:
    guest.interrupts.disable_all()
    guest.interrupts.disable_all()
    assert guest.asked() == [ENABLE, DISABLE]


def test_a_device_that_does_not_go_on_is_no_failure_of_the_access(
    guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        guest.fire()
        guest.io.errors = [refusal()]
        guest.interrupts.on_bar_access()
        assert not guest.host.level
    (line,) = caplog.messages
    assert line.startswith("guest's: cannot unmask INTX: ")


def test_a_level_that_does_not_change_is_not_told_again(guest: Guest) -> None:
    guest.fire()
    guest.fire()
    guest.command(Command.MEMORY)
    assert guest.host.levels == [(1, True)]


# An emulator that takes the eventfd


class FailingHost(RecordingHost):
    """Its code is wrong."""

    def route_pin(self, function: Requester, pin: int, eventfd: int, resample: int) -> Route | None:
        raise ZeroDivisionError


def test_the_device_is_masked_while_its_pin_is_handed_over() -> None:
    with Guest(RecordingHost(takes=True)) as guest:
        guest.set_up()
        assert guest.asked() == [ENABLE, DO_MASK, RESAMPLE, DO_UNMASK]
        guest.interrupts.disable_all()
        assert guest.asked() == [DO_MASK, RESAMPLE, DO_UNMASK, DISABLE]
        assert guest.io.eventfds == {}


def test_a_device_that_takes_the_resample_eventfd_goes_on_without_us() -> None:
    with Guest(RecordingHost(takes=True)) as guest:
        guest.set_up()
        route = guest.host.routes[0]
        assert guest.io.eventfds[INTX, UNMASK, 0] == route.resample
        assert guest.io.eventfds[INTX, TRIGGER, 0] == route.fd
        eventfd.signal(route.resample)
        eventfd.signal(route.fd)
        assert guest.quiet()


def test_a_device_that_does_not_is_told_by_us() -> None:
    with Guest(RecordingHost(takes=True)) as guest:
        guest.io.errors = [None, None, refusal()]
        guest.set_up()
        guest.asked()
        eventfd.signal(guest.host.routes[0].resample)
        assert guest.signalled()
        assert guest.asked() == [DO_UNMASK]
        guest.interrupts.disable_all()
        assert guest.asked() == [DO_MASK, DO_UNMASK, DISABLE]


def test_an_emulator_that_does_not_take_it_changes_nothing(guest: Guest) -> None:
    assert guest.asked() == [ENABLE]


def test_what_was_signalled_before_the_pin_comes_back_is_not_lost() -> None:
    with Guest(RecordingHost(takes=True)) as guest:
        guest.set_up()
        guest.io.fire(INTX)
        guest.host.takes = False
        guest.interrupts.reroute_pin()
        assert guest.signalled()
        assert guest.host.level


def test_an_interrupt_that_is_served_on_a_way_that_is_gone_comes_again(guest: Guest) -> None:
    guest.fire()
    guest.interrupts.reroute_pin()  # to where nobody takes it either
    assert not guest.host.level
    assert guest.asked() == [ENABLE, DO_UNMASK]


def test_an_emulator_whose_code_is_wrong_leaves_nothing_behind() -> None:
    with Guest(FailingHost()) as guest:
        before = open_fds()
        with pytest.raises(ZeroDivisionError):
            guest.set_up()
        assert guest.asked() == [ENABLE, DISABLE]
        assert open_fds() == before


class StuckRoute(Route):
    """A route that cannot be ended."""

    def close(self) -> None:
        raise ZeroDivisionError


class StuckHost(RecordingHost):
    """Takes eventfds, and its code is wrong where it lets go of them."""

    def route_pin(self, function: Requester, pin: int, eventfd: int, resample: int) -> Route | None:
        return StuckRoute(self, eventfd, resample)


def test_a_route_that_cannot_be_ended_leaves_nothing_behind() -> None:
    before = open_fds()
    guest = Guest(StuckHost())
    guest.set_up()
    guest.asked()
    with pytest.raises(ZeroDivisionError):
        guest.close()
    assert guest.asked() == [DO_MASK, RESAMPLE, DO_UNMASK, DISABLE]
    assert open_fds() == before
    guest.interrupts.disable_all()
    assert guest.asked() == []


def test_the_eventfds_are_open_while_the_emulator_has_them() -> None:
    with Guest(RecordingHost(takes=True)) as guest:
        guest.set_up()
        route = guest.host.routes[0]
        assert os.fstat(route.fd)
        assert os.fstat(route.resample)
    assert not route.open
