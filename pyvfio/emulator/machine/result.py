# SPDX-License-Identifier: BSD-3-Clause
"""How a run of the machine ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """Why a run ended."""

    HALTED = "halted"
    """The guest executed ``hlt`` with interrupts off, from which nothing wakes it."""
    TIMED_OUT = "timed out"
    LIMIT = "instruction limit"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended, and where the guest was.

    :ivar reason: the outcome in a phrase.
    :ivar registers: by name; ``eip`` is the next instruction, or the one that failed.
    :ivar instructions: how many were executed, each round of a ``rep`` counted.
    :ivar interrupts: how many were taken.
    :ivar seconds: how long it took.
    """

    outcome: Outcome
    reason: str
    registers: Mapping[str, int]
    instructions: int
    interrupts: int
    seconds: float

    @property
    def registers_text(self) -> str:
        """The registers in one line."""
        return " ".join(f"{name}={value:#x}" for name, value in self.registers.items())

    def __str__(self) -> str:
        return (
            f"{self.reason} after {self.instructions} instructions, {self.interrupts} interrupts"
            f" and {self.seconds:.3f} s; {self.registers_text}"
        )
