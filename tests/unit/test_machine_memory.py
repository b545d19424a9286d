# SPDX-License-Identifier: BSD-3-Clause
"""RAM that comes and goes in front of other RAM while the guest reads and writes it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvfio.emulator.machine import Machine, Outcome
from pyvfio.emulator.memory import MMIORegion, RAMRegion
from tests.unit.machine_parts import Registers
from tests.unit.x86 import CODE, HLT, STACK, load, out, put, store

PAGE, AREA, PAGES = 0x1000, 0x4_0000, 8
SEEN, SWITCH = 0x8_0000, 0x500
RAM_SIZE = 1 << 20


class Bank(NamedTuple):
    """RAM that can be switched on and off; later ones are in front."""

    first: int
    pages: int


BANKS = (Bank(0, 4), Bank(2, 4), Bank(3, 1), Bank(5, 3))


class Operation(NamedTuple):
    """What the guest does: switch bank ``number``, or write to or read from page ``number``."""

    kind: str
    number: int
    by_port: bool


OPERATIONS = st.lists(
    st.one_of(
        st.builds(Operation, st.just("switch"), st.integers(0, len(BANKS) - 1), st.booleans()),
        st.builds(
            Operation, st.sampled_from(["write", "read"]), st.integers(0, PAGES - 1), st.just(False)
        ),
    ),
    min_size=1,
    max_size=60,
)


class Model:
    """What the guest should read, kept as one word for each page of each bank."""

    def __init__(self) -> None:
        self.enabled: set[int] = set()
        self.words: dict[tuple[int, int], int] = {}

    def place(self, page: int) -> tuple[int, int]:
        """The bank that is seen at a page, -1 for the RAM behind all, and the page in it."""
        for number in sorted(self.enabled, reverse=True):
            bank = BANKS[number]
            if bank.first <= page < bank.first + bank.pages:
                return number, page - bank.first
        return -1, page


@settings(max_examples=60, deadline=None)
@given(OPERATIONS)
def test_each_access_reaches_the_ram_that_is_in_front_at_that_instruction(
    operations: list[Operation],
) -> None:
    model, code = Model(), b""
    wanted: list[int] = []
    for serial, (kind, number, by_port) in enumerate(operations, 1):
        if kind == "switch":
            model.enabled ^= {number}
            code += out(SWITCH, number) if by_port else put(0xC000_0000, number)
        elif kind == "write":
            model.words[model.place(number)] = serial
            code += put(AREA + number * PAGE, serial)
        else:
            code += load(AREA + number * PAGE) + store(SEEN + 4 * len(wanted))
            wanted.append(model.words.get(model.place(number), 0))
    assert seen(code + HLT, len(wanted)) == wanted


def seen(code: bytes, count: int) -> list[int]:
    """Run the program on a machine with the banks; returns the words that it has stored."""
    with ExitStack() as stack:
        banks = [
            stack.enter_context(RAMRegion(f"bank {number}", bank.pages * PAGE))
            for number, bank in enumerate(BANKS)
        ]
        machine = stack.enter_context(Machine(RAM_SIZE))
        switches = Registers()

        def switch(_: int, number: int) -> None:
            banks[number].enabled = not banks[number].enabled

        switches.on_write = switch
        machine.bus.io.add(MMIORegion("switches", 4, switches), SWITCH)
        machine.bus.memory.add(MMIORegion("switches", PAGE, switches), 0xC000_0000)
        for number, bank in enumerate(banks):
            bank.enabled = False
            machine.memory.root.add(bank, AREA + BANKS[number].first * PAGE, 1 + number)
        machine.load(CODE, code)
        machine.start(CODE, STACK)
        assert machine.run(20).outcome is Outcome.HALTED
        data = machine.ram.read_bytes(SEEN, 4 * count)
        for bank_region in banks:
            machine.memory.root.remove(bank_region)
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
