# SPDX-License-Identifier: BSD-3-Clause
"""The machine's host bridge: configuration space by ports and by its window in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvfio.emulator.machine import Machine
from tests.unit.machine_parts import Function

ADDRESS, DATA = 0xCF8, 0xCFC
BASE = 0xB000_0000
SLOT = 3
ONES = 0xFFFF_FFFF


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(1 << 20) as found:
        yield found


@pytest.fixture
def function(machine: Machine) -> Function:
    found = Function()
    machine.plug(found, SLOT)
    found.config[0x40:0x44] = (0x4433_2211).to_bytes(4, "little")
    found.config[0x100:0x104] = (0x8877_6655).to_bytes(4, "little")
    return found


def select(machine: Machine, register: int, slot: int = SLOT, bus: int = 0) -> None:
    machine.ports.write(ADDRESS, 4, 0x8000_0000 | bus << 16 | slot << 11 | register)


def window(machine: Machine, base: int, length: int = 0) -> None:
    """Place the window of configuration space."""
    for register, value in ((0x64, base >> 32), (0x60, base & ONES | length << 1 | 1)):
        select(machine, register, 0)
        machine.ports.write(DATA, 4, value)


# Ports


def test_the_bridge_is_the_first_function(machine: Machine) -> None:
    select(machine, 0, 0)
    assert machine.ports.read(DATA, 4) == 0x29C0_8086
    select(machine, 8, 0)
    assert machine.ports.read(DATA, 4) == 0x0600_0000


@pytest.mark.usefixtures("function")
@pytest.mark.parametrize(
    ("port", "width", "value"),
    [
        (0xCFC, 4, 0x4433_2211),
        (0xCFC, 2, 0x2211),
        (0xCFE, 2, 0x4433),
        (0xCFC, 1, 0x11),
        (0xCFD, 1, 0x22),
        (0xCFE, 1, 0x33),
        (0xCFF, 1, 0x44),
    ],
)
def test_the_data_port_takes_all_widths(
    machine: Machine, port: int, width: int, value: int
) -> None:
    select(machine, 0x40)
    assert machine.ports.read(port, width) == value


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_write_is_one_of_its_width(machine: Machine, function: Function, width: int) -> None:
    select(machine, 0x80)
    machine.ports.write(DATA, width, (1 << 8 * width) - 1)
    assert function.config[0x80:0x84] == b"\xff" * width + bytes(4 - width)


@pytest.mark.usefixtures("function")
def test_an_access_across_a_register_reaches_only_what_is_in_it(machine: Machine) -> None:
    select(machine, 0x40)
    assert machine.ports.read(0xCFE, 4) == 0xFFFF_4433


@pytest.mark.usefixtures("function")
def test_nothing_answers_while_the_mechanism_is_off(machine: Machine) -> None:
    machine.ports.write(ADDRESS, 4, SLOT << 11)
    assert machine.ports.read(DATA, 4) == ONES
    machine.ports.write(DATA, 4, 0)
    select(machine, 0)
    assert machine.ports.read(DATA, 4) == 0x5678_1234


@pytest.mark.usefixtures("function")
@pytest.mark.parametrize(("slot", "bus"), [(4, 0), (31, 0), (SLOT, 1), (SLOT, 255)])
def test_nothing_answers_where_no_function_is(machine: Machine, slot: int, bus: int) -> None:
    select(machine, 0, slot, bus)
    assert machine.ports.read(DATA, 4) == ONES


def test_the_address_port_takes_32_bits_at_once_and_keeps_no_reserved_bits(
    machine: Machine,
) -> None:
    machine.ports.write(ADDRESS, 4, ONES)
    assert machine.ports.read(ADDRESS, 4) == 0x80FF_FFFC
    for port, width in ((ADDRESS, 1), (ADDRESS, 2), (ADDRESS + 3, 1)):
        machine.ports.write(port, width, 0)
        assert machine.ports.read(port, width) == (1 << 8 * width) - 1
    assert machine.ports.read(ADDRESS, 4) == 0x80FF_FFFC


# Window


@pytest.mark.usefixtures("function")
def test_there_is_no_window_before_the_guest_places_it(machine: Machine) -> None:
    assert machine.memory.find(BASE) is None
    window(machine, BASE)
    assert machine.memory.read(BASE + (SLOT << 15), 4) == 0x5678_1234


@pytest.mark.usefixtures("function")
@pytest.mark.parametrize(
    ("register", "width", "value"),
    [
        (0x40, 4, 0x4433_2211),
        (0x42, 2, 0x4433),
        (0x43, 1, 0x44),
        (0x100, 4, 0x8877_6655),
        (0x40, 8, 0x4433_2211),
        (0x41, 2, 0x3322),
    ],
)
def test_the_window_reaches_all_4096_bytes_with_all_widths(
    machine: Machine, register: int, width: int, value: int
) -> None:
    window(machine, BASE)
    assert machine.memory.read(BASE + (SLOT << 15) + register, width) == value


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_write_to_the_window_is_one_to_configuration_space(
    machine: Machine, function: Function, width: int
) -> None:
    window(machine, BASE)
    machine.memory.write(BASE + (SLOT << 15) + 0x200, width, (1 << 8 * width) - 1)
    assert function.config[0x200:0x208] == b"\xff" * width + bytes(8 - width)


def test_the_bridge_has_no_extended_configuration_space(machine: Machine) -> None:
    window(machine, BASE)
    assert machine.memory.read(BASE + 0xFC, 4) == 0
    assert machine.memory.read(BASE + 0x100, 4) == ONES
    machine.memory.write(BASE + 0x100, 4, 0)
    assert machine.memory.read(BASE + 0x100, 4) == ONES


@pytest.mark.usefixtures("function")
def test_other_buses_of_the_window_are_empty(machine: Machine) -> None:
    window(machine, BASE)
    for address in (BASE + (1 << 20) + (SLOT << 15), BASE + (255 << 20)):
        assert machine.memory.read(address, 4) == ONES
        machine.memory.write(address, 4, 0)


@pytest.mark.usefixtures("function")
@pytest.mark.parametrize(
    ("base", "length", "size"),
    [
        (BASE, 0, 256 << 20),
        (0xB800_0000, 1, 128 << 20),
        (0xBC00_0000, 2, 64 << 20),
        (0x12_3000_0000, 0, 256 << 20),
    ],
)
def test_the_window_moves_and_has_the_length_that_is_asked_for(
    machine: Machine, base: int, length: int, size: int
) -> None:
    window(machine, 0xD000_0000)
    window(machine, base, length)
    found = machine.memory.find(base)
    assert found is not None
    assert (found.start, found.size) == (base, size)
    assert machine.memory.read(base + (SLOT << 15), 4) == 0x5678_1234
    assert machine.memory.find(0xD000_0000) is None


def test_bits_of_the_base_below_the_length_do_not_count(machine: Machine) -> None:
    window(machine, 0xBC00_0000, 0)
    found = machine.memory.find(BASE)
    assert found is not None
    assert found.start == BASE


@pytest.mark.parametrize("value", [BASE, BASE | 3 << 1 | 1])
def test_a_window_that_is_off_or_of_a_reserved_length_is_gone(machine: Machine, value: int) -> None:
    window(machine, BASE)
    select(machine, 0x60, 0)
    machine.ports.write(DATA, 4, value)
    assert machine.memory.find(BASE) is None


def test_what_is_read_only_in_the_bridge_stays(machine: Machine) -> None:
    before = [machine.bus.config_read(0, 0, offset, 4) for offset in range(0, 256, 4)]
    for offset in (*range(0, 0x60, 4), *range(0x68, 256, 4)):
        machine.bus.config_write(0, 0, offset, 4, ONES)
    after = [machine.bus.config_read(0, 0, offset, 4) for offset in range(0, 256, 4)]
    assert before == after


@pytest.mark.usefixtures("function")
def test_a_reset_takes_the_window_away(machine: Machine) -> None:
    window(machine, BASE)
    machine.reset()
    assert machine.memory.find(BASE) is None
    assert machine.ports.read(ADDRESS, 4) == 0
    window(machine, BASE)
    assert machine.memory.read(BASE + (SLOT << 15), 4) == 0x5678_1234
