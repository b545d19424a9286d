# SPDX-License-Identifier: BSD-3-Clause
"""Registers that the emulator answers itself."""

from __future__ import annotations

from typing import Protocol

from pyvfio.emulator.memory.terminal import TerminalRegion, all_ones


class MMIOHandler(Protocol):
    """Who answers: widths are 1, 2, 4 and 8 bytes, offsets a multiple of the width."""

    def read(self, offset: int, width: int) -> int:
        """A read, little-endian; bits that do not fit into the width are dropped."""

    def write(self, offset: int, width: int, value: int) -> None:
        """A write, little-endian."""


class MMIORegion(TerminalRegion):
    """Registers; what is not aligned or too wide is split, each part a call of the handler.

    :param handler: who answers; what it raises passes through to who makes the access.
    """

    def __init__(self, name: str, size: int, handler: MMIOHandler) -> None:
        super().__init__(name, size)
        self._handler = handler

    @property
    def kind(self) -> str:
        return "i/o"

    def _load(self, offset: int, width: int) -> int:
        return self._handler.read(offset, width) & all_ones(width)

    def _store(self, offset: int, width: int, value: int) -> None:
        self._handler.write(offset, width, value)
