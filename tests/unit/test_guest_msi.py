# SPDX-License-Identifier: BSD-3-Clause
"""MSI as a guest has it: every shape of the capability, messages, masks, and too few vectors."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pyvfio.emulator.host import Requester
from pyvfio.errors import IRQError
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID
from pyvfio.uapi.vfio import PCIIRQ, IRQSetFlags
from tests.emulated import EmulatedFunction, RecordingHost, Route
from tests.support import open_fds
from tests.unit.declared import DeclaredIO, declared

AT = 0x50
WIDE, MASKABLE = pci.MSI_CONTROL_64BIT, pci.MSI_CONTROL_MASKING
CAPABLE_32 = 5 << 1
ADDRESS = 0xFEE0_0000


class Guest(EmulatedFunction):
    """A function with an MSI capability of any shape, and what its guest writes there."""

    def __init__(self, control: int, host: RecordingHost | None = None) -> None:
        self.io = DeclaredIO(capabilities={AT: struct.pack("<BH", CapabilityID.MSI, control)})
        super().__init__(declared(self.io), host)
        self.set_up()

    def get(self, register: pci.Register) -> int:
        return self.config.read(AT + register.offset, register.width)

    def put(self, register: pci.Register, value: int) -> None:
        self.config.write(AT + register.offset, register.width, value)

    def enable(self, order: int = 0, data: int = 0) -> None:
        """With a message for 2 ** ``order`` vectors."""
        self.put(pci.MSI_ADDRESS_LO, ADDRESS)
        wide = self.get(pci.MSI_CONTROL) & WIDE
        self.put(pci.MSI_DATA_64 if wide else pci.MSI_DATA_32, data)
        self.put(pci.MSI_CONTROL, pci.MSI_CONTROL_ENABLE | order << 4)

    def fire(self, vector: int) -> None:
        """The device sends a vector, which comes to us."""
        self.io.fire(PCIIRQ.MSI, vector)
        assert self.signalled()


@contextmanager
def guest(control: int, host: RecordingHost | None = None) -> Iterator[Guest]:
    with Guest(control, host) as function:
        yield function


def vectors(function: Guest) -> int:
    """How many the device has been asked for last."""
    return [count for index, _, _, count, fds in function.io.calls if index is PCIIRQ.MSI and fds][
        -1
    ]


# The capability


@pytest.mark.parametrize(
    ("control", "size"), [(0, 10), (WIDE, 14), (MASKABLE, 20), (WIDE | MASKABLE, 24)]
)
def test_a_capability_without_room_is_hidden(control: int, size: int) -> None:
    io = DeclaredIO()
    struct.pack_into("<H", io.config, AT + 2, control)
    with EmulatedFunction(declared(io)) as function:
        assert not function.interrupts.add_msi(AT, size - 1)
        assert bytes(function.config.emulated[AT : AT + size]) == bytes(size)
        assert function.interrupts.add_msi(AT, size)
        assert bytes(function.config.emulated[AT : AT + size]) == b"\xff" * size


def test_a_capability_that_leaves_the_first_256_bytes_is_hidden() -> None:
    io = DeclaredIO()
    struct.pack_into("<H", io.config, 0xF8 + 2, 0)
    with EmulatedFunction(declared(io)) as function:
        assert not function.interrupts.add_msi(0xF8, 0x100)


@pytest.mark.parametrize(
    ("control", "seen"),
    [
        (0, "05 00 7000 fcffffff ffff"),
        (WIDE, "05 00 f000 fcffffff ffffffff ffff"),
        (MASKABLE, "05 00 7001 fcffffff ffff 0000 01000000 00000000"),
        (CAPABLE_32 | MASKABLE, "05 00 7a01 fcffffff ffff 0000 ffffffff 00000000"),
        (2 << 1 | WIDE | MASKABLE, "05 00 f401 fcffffff ffffffff ffff 0000 0f000000 00000000"),
    ],
)
def test_the_guest_can_write_what_is_its_own(control: int, seen: str) -> None:
    with guest(control) as function:
        expected = bytes.fromhex(seen)
        for offset in range(2, len(expected)):
            enable = 0x01 if offset == 2 else 0  # all but that
            function.config.write(AT + offset, 1, 0xFF & ~enable)
        read = bytes(function.config.read(AT + offset, 1) for offset in range(len(expected)))
        assert read == expected


def test_what_is_in_the_device_s_capability_is_not_shown() -> None:
    io = DeclaredIO(capabilities={AT: struct.pack("<BHIIH", 5, WIDE | 1, 0x1000, 1, 0x77)})
    with EmulatedFunction(declared(io)) as function:
        assert function.config.read(AT + 2, 2) == WIDE
        assert [function.config.read(AT + at, 4) for at in (4, 8, 12)] == [0, 0, 0]


def test_more_vectors_than_there_can_be_are_32() -> None:
    with guest(7 << 1) as function:
        assert function.get(pci.MSI_CONTROL) == CAPABLE_32
        function.enable(order=7)
        assert vectors(function) == 32


# Messages


@pytest.mark.parametrize(("order", "count"), [(0, 1), (1, 2), (3, 8), (5, 32)])
def test_the_device_is_asked_for_what_the_guest_allocates(order: int, count: int) -> None:
    with guest(CAPABLE_32) as function:
        function.enable(order)
        assert vectors(function) == count


@pytest.mark.parametrize("control", [CAPABLE_32, CAPABLE_32 | WIDE])
def test_the_vector_is_in_the_low_bits_of_the_data(control: int) -> None:
    with guest(control) as function:
        function.enable(order=2, data=0x4FFF)
        for vector in range(4):
            function.fire(vector)
        assert function.host.messages == [(ADDRESS, 0x4FFC + vector) for vector in range(4)]


def test_one_vector_has_all_bits_of_the_data() -> None:
    with guest(CAPABLE_32) as function:
        function.enable(data=0x4FFF)
        function.fire(0)
        assert function.host.messages == [(ADDRESS, 0x4FFF)]


def test_more_vectors_than_the_device_has_are_what_it_has() -> None:
    with guest(1 << 1) as function:
        function.enable(order=4)
        assert function.get(pci.MSI_CONTROL) == 1 << 1 | 1 << 4 | 1
        assert vectors(function) == 2


def test_a_vector_whose_message_was_taken_away_sends_nothing() -> None:
    with guest(CAPABLE_32) as function:
        function.enable(order=2)
        function.enable(order=1)
        function.fire(2)
        function.fire(1)
        assert function.host.messages == [(ADDRESS, 1)]


def test_the_upper_half_of_an_address_counts_where_there_is_one() -> None:
    with guest(WIDE) as function:
        function.put(pci.MSI_ADDRESS_HI, 5)
        function.enable()
        function.fire(0)
        assert function.host.messages == [(5 << 32 | ADDRESS, 0)]


def test_every_route_hears_of_another_message() -> None:
    with guest(CAPABLE_32, RecordingHost(takes=True)) as function:
        function.enable(order=1, data=0x10)
        function.put(pci.MSI_DATA_32, 0x20)
        latest = [route.messages[-1] for route in function.host.routes[1:]]
        assert latest == [(ADDRESS, 0x20), (ADDRESS, 0x21)]


def test_routes_without_a_message_hear_of_none() -> None:
    with guest(CAPABLE_32, RecordingHost(takes=True)) as function:
        function.enable(order=1)
        function.put(pci.MSI_CONTROL, pci.MSI_CONTROL_ENABLE)
        heard = [len(route.messages) for route in function.host.routes[1:]]
        assert heard == [2, 1]


def test_a_function_that_may_not_write_to_memory_sends_no_message() -> None:
    with guest(0) as function:
        function.enable()
        function.command(0)
        function.fire(0)
        assert function.host.messages == []


class StuckRoute(Route):
    """A route that cannot be ended."""

    def close(self) -> None:
        raise ZeroDivisionError


class StuckHost(RecordingHost):
    """Takes eventfds of messages, and its code is wrong where it lets go of them."""

    def route_msi(self, function: Requester, address: int, data: int, eventfd: int) -> Route | None:
        return StuckRoute(self, eventfd)


def test_routes_that_cannot_be_ended_leave_no_descriptor() -> None:
    before = open_fds()
    with pytest.raises(ZeroDivisionError), guest(CAPABLE_32, StuckHost()) as function:
        function.enable(order=3)
    assert open_fds() == before


# Masks


def test_a_masked_vector_is_pending_until_it_is_unmasked() -> None:
    with guest(CAPABLE_32 | MASKABLE) as function:
        function.enable(order=2)
        function.put(pci.MSI_MASK_32, 0b0110)
        function.fire(1)
        function.fire(2)
        assert function.get(pci.MSI_PENDING_32) == 0b0110
        function.put(pci.MSI_MASK_32, 0b0100)
        assert function.host.messages == [(ADDRESS, 1)]
        assert function.get(pci.MSI_PENDING_32) == 0b0100


def test_pending_vectors_without_a_message_are_dropped() -> None:
    with guest(CAPABLE_32 | MASKABLE | WIDE) as function:
        function.enable(order=2)
        function.put(pci.MSI_MASK_64, 0b1111)
        function.fire(3)
        function.enable(order=1)
        assert function.get(pci.MSI_PENDING_64) == 0
        function.put(pci.MSI_MASK_64, 0)
        assert function.host.messages == []


def test_a_reset_clears_all_of_it() -> None:
    with guest(CAPABLE_32 | MASKABLE) as function:
        function.enable(order=2, data=7)
        function.put(pci.MSI_MASK_32, 1)
        function.fire(0)
        function.interrupts.reset()
        assert function.get(pci.MSI_CONTROL) == CAPABLE_32 | MASKABLE
        assert [function.config.read(AT + at, 4) for at in (4, 8, 12, 16)] == [0, 0, 0, 0]
        assert function.interrupts.mode is None


# Masks where the emulator takes eventfds


@pytest.fixture
def taker() -> Iterator[Guest]:
    """A function with 32 maskable vectors, of an emulator that takes their eventfds."""
    with guest(CAPABLE_32 | MASKABLE, RecordingHost(takes=True)) as function:
        yield function


def test_while_it_is_masked_a_vector_that_was_handed_over_comes_to_us(taker: Guest) -> None:
    taker.enable(order=1)
    taker.put(pci.MSI_MASK_32, 0b01)
    taker.fire(0)
    assert taker.get(pci.MSI_PENDING_32) == 0b01
    assert [route.taken() for route in taker.host.routes[1:]] == [0, 0]
    taker.put(pci.MSI_MASK_32, 0)
    assert taker.get(pci.MSI_PENDING_32) == 0
    assert taker.host.messages == [(ADDRESS, 0)]
    taker.io.fire(PCIIRQ.MSI, 0)
    assert taker.routed(1)


def test_a_vector_masked_before_msi_is_enabled_comes_to_us_from_the_start(taker: Guest) -> None:
    taker.put(pci.MSI_MASK_32, 0b10)
    taker.enable(order=1)
    taker.fire(1)
    assert taker.get(pci.MSI_PENDING_32) == 0b10
    taker.io.fire(PCIIRQ.MSI, 0)
    assert taker.routed(1)


def test_a_vector_handed_over_whose_message_was_taken_away_sends_nothing(taker: Guest) -> None:
    taker.enable(order=1)
    taker.enable(order=0)
    taker.fire(1)
    assert taker.host.messages == []
    assert taker.get(pci.MSI_PENDING_32) == 0
    assert taker.host.routes[2].taken() == 0
    taker.enable(order=1)
    taker.io.fire(PCIIRQ.MSI, 1)
    assert taker.routed(2)


def test_the_device_is_asked_for_vectors_whose_mask_changes(taker: Guest) -> None:
    taker.enable(order=5)
    taker.io.calls.clear()
    taker.put(pci.MSI_MASK_32, 0b1010)
    taker.put(pci.MSI_MASK_32, 0b1010)
    taker.put(pci.MSI_MASK_32, 0b1000)
    asked = [(start, count) for _, _, start, count, _ in taker.io.calls]
    assert asked == [(1, 1), (3, 1), (1, 1)]


def test_a_mask_changes_nothing_for_a_device_whose_signals_come_to_us_anyway() -> None:
    with guest(CAPABLE_32 | MASKABLE) as function:
        function.enable(order=5)
        function.io.calls.clear()
        function.put(pci.MSI_MASK_32, 0xFFFF_FFFF)
        function.put(pci.MSI_MASK_32, 0)
        assert function.io.calls == []


def test_a_device_that_refuses_is_asked_again_at_the_next_write(taker: Guest) -> None:
    taker.enable()
    taker.io.errors = [refusal(None)]
    taker.put(pci.MSI_MASK_32, 1)
    taker.put(pci.MSI_MASK_32, 1)
    taker.fire(0)
    assert taker.get(pci.MSI_PENDING_32) == 1


def test_masks_of_the_time_before_do_not_count_after_a_reset(taker: Guest) -> None:
    taker.enable()
    taker.put(pci.MSI_MASK_32, 1)
    taker.interrupts.reset()
    taker.enable()
    taker.io.fire(PCIIRQ.MSI, 0)
    assert taker.routed()


# Too few vectors


def refusal(available: int | None) -> IRQError:
    return IRQError("no vectors", available=available, errno=errno.ENOSPC)


def test_a_host_with_fewer_vectors_gives_those() -> None:
    with guest(CAPABLE_32) as function:
        function.io.errors = [None, refusal(3)]  # the pin is disabled first
        function.enable(order=3)
        assert function.interrupts.mode is PCIIRQ.MSI
        assert vectors(function) == 3
        function.fire(2)
        assert function.host.messages == [(ADDRESS, 2)]


def test_a_host_whose_vectors_become_fewer_and_fewer_gives_the_last_of_them() -> None:
    with guest(CAPABLE_32) as function:
        function.io.errors = [None, refusal(7), None, refusal(2), None]
        function.enable(order=3)
        assert vectors(function) == 2


@pytest.mark.parametrize("available", [None, 0, -1, 8, 9, 32])
def test_a_refusal_that_makes_no_sense_leaves_no_interrupts(
    available: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    with guest(CAPABLE_32) as function:
        before = len(open_fds())
        function.io.errors = [None, refusal(available)]
        function.enable(order=3)
        assert function.interrupts.mode is None
        assert "guest's: cannot enable MSI" in caplog.text
        assert len(open_fds()) < before  # the pin's is closed, and none of MSI's is left
        function.put(pci.MSI_CONTROL, 0)
        assert function.interrupts.mode is PCIIRQ.INTX
        assert len(open_fds()) == before


def test_after_a_refusal_the_index_is_disabled() -> None:
    with guest(CAPABLE_32) as function:
        function.io.errors = [None, refusal(None)]
        function.enable(order=3)
        assert function.io.calls[-1] == (PCIIRQ.MSI, IRQSetFlags.TRIGGER, 0, 0, False)


def test_the_same_refusal_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with guest(CAPABLE_32) as function:
        for _ in range(5):
            function.io.errors = [None, refusal(None)]
            function.enable()
            function.put(pci.MSI_CONTROL, 0)
        assert sum("cannot enable MSI" in line for line in caplog.messages) == 1
