# SPDX-License-Identifier: BSD-3-Clause
"""Instructions of a 32-bit x86 processor as bytes, and a frame for programs with interrupts."""

from __future__ import annotations

import struct

NOP, HLT, STI, CLI, IRET = b"\x90", b"\xf4", b"\xfb", b"\xfa", b"\xcf"
FOREVER = b"\xeb\xfe"

CODE, STACK, RESULT = 0x1000, 0x8000, 0x9000
HANDLER = 0x2000
_GDT, _IDT, _POINTERS = 0x3000, 0x4000, 0x3800
_IDT_VECTORS = 256


def _word(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFF_FFFF)


def eax(value: int) -> bytes:
    """eax = value"""
    return b"\xb8" + _word(value)


def edx(value: int) -> bytes:
    """edx = value"""
    return b"\xba" + _word(value)


def load(address: int) -> bytes:
    """eax = 32 bits of memory"""
    return b"\xa1" + _word(address)


def load16(address: int) -> bytes:
    """ax = 16 bits of memory"""
    return b"\x66\xa1" + _word(address)


def load8(address: int) -> bytes:
    """al = 8 bits of memory"""
    return b"\xa0" + _word(address)


def store(address: int) -> bytes:
    """32 bits of memory = eax"""
    return b"\xa3" + _word(address)


def store16(address: int) -> bytes:
    """16 bits of memory = ax"""
    return b"\x66\xa3" + _word(address)


def store8(address: int) -> bytes:
    """8 bits of memory = al"""
    return b"\xa2" + _word(address)


def put(address: int, value: int) -> bytes:
    """32 bits of memory = value"""
    return b"\xc7\x05" + _word(address) + _word(value)


def increment(address: int) -> bytes:
    """Add 1 to 32 bits of memory: a read and a write."""
    return b"\xff\x05" + _word(address)


def copy_words(to: int, source: int, count: int) -> bytes:
    """Copy 32-bit words (rep movsd)."""
    return b"\xbf" + _word(to) + b"\xbe" + _word(source) + b"\xb9" + _word(count) + b"\xf3\xa5"


def jump(to: int) -> bytes:
    """Go on at an address, by way of ecx."""
    return b"\xb9" + _word(to) + b"\xff\xe1"


def out(port: int, value: int, width: int = 4) -> bytes:
    """Write to an I/O port."""
    return edx(port) + eax(value) + {1: b"\xee", 2: b"\x66\xef", 4: b"\xef"}[width]


def inp(port: int, width: int = 4) -> bytes:
    """eax = an I/O port; the upper bits are 0."""
    return edx(port) + eax(0) + {1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}[width]


def with_interrupts(*gates: tuple[int, int, int]) -> dict[int, bytes]:
    """What a program needs in memory that takes interrupts: tables, and the bytes that load them.

    :param gates: vector, handler, type (0x8e interrupt gate, 0x8f trap gate).
    """
    table = bytearray(8 * _IDT_VECTORS)
    for vector, handler, kind in gates:
        struct.pack_into("<HHBBH", table, 8 * vector, handler & 0xFFFF, 8, 0, kind, handler >> 16)
    segments = struct.pack("<QQQ", 0, 0x00CF_9A00_0000_FFFF, 0x00CF_9200_0000_FFFF)
    pointers = struct.pack("<HI", len(segments) - 1, _GDT) + b"\0\0"
    pointers += struct.pack("<HI", len(table) - 1, _IDT)
    return {_GDT: segments, _IDT: bytes(table), _POINTERS: pointers}


def prologue() -> bytes:
    """Load the tables of :func:`with_interrupts`; begins at :data:`CODE`."""
    code = b"\x0f\x01\x15" + _word(_POINTERS) + b"\x0f\x01\x1d" + _word(_POINTERS + 8)
    code += b"\xea" + _word(CODE + len(code) + 7) + struct.pack("<H", 8)
    return code + eax(16) + b"\x8e\xd8\x8e\xd0\x8e\xc0"
