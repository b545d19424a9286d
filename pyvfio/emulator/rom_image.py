# SPDX-License-Identifier: BSD-3-Clause
"""Images in an expansion ROM, and whom they say that they are for.

A ROM holds one image or several, each with a header and a PCI data structure (PCI Firmware
Specification 3.0, 5.1.1 and 5.1.2).  Firmware runs an image only where the ids in it are those of
the function, and where the bytes of one for x86 add up to 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_SIGNATURE = b"\x55\xaa"
_UNIT = 512
"""Bytes that lengths are counted in."""
_CHECKSUM = 6
"""A byte behind the entry point's jump, which makers of x86 images balance the sum with."""
_POINTER = 0x18
_STRUCTURE_SIZE = 0x18

# The PCI data structure.
_STRUCTURE_SIGNATURE = b"PCIR"
_VENDOR, _DEVICE, _LENGTH, _CODE_TYPE, _INDICATOR = 0x04, 0x06, 0x10, 0x14, 0x15
_X86 = 0
_LAST = 0x80


class _Image(NamedTuple):
    start: int
    structure: int
    """Where its PCI data structure is in the ROM."""


def show_ids(rom: bytearray, vendor_id: int, device_id: int) -> None:
    """Make images of the vendor's say that they are for this device; others are left alone.

    As QEMU's ``vfio_pci_load_rom``, for every image instead of the first.
    """
    for image in _images(rom):
        if _word(rom, image.structure + _VENDOR) != vendor_id:
            continue
        at = image.structure + _DEVICE
        if _word(rom, at) != device_id:
            rom[at : at + 2] = device_id.to_bytes(2, "little")
            if rom[image.structure + _CODE_TYPE] == _X86:
                _balance(rom, image.start)


def _images(rom: bytearray) -> Iterator[_Image]:
    """The images one after the other, as far as they make sense."""
    start = 0
    while rom[start : start + 2] == _SIGNATURE and start + _POINTER + 2 <= len(rom):
        structure = start + _word(rom, start + _POINTER)
        if rom[
            structure : structure + 4
        ] != _STRUCTURE_SIGNATURE or structure + _STRUCTURE_SIZE > len(rom):
            return
        yield _Image(start, structure)
        length = _word(rom, structure + _LENGTH) * _UNIT
        if not length or rom[structure + _INDICATOR] & _LAST:
            return
        start += length


def _balance(rom: bytearray, start: int) -> None:
    """Set the checksum of the image at ``start``, whose length for this is in its header."""
    end = min(start + rom[start + 2] * _UNIT, len(rom))
    rom[start + _CHECKSUM] = 0
    rom[start + _CHECKSUM] = -sum(rom[start:end]) & 0xFF


def _word(rom: bytearray, at: int) -> int:
    return int.from_bytes(rom[at : at + 2], "little")
