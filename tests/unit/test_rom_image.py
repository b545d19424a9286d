# SPDX-License-Identifier: BSD-3-Clause
"""Whom the images of an expansion ROM are for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio.emulator.rom_image import show_ids
from tests.unit.option_rom import EFI, PCIR, ids, option_rom

VENDOR, DEVICE, OTHER = 0x10DE, 0x0A65, 0xBEEF


def shown(rom: bytes, device: int = OTHER) -> bytes:
    """A ROM for another device."""
    changed = bytearray(rom)
    show_ids(changed, VENDOR, device)
    return bytes(changed)


def test_an_image_for_the_same_device_is_left_alone() -> None:
    rom = bytearray(option_rom(VENDOR, DEVICE, length=1024))
    rom[6] ^= 0xFF  # some are known to have a wrong sum
    assert shown(bytes(rom), DEVICE) == rom


def test_an_image_is_made_one_for_another_device() -> None:
    rom = shown(option_rom(VENDOR, DEVICE, length=1024))
    assert ids(rom) == (VENDOR, OTHER)
    assert sum(rom) & 0xFF == 0


def test_an_image_of_another_vendors_is_left_alone() -> None:
    rom = option_rom(0x8086, DEVICE, length=1024)
    assert shown(rom) == rom


def test_every_image_of_the_vendors_is_changed() -> None:
    first = option_rom(VENDOR, DEVICE, length=1024, last=False)
    second = option_rom(0x8086, DEVICE, length=512, last=False)
    third = option_rom(VENDOR, DEVICE, length=2048, code_type=EFI)
    rom = shown(first + second + third)
    found = [ids(rom), ids(rom, 1024), ids(rom, 1536)]
    assert found == [(VENDOR, OTHER), (0x8086, DEVICE), (VENDOR, OTHER)]
    assert sum(rom[:1024]) & 0xFF == 0


def test_an_image_that_is_not_for_x86_has_no_sum() -> None:
    rom = option_rom(VENDOR, DEVICE, length=1024, code_type=EFI)
    changed = shown(rom)
    assert [at for at in range(1024) if changed[at] != rom[at]] == [PCIR + 6, PCIR + 7]


def test_what_follows_the_last_image_is_none() -> None:
    one = option_rom(VENDOR, DEVICE, length=512)
    assert shown(one + one)[512:] == one


def test_the_sum_is_that_of_the_image_not_of_what_follows() -> None:
    rom = shown(option_rom(VENDOR, DEVICE, length=1024) + b"\xff" * 100)
    assert sum(rom[:1024]) & 0xFF == 0


BROKEN = {
    "nothing": b"",
    "a part of a header": option_rom(VENDOR, DEVICE, length=512)[:0x19],
    "a part of its structure": option_rom(VENDOR, DEVICE, length=512)[: PCIR + 0x17],
    "no signature": b"\0" + option_rom(VENDOR, DEVICE, length=512)[1:],
    "no structure": option_rom(VENDOR, DEVICE, length=512).replace(b"PCIR", b"PCIX"),
}


@pytest.mark.parametrize("rom", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_image_is_left_alone(rom: bytes) -> None:
    assert shown(rom) == rom


def test_an_image_of_no_length_is_the_last() -> None:
    rom = bytearray(option_rom(VENDOR, DEVICE, length=512, last=False))
    rom[PCIR + 0x10 : PCIR + 0x12] = bytes(2)
    assert ids(shown(bytes(rom))) == (VENDOR, OTHER)


@given(
    st.lists(st.sampled_from([b"\x55\xaa", b"PCIR", b"\x1c\0", b"\0", b"\1\0"]) | st.binary()),
    st.binary(),
)
def test_any_bytes_keep_their_number(parts: list[bytes], behind: bytes) -> None:
    rom = option_rom(VENDOR, DEVICE, length=512, last=False) + b"".join(parts) + behind
    assert len(shown(rom)) == len(rom)
