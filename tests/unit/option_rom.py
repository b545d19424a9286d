# SPDX-License-Identifier: BSD-3-Clause
"""Expansion ROM images (PCI Firmware Specification 3.0, 5.1)."""

from __future__ import annotations

import struct

PCIR = 0x1C
"""Where the PCI data structure is in an image."""
X86, EFI = 0, 3
"""Code types."""
LAST = 0x80


def option_rom(
    vendor: int, device: int, *, length: int, code_type: int = X86, last: bool = True
) -> bytes:
    """An image of ``length`` bytes, whole units of 512, filled with a pattern.

    The bytes of one for x86 add up to 0.
    """
    image = bytearray((7 * at) & 0xFF for at in range(length))
    image[:7] = b"\x55\xaa" + bytes([length // 512]) + b"\xeb\x01\x90\0"
    struct.pack_into("<H", image, 0x18, PCIR)
    struct.pack_into("<4sHHHHB3s", image, PCIR, b"PCIR", vendor, device, 0, 0x18, 0, bytes(3))
    struct.pack_into("<HHBB", image, PCIR + 0x10, length // 512, 0, code_type, LAST * last)
    if code_type == X86:
        image[6] = -sum(image) & 0xFF
    return bytes(image)


def ids(rom: bytes, at: int = 0) -> tuple[int, int]:
    """Vendor and device that the image at ``at`` is for."""
    vendor, device = struct.unpack_from("<HH", rom, at + PCIR + 4)
    return vendor, device
