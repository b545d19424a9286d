# SPDX-License-Identifier: BSD-3-Clause
"""A 32-bit x86 processor: the Unicorn engine on a memory map and I/O ports.

RAM is the same memory for Unicorn as for everybody else, so what devices write is there at once.
Every other access is one call, with the guest's width, into the address space as it is at that
moment; the memory map is never changed under Unicorn while it runs.  Unicorn's own limits: an
access of 8 bytes arrives as two of 4, and a load that is not aligned as the aligned loads that hold
it.

The processor starts in protected mode with flat segments and without paging.  Exceptions are not
delivered to the guest; they end the run.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

from pyvfio.closing import Closing
from pyvfio.emulator.machine.cpu_memory import CPUMemory, Range
from pyvfio.emulator.memory import AddressSpace
from pyvfio.emulator.memory.terminal import all_ones
from pyvfio.errors import BackendUnavailable
from pyvfio.native.steps import Steps

try:
    import unicorn
    from unicorn import x86_const
except ImportError as error:
    raise BackendUnavailable(
        "the Unicorn engine is not installed",
        op="emulate a processor",
        hint="pip install 'pyvfio[unicorn]'",
    ) from error

BUFFER_SIZE = 32 << 20
"""Bytes for translated code.  Unicorn's default of 1 GiB ends the process where it is not to be
had."""

IF = 0x200
_TF, _NT, _RF, _VM = 0x100, 0x4000, 0x1_0000, 0x2_0000
_PAGING = 1 << 31
_STI, _INTERRUPT_GATE, _TRAP_GATE = 0xFB, 0x8E, 0x8F
_GATE_SIZE, _GATE_TYPE = 8, 0x9F
"""Bytes of a gate; its present bit and type, without the privilege level, which is for ``int``."""

_NAMES = (
    *("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp", "eip", "eflags"),
    *("cs", "ds", "es", "ss", "cr0", "cr2", "cr3", "cr4"),
)
_REGISTERS = {name: getattr(x86_const, f"UC_X86_REG_{name.upper()}") for name in _NAMES}

_EXCEPTIONS = {
    0: "divide error",
    1: "debug exception",
    3: "breakpoint",
    4: "overflow",
    5: "bound range exceeded",
    7: "device not available",
    8: "double fault",
    10: "invalid TSS",
    11: "segment not present",
    12: "stack fault",
    13: "general protection",
    14: "page fault",
    16: "x87 error",
    17: "alignment check",
    19: "SIMD error",
}

_INVALID = {
    unicorn.UC_ERR_FETCH_PROT: "fetches an instruction from where no RAM is",
    unicorn.UC_ERR_WRITE_PROT: "writes to read-only memory",
    unicorn.UC_ERR_READ_UNMAPPED: "reads above 4 GiB",
    unicorn.UC_ERR_WRITE_UNMAPPED: "writes above 4 GiB",
    unicorn.UC_ERR_FETCH_UNMAPPED: "fetches an instruction from above 4 GiB",
    unicorn.UC_ERR_INSN_INVALID: "executes what is no instruction",
}


class UnicornCPU(Closing):
    """The processor; importing its module raises :class:`BackendUnavailable` without Unicorn.

    :param memory: what it sees.
    :param ports: where ``in`` and ``out`` go.

    What a device model or a listener raises while the guest runs is raised from :meth:`run`, after
    the guest's instruction is done.
    """

    def __init__(self, memory: AddressSpace, ports: AddressSpace) -> None:
        self._memory = memory
        self._ports = ports
        self._uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
        self._uc.ctl_set_tcg_buffer_size(BUFFER_SIZE)
        self._uc.ctl_exits_enabled(True)
        self._uc.ctl_set_exits([])  # or the address 0 would end a run
        self._steps = _count_steps(self._uc)
        self._add_hooks()
        self._power_on = self._uc.context_save()
        self._until = 0.0
        self._error: BaseException | None = None
        self._invalid_address: int | None = None
        self.fault: str | None = None
        self.halted = False
        self._mapped: set[Range] = set()
        self._map = CPUMemory(self._steps.end)
        memory.add_listener(self._map)

    def _add_hooks(self) -> None:
        add, hook = self._uc.hook_add, unicorn.UC_HOOK_INSN
        add(hook, self._on_in, None, 1, 0, x86_const.UC_X86_INS_IN)
        add(hook, self._on_out, None, 1, 0, x86_const.UC_X86_INS_OUT)
        add(unicorn.UC_HOOK_INTR, self._on_exception)
        add(unicorn.UC_HOOK_MEM_INVALID, self._on_invalid)

    # Running

    @property
    def executed(self) -> int:
        """How many instructions were executed since it was made."""
        return self._steps.done

    def run(self, instructions: int, seconds: float, await_interrupts: bool = False) -> None:
        """Execute up to so many instructions, or until a time has passed at a device access.

        It ends earlier with :attr:`halted` or :attr:`fault`, and does nothing once one is set.

        :param await_interrupts: stop as soon as the guest has interrupts on.
        :raises BaseException: what was raised by who was called for an access.
        """
        if self.halted or self.fault is not None:
            return
        self._map_memory()
        self._until = time.monotonic() + seconds
        self._steps.allow(instructions, IF if await_interrupts else 0)
        try:
            self._uc.emu_start(self["eip"], 0)
        except unicorn.UcError as error:
            self._note_fault(error)
        self.halted = self.fault is None and not self._steps.stopped
        raised, self._error = self._error, None
        if raised is not None:
            raise raised

    def pause(self) -> None:
        """Have :meth:`run` return in front of the next instruction; for who is called by it."""
        self._steps.end()

    def _map_memory(self) -> None:
        """Have Unicorn map what the guest sees; only while it does not run."""
        wanted = set(self._map.ranges)
        if wanted == self._mapped:
            return
        for found in self._mapped - wanted:
            self._uc.mem_unmap(found.start, found.size)
            self._mapped.discard(found)
        for found in wanted - self._mapped:
            self._map_range(found)
            self._mapped.add(found)

    def _map_range(self, found: Range) -> None:
        start, size, pointer, readonly = found
        if pointer is not None:
            protection = unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC
            if not readonly:
                protection |= unicorn.UC_PROT_WRITE
            self._uc.mem_map_ptr(start, size, protection, pointer)
        else:
            self._uc.mmio_map(start, size, self._on_read, start, self._on_write, start)

    def forget_code(self) -> None:
        """Translate anew what is executed.

        Needed where the host or a device has written over instructions that ran before; what the
        guest itself writes, Unicorn notices.
        """
        self._uc.ctl_flush_tb()

    # What Unicorn calls

    def _on_read(self, uc: Any, offset: int, width: int, start: int) -> int:
        value = self._call(self._memory.read, start + offset, width)
        return all_ones(width) if value is None else value

    def _on_write(self, uc: Any, offset: int, width: int, value: int, start: int) -> None:
        self._call(self._memory.write, start + offset, width, value & all_ones(width))

    def _on_in(self, uc: Any, port: int, width: int, data: None) -> int:
        value = self._call(self._ports.read, port, width)
        return all_ones(width) if value is None else value

    def _on_out(self, uc: Any, port: int, width: int, value: int, data: None) -> None:
        self._call(self._ports.write, port, width, value & all_ones(width))

    def _call(self, access: Callable[..., int | None], *arguments: int) -> int | None:
        """Make an access; Unicorn must not see what it raises."""
        try:
            value = access(*arguments)
        except BaseException as error:  # raised again from run()
            self._error = self._error or error
            value = None
        if self._error is not None or time.monotonic() > self._until:
            self.pause()
        return value

    def _on_exception(self, uc: unicorn.Uc, number: int, data: None) -> None:
        name = _EXCEPTIONS.get(number, "an interrupt instruction")
        self.fault = f"exception {number:#04x} ({name})"
        uc.emu_stop()

    def _on_invalid(self, uc: Any, access: int, address: int, *_: Any) -> bool:
        self._invalid_address = address
        return False

    def _note_fault(self, error: unicorn.UcError) -> None:
        what = _INVALID.get(error.errno, str(error))
        address, self._invalid_address = self._invalid_address, None
        self.fault = what if address is None else f"{what}, at {address:#x}"

    # Registers

    @property
    def registers(self) -> dict[str, int]:
        """All that are of interest, by name."""
        return {name: self[name] for name in _REGISTERS}

    def __getitem__(self, name: str) -> int:
        value: int = self._uc.reg_read(_REGISTERS[name])
        return value

    def __setitem__(self, name: str, value: int) -> None:
        self._uc.reg_write(_REGISTERS[name], value)

    # Interrupts

    @property
    def accepts_interrupts(self) -> bool:
        """Whether the guest has them on."""
        return bool(self["eflags"] & IF)

    @property
    def follows_sti(self) -> bool:
        """Whether the instruction before may be ``sti``, which holds interrupts for one more.

        Without that, an interrupt between ``sti`` and ``hlt`` would be slept over.
        """
        eip = self["eip"]
        return eip > 0 and self._memory.read(eip - 1, 1) == _STI

    def interrupt(self, vector: int) -> None:
        """Enter the guest's handler; :attr:`fault` says where it has none that can be entered."""
        fault = self._enter(vector)
        if fault is not None:
            self.fault = f"interrupt {vector:#04x}: {fault}"
        self.halted = False

    def _enter(self, vector: int) -> str | None:
        """As the processor does it without a change of privilege (Intel SDM volume 3, 6.12.1)."""
        if self["cr0"] & _PAGING:
            return "the guest has paging on, which this machine's interrupts do not know"
        _, base, limit, _ = self._uc.reg_read(x86_const.UC_X86_REG_IDTR)
        if (vector + 1) * _GATE_SIZE - 1 > limit:
            return f"the table of {limit + 1} bytes at {base:#x} has no such gate"
        gate = self._memory.read(base + vector * _GATE_SIZE, 8)
        selector, kind = gate >> 16 & 0xFFFF, gate >> 40 & _GATE_TYPE
        if kind not in (_INTERRUPT_GATE, _TRAP_GATE):
            return f"{gate:#018x} is no 32-bit interrupt or trap gate that is present"
        if selector != self["cs"]:
            return f"the gate is for segment {selector:#x}, the guest in {self['cs']:#x}"
        flags = self["eflags"]
        for value in (flags, selector, self["eip"]):
            self._push(value)
        cleared = _TF | _NT | _RF | _VM | (IF if kind == _INTERRUPT_GATE else 0)
        self["eflags"] = flags & ~cleared
        self["eip"] = gate & 0xFFFF | gate >> 32 & 0xFFFF_0000
        return None

    def _push(self, value: int) -> None:
        self["esp"] = (self["esp"] - 4) & all_ones(4)
        self._memory.write(self["esp"], 4, value)

    # Life

    def reset(self) -> None:
        """Registers as they were at first; the memory map stays."""
        self._uc.context_restore(self._power_on)
        self.fault, self.halted = None, False

    def close(self) -> None:
        """Let go of the memory.  May be repeated."""
        if self._map in self._memory.listeners:
            self._memory.remove_listener(self._map)
        self._map_memory()


def _count_steps(uc: unicorn.Uc) -> Steps:
    """Count instructions in C: Unicorn's own package only takes hooks in Python."""
    library = unicorn.unicorn_py3.unicorn.uclib
    stop, read = _address(library.uc_emu_stop), _address(library.uc_reg_read)
    steps = Steps(stop, read, x86_const.UC_X86_REG_EFLAGS)
    handle = ctypes.c_size_t()
    every = ctypes.c_uint64(1), ctypes.c_uint64(0)
    status = library.uc_hook_add(
        uc._uch, ctypes.byref(handle), unicorn.UC_HOOK_CODE, steps.hook, steps.data, *every
    )
    if status != unicorn.UC_ERR_OK:
        raise unicorn.UcError(status)
    return steps


def _address(function: Any) -> int:
    value = ctypes.cast(function, ctypes.c_void_p).value
    assert value is not None
    return value
