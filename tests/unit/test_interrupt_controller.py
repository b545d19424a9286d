# SPDX-License-Identifier: BSD-3-Clause
"""The machine's interrupt controller: what it takes, in which order, levels and edges."""

from __future__ import annotations

import logging

import pytest

from pyvfio.emulator.machine.interrupts import (
    EOI,
    IN_SERVICE,
    PIN_VECTORS,
    REQUESTED,
    VERSION,
    InterruptController,
)

ADDRESS = 0xFEE0_0000


class Told(InterruptController):
    """A controller that counts how often it has told of something to take."""

    def __init__(self) -> None:
        super().__init__(self._count)
        self.told = 0

    def _count(self) -> None:
        self.told += 1


@pytest.fixture
def controller() -> Told:
    return Told()


def bits(controller: InterruptController, register: int) -> set[int]:
    """The vectors in a register of 256 bits."""
    words = [controller.read(register + 0x10 * number, 4) for number in range(8)]
    return {32 * n + bit for n, word in enumerate(words) for bit in range(32) if word >> bit & 1}


def test_a_message_is_pending_until_it_is_taken(controller: Told) -> None:
    controller.message(ADDRESS, 0x51)
    assert (controller.pending, controller.told) == (0x51, 1)
    assert bits(controller, REQUESTED) == {0x51}
    assert controller.take() == 0x51
    assert controller.pending is None
    assert (bits(controller, REQUESTED), bits(controller, IN_SERVICE)) == (set(), {0x51})
    controller.write(EOI, 4, 0)
    assert bits(controller, IN_SERVICE) == set()


def test_a_message_that_comes_twice_before_it_is_taken_is_one(controller: Told) -> None:
    controller.message(ADDRESS, 0x51)
    controller.message(ADDRESS, 0x51)
    controller.take()
    controller.write(EOI, 4, 0)
    assert controller.pending is None


def test_a_message_that_comes_again_while_it_is_served_is_kept(controller: Told) -> None:
    controller.message(ADDRESS, 0x51)
    controller.take()
    controller.message(ADDRESS, 0x51)
    assert controller.pending is None
    controller.write(EOI, 4, 0)
    assert controller.pending == 0x51


def test_the_highest_vector_is_first_and_only_a_higher_class_interrupts_it(
    controller: Told,
) -> None:
    for vector in (0x51, 0x62, 0x60):
        controller.message(ADDRESS, vector)
    assert controller.take() == 0x62
    assert controller.pending is None
    controller.message(ADDRESS, 0x6F)
    assert controller.pending is None
    controller.message(ADDRESS, 0x70)
    assert controller.take() == 0x70
    controller.write(EOI, 4, 0)
    assert bits(controller, IN_SERVICE) == {0x62}


@pytest.mark.parametrize(
    ("address", "data"),
    [
        (ADDRESS, 0x0F),
        (ADDRESS, 0x00),
        (ADDRESS, 0x0451),
        (ADDRESS, 0x0751),
        (ADDRESS | 5 << 12, 0x51),
    ],
)
def test_a_message_that_is_no_interrupt_or_for_another_processor_is_dropped_and_logged(
    controller: Told, address: int, data: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        controller.message(address, data)
    assert (controller.pending, controller.told) == (None, 0)
    assert f"{data:#x}" in caplog.text


@pytest.mark.parametrize("address", [ADDRESS, ADDRESS | 0xFF << 12, ADDRESS | 0x4])
@pytest.mark.parametrize("data", [0x51, 0x0151, 0xC051])
def test_messages_to_the_processor_or_to_all_are_taken(
    controller: Told, address: int, data: int
) -> None:
    controller.message(address, data)
    assert controller.pending == 0x51


@pytest.mark.parametrize(
    ("address", "taken"),
    [(0xFEDF_FFFC, False), (0xFEE0_0000, True), (0xFEEF_FFFC, True), (0xFEF0_0000, False)],
)
def test_the_addresses_of_messages_are_one_mebibyte(address: int, taken: bool) -> None:
    assert InterruptController.takes(address) is taken


@pytest.mark.parametrize("pin", [1, 2, 3, 4])
def test_a_pin_raises_its_vector_until_it_is_lowered(controller: Told, pin: int) -> None:
    controller.set_pin("a", pin, True)
    for _ in range(3):
        assert controller.take() == PIN_VECTORS[pin - 1]
        controller.write(EOI, 4, 0)
    controller.take()
    controller.set_pin("a", pin, False)
    controller.write(EOI, 4, 0)
    assert controller.pending is None


def test_a_pin_that_is_lowered_before_it_was_taken_is_withdrawn(controller: Told) -> None:
    controller.set_pin("a", 1, True)
    controller.set_pin("a", 1, False)
    assert controller.pending is None


def test_a_pin_that_two_functions_share_is_lowered_by_the_last(controller: Told) -> None:
    controller.set_pin("a", 1, True)
    controller.set_pin("b", 1, True)
    controller.set_pin("a", 1, False)
    assert controller.pending == PIN_VECTORS[0]
    controller.set_pin("b", 1, False)
    assert controller.pending is None


def test_a_pin_that_does_not_exist_is_refused(controller: Told) -> None:
    for pin in (0, 5):
        with pytest.raises(ValueError, match="has no pin"):
            controller.set_pin("a", pin, True)


def test_nothing_is_taken_where_nothing_is_pending(controller: Told) -> None:
    with pytest.raises(ValueError, match="no interrupt is pending"):
        controller.take()


def test_an_end_of_interrupt_without_one_is_ignored(controller: Told) -> None:
    controller.write(EOI, 4, 0)
    assert controller.pending is None


def test_registers_take_accesses_of_32_bits(controller: Told) -> None:
    controller.message(ADDRESS, 0x51)
    controller.take()
    controller.write(EOI, 1, 0)
    controller.write(EOI + 4, 4, 0)
    assert bits(controller, IN_SERVICE) == {0x51}
    assert controller.read(IN_SERVICE + 0x20, 1) == 0
    assert controller.read(IN_SERVICE + 4, 4) == 0
    assert controller.read(VERSION, 4) == 0x14


def test_a_reset_forgets_messages_and_keeps_levels(controller: Told) -> None:
    controller.message(ADDRESS, 0x51)
    controller.take()
    controller.set_pin("a", 2, True)
    controller.reset()
    assert bits(controller, IN_SERVICE) == set()
    assert controller.pending == PIN_VECTORS[1]
