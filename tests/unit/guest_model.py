# SPDX-License-Identifier: BSD-3-Clause
"""What a guest must see of :class:`ConfigDevice` on a root complex, one byte at a time.

Written down from the PCI and PCI Express specifications and from what QEMU does, without a look at
the masks of the package: a table of the bytes that are not the device's, and a few rules.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

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
    059  ff                00                00
    05a  f0                90                00
    064  ffffffffffffffff  0000000000000000  0000000000000000
    084  ffffffffffffffff  0000000000000000  0000000000000000
    095  ff                00                00
    100  ffffffff          00000014          00000000
    142  f0ff              8018              0000
    18a  f0ff              c019              0000
    18c  ffffffff          00040000          00000000
    190  ffffffff          20060000          00000000
    196  f0ff              0000              0000
    19e  f0ff              801a              0000
    1aa  f0ff              0000              0000
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


class GuestModel:
    """The guest's view.

    :param device: the device, to be written through this model only.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._mask = bytearray(4096)
        self._value = bytearray(4096)
        self._writable = bytearray(4096)
        for line in _NOT_THE_DEVICES.split("\n"):
            if line:
                offset, *columns = line.split()
                mine = (self._mask, self._value, self._writable)
                for data, column in zip(mine, columns, strict=True):
                    data[int(offset, 16) : int(offset, 16) + len(column) // 2] = bytes.fromhex(
                        column
                    )
        self._command = device.read(4, 1)[0]
        self._power = 0

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
        for at in range(offset, offset + width):
            byte = value >> 8 * (at - offset) & 0xFF
            self._device.write(at, bytes([byte]))
            writable = self._writable[at]
            self._value[at] = self._value[at] & ~writable | byte & writable
            if at == 0x04:
                self._command = byte
            if at == 0x44:
                self._change_power(byte & 3)

    def _change_power(self, state: int) -> None:
        """D2 does not exist; a function that is not in D0 goes down only, or back to D0."""
        if state == 0 or (state != 2 and state >= self._power):
            self._power = state

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


# What a guest does


@dataclass(frozen=True, slots=True)
class Access:
    """A read of a guest, or a write of a value."""

    offset: int
    width: int
    value: int | None


_PLACES = (
    (0x000, 0x040),
    (0x004, 0x006),
    (0x010, 0x034),
    (0x040, 0x0A4),
    (0x044, 0x046),
    (0x100, 0x1B4),
    (0x000, 0x1002),
)


def accesses(seed: int, count: int) -> Iterator[Access]:
    """Accesses as of a guest that is out of its mind, though it likes registers that matter."""
    rng = random.Random(seed)
    for _ in range(count):
        start, end = rng.choice(_PLACES)
        width = rng.choice((1, 2, 4))
        offset = rng.randrange(start, end)
        if rng.random() < 0.8:
            offset -= offset % width
        yield Access(offset, width, _value(rng, width) if rng.random() < 0.6 else None)


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
