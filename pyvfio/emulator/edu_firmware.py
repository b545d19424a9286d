# SPDX-License-Identifier: BSD-3-Clause
"""The guest firmware that drives an edu device (``firmware/edu.s``), and the report it leaves."""

from __future__ import annotations

import importlib.resources
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pyvfio.emulator.machine import Machine, Result
from pyvfio.uapi import pci

ENTRY = STACK = 0x10000
"""Where the firmware is loaded and begins; the stack is below."""
REPORT, REPORT_SIZE = 0x20000, 0x600
MAGIC, VERSION = b"pyvfioFW", 1

_WORDS = struct.Struct("<8s20I")
_TABLE, _TABLE_ENTRIES = 0x100, 15
_BARS, _CONFIG, _WINDOW_CONFIG = 0x200, 0x400, 0x500


class FoundFunction(NamedTuple):
    """A function that the firmware found: place, ids by ports, class and revision, ids by ECAM."""

    place: int
    ids: int
    class_revision: int
    window_ids: int

    def __str__(self) -> str:
        slot, number = divmod(self.place, 8)
        return f"{slot:02x}.{number} {self.ids & 0xFFFF:04x}:{self.ids >> 16:04x}"


class FoundBAR(NamedTuple):
    """A BAR of the edu device: what was read after all ones were written, size, address."""

    number: int
    read_back: int
    size: int
    address: int

    def __str__(self) -> str:
        return f"BAR {self.number}, {self.size:#x} bytes, at {self.address:#x}"


class Step(NamedTuple):
    """What the firmware saw in one step, and whether it found that right."""

    name: str
    value: str
    ok: bool


class Words(NamedTuple):
    """The words of the report, in the order and by the names of ``firmware/layout.inc``.

    ``begun`` and ``right`` have a bit for each of :data:`STEPS`.
    """

    begun: int
    right: int
    functions: int
    window_functions: int
    edu: int
    bar: int
    msi: int
    id: int
    liveness: int
    polled: int
    signalled: int
    different: int
    pin: int
    messages: int
    pins: int
    spurious: int
    causes: int
    moved: int
    left: int


STEPS: tuple[tuple[str, Callable[[Report], str]], ...] = (
    ("bus by ports", lambda r: f"{r.words.functions}: {', '.join(map(str, r.functions))}"),
    ("bus by ECAM", lambda r: f"{r.words.window_functions}: {r.agreement}"),
    ("BARs", lambda r: ", ".join(map(str, r.bars))),
    (
        "configuration space",
        lambda r: f"MSI at {r.words.msi:#x}, pin INT{'-ABCD'[r.words.pin % 5]}",
    ),
    ("identification", lambda r: f"{r.words.id:#010x}"),
    ("liveness inverts", lambda r: f"0x12345678 -> {r.words.liveness:#010x}"),
    ("factorial, polled", lambda r: f"10! = {r.words.polled}"),
    ("factorial, MSI", lambda r: f"12! = {r.words.signalled}"),
    ("MSI counted", lambda r: f"{r.words.messages} in all, for 20 raised, 12! and 2 transfers"),
    ("DMA there and back, MSI", lambda r: f"{r.words.different} of 2048 bytes differ"),
    ("INTx", lambda r: f"{r.words.pins} with a cause, {r.words.spurious} without"),
    ("BAR 0 moved in use", lambda r: f"to {r.words.moved:#x}, leaves {r.words.left:#x} behind"),
)
"""What the firmware does, in its order, and what there is to say of each."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the firmware saw.

    :ivar config: the edu device's configuration space by ports.
    :ivar window_config: the same by ECAM.
    """

    words: Words
    functions: tuple[FoundFunction, ...]
    bars: tuple[FoundBAR, ...]
    config: bytes
    window_config: bytes

    @classmethod
    def parse(cls, data: bytes) -> Report:
        """Take the report apart.

        :raises ValueError: it is none, or that of another firmware.
        """
        magic, version, *words = _WORDS.unpack_from(data)
        if (magic, version) != (MAGIC, VERSION):
            raise ValueError(f"the firmware left no report: it begins with {magic!r}, {version}")
        found = Words(*words)
        count = min(found.functions, _TABLE_ENTRIES)
        table = struct.iter_unpack("<4I", data[_TABLE : _TABLE + 16 * count])
        bars = struct.iter_unpack("<4I", data[_BARS : _BARS + 16 * pci.NUM_BARS])
        return cls(
            found,
            tuple(FoundFunction(*entry) for entry in table),
            tuple(FoundBAR(n, *entry[:3]) for n, entry in enumerate(bars) if entry[1]),
            data[_CONFIG : _CONFIG + pci.CONFIG_SIZE],
            data[_WINDOW_CONFIG : _WINDOW_CONFIG + pci.CONFIG_SIZE],
        )

    @property
    def agreement(self) -> str:
        """Which functions ECAM shows otherwise than the ports."""
        differ = [str(found) for found in self.functions if found.ids != found.window_ids]
        return f"not so {', '.join(differ)}" if differ else "the same"

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step; one that the firmware did not come to says so."""
        return tuple(
            Step(
                name,
                say(self) if self.words.begun >> bit & 1 else "not reached",
                bool(self.words.right >> bit & 1),
            )
            for bit, (name, say) in enumerate(STEPS)
        )

    @property
    def ok(self) -> bool:
        """Whether every step saw what it should."""
        return all(step.ok for step in self.steps)


def image() -> bytes:
    """The firmware, to be loaded at :data:`ENTRY`."""
    return (importlib.resources.files("pyvfio.emulator") / "firmware/edu.bin").read_bytes()


def run(machine: Machine, timeout: float) -> tuple[Result, Report]:
    """Load the firmware into a machine and run it.

    :param timeout: seconds.
    :raises ValueError: it ended before it had a report.
    """
    machine.load(ENTRY, image())
    machine.load(REPORT, bytes(REPORT_SIZE))
    machine.start(ENTRY, STACK)
    result = machine.run(timeout)
    return result, Report.parse(machine.ram.read_bytes(REPORT, REPORT_SIZE))
