# SPDX-License-Identifier: BSD-3-Clause
"""The interrupt controller: a local APIC reduced to what this machine needs.

Of the local APIC (Intel SDM volume 3, chapter 11) there are the request and in-service registers,
priorities by the upper four bits of a vector, and the end-of-interrupt register.  It is always
enabled and has no task priority, timer or local interrupts.

The pins of all functions end here directly, without an I/O APIC to program: INTA to INTD raise the
vectors of :data:`PIN_VECTORS`.  They are levels: a vector whose pin is still asserted at the end of
its interrupt is raised again, and one whose pin is lowered before it was taken is withdrawn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pyvfio.emulator.memory.terminal import all_ones

log = logging.getLogger(__name__)

BASE, SIZE = 0xFEE0_0000, 0x1000
MESSAGE_END = BASE + 0x10_0000
"""Where the addresses of messages end, which begin at :data:`BASE`."""

PIN_VECTORS = (0x40, 0x41, 0x42, 0x43)
"""Of INTA to INTD."""

VERSION, EOI, IN_SERVICE, REQUESTED = 0x030, 0x0B0, 0x100, 0x200
_VERSION = 0x14
_VECTORS = 256
_FIRST_VECTOR = 0x10
"""Vectors below are no interrupts."""

_DESTINATIONS = (0x00, 0xFF)
"""The identity of the one processor, and that of all."""
_FIXED, _LOWEST_PRIORITY = 0, 1


class InterruptController:
    """What waits to be taken by the processor, and what it is at.

    :param changed: called when something waits that may be taken.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._requested = 0
        self._in_service = 0
        self._asserted: dict[int, set[object]] = {vector: set() for vector in PIN_VECTORS}

    # From devices

    @staticmethod
    def takes(address: int) -> bool:
        """Whether a write of a device to ``address`` is a message, and not one to memory."""
        return BASE <= address < MESSAGE_END

    def message(self, address: int, data: int) -> None:
        """A device writes a message; one for nobody, or that is no interrupt, is dropped."""
        vector, mode = data & 0xFF, data >> 8 & 0x7
        destination = address >> 12 & 0xFF
        if mode not in (_FIXED, _LOWEST_PRIORITY) or destination not in _DESTINATIONS:
            log.info("message %#x to %#x is for nobody here", data, address)
        elif vector < _FIRST_VECTOR:
            log.info("message %#x to %#x has the vector of an exception", data, address)
        else:
            self._requested |= 1 << vector
            self._tell()

    def set_pin(self, who: object, pin: int, level: bool) -> None:
        """A pin (1 to 4 for INTA to INTD) of ``who`` has another level."""
        if not 1 <= pin <= len(PIN_VECTORS):
            raise ValueError(f"{who} has no pin {pin}")
        vector = PIN_VECTORS[pin - 1]
        asserted = self._asserted[vector]
        if level:
            asserted.add(who)
        else:
            asserted.discard(who)
        self._follow_pin(vector)

    def _follow_pin(self, vector: int) -> None:
        bit = 1 << vector
        if not self._asserted[vector]:
            self._requested &= ~bit
        elif not self._in_service & bit:
            self._requested |= bit
            self._tell()

    def _tell(self) -> None:
        if self.pending is not None:
            self._changed()

    # To the processor

    @property
    def pending(self) -> int | None:
        """The vector to take next, if there is one above what is being served."""
        vector = self._requested.bit_length() - 1
        return vector if vector >> 4 > max(0, self._in_service.bit_length() - 1) >> 4 else None

    def take(self) -> int:
        """The processor serves what is pending from now on, until it writes the EOI register.

        :raises ValueError: nothing is pending.
        """
        vector = self.pending
        if vector is None:
            raise ValueError("no interrupt is pending")
        self._requested &= ~(1 << vector)
        self._in_service |= 1 << vector
        return vector

    def _end(self) -> None:
        if self._in_service:
            vector = self._in_service.bit_length() - 1
            self._in_service &= ~(1 << vector)
            if vector in self._asserted:
                self._follow_pin(vector)
            self._tell()

    # Registers

    def read(self, offset: int, width: int) -> int:
        """A register; those that do not exist, and accesses of another width than 32, give 0."""
        if width != 4:
            return 0
        for start, vectors in ((IN_SERVICE, self._in_service), (REQUESTED, self._requested)):
            number, rest = divmod(offset - start, 0x10)
            if 0 <= number < _VECTORS // 32 and not rest:
                return vectors >> 32 * number & all_ones(4)
        return _VERSION if offset == VERSION else 0

    def write(self, offset: int, width: int, value: int) -> None:
        """A register; only EOI takes notice."""
        if offset == EOI and width == 4:
            self._end()

    def reset(self) -> None:
        """Nothing waits and nothing is served; pins keep their level."""
        self._requested = self._in_service = 0
        for vector in self._asserted:
            self._follow_pin(vector)
