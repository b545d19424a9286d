# SPDX-License-Identifier: BSD-3-Clause
"""How many instructions an emulated processor may execute, counted in C in front of each."""

from __future__ import annotations

from pyvfio.native._native import ffi, lib


class Steps:
    """A counter for a hook that an emulator calls in front of each instruction.

    :param stop: address of the C function that stops the emulator, given its handle (uc_emu_stop).
    :param read: that of the function that reads a register (uc_reg_read).
    :param flags: the number of the register with flags, of 32 bits.
    """

    hook: int = lib.pyvfio_step_address()
    """Address of the C function to call: handle, address, size, :attr:`data`."""

    def __init__(self, stop: int, read: int, flags: int) -> None:
        self._steps = ffi.new("struct pyvfio_steps *")
        self._steps.stop, self._steps.read, self._steps.flags = stop, read, flags

    @property
    def data(self) -> int:
        """Address of the counter, which lives as long as this object."""
        return int(ffi.cast("uintptr_t", self._steps))

    @property
    def done(self) -> int:
        """How many instructions were begun."""
        return int(self._steps.done)

    @property
    def stopped(self) -> bool:
        """Whether the emulator was stopped since the last :meth:`allow`."""
        return bool(self._steps.stopped)

    def allow(self, count: int, awaited: int = 0) -> None:
        """Let so many more be executed, and then stop the emulator.

        :param awaited: flags; it is stopped as well in front of an instruction with one of them.
        """
        self._steps.stopped = 0
        self._steps.awaited = awaited
        self._steps.limit = self._steps.done + count

    def end(self) -> None:
        """Stop the emulator in front of the next one."""
        self._steps.limit = 0
