# SPDX-License-Identifier: BSD-3-Clause
"""What a guest must see of :class:`ConfigDevice` on a root complex, one byte at a time.

Written down from the PCI and PCI Express specifications and from what QEMU does, without a look at
the masks of the package: a table of the bytes that are not the device's, and a few rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tests.unit.guest_interrupt_model import InterruptModel, InterruptState

VENDOR_ID, CLASS_CODE = 0x8086, 0x010802
"""What the guest is told instead of the device's own; the function is multifunction as well."""
ROM_SIZE = 0x10000

# Offset; bits that are not the device's; what they hold; which of them the guest can change.
_NOT_THE_DEVICES = """
    000  ffff              8680              0000
    006  10                10                00
    009  ffffff            020801            000000
    00e  80                80                00
    010  ffffffffffffffff  0c00000000000000  000000fcffffffff
    018  ffffffff          01000000          e0ffffff
    01c  ffffffff          00000000          00f0ffff
    020  ffffffff          00000000          f0ffffff
    024  ffffffff          00000000          00000000
    030  ffffffff          00000000          0100ffff
    034  ff                40                00
    041  ff                48                00
    049  ff                50                00
    051  ff                58                00
    05a  f0                90                00
    064  ffffffffffffffff  0000000000000000  0000000000000000
    084  ffffffffffffffff  0000000000000000  0000000000000000
    0a4  ffff              1100              0000
    0a6  ffff              0900              00c0
    0a8  ffffffffffffffff  0300000003080000  0000000000000000
    100  ffffffff          00000014          00000000
    142  f0ff              8018              0000
    18a  f0ff              c019              0000
    18c  ffffffff          00040000          00000000
    190  ffffffff          20060000          00000000
    196  f0ff              0000              0000
    19e  f0ff              801a              0000
    1aa  f0ff              0000              0000
"""
_MSI = """
    059  ff                94                00
    094  ffff              05a4              0000
    096  ffffffffffff      840000000000      7100fcffffff
    09c  ffffffffffff      000000000000      ffffffffffff
"""
_MASKABLE_MSI = """
    059  ff                b0                00
    0b0  ffff              05a4              0000
    0b2  ffffffffffff      840100000000      7100fcffffff
    0b8  ffffffffffff      000000000000      ffffffffffff
    0be  ffffffffffff      000000000000      00000f000000
    0c4  ffffffff          00000000          00000000
"""

# BAR; its register and bytes of that; its size; whether it is I/O.
_BARS = (
    (0, 0x10, 8, 64 << 20, False),
    (2, 0x18, 4, 32, True),
    (3, 0x1C, 4, 4096, False),
    (4, 0x20, 4, 16, False),
    (6, 0x30, 4, ROM_SIZE, False),
)
NUMBERS = tuple(number for number, *_ in _BARS)


class Device(Protocol):
    """A device that has what a guest writes, and nothing else."""

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of configuration space."""

    def write(self, offset: int, data: bytes) -> None:
        """Change what can be written of it."""


@dataclass(frozen=True)
class Snapshot:
    """What a saved state of a function must hold."""

    value: bytes
    command: int
    power: int
    interrupts: InterruptState


class GuestModel:
    """The guest's view.

    :param device: the device, to be written through this model only.
    :param maskable: whether it is the one whose MSI has mask bits.
    :ivar interrupts: MSI and MSI-X.
    """

    def __init__(self, device: Device, maskable: bool) -> None:
        self._device = device
        self._mask = bytearray(4096)
        self._value = bytearray(4096)
        self._writable = bytearray(4096)
        msi = _MASKABLE_MSI if maskable else _MSI
        for line in (_NOT_THE_DEVICES + msi).split("\n"):
            if line:
                offset, *columns = line.split()
                mine = (self._mask, self._value, self._writable)
                for data, column in zip(mine, columns, strict=True):
                    data[int(offset, 16) : int(offset, 16) + len(column) // 2] = bytes.fromhex(
                        column
                    )
        self._at_first = bytes(self._value)
        self._command = self._power = 0
        self.interrupts = InterruptModel(self._value, maskable)

    @property
    def masters(self) -> bool:
        """Whether the function may write to memory, messages included."""
        return bool(self._command & 4)

    def read(self, offset: int, width: int) -> int:
        """What a read must give."""
        found = 0
        for at in range(offset, offset + width):
            if at >= 4096:
                return (1 << 8 * width) - 1
            mask = self._mask[at]
            byte = self._value[at] & mask | self._device.read(at, 1)[0] & ~mask
            found |= byte << 8 * (at - offset)
        return found

    def write(self, offset: int, width: int, value: int) -> None:
        """What a write must do."""
        if offset + width > 4096:
            return
        enabled = self.interrupts.enabled
        for at in range(offset, offset + width):
            byte = value >> 8 * (at - offset) & 0xFF
            self._device.write(at, bytes([byte]))
            writable = self._writable[at]
            self._value[at] = self._value[at] & ~writable | byte & writable
            if at == 0x04:
                self._command = self._command & 0xFF00 | byte & 0x07
            if at == 0x05:
                self._command = self._command & 0x00FF | (byte & 0x05) << 8
            if at == 0x44:
                self._change_power(byte & 3)
        self.interrupts.written(offset, offset + width, enabled, self.masters)

    def _change_power(self, state: int) -> None:
        """D2 does not exist; a function that is not in D0 goes down only, or back to D0."""
        if state == 0 or (state != 2 and state >= self._power):
            self._power = state

    def reset(self) -> None:
        """As after power-on, though the device, which has no reset, keeps what is its own."""
        self._value[:] = self._at_first
        self._command = self._power = 0
        self.interrupts.reset()
        command = int.from_bytes(self._device.read(0x04, 2), "little") & ~0x0407
        self._device.write(0x04, command.to_bytes(2, "little"))
        self._device.write(0x44, bytes([self._device.read(0x44, 1)[0] & ~0x03]))
        self._device.write(0x10, bytes(24))

    def save(self) -> Snapshot:
        """What must come back when what is saved now is loaded."""
        return Snapshot(bytes(self._value), self._command, self._power, self.interrupts.save())

    def load(self, saved: Snapshot) -> None:
        """Load it; the device is told of the command register only."""
        self._value[:] = saved.value
        self._command, self._power = saved.command, saved.power
        self._device.write(0x04, saved.command.to_bytes(2, "little"))
        self.interrupts.load(saved.interrupts)

    def addresses(self) -> dict[int, int | None]:
        """Where each BAR must be seen, and the ROM (6)."""
        return {bar[0]: self._address(*bar[1:]) for bar in _BARS}

    def _address(self, register: int, width: int, size: int, ports: bool) -> int | None:
        value = int.from_bytes(self._value[register : register + width], "little")
        if self._power or not self._command & (1 if ports else 2):
            return None
        if register == 0x30 and not value & 1:
            return None
        address = value // size * size
        end = address + size
        # The last byte of what a register can address is taken for sizing; ports have 16 bits.
        fits = end <= 1 << 16 if ports else end < 1 << 8 * width
        return address if address and fits else None
