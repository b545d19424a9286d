# SPDX-License-Identifier: BSD-3-Clause
"""The machine: its processor on the memory map and ports, interrupts, and how a run ends."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Iterator

import pytest

from pyvfio.emulator.machine import Machine, Outcome, Result
from pyvfio.emulator.memory import AliasRegion, MemoryRegion, MMIORegion, RAMRegion
from pyvfio.errors import BufferInUse
from tests.support import in_threads, run_program
from tests.unit.machine_parts import Function, Registers
from tests.unit.x86 import (
    CLI,
    CODE,
    FOREVER,
    HANDLER,
    HLT,
    IRET,
    NOP,
    RESULT,
    STACK,
    STI,
    copy_words,
    eax,
    increment,
    inp,
    jump,
    load,
    load8,
    load16,
    out,
    prologue,
    put,
    store,
    store8,
    store16,
    with_interrupts,
)

SECONDS = 20.0
"""How long a program may take that ends by itself."""
RAM = 1 << 20
WINDOW = 0xC000_0000
EOI = put(0xFEE0_00B0, 0)
VECTOR = 0x51
MESSAGE = (0xFEE0_0000, VECTOR)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(RAM) as found:
        yield found
    gc.collect()  # the engine's callbacks are cycles


@pytest.fixture
def registers(machine: Machine) -> Registers:
    """Registers at :data:`WINDOW`."""
    found = Registers()
    machine.bus.memory.add(MMIORegion("registers", 4096, found), WINDOW)
    return found


@pytest.fixture
def function(machine: Machine) -> Function:
    """A function in slot 3."""
    found = Function()
    machine.plug(found, 3)
    found.send = lambda: machine.send_msi(found, *MESSAGE)
    return found


def run(machine: Machine, code: bytes, seconds: float = SECONDS) -> Result:
    """Run a program from its start."""
    machine.load(CODE, code)
    machine.start(CODE, STACK)
    return machine.run(seconds)


def halts(machine: Machine, code: bytes) -> Result:
    """Run a program that has to come to its end."""
    result = run(machine, code)
    assert result.outcome is Outcome.HALTED, result
    return result


def word(machine: Machine, address: int) -> int:
    """32 bits of RAM."""
    return int.from_bytes(machine.ram.read_bytes(address, 4), "little")


# Memory and ports


def test_the_processor_and_the_host_see_the_same_ram(machine: Machine) -> None:
    machine.load(RESULT, (0x1234_5678).to_bytes(4, "little"))
    halts(machine, increment(RESULT) + load(RESULT) + HLT)
    assert word(machine, RESULT) == 0x1234_5679


@pytest.mark.parametrize(
    ("code", "access"),
    [
        (load(WINDOW + 4), ("read", 4, 4, 0x2222_2222)),
        (load16(WINDOW + 6), ("read", 6, 2, 0x2222_2222)),
        (load8(WINDOW + 7), ("read", 7, 1, 0x2222_2222)),
        (eax(0x8765_4321) + store(WINDOW + 4), ("write", 4, 4, 0x8765_4321)),
        (eax(0x8765_4321) + store16(WINDOW + 6), ("write", 6, 2, 0x4321)),
        (eax(0x8765_4321) + store8(WINDOW + 7), ("write", 7, 1, 0x21)),
    ],
)
def test_a_load_or_store_is_one_access_of_its_width(
    machine: Machine, registers: Registers, code: bytes, access: tuple[str, int, int, int]
) -> None:
    halts(machine, code + HLT)
    assert registers.accesses == [access]


def test_an_instruction_that_reads_and_writes_does_each_once(
    machine: Machine, registers: Registers
) -> None:
    halts(machine, increment(WINDOW) + HLT)
    assert registers.accesses == [
        ("read", 0, 4, 0x1111_1111),
        ("write", 0, 4, 0x1111_1112),
    ]


@pytest.mark.parametrize("code", [load(WINDOW), put(WINDOW, 7), increment(WINDOW)])
def test_a_pause_at_an_access_does_not_repeat_it(
    machine: Machine, registers: Registers, code: bytes
) -> None:
    def pause(_: int) -> int:
        machine.cpu.pause()
        return 5

    registers.on_read = pause
    registers.on_write = lambda *_: machine.cpu.pause()
    halts(machine, 3 * code + HLT)
    assert len(registers.accesses) == 3 * (2 if code == increment(WINDOW) else 1)


def test_words_are_copied_to_registers_one_by_one(machine: Machine, registers: Registers) -> None:
    machine.load(RESULT, bytes(range(16)))
    halts(machine, copy_words(WINDOW, RESULT, 4) + HLT)
    assert registers.accesses == [
        ("write", 0, 4, 0x0302_0100),
        ("write", 4, 4, 0x0706_0504),
        ("write", 8, 4, 0x0B0A_0908),
        ("write", 12, 4, 0x0F0E_0D0C),
    ]


def test_where_nothing_is_ones_are_read_and_writes_are_dropped(machine: Machine) -> None:
    halts(machine, put(WINDOW, 1) + load(WINDOW) + store(RESULT) + HLT)
    assert word(machine, RESULT) == 0xFFFF_FFFF


@pytest.mark.parametrize("width", [1, 2, 4])
def test_in_and_out_are_one_access_of_a_port(machine: Machine, width: int) -> None:
    ports = Registers()
    machine.bus.io.add(MMIORegion("ports", 16, ports), 0x500)
    halts(machine, out(0x508, 0x8765_4321, width) + inp(0x504, width) + store(RESULT) + HLT)
    mask = (1 << 8 * width) - 1
    assert ports.accesses == [
        ("write", 8, width, 0x8765_4321 & mask),
        ("read", 4, width, 0x2222_2222),
    ]
    assert word(machine, RESULT) == 0x2222_2222 & mask


def test_a_port_that_nobody_has_reads_as_ones(machine: Machine) -> None:
    halts(machine, out(0x80, 1, 1) + inp(0x80) + store(RESULT) + HLT)
    assert word(machine, RESULT) == 0xFFFF_FFFF


# The memory map changes while the guest runs


def test_the_legacy_vga_range_of_a_device_is_in_front_of_the_ram(machine: Machine) -> None:
    registers = Registers()
    vga = MMIORegion("vga", 0x20000, registers)
    machine.memory.write(0xA0000, 4, 0x1234_5678)
    machine.bus.memory.add(vga, 0xA0000, 1)
    machine.load(CODE, load(0xA0000) + store(RESULT) + HLT)
    machine.start(CODE, STACK)
    assert machine.run(SECONDS).outcome is Outcome.HALTED
    assert registers.accesses == [("read", 0, 4, 0x1111_1111)]
    assert machine.memory.read(RESULT, 4) == 0x1111_1111
    machine.bus.memory.remove(vga)
    assert machine.memory.read(0xA0000, 4) == 0x1234_5678


@pytest.mark.usefixtures("function")
def test_a_bar_appears_moves_and_goes_as_the_guest_programs_it(machine: Machine) -> None:
    def config(register: int, value: int) -> bytes:
        return out(0xCF8, 0x8000_1800 | register) + out(0xCFC, value)

    code = load(WINDOW) + store(RESULT)
    code += config(0x10, WINDOW) + config(0x04, 2) + load(WINDOW) + store(RESULT + 4)
    code += config(0x10, WINDOW + 0x8000) + load(WINDOW) + store(RESULT + 8)
    code += load(WINDOW + 0x8000) + store(RESULT + 12)
    code += config(0x04, 0) + load(WINDOW + 0x8000) + store(RESULT + 16)
    halts(machine, code + HLT)
    ones = 0xFFFF_FFFF
    seen = [word(machine, RESULT + 4 * number) for number in range(5)]
    assert seen == [ones, 0x1111_1111, ones, 0x1111_1111, ones]


@pytest.mark.parametrize("how", ["port", "memory"])
def test_ram_that_a_device_covers_and_uncovers_is_seen_so_by_the_next_instruction(
    machine: Machine, registers: Registers, how: str
) -> None:
    cover = MMIORegion("cover", 4096, Registers())
    cover.enabled = False
    machine.memory.root.add(cover, RESULT & ~0xFFF, 5)

    def switch(_: int, value: int) -> None:
        cover.enabled = bool(value)

    switches = Registers()
    registers.on_write = switches.on_write = switch
    machine.bus.io.add(MMIORegion("switches", 4, switches), 0x500)

    def cover_it(value: int) -> bytes:
        return put(WINDOW, value) if how == "memory" else out(0x500, value)

    aside = 0xA000
    code = put(RESULT, 0xAAAA) + cover_it(1) + load(RESULT) + store(aside) + put(RESULT, 0xBBBB)
    code += cover_it(0) + load(RESULT) + store(aside + 4)
    halts(machine, code + HLT)
    assert (word(machine, aside), word(machine, aside + 4)) == (0x1111_1111, 0xAAAA)


def test_code_that_comes_to_other_ram_is_executed_as_it_is_there(machine: Machine) -> None:
    bank = 0x10_0000 + RAM
    with RAMRegion("one", 4096) as one, RAMRegion("two", 4096) as two:
        one.write_bytes(0, eax(1) + b"\xc3")
        two.write_bytes(0, eax(2) + b"\xc3")
        window = AliasRegion("window", one, 0, 4096)
        other = AliasRegion("other", two, 0, 4096)
        other.enabled = False
        for region in (window, other):
            machine.memory.root.add(region, bank)
        switch = Registers()

        def change(*_: int) -> None:
            with machine.topology.transaction():
                window.enabled, other.enabled = False, True

        switch.on_write = change
        machine.bus.io.add(MMIORegion("switch", 4, switch), 0x500)
        call = b"\xb9" + bank.to_bytes(4, "little") + b"\xff\xd1"
        halts(machine, call + store(RESULT) + out(0x500, 0) + call + store(RESULT + 4) + HLT)
        machine.memory.root.remove(window)
        machine.memory.root.remove(other)
        machine.close()
    assert (one.size, two.size) == (4096, 4096)


def test_a_page_that_is_ram_in_part_is_reached_all_the_same(machine: Machine) -> None:
    registers = Registers()
    machine.memory.root.add(MMIORegion("small", 16, registers), RESULT + 0x10, 1)
    code = put(RESULT, 0x55) + load(RESULT + 0x10) + store(RESULT + 0x20) + HLT
    halts(machine, code)
    assert (word(machine, RESULT), word(machine, RESULT + 0x20)) == (0x55, 0x1111_1111)
    assert len(registers.accesses) == 1


def test_what_an_access_raises_is_raised_from_the_run_which_can_go_on(
    machine: Machine, registers: Registers
) -> None:
    def refuse(_: int, value: int) -> None:
        raise LookupError(f"not {value}")

    registers.on_write = refuse
    machine.load(CODE, put(WINDOW, 7) + put(RESULT, 1) + HLT)
    machine.start(CODE, STACK)
    with pytest.raises(LookupError, match="not 7"):
        machine.run(SECONDS)
    assert word(machine, RESULT) == 0
    assert machine.run(SECONDS).outcome is Outcome.HALTED
    assert word(machine, RESULT) == 1
    assert len(registers.accesses) == 1


# Interrupts


def take_interrupts(machine: Machine, kind: int = 0x8E, handler: bytes | None = None) -> None:
    """Give the guest a handler that counts."""
    for address, data in with_interrupts((VECTOR, HANDLER, kind), (0x40, HANDLER, kind)).items():
        machine.load(address, data)
    machine.load(HANDLER, (increment(RESULT) if handler is None else handler) + EOI + IRET)


def test_an_interrupt_wakes_a_halted_guest_and_returns_behind_the_halt(
    machine: Machine, function: Function
) -> None:
    take_interrupts(machine)
    function.signal()
    result = halts(machine, prologue() + STI + HLT + put(RESULT + 4, 9) + CLI + HLT)
    assert (word(machine, RESULT), word(machine, RESULT + 4), result.interrupts) == (1, 9, 1)


def test_an_interrupt_that_comes_later_wakes_it_as_well(
    machine: Machine, function: Function
) -> None:
    take_interrupts(machine)
    later = threading.Timer(0.05, function.signal)
    later.start()
    halts(machine, prologue() + STI + HLT + CLI + HLT)
    later.join()
    assert word(machine, RESULT) == 1


def test_an_interrupt_is_taken_while_the_guest_computes(
    machine: Machine, function: Function
) -> None:
    take_interrupts(machine)
    (thread,) = in_threads([function.signal])
    wait = b"\x83\x3d" + RESULT.to_bytes(4, "little") + b"\x00\x74\xf7"  # while [RESULT] == 0
    halts(machine, prologue() + STI + wait + CLI + HLT)
    thread.join()
    assert word(machine, RESULT) == 1


def test_an_interrupt_waits_while_interrupts_are_off(machine: Machine, function: Function) -> None:
    take_interrupts(machine)
    machine.send_msi(function, *MESSAGE)
    code = prologue() + load(RESULT) + store(RESULT + 4) + STI + NOP + NOP + CLI + HLT
    machine.load(CODE, code)
    machine.start(CODE, STACK)
    machine.run(SECONDS)
    assert (word(machine, RESULT), word(machine, RESULT + 4)) == (1, 0)


def test_the_instruction_behind_sti_comes_before_the_interrupt(
    machine: Machine, function: Function
) -> None:
    """A guest that looks, and then waits with ``sti; hlt``, must not miss what it waits for."""
    take_interrupts(machine)
    code = prologue() + STI + HLT + put(RESULT + 4, 1) + CLI + HLT
    machine.load(CODE, code)
    machine.start(CODE, STACK)
    stopped = machine.run(SECONDS, 8)
    assert stopped.registers["eip"] == CODE + len(prologue() + STI)
    machine.send_msi(function, *MESSAGE)
    assert machine.run(SECONDS).outcome is Outcome.HALTED
    assert (word(machine, RESULT), word(machine, RESULT + 4)) == (1, 1)


def test_an_idle_loop_behind_sti_is_interrupted(machine: Machine, function: Function) -> None:
    take_interrupts(machine, handler=increment(RESULT) + HLT)
    machine.load(CODE, prologue() + STI + FOREVER)
    machine.start(CODE, STACK)
    machine.run(SECONDS, 100)
    machine.send_msi(function, *MESSAGE)
    assert machine.run(SECONDS).outcome is Outcome.HALTED
    assert word(machine, RESULT) == 1


@pytest.mark.parametrize(("kind", "interruptible"), [(0x8E, 0), (0x8F, 0x200)])
def test_an_interrupt_gate_turns_interrupts_off_and_a_trap_gate_does_not(
    machine: Machine, function: Function, kind: int, interruptible: int
) -> None:
    flags = b"\x9c\x58" + store(RESULT + 8)  # pushf; pop eax
    take_interrupts(machine, kind, flags)
    machine.send_msi(function, *MESSAGE)
    halts(machine, prologue() + STI + HLT + CLI + HLT)
    assert word(machine, RESULT + 8) & 0x200 == interruptible


def test_a_level_is_taken_again_until_it_is_lowered(machine: Machine, function: Function) -> None:
    lower_at_third = b"\x83\x3d" + RESULT.to_bytes(4, "little") + b"\x03\x75\x0a" + put(WINDOW, 0)
    take_interrupts(machine, handler=increment(RESULT) + lower_at_third)
    registers = Registers()
    registers.on_write = lambda _, value: machine.set_pin(function, 1, bool(value))
    machine.bus.memory.add(MMIORegion("registers", 4096, registers), WINDOW)
    machine.set_pin(function, 1, True)
    result = halts(machine, prologue() + STI + 20 * NOP + CLI + HLT)
    assert (word(machine, RESULT), result.interrupts) == (3, 3)


def test_a_message_to_memory_is_a_write(machine: Machine, function: Function) -> None:
    machine.send_msi(function, RESULT, 0x1234_5678)
    assert word(machine, RESULT) == 0x1234_5678


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ({0x4000 + 8 * VECTOR: bytes(8)}, "is no 32-bit interrupt or trap gate"),
        ({0x4000 + 8 * VECTOR + 5: b"\x0e"}, "is no 32-bit interrupt or trap gate"),
        ({0x4000 + 8 * VECTOR + 2: b"\x10"}, "the gate is for segment 0x10, the guest in 0x8"),
        ({0x3808: b"\xff\x00"}, "the table of 256 bytes at 0x4000 has no such gate"),
    ],
)
def test_an_interrupt_that_the_guest_has_no_handler_for_is_a_fault(
    machine: Machine, function: Function, spoil: dict[int, bytes], says: str
) -> None:
    take_interrupts(machine)
    for address, data in spoil.items():
        machine.load(address, data)
    machine.send_msi(function, *MESSAGE)
    result = run(machine, prologue() + STI + HLT)
    assert result.outcome is Outcome.FAULT
    assert result.reason.startswith("interrupt 0x51: ")
    assert says in result.reason


def test_an_interrupt_with_paging_on_is_a_fault(machine: Machine, function: Function) -> None:
    take_interrupts(machine)
    # a page directory with one 4 MiB page that maps address 0 to itself
    machine.load(0x10000, (0x83).to_bytes(4, "little"))
    paging = b"\xb8\x10\x00\x00\x00\x0f\x22\xe0" + eax(0x10000) + b"\x0f\x22\xd8"
    paging += b"\x0f\x20\xc0\x0d\x00\x00\x00\x80\x0f\x22\xc0"
    machine.send_msi(function, *MESSAGE)
    result = run(machine, prologue() + paging + STI + HLT)
    assert (result.outcome, "paging" in result.reason) == (Outcome.FAULT, True)


# How a run ends


def test_a_guest_that_never_ends_is_stopped_by_the_time(machine: Machine) -> None:
    result = run(machine, FOREVER, 0.05)
    assert (result.outcome, result.reason) == (Outcome.TIMED_OUT, "out of time")
    assert result.registers["eip"] == CODE


def test_a_guest_that_waits_for_ever_is_stopped_by_the_time(machine: Machine) -> None:
    result = run(machine, STI + HLT + FOREVER, 0.05)
    assert result.reason == "out of time, waiting for an interrupt"
    assert result.instructions == 2


def test_a_guest_that_only_asks_a_device_is_stopped_by_the_time(
    machine: Machine, registers: Registers
) -> None:
    code = load(WINDOW) + b"\xeb\xf9"
    result = run(machine, code, 0.05)
    assert result.outcome is Outcome.TIMED_OUT
    assert registers.accesses


def test_the_limit_of_instructions_is_exact_and_the_guest_can_go_on(machine: Machine) -> None:
    machine.load(CODE, 10 * NOP + HLT)
    machine.start(CODE, STACK)
    first = machine.run(SECONDS, 4)
    assert (first.outcome, first.instructions) == (Outcome.LIMIT, 4)
    assert first.registers["eip"] == CODE + 4
    second = machine.run(SECONDS, 7)
    assert (second.outcome, second.instructions) == (Outcome.HALTED, 7)


def test_the_limit_holds_where_an_interrupt_waits_for_the_instruction_behind_sti(
    machine: Machine, function: Function
) -> None:
    take_interrupts(machine)
    machine.load(CODE, prologue() + STI + 20 * NOP + CLI + HLT)
    machine.start(CODE, STACK)
    assert machine.run(SECONDS, 8).instructions == 8
    machine.send_msi(function, *MESSAGE)
    for _ in range(5):
        assert machine.run(SECONDS, 1).instructions == 1
    assert machine.run(SECONDS).interrupts == 0
    assert word(machine, RESULT) == 1


def test_a_guest_that_has_halted_stays_so(machine: Machine) -> None:
    halts(machine, HLT + put(RESULT, 1) + HLT)
    again = machine.run(SECONDS)
    assert (again.outcome, again.instructions) == (Outcome.HALTED, 0)
    assert word(machine, RESULT) == 0


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (b"\x0f\x0b", "executes what is no instruction"),
        (b"\x31\xc9\xf7\xf1", "exception 0x00 (divide error)"),
        (b"\xcd\x80", "exception 0x80 (an interrupt instruction)"),
        (eax(0x28) + b"\x8e\xd8", "exception 0x0d (general protection)"),
        (jump(WINDOW), f"fetches an instruction from where no RAM is, at {WINDOW:#x}"),
    ],
)
def test_what_the_guest_must_not_do_ends_the_run_and_says_where(
    machine: Machine, code: bytes, says: str
) -> None:
    result = run(machine, code)
    assert (result.outcome, result.reason) == (Outcome.FAULT, says)
    assert machine.run(SECONDS).reason == says
    assert "eip=0x" in str(result)


def test_a_write_to_read_only_memory_ends_the_run_and_changes_nothing(machine: Machine) -> None:
    place = 2 * RAM
    with RAMRegion("rom", 4096, readonly=True) as rom:
        rom.write_bytes(0, b"rom!")
        machine.memory.root.add(rom, place)
        result = run(machine, load(place) + store(RESULT) + put(place, 0) + HLT)
        machine.memory.root.remove(rom)
        assert rom.read_bytes(0, 4) == b"rom!"
        machine.close()
    assert result.reason == f"writes to read-only memory, at {place:#x}"


def test_a_reset_machine_starts_again(machine: Machine, function: Function) -> None:
    run(machine, b"\x0f\x0b")
    machine.send_msi(function, *MESSAGE)
    machine.reset()
    assert machine.interrupts.pending is None
    halts(machine, put(RESULT, 3) + HLT)
    assert word(machine, RESULT) == 3


def test_two_machines_do_not_disturb_each_other(machine: Machine) -> None:
    with Machine(RAM) as other:
        halts(machine, put(RESULT, 1) + HLT)
        halts(other, put(RESULT, 2) + HLT)
        assert (word(machine, RESULT), word(other, RESULT)) == (1, 2)


# Life


@pytest.mark.parametrize("size", [0, -4096, 4095, (3 << 30) + 4096])
def test_ram_of_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="bytes of RAM"):
        Machine(size)


@pytest.mark.parametrize(
    ("timeout", "instructions"), [(-1, None), (math.nan, None), (1, -1), (math.inf, -5)]
)
def test_a_run_of_an_impossible_length_is_refused(
    machine: Machine, timeout: float, instructions: int | None
) -> None:
    with pytest.raises(ValueError, match="a run of"):
        machine.run(timeout, instructions)


def test_a_run_may_have_no_limit_of_time(machine: Machine, function: Function) -> None:
    take_interrupts(machine)
    machine.load(CODE, prologue() + STI + HLT + CLI + HLT)
    machine.start(CODE, STACK)
    function.events.call_after(0.02, function.signal)
    assert machine.run(math.inf).outcome is Outcome.HALTED


def test_a_program_that_is_not_within_the_ram_is_refused(machine: Machine) -> None:
    for address in (-1, RAM - 3, RAM):
        with pytest.raises(ValueError, match="not within the RAM"):
            machine.load(address, bytes(4))


def test_closing_takes_functions_off_and_can_be_repeated(machine: Machine) -> None:
    function = Function()
    machine.plug(function, 5)
    machine.close()
    machine.close()
    assert machine.bus.config_read(5, 0, 0, 4) == 0xFFFF_FFFF


def test_an_unplugged_function_is_gone(machine: Machine, function: Function) -> None:
    assert machine.bus.config_read(3, 0, 0, 4) == 0x5678_1234
    machine.unplug(function)
    assert machine.bus.config_read(3, 0, 0, 4) == 0xFFFF_FFFF
    with pytest.raises(ValueError, match="is not plugged into this machine"):
        machine.unplug(function)


def test_closing_with_a_view_of_the_ram_alive_says_so() -> None:
    machine = Machine(RAM)
    view = machine.ram.array
    with pytest.raises(BufferInUse):
        machine.close()
    del view
    machine.ram.close()


def test_regions_of_the_machine_are_named(machine: Machine) -> None:
    described = machine.topology.describe()
    for name in ("RAM", "interrupt controller", "PCI configuration"):
        assert name in described
    assert isinstance(machine.memory.root, MemoryRegion)


def test_without_unicorn_the_error_says_what_to_install() -> None:
    program = """if True:
        import sys
        sys.modules["unicorn"] = None
        from pyvfio import BackendUnavailable
        from pyvfio.emulator.machine import Machine
        try:
            Machine()
        except BackendUnavailable as error:
            print(error)
    """
    assert "pip install 'pyvfio[unicorn]'" in run_program(program)
