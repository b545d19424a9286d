# SPDX-License-Identifier: BSD-3-Clause
"""Accesses by address: which region gets them, in which width, and what answers where none is."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvfio.emulator.memory import (
    AddressSpace,
    AliasRegion,
    MemoryRegion,
    MMIORegion,
    RAMRegion,
    Topology,
)
from pyvfio.emulator.memory.terminal import accesses
from pyvfio.errors import BufferInUse, DeviceClosed, VFIOError
from pyvfio.memory import MemoryKind, SharedMemory

PAGE = 4096
REGISTERS = 0x1000


class Registers:
    """256 bytes of registers that keep what they are asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.data = bytearray(range(256))

    def read(self, offset: int, width: int) -> int:
        self.calls.append(("read", offset, width))
        return int.from_bytes(self.data[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        self.calls.append(("write", offset, width))
        self.data[offset : offset + width] = value.to_bytes(width, "little")


class Constant:
    """Registers that read as one value and cannot be written."""

    def __init__(self, value: int) -> None:
        self._value = value

    def read(self, offset: int, width: int) -> int:
        return self._value

    def write(self, offset: int, width: int, value: int) -> None:
        raise PermissionError


@pytest.fixture
def registers() -> Registers:
    return Registers()


@pytest.fixture
def ram() -> Iterator[RAMRegion]:
    """A page at address 0."""
    with RAMRegion("ram", PAGE) as found:
        yield found


@pytest.fixture
def root(ram: RAMRegion, registers: Registers) -> MemoryRegion:
    found = MemoryRegion("system", 1 << 64)
    found.add(ram, 0)
    found.add(MMIORegion("registers", 256, registers), REGISTERS)
    return found


@pytest.fixture
def space(root: MemoryRegion) -> AddressSpace:
    return Topology().space("memory", root)


# One access


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_an_aligned_access_is_one_call(
    space: AddressSpace, registers: Registers, width: int
) -> None:
    value = int.from_bytes(bytes(range(8, 8 + width)), "little")
    assert space.read(REGISTERS + 8, width) == value
    space.write(REGISTERS + 16, width, value)
    assert registers.calls == [("read", 8, width), ("write", 16, width)]
    assert registers.data[16 : 16 + width] == bytes(range(8, 8 + width))


@pytest.mark.parametrize(
    ("offset", "width", "calls"),
    [
        (1, 2, [(1, 1), (2, 1)]),
        (2, 4, [(2, 2), (4, 2)]),
        (3, 4, [(3, 1), (4, 2), (6, 1)]),
        (4, 8, [(4, 4), (8, 4)]),
        (7, 8, [(7, 1), (8, 4), (12, 2), (14, 1)]),
    ],
)
def test_what_is_not_aligned_is_split(
    space: AddressSpace,
    registers: Registers,
    offset: int,
    width: int,
    calls: list[tuple[int, int]],
) -> None:
    wanted = int.from_bytes(bytes(range(offset, offset + width)), "little")
    assert space.read(REGISTERS + offset, width) == wanted
    space.write(REGISTERS + offset, width, 0)
    assert registers.calls == [(verb, *call) for verb in ("read", "write") for call in calls]
    assert registers.data[offset : offset + width] == bytes(width)


def test_alignment_is_that_within_the_region(registers: Registers) -> None:
    root = MemoryRegion("system", 0x1000)
    root.add(MMIORegion("odd", 256, registers), 0x102)
    Topology().space("memory", root).read(0x102, 4)
    assert registers.calls == [("read", 0, 4)]


@given(st.integers(0, 64), st.integers(0, 64))
def test_a_split_has_every_byte_once_in_aligned_accesses(offset: int, size: int) -> None:
    parts = list(accesses(offset, size))
    assert [byte for at, width in parts for byte in range(at, at + width)] == list(
        range(offset, offset + size)
    )
    assert all(width in (1, 2, 4, 8) and at % width == 0 for at, width in parts)


def test_bits_beyond_the_width_are_dropped() -> None:
    assert MMIORegion("ones", 4, Constant(-1)).read(0, 2) == 0xFFFF


def test_what_a_handler_raises_reaches_who_asked(root: MemoryRegion, space: AddressSpace) -> None:
    root.add(MMIORegion("read only", 4, Constant(0)), 0x6000)
    with pytest.raises(PermissionError):
        space.write(0x6000, 4, 0)


@pytest.mark.parametrize("width", [0, 3, 16, -1])
def test_widths_that_do_not_exist_are_refused(
    space: AddressSpace, ram: RAMRegion, width: int
) -> None:
    for access in (space.read, ram.read):
        with pytest.raises(ValueError, match=f"access of {width} bytes"):
            access(0, width)
    for store in (space.write, ram.write):
        with pytest.raises(ValueError, match=f"access of {width} bytes"):
            store(0, width, 0)


@pytest.mark.parametrize("value", [-1, 256])
def test_values_that_do_not_fit_are_refused(
    space: AddressSpace, ram: RAMRegion, value: int
) -> None:
    for store in (space.write, ram.write):
        with pytest.raises(ValueError, match="does not fit into 8 bits"):
            store(0, 1, value)
    with pytest.raises(ValueError, match="does not fit"):
        space.write(0x5000, 1, value)


@pytest.mark.parametrize("address", [-1, 1 << 64])
def test_addresses_that_do_not_exist_are_refused(space: AddressSpace, address: int) -> None:
    with pytest.raises(ValueError, match="an access of 1 bytes at"):
        space.read(address, 1)
    with pytest.raises(ValueError, match="an access of 2 bytes at"):
        space.write_bytes(address, b"ab")


# Where nothing is, and where several are


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_where_nothing_is_all_bits_are_ones_and_writes_are_dropped(
    space: AddressSpace, width: int
) -> None:
    space.write(0x5000, width, 0)
    assert space.read(0x5000, width) == (1 << 8 * width) - 1


def test_an_access_may_cross_into_nothing(space: AddressSpace, registers: Registers) -> None:
    assert space.read(REGISTERS + 254, 4) == 0xFFFF_FFFE
    space.write(REGISTERS + 254, 4, 0)
    assert registers.data[254:] == b"\0\0"
    assert space.read((1 << 64) - 1, 8) == (1 << 64) - 1


def test_an_access_may_cross_from_one_region_into_another(
    space: AddressSpace, ram: RAMRegion, registers: Registers
) -> None:
    space.write(PAGE - 2, 4, 0x44332211)
    assert bytes(ram.array[-2:]) == b"\x11\x22"
    assert registers.data[:2] == b"\x33\x44"
    assert space.read(PAGE - 2, 4) == 0x44332211
    assert registers.calls == [("write", 0, 2), ("read", 0, 2)]


def test_bytes_are_read_across_everything(space: AddressSpace, ram: RAMRegion) -> None:
    ram.array[-1] = 0xAA
    found = space.read_bytes(PAGE - 1, 258)
    assert found == b"\xaa" + bytes(range(256)) + b"\xff"


def test_bytes_are_written_across_everything(
    space: AddressSpace, ram: RAMRegion, registers: Registers
) -> None:
    space.write_bytes(PAGE - 1, b"\x01" * 300)
    assert ram.array[-1] == 1
    assert registers.data == b"\x01" * 256
    assert {width for _, _, width in registers.calls} == {8}


def test_no_bytes_are_no_access(space: AddressSpace, registers: Registers) -> None:
    assert space.read_bytes(REGISTERS, 0) == b""
    space.write_bytes(REGISTERS, b"")
    assert registers.calls == []


# RAM


def test_ram_keeps_what_is_written(space: AddressSpace, ram: RAMRegion) -> None:
    space.write(8, 8, 0x8877665544332211)
    assert bytes(ram.array[8:16]) == bytes.fromhex("1122334455667788")
    assert space.read(13, 1) == 0x66
    assert space.read(11, 4) == 0x77665544


def test_read_only_ram_drops_what_the_guest_writes(space: AddressSpace, ram: RAMRegion) -> None:
    ram.array[0] = 7
    ram.readonly = True
    space.write(0, 4, 0)
    space.write_bytes(0, bytes(8))
    assert space.read(0, 1) == 7
    ram.write(0, 1, 9)
    assert space.read(0, 1) == 9


def test_a_read_only_alias_drops_what_is_written_through_it(
    root: MemoryRegion, space: AddressSpace, ram: RAMRegion
) -> None:
    shadow = AliasRegion("shadow", ram, 0, PAGE)
    shadow.readonly = True
    root.add(shadow, 0x10000)
    space.write(0x10000, 4, 5)
    space.write(4, 4, 6)
    assert (space.read(0x10000, 4), space.read(0x10004, 4)) == (0, 6)


def test_registers_decide_themselves_what_a_write_through_a_read_only_alias_is(
    root: MemoryRegion, space: AddressSpace, registers: Registers
) -> None:
    root.readonly = True
    space.write(REGISTERS, 1, 0x55)
    assert registers.data[0] == 0x55


def test_ram_may_be_a_part_of_larger_memory() -> None:
    with SharedMemory(4 * PAGE, MemoryKind.MEMFD) as memory:
        ram = RAMRegion("high", PAGE, memory, 2 * PAGE)
        ram.write(0, 4, 0x01020304)
        assert os.pread(ram.fd, 4, ram.dma_offset) == b"\x04\x03\x02\x01"
        assert ram.address == memory.address + 2 * PAGE
        assert ram.array.size == PAGE
        ram.close()
        assert memory.array.size == 4 * PAGE


@pytest.mark.parametrize(("size", "offset"), [(PAGE + 1, 0), (PAGE, 1), (1, -1)])
def test_ram_does_not_go_beyond_its_memory(size: int, offset: int) -> None:
    with SharedMemory(PAGE) as memory, pytest.raises(ValueError, match="RAM x of"):
        RAMRegion("x", size, memory, offset)


def test_ram_of_its_own_goes_when_it_is_closed(ram: RAMRegion) -> None:
    array = ram.array
    with pytest.raises(BufferInUse):
        ram.close()
    del array
    ram.close()
    ram.close()
    with pytest.raises(DeviceClosed):
        ram.read(0, 4)


@pytest.mark.parametrize(("offset", "size"), [(PAGE, 1), (PAGE - 1, 2), (-1, 1)])
def test_nothing_outside_of_ram_is_touched(ram: RAMRegion, offset: int, size: int) -> None:
    for access in (ram.read_bytes, ram.read):
        with pytest.raises(ValueError, match="bytes at"):
            access(offset, size)
    with pytest.raises(ValueError, match="bytes at"):
        ram.write(offset, size, 0)
    with pytest.raises(ValueError, match="bytes at"):
        ram.write_bytes(offset, bytes(size))


def test_ram_is_as_large_as_its_memory(ram: RAMRegion) -> None:
    with pytest.raises(ValueError, match="as large as its memory"):
        ram.resize(2 * PAGE)


def test_ram_whose_file_was_truncated_is_an_error(space: AddressSpace, ram: RAMRegion) -> None:
    os.ftruncate(ram.fd, 0)
    with pytest.raises(VFIOError, match=r"read ram\+0x0.*truncated"):
        space.read(0, 4)
    with pytest.raises(VFIOError, match=r"read ram\+0x1"):
        space.read(1, 4)
    with pytest.raises(VFIOError, match=r"write ram\+0x8"):
        space.write(8, 4, 0)
    with pytest.raises(VFIOError, match=r"write ram\+0x8"):
        space.write_bytes(8, b"abc")


# Threads


def test_another_thread_sees_the_view_before_or_after_a_transaction(
    root: MemoryRegion, space: AddressSpace
) -> None:
    windows = [MMIORegion(f"w{number}", 4, Constant(number)) for number in (1, 2)]
    root.add(windows[0], 0x8000, priority=2)
    wrong: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            found = space.read(0x8000, 4)
            if found not in (1, 2):
                wrong.append(found)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(300):
        gone, new = windows[number % 2], windows[(number + 1) % 2]
        with space.changing():
            root.remove(gone)
            root.add(new, 0x8000, priority=2)
    stop.set()
    thread.join()
    assert wrong == []
