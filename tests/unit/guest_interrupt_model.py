# SPDX-License-Identifier: BSD-3-Clause
"""What MSI and MSI-X of :class:`ConfigDevice` must do for its guest.

From the PCI specification, and what QEMU does where that leaves it open: the last of them that the
guest enables counts, and pending bits of MSI-X end with it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Mode = Literal["pin", "MSI", "MSI-X"]
Message = tuple[int, int]
"""Address and data."""

_MSI, _MSI_SIZE = 0x94, 14
_MASKABLE_MSI, _MASKABLE_MSI_SIZE = 0xB0, 24
_MSIX, _MSIX_SIZE = 0xA4, 12
MSI_VECTORS, MSIX_VECTORS = 4, 10
TABLE_SIZE = 16 * MSIX_VECTORS


class InterruptState(NamedTuple):
    """What is saved besides configuration space."""

    table: bytes
    pending: frozenset[int]


class Enabled(NamedTuple):
    """Which of them the guest has enabled."""

    msi: bool
    msix: bool


class InterruptModel:
    """Both of them.

    :param value: configuration space where it is not the device's.
    :param maskable: whether MSI has mask bits.
    :ivar mode: which the device must signal.
    :ivar sent: the messages that were sent.
    """

    def __init__(self, value: bytearray, maskable: bool) -> None:
        self._value = value
        self._maskable = maskable
        self._msi = _MASKABLE_MSI if maskable else _MSI
        self._msi_end = self._msi + (_MASKABLE_MSI_SIZE if maskable else _MSI_SIZE)
        self.sent: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """As after power-on; configuration space is not touched."""
        self.mode: Mode = "pin"
        self._table = bytearray((bytes(12) + b"\1\0\0\0") * MSIX_VECTORS)
        self._pending: set[int] = set()
        self._given = 0
        """Vectors that the device was given when MSI was enabled; more come with the next time."""

    @property
    def enabled(self) -> Enabled:
        """Which of them the guest has enabled."""
        return Enabled(bool(self._get(0x02, 1) & 0x01), bool(self._value[_MSIX + 3] & 0x80))

    def deliverable(self, mode: Mode, vector: int) -> bool:
        """Whether the device must be able to signal a vector, and its message be sent then."""
        if mode != self.mode:
            return False
        if mode == "MSI":
            given = min(self._given, self._allocated)
            return vector < given and not self._msi_masked(vector)
        return not self._msix_masked(vector)

    def written(self, start: int, end: int, before: Enabled, masters: bool) -> None:
        """The guest has written to configuration space."""
        if start < self._msi_end and end > self._msi:
            self._msi_written(before.msi, masters)
        if start < _MSIX + _MSIX_SIZE and end > _MSIX:
            self._msix_written(before.msix, masters)

    def fire(self, mode: Mode, vector: int, masters: bool) -> None:
        """The device signals a vector of the mode."""
        assert mode == self.mode
        if mode == "MSI":
            if vector < self._allocated:
                self._msi_fired(vector, masters)
        else:
            self._pending.add(vector)
            self._send_msix(masters)

    def _enter(self, mode: Mode) -> None:
        if self.mode == "MSI-X":
            self._pending.clear()
        self.mode = mode
        self._given = self._allocated if mode == "MSI" else 0

    # MSI

    def _get(self, register: int, width: int) -> int:
        start = self._msi + register
        return int.from_bytes(self._value[start : start + width], "little")

    def _put(self, register: int, width: int, value: int) -> None:
        start = self._msi + register
        self._value[start : start + width] = value.to_bytes(width, "little")

    @property
    def _allocated(self) -> int:
        return min(1 << (self._get(0x02, 1) >> 4 & 7), MSI_VECTORS)

    def _msi_masked(self, vector: int) -> bool:
        return self._maskable and bool(self._get(0x10, 4) >> vector & 1)

    def _msi_fired(self, vector: int, masters: bool) -> None:
        if self._msi_masked(vector):
            self._put(0x14, 4, self._get(0x14, 4) | 1 << vector)
        else:
            self._send(self._msi_message(vector), masters)

    def _msi_message(self, vector: int) -> Message:
        data = self._get(0x0C, 2) // self._allocated * self._allocated + vector
        return self._get(0x04, 8), data

    def _msi_written(self, was_enabled: bool, masters: bool) -> None:
        if self.enabled.msi:
            order = self._allocated.bit_length() - 1
            self._put(0x02, 1, self._get(0x02, 1) & ~0x70 | order << 4)
        if self.enabled.msi and not was_enabled:
            self._enter("MSI")
        elif was_enabled and not self.enabled.msi and self.mode == "MSI":
            self._enter("pin")
        self._send_msi(masters)

    def _send_msi(self, masters: bool) -> None:
        """What is pending without a message is dropped."""
        if not (self.enabled.msi and self._maskable):
            return
        pending = self._get(0x14, 4) & ((1 << self._allocated) - 1)
        for vector in range(self._allocated):
            if pending >> vector & 1 and not self._msi_masked(vector):
                pending -= 1 << vector
                self._send(self._msi_message(vector), masters)
        self._put(0x14, 4, pending)

    # MSI-X

    def _msix_masked(self, vector: int) -> bool:
        enabled_and_not_masked = self._value[_MSIX + 3] & 0xC0 == 0x80
        return not enabled_and_not_masked or bool(self._table[16 * vector + 12] & 1)

    def _msix_written(self, was_enabled: bool, masters: bool) -> None:
        if self.enabled.msix and not was_enabled:
            self._enter("MSI-X")
        elif was_enabled and not self.enabled.msix and self.mode == "MSI-X":
            self._enter("pin")
        self._send_msix(masters)

    def _send_msix(self, masters: bool) -> None:
        for vector in sorted(self._pending):
            if not self._msix_masked(vector):
                self._pending.discard(vector)
                entry = self._table[16 * vector : 16 * vector + 12]
                address, data = int.from_bytes(entry[:8], "little"), entry[8:]
                self._send((address, int.from_bytes(data, "little")), masters)

    def _send(self, message: Message, masters: bool) -> None:
        if masters:
            self.sent.append(message)

    def read_table(self, offset: int, width: int) -> int:
        """What a read of the table must give."""
        return int.from_bytes(self._table[offset : offset + width], "little")

    def write_table(self, offset: int, width: int, value: int, masters: bool) -> None:
        """What a write of the table must do."""
        self._table[offset : offset + width] = value.to_bytes(width, "little")
        self._send_msix(masters)

    # State

    def save(self) -> InterruptState:
        """What must come back."""
        return InterruptState(bytes(self._table), frozenset(self._pending))

    def load(self, saved: InterruptState) -> None:
        """Configuration space is loaded already; MSI counts where both are enabled."""
        self._table[:] = saved.table
        self._enter("MSI" if self.enabled.msi else "MSI-X" if self.enabled.msix else "pin")
        self._pending = set(saved.pending)
