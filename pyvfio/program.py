# SPDX-License-Identifier: BSD-3-Clause
"""Register programs: many accesses of a region that are made by one call.

A program is a numpy array of steps::

    steps = program.program(
        program.write(0x10, 1),
        program.poll(0x14, 0x80, mask=0x80, timeout=0.5),
        program.read(0x18),
    )
    bar.run(steps)
    value = steps["result"][2]

All steps are checked before the first is carried out, in their order.  What is mapped runs in C,
with the interpreter's lock released; other accesses are those of the region's methods.  A program
may be run again.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pyvfio.native import mmio

FOREVER = float("inf")


class Op(IntEnum):
    """What a step does; ``enum`` of native/program.c."""

    READ = 0
    READ_LO_HI = 1
    READ_HI_LO = 2
    WRITE = 3
    WRITE_LO_HI = 4
    WRITE_HI_LO = 5
    MODIFY = 6
    POLL = 7
    BARRIER = 8
    READ_BARRIER = 9
    WRITE_BARRIER = 10


STEP = np.dtype(
    [
        ("op", np.uint16),
        ("width", np.uint16),
        ("unused", np.uint32),
        ("offset", np.uint64),
        ("value", np.uint64),
        ("mask", np.uint64),
        ("timeout", np.float64),
        ("result", np.uint64),
    ]
)
"""``struct pyvfio_step``: ``width`` in bytes, ``timeout`` in seconds, ``result`` what was read."""

Steps: TypeAlias = npt.NDArray[np.void]
"""An array of :data:`STEP`."""


class Step(NamedTuple):
    """One item of it, as the functions below make it."""

    op: int
    width: int = 0
    unused: int = 0
    offset: int = 0
    value: int = 0
    mask: int = 0
    timeout: float = 0.0
    result: int = 0


def program(*steps: Step) -> Steps:
    """The array of some steps.

    :raises ValueError: a number is not one, or has no room in its field.
    """
    try:
        array = np.array([tuple(step) for step in steps], STEP)
    except (OverflowError, TypeError) as error:
        raise ValueError(f"a step of a register program: {error}") from error
    for at, (step, kept) in enumerate(zip(steps, array.tolist(), strict=True)):
        if kept != step:
            raise ValueError(f"step {at} of a register program: {step} becomes {kept}")
    return array


def read(offset: int, width: int = 4) -> Step:
    """Read ``width`` bytes."""
    return _step(Op.READ, offset, width)


def read64_lo_hi(offset: int) -> Step:
    """Read 64 bits as two times 32, the low half first."""
    return _step(Op.READ_LO_HI, offset, 8)


def read64_hi_lo(offset: int) -> Step:
    """Read 64 bits as two times 32, the high half first."""
    return _step(Op.READ_HI_LO, offset, 8)


def write(offset: int, value: int, width: int = 4) -> Step:
    """Write ``width`` bytes."""
    return _step(Op.WRITE, offset, width, value)


def writes(
    offsets: npt.NDArray[np.uint64], values: npt.NDArray[np.uint64], width: int = 4
) -> Steps:
    """The array of as many writes as there are offsets, each with its value."""
    steps = np.zeros(len(offsets), STEP)
    steps["op"], steps["width"] = Op.WRITE, width
    steps["offset"], steps["value"] = offsets, values
    return steps


def write64_lo_hi(offset: int, value: int) -> Step:
    """Write 64 bits as two times 32, the low half first."""
    return _step(Op.WRITE_LO_HI, offset, 8, value)


def write64_hi_lo(offset: int, value: int) -> Step:
    """Write 64 bits as two times 32, the high half first."""
    return _step(Op.WRITE_HI_LO, offset, 8, value)


def modify(offset: int, value: int, mask: int, width: int = 4) -> Step:
    """Read, and write what was read with its bits in ``mask`` as they are in ``value``.

    The result is what was read.
    """
    return Step(Op.MODIFY, width, offset=offset, value=value, mask=mask)


def poll(
    offset: int,
    wanted: int,
    *,
    mask: int | None = None,
    timeout: float | None = None,
    width: int = 4,
) -> Step:
    """Read until the bits in ``mask`` (all by default) are ``wanted``, for ``timeout`` seconds."""
    if mask is None:
        mask = mmio.ALL_ONES.get(width, 0)
    seconds = FOREVER if timeout is None else timeout
    return Step(Op.POLL, width, offset=offset, value=wanted, mask=mask, timeout=seconds)


def barrier() -> Step:
    """Keep all that follows behind all that precedes."""
    return _step(Op.BARRIER)


def read_barrier() -> Step:
    """Keep loads that follow behind those that precede."""
    return _step(Op.READ_BARRIER)


def write_barrier() -> Step:
    """Keep stores that follow behind those that precede."""
    return _step(Op.WRITE_BARRIER)


def _step(op: Op, offset: int = 0, width: int = 0, value: int = 0) -> Step:
    return Step(op, width, offset=offset, value=value)
