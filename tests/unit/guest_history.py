# SPDX-License-Identifier: BSD-3-Clause
"""What a guest that is out of its mind does, its device, and the emulator that runs it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias

from tests.unit.guest_interrupt_model import MSI_VECTORS, MSIX_VECTORS, TABLE_SIZE


@dataclass(frozen=True, slots=True)
class Access:
    """A read of configuration space, or a write of a value."""

    offset: int
    width: int
    value: int | None


@dataclass(frozen=True, slots=True)
class TableAccess:
    """The same of the MSI-X table."""

    offset: int
    width: int
    value: int | None


@dataclass(frozen=True, slots=True)
class Fire:
    """The device signals a vector, if it was told to signal it."""

    mode: Literal["MSI", "MSI-X"]
    vector: int


class Emulator(Enum):
    """What the emulator does to the function."""

    RESET = "reset"
    SAVE = "save"
    LOAD = "load what was saved last"


Step: TypeAlias = Access | TableAccess | Fire | Emulator

_PLACES = (
    (0x000, 0x040),
    (0x004, 0x006),
    (0x010, 0x034),
    (0x040, 0x0C8),
    (0x044, 0x046),
    (0x094, 0x0B0),
    (0x0B0, 0x0C8),
    (0x096, 0x097),
    (0x0B2, 0x0B3),
    (0x0A6, 0x0A8),
    (0x100, 0x1B4),
    (0x000, 0x1002),
)
_SENSIBLE = (
    (0x04, 2, (0x0006, 0x0007, 0x0407)),
    (0x96, 2, (0x0000, 0x0001, 0x0021)),
    (0xB2, 2, (0x0000, 0x0001, 0x0021)),
    (0xC0, 4, (0x0000, 0x000F, 0x0002)),
    (0xA6, 2, (0x8000, 0x8000, 0xC000, 0x0000)),
)
"""What drivers write to command register, MSI and MSI-X: offset, width, values."""


def steps(seed: int, count: int) -> Iterator[Step]:
    """``count`` of them, mostly accesses, more of them to registers that matter."""
    rng = random.Random(seed)
    for _ in range(count):
        kind = rng.random()
        if kind < 0.85:
            yield _access(rng)
        elif kind < 0.92:
            yield _table_access(rng)
        elif kind < 0.99:
            yield _fire(rng)
        else:
            yield rng.choice((*Emulator, Emulator.SAVE, Emulator.LOAD))


def _access(rng: random.Random) -> Access:
    if rng.random() < 0.1:
        offset, width, values = rng.choice(_SENSIBLE)
        return Access(offset, width, rng.choice(values))
    start, end = rng.choice(_PLACES)
    width = rng.choice((1, 2, 4))
    offset = rng.randrange(start, end)
    if rng.random() < 0.8:
        offset -= offset % width
    return Access(offset, width, _value(rng, width) if rng.random() < 0.6 else None)


def _table_access(rng: random.Random) -> TableAccess:
    if rng.random() < 0.5:
        return TableAccess(16 * rng.randrange(MSIX_VECTORS) + 12, 4, rng.choice((0, 0, 1)))
    width = rng.choice((4, 8))
    offset = rng.randrange(TABLE_SIZE)
    offset -= offset % width
    return TableAccess(offset, width, _value(rng, width) if rng.random() < 0.8 else None)


def _fire(rng: random.Random) -> Fire:
    if rng.random() < 0.5:
        return Fire("MSI", rng.randrange(MSI_VECTORS))
    return Fire("MSI-X", rng.randrange(MSIX_VECTORS))


def _value(rng: random.Random, width: int) -> int:
    ones = (1 << 8 * width) - 1
    kind = rng.randrange(5)
    if kind == 0:
        return ones
    if kind == 1:
        return rng.choice((0, 1, 2, 3, 7))
    if kind == 2:
        return rng.randrange(0x10000) & ones
    return rng.randrange(ones + 1) & ~rng.choice((0, 0, 0xFFF))
