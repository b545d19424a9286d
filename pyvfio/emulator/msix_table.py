# SPDX-License-Identifier: BSD-3-Clause
"""The MSI-X table and the pending bits that a guest sees, in memory of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pyvfio.emulator.memory.mmio import MMIOHandler
from pyvfio.emulator.messages import Message
from pyvfio.emulator.msix_layout import pba_size, table_size
from pyvfio.uapi import pci

_ADDRESS_BYTES, _DATA_BYTES = 8, 4


class MSIXTable:
    """Messages, mask bits and pending bits of ``entries`` vectors.  All are masked at first.

    :param mask_changed: called with a vector that the guest has masked or unmasked by itself.
    :ivar function_masked: all vectors are masked, whatever their own bits say.
    """

    def __init__(self, entries: int, mask_changed: Callable[[int], None]) -> None:
        self.entries = entries
        self.function_masked = True
        self._mask_changed = mask_changed
        self._table = bytearray(table_size(entries))
        self._pba = bytearray(pba_size(entries))
        self.reset()

    def reset(self) -> None:
        """As after power-on: no messages, all masked, none pending."""
        self._table[:] = bytes(len(self._table))
        for vector in range(self.entries):
            self._table[_control(vector)] = pci.MSIX_ENTRY_MASKED
        self.clear_pending()

    def message(self, vector: int) -> Message:
        """What a vector writes."""
        at = vector * pci.MSIX_ENTRY_SIZE
        address, data = at + pci.MSIX_ENTRY_ADDRESS, at + pci.MSIX_ENTRY_DATA
        return Message(
            int.from_bytes(self._table[address : address + _ADDRESS_BYTES], "little"),
            int.from_bytes(self._table[data : data + _DATA_BYTES], "little"),
        )

    def masked(self, vector: int) -> bool:
        """Whether a vector is masked, by its own bit or with all others."""
        return self.function_masked or self._own_mask(vector)

    def _own_mask(self, vector: int) -> bool:
        return bool(self._table[_control(vector)] & pci.MSIX_ENTRY_MASKED)

    def mask_function(self, masked: bool) -> Iterable[int]:
        """Mask all vectors, or leave it to their own bits.

        :returns: the vectors that are masked now, or are not any more; nothing is called for them.
        """
        if masked == self.function_masked:
            return ()
        self.function_masked = masked
        return [vector for vector in range(self.entries) if not self._own_mask(vector)]

    # Pending bits

    @property
    def any_pending(self) -> bool:
        """Whether a pending bit is set."""
        return any(self._pba)

    def pending(self, vector: int) -> bool:
        """Whether a vector's pending bit is set."""
        return bool(self._pba[vector // 8] & 1 << vector % 8)

    def set_pending(self, vector: int, pending: bool) -> None:
        """Set or clear a vector's pending bit."""
        kept = self._pba[vector // 8] & ~(1 << vector % 8)
        self._pba[vector // 8] = kept | pending << vector % 8

    def clear_pending(self) -> None:
        """Clear all pending bits."""
        self._pba[:] = bytes(len(self._pba))

    # The guest's accesses: a handler each for table and pending bits

    def read(self, offset: int, width: int) -> int:
        """A read of the table."""
        return int.from_bytes(self._table[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """A write of the table; an aligned one is within one entry."""
        vector = offset // pci.MSIX_ENTRY_SIZE
        was_masked = self.masked(vector)
        self._table[offset : offset + width] = value.to_bytes(width, "little")
        if self.masked(vector) != was_masked:
            self._mask_changed(vector)

    # State

    def save(self) -> bytes:
        """Table and pending bits."""
        return bytes(self._table + self._pba)

    def load(self, state: bytes) -> None:
        """Take what :meth:`save` gave.  Nothing is delivered or called.

        :raises ValueError: it is of another device.
        """
        size = len(self._table)
        if len(state) != size + len(self._pba):
            raise ValueError(f"{len(state)} bytes are not the state of {self.entries} vectors")
        self._table[:] = state[:size]
        self._pba[:] = state[size:]


class PendingBits:
    """The guest's accesses to the pending bits of a table.

    They do not matter while none is set, and there are devices with registers in that place.

    :param device: makes accesses on the BAR of the device, while none is set; None where the place
        is not the device's.
    :param start: where the pending bits are in the BAR.
    """

    def __init__(self, table: MSIXTable, device: MMIOHandler | None, start: int) -> None:
        self._table = table
        self._device = device
        self._start = start

    def read(self, offset: int, width: int) -> int:
        """A read of pending bits."""
        if self._device is not None and not self._table.any_pending:
            return self._device.read(self._start + offset, width)
        first, count = 8 * offset, 8 * width
        vectors = range(first, min(first + count, self._table.entries))
        return sum(1 << v - first for v in vectors if self._table.pending(v))

    def write(self, offset: int, width: int, value: int) -> None:
        """A write; pending bits are not written by software."""
        if self._device is not None and not self._table.any_pending:
            self._device.write(self._start + offset, width, value)


def _control(vector: int) -> int:
    return vector * pci.MSIX_ENTRY_SIZE + pci.MSIX_ENTRY_CONTROL
