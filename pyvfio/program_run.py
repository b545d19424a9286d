# SPDX-License-Identifier: BSD-3-Clause
"""Carry out a register program: in C where the region is mapped, by its methods elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from pyvfio.errors import VFIOError, VFIOTimeout
from pyvfio.native import mmio
from pyvfio.native._native import ffi, lib
from pyvfio.program import STEP, Op, Step, Steps

if TYPE_CHECKING:
    from pyvfio.region import Region

LONGEST_PAUSE = 0.001
"""Seconds between two looks at a register that is polled; as in native/program.c."""


class Ended(IntEnum):
    """Why C stopped; ``enum`` of native/program.c."""

    DONE = 0
    PAUSED = 1
    MISSED = 2
    FAULTED = 3
    TIMED_OUT = 4


class Run:
    """A program that is carried out.

    :param numbered: whether errors say which step it was.
    :raises ValueError: ``steps`` is no array that C can take.
    """

    def __init__(self, region: Region, steps: Steps, *, numbered: bool = True) -> None:
        if not isinstance(steps, np.ndarray) or steps.dtype != STEP or steps.ndim != 1:
            raise ValueError("a register program is an array of pyvfio.program.STEP")
        if not (steps.flags.carray and steps.flags.writeable):
            raise ValueError("a register program must be contiguous, aligned and writable")
        self._region = region
        self._steps = steps
        self._numbered = numbered
        self._items = ffi.from_buffer("struct pyvfio_step[]", steps) if len(steps) else ffi.NULL
        self._state = ffi.new("struct pyvfio_run *")

    def to_the_end(self) -> None:
        """Check all steps, and carry out all."""
        try:
            self._check()
            while (ended := self._in_c()) != Ended.DONE:
                self._go_on(ended)
        except VFIOError as error:
            if self._numbered:
                error.step = int(self._state.at)
                error.op = f"step {error.step}: {error.op}"
            raise
        except ValueError as error:
            if self._numbered:
                raise ValueError(f"step {self._state.at}: {error}") from error
            raise

    def _check(self) -> None:
        wrong = lib.pyvfio_first_wrong(self._region.window, self._items, len(self._steps))
        if wrong < len(self._steps):
            self._state.at = wrong
            raise _nonsense(self._region, self._step())

    def _in_c(self) -> int:
        return lib.pyvfio_run(self._region.window, self._items, len(self._steps), self._state)

    def _go_on(self, ended: int) -> None:
        step = self._step()
        if ended == Ended.MISSED:
            self._perform(step)
            self._state.at += 1
            self._state.started = 0
        elif ended == Ended.FAULTED:
            raise self._region.fault(_verb(step), step.offset)
        elif ended == Ended.TIMED_OUT:
            raise self._time_out(step)
        elif self._state.started:
            self._region.check_waiting("poll", step.offset)

    def _step(self) -> Step:
        return Step(*self._steps[self._state.at].item())

    def _perform(self, step: Step) -> None:
        if step.op == Op.POLL:
            self._poll(step)
            return
        if step.op not in _PERFORM:
            raise ValueError("the program was changed while it ran")
        value = _PERFORM[step.op](self._region, step)
        if value is not None:
            self._keep(value)

    def _keep(self, value: int) -> int:
        self._items[self._state.at].result = value
        return value

    def _poll(self, step: Step) -> None:
        began = before = time.monotonic()
        while self._keep(_read(self._region, step)) & step.mask != step.value:
            waited = before - began
            if waited >= step.timeout:
                raise self._time_out(step)
            self._region.check_waiting("poll", step.offset)
            time.sleep(min(waited / 8, LONGEST_PAUSE))
            before = time.monotonic()

    def _time_out(self, step: Step) -> VFIOTimeout:
        found = self._items[self._state.at].result
        return VFIOTimeout(
            f"{found:#x} after {step.timeout} s, not {step.value:#x} in {step.mask:#x}",
            op=self._region.op("poll", step.offset),
            uri=self._region.uri,
        )


def _read(region: Region, step: Step) -> int:
    return region.read(step.offset, step.width)


def _modify(region: Region, step: Step) -> int:
    found = _read(region, step)
    region.write(step.offset, step.width, (found & ~step.mask) | (step.value & step.mask))
    return found


_PERFORM: dict[int, Callable[[Region, Step], int | None]] = {
    Op.READ: _read,
    Op.READ_LO_HI: lambda region, step: region.read64_lo_hi(step.offset),
    Op.READ_HI_LO: lambda region, step: region.read64_hi_lo(step.offset),
    Op.WRITE: lambda region, step: region.write(step.offset, step.width, step.value),
    Op.WRITE_LO_HI: lambda region, step: region.write64_lo_hi(step.offset, step.value),
    Op.WRITE_HI_LO: lambda region, step: region.write64_hi_lo(step.offset, step.value),
    Op.MODIFY: _modify,
}
"""What is done where the region is not mapped; what it returns is the result."""

_HALVES = (Op.READ_LO_HI, Op.READ_HI_LO, Op.WRITE_LO_HI, Op.WRITE_HI_LO)
_READS = (Op.READ, Op.READ_LO_HI, Op.READ_HI_LO, Op.MODIFY, Op.POLL)
_WRITES = (Op.WRITE, Op.WRITE_LO_HI, Op.WRITE_HI_LO, Op.MODIFY)


def _verb(step: Step) -> str:
    """How errors call a step that failed."""
    return "read" if step.op in _READS else "write"


def _nonsense(region: Region, step: Step) -> Exception:
    """Why a step makes no sense; raises what the access of the region would."""
    largest = mmio.ALL_ONES.get(step.width, 0)
    if step.op not in _READS + _WRITES:
        return ValueError(f"there is no operation {step.op}")
    if step.op in _HALVES and step.width != 8:
        return ValueError(f"halves of {step.width} bytes; 8 are read or written so")
    for verb, ops in (("read", _READS), ("write", _WRITES)):
        if step.op in ops:
            region.check_register(verb, step.offset, step.width, halves=step.op in _HALVES)
    if step.value > largest:
        return ValueError(f"{step.value:#x} does not fit into {8 * step.width} bits")
    if step.value & ~step.mask:
        return ValueError(f"{step.value:#x} is more than the mask {step.mask:#x} leaves")
    return ValueError(f"a time-out of {step.timeout} s")
