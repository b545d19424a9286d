# SPDX-License-Identifier: BSD-3-Clause
"""A PCI bus: functions by slot and number, configuration accesses, reset."""

from __future__ import annotations

import pytest

from pyvfio.emulator import BusKind
from pyvfio.emulator.bus import Bus
from pyvfio.errors import ResetError
from tests.unit.guest_map import GuestMap


class Function:
    """A function that keeps what it is asked."""

    def __init__(self, name: str, *, multifunction: bool = False, broken: bool = False) -> None:
        self.name = name
        self.multifunction = multifunction
        self.accesses: list[tuple[int, ...]] = []
        self.resets = 0
        self._broken = broken

    def config_read(self, offset: int, width: int) -> int:
        self.accesses.append((offset, width))
        return 0x12

    def config_write(self, offset: int, width: int, value: int) -> None:
        self.accesses.append((offset, width, value))

    def reset(self) -> None:
        self.resets += 1
        if self._broken:
            raise ResetError(f"{self.name} does not")


@pytest.fixture
def bus() -> Bus:
    return GuestMap().bus


def test_accesses_go_to_the_function_in_the_place(bus: Bus) -> None:
    one, other = Function("one"), Function("other")
    bus.add(one, 1, 0)
    bus.add(other, 2, 0)
    assert bus.config_read(1, 0, 0x40, 2) == 0x12
    bus.config_write(2, 0, 0x44, 4, 5)
    assert one.accesses == [(0x40, 2)]
    assert other.accesses == [(0x44, 4, 5)]


@pytest.mark.parametrize("width", [1, 2, 4])
def test_nobody_answers_ones(bus: Bus, width: int) -> None:
    assert bus.config_read(7, 0, 0, width) == (1 << 8 * width) - 1
    bus.config_write(7, 0, 0, width, 0)


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        (BusKind.CONVENTIONAL, 0xFC),
        (BusKind.BRIDGED, 0xFC),
        (BusKind.ROOT_COMPLEX, 0xFFC),
        (BusKind.PORT, 0xFFC),
    ],
)
def test_only_express_has_extended_configuration_space(kind: BusKind, last: int) -> None:
    bus, function = GuestMap(kind).bus, Function("one")
    bus.add(function, 0, 0)
    assert bus.config_read(0, 0, last, 4) == 0x12
    assert bus.config_read(0, 0, last + 4, 4) == 0xFFFF_FFFF
    bus.config_write(0, 0, last + 4, 4, 1)
    assert function.accesses == [(last, 4)]


@pytest.mark.parametrize(("slot", "number"), [(-1, 0), (32, 0), (0, -1), (0, 8)])
def test_a_place_that_no_bus_has_is_refused(bus: Bus, slot: int, number: int) -> None:
    with pytest.raises(ValueError, match="there is no function"):
        bus.add(Function("one"), slot, number)


def test_a_place_is_taken_once(bus: Bus) -> None:
    bus.add(Function("one"), 1, 0)
    with pytest.raises(ValueError, match=r"01\.0 is one already"):
        bus.add(Function("other"), 1, 0)


def test_others_in_a_slot_need_a_first_that_says_so(bus: Bus) -> None:
    bus.add(Function("one"), 1, 0)
    with pytest.raises(ValueError, match="one in slot 01 is not multifunction"):
        bus.add(Function("other"), 1, 3)


def test_a_first_that_comes_later_needs_to_say_so_as_well(bus: Bus) -> None:
    bus.add(Function("other"), 1, 3)
    with pytest.raises(ValueError, match="not multifunction"):
        bus.add(Function("one"), 1, 0)
    bus.add(Function("one", multifunction=True), 1, 0)
    assert [function.name for function in bus] == ["other", "one"]


def test_a_function_that_left_does_not_answer(bus: Bus) -> None:
    one = Function("one")
    bus.add(one, 1, 0)
    bus.remove(one)
    bus.remove(one)
    assert bus.config_read(1, 0, 0, 2) == 0xFFFF
    bus.add(Function("other"), 1, 0)


def test_a_function_that_fails_its_reset_does_not_keep_the_others_from_theirs(bus: Bus) -> None:
    functions = [Function("a"), Function("b", broken=True), Function("c", broken=True)]
    for slot, function in enumerate(functions):
        bus.add(function, slot, 0)
    with pytest.raises(ResetError, match="b does not") as caught:
        bus.reset()
    assert [function.resets for function in functions] == [1, 1, 1]
    assert caught.value.__notes__ == ["c does not"]
