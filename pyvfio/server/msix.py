# SPDX-License-Identifier: BSD-3-Clause
"""The MSI-X table and pending bits of a model, kept by the server.

A client that enables a vector with SET_IRQS unmasks its entry and one that takes its eventfd away
masks it, as the kernel does; so a client that never sees the table (QEMU) gets its interrupts, and
one that writes mask bits is obeyed.
"""

from __future__ import annotations

from pyvfio.server.model import ModelMSIX
from pyvfio.uapi import pci
from pyvfio.uapi.layout import Buffer

_PBA_WORD = 8


class MSIXState:
    """Table and pending bits; not locked, its owner is.

    :param declared: number of vectors, and where table and pending bits are.
    """

    def __init__(self, declared: ModelMSIX) -> None:
        self.vectors = declared.vectors
        self._table_at, self._pba_at = declared.table, declared.pba
        self._table = bytearray(declared.vectors * pci.MSIX_ENTRY_SIZE)
        self._all_masked = bytes([pci.MSIX_ENTRY_MASKED]) * declared.vectors
        self._pba = bytearray(-(-declared.vectors // (8 * _PBA_WORD)) * _PBA_WORD)
        self.reset()

    def reset(self) -> None:
        """All vectors masked, none pending."""
        self._table[:] = bytes(len(self._table))
        self._pba[:] = bytes(len(self._pba))
        self._table[pci.MSIX_ENTRY_CONTROL :: pci.MSIX_ENTRY_SIZE] = self._all_masked

    def overlaps(self, bar: int, offset: int, count: int) -> bool:
        """Whether a range of a BAR touches the table or the pending bits."""
        return any(
            bar == where and offset < start + len(store) and start < offset + count
            for (where, start), store in self._stores()
        )

    def ranges(self, bar: int) -> list[tuple[int, int]]:
        """(start, end) of the parts of a BAR that the table and the pending bits take, in order."""
        return sorted(
            (start, start + len(store)) for (where, start), store in self._stores() if where == bar
        )

    def read(self, bar: int, offset: int, width: int) -> bytes:
        """``width`` bytes of a range that touches the table or the pending bits."""
        for (where, start), store in self._stores():
            if bar == where and start <= offset < start + len(store):
                at = offset - start
                return bytes(store[at : at + width]).ljust(width, b"\0")
        return bytes(width)

    def write(self, bar: int, offset: int, data: Buffer) -> None:
        """Change the table; the pending bits are read-only."""
        where, start = self._table_at
        at = offset - start
        if bar == where and 0 <= at < len(self._table):
            end = min(at + len(data), len(self._table))
            self._table[at:end] = data[: end - at]

    def _stores(self) -> tuple[tuple[tuple[int, int], bytearray], ...]:
        return (self._table_at, self._table), (self._pba_at, self._pba)

    def masked(self, vector: int) -> bool:
        """Whether the vector's own mask bit is set."""
        return bool(self._table[self._control(vector)] & pci.MSIX_ENTRY_MASKED)

    def mask(self, vector: int, masked: bool) -> None:
        """Set or clear the vector's mask bit."""
        at = self._control(vector)
        kept = self._table[at] & ~pci.MSIX_ENTRY_MASKED
        self._table[at] = kept | pci.MSIX_ENTRY_MASKED if masked else kept

    def _control(self, vector: int) -> int:
        return vector * pci.MSIX_ENTRY_SIZE + pci.MSIX_ENTRY_CONTROL

    def pending(self) -> list[int]:
        """The vectors whose pending bit is set."""
        if not int.from_bytes(self._pba, "little"):  # as a rule, and then it is quick
            return []
        return [v for v in range(self.vectors) if self._pba[v // 8] & 1 << v % 8]

    def set_pending(self, vector: int, pending: bool) -> None:
        """Set or clear a pending bit."""
        bit = 1 << vector % 8
        kept = self._pba[vector // 8] & ~bit
        self._pba[vector // 8] = kept | bit if pending else kept

    # Migration

    def save(self) -> bytes:
        """Table and pending bits, for :meth:`load`."""
        return bytes(self._table + self._pba)

    def check_saved(self, saved: Buffer) -> None:
        """Raise ValueError where :meth:`save` cannot have given it."""
        if len(saved) != len(self._table) + len(self._pba):
            raise ValueError(f"{len(saved)} bytes of MSI-X table")
        if int.from_bytes(saved[len(self._table) :], "little") >> self.vectors:
            raise ValueError("a pending vector that the device does not have")

    def load(self, saved: Buffer) -> None:
        """Take on what was saved and checked."""
        self._table[:] = saved[: len(self._table)]
        self._pba[:] = saved[len(self._table) :]
