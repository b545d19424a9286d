# SPDX-License-Identifier: BSD-3-Clause
"""A virtual IOMMU: what a device sees through it, and who hears of maps and unmaps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvfio.emulator.memory import (
    AddressSpace,
    IOMMUNotifier,
    IOMMURegion,
    IOTLBEntry,
    MemoryRegion,
    MMIORegion,
    RAMRegion,
    Topology,
)
from pyvfio.uapi.vfio import DMAMapFlags
from tests.unit.test_memory_access import Registers

PAGE = 4096
NONE, READ, WRITE = DMAMapFlags(0), DMAMapFlags.READ, DMAMapFlags.WRITE
REGISTERS = 0x10_0000


class PageTable(IOMMURegion):
    """An IOMMU of one page size; says of all that is not mapped that it is one hole."""

    def __init__(self, target: AddressSpace, size: int = 1 << 64) -> None:
        super().__init__("iommu", size, target)
        self.pages: dict[int, tuple[int, DMAMapFlags]] = {}
        self.asked: list[tuple[int, bool]] = []

    def translate(self, iova: int, is_write: bool) -> IOTLBEntry:
        self.asked.append((iova, is_write))
        page = iova & -PAGE
        if page in self.pages:
            return IOTLBEntry(page, self.pages[page][0], PAGE - 1, self.pages[page][1])
        mask = (1 << 64) - 1
        while any(mapped & ~mask == iova & ~mask for mapped in self.pages):
            mask >>= 1
        return IOTLBEntry(iova & ~mask, 0, mask, NONE)


@pytest.fixture
def ram() -> Iterator[RAMRegion]:
    with RAMRegion("ram", 4 * PAGE) as found:
        yield found


@pytest.fixture
def registers() -> Registers:
    return Registers()


@pytest.fixture
def system(ram: RAMRegion, registers: Registers) -> AddressSpace:
    root = MemoryRegion("system", 1 << 64)
    root.add(ram, 0)
    root.add(MMIORegion("registers", 256, registers), REGISTERS)
    return Topology().space("memory", root)


@pytest.fixture
def iommu(system: AddressSpace) -> PageTable:
    return PageTable(system)


@pytest.fixture
def device(iommu: PageTable) -> AddressSpace:
    """What a device behind the IOMMU sees."""
    return Topology().space("device", iommu)


# Accesses


def test_an_access_is_translated(device: AddressSpace, iommu: PageTable, ram: RAMRegion) -> None:
    iommu.pages[0x7000] = (2 * PAGE, READ | WRITE)
    device.write(0x7010, 4, 0x01020304)
    assert ram.read(2 * PAGE + 0x10, 4) == 0x01020304
    assert device.read(0x7012, 2) == 0x0102
    assert iommu.asked == [(0x7010, True), (0x7012, False)]


def test_an_access_keeps_its_width(
    device: AddressSpace, iommu: PageTable, registers: Registers
) -> None:
    iommu.pages[0] = (REGISTERS, READ | WRITE)
    device.read(8, 8)
    device.write(16, 4, 0)
    assert registers.calls == [("read", 8, 8), ("write", 16, 4)]


@pytest.mark.parametrize("permission", [NONE, WRITE])
def test_what_may_not_be_read_is_all_ones(
    device: AddressSpace, iommu: PageTable, permission: DMAMapFlags
) -> None:
    iommu.pages[0] = (0, permission)
    assert device.read(0, 4) == 0xFFFF_FFFF
    assert device.read_bytes(1, 2) == b"\xff\xff"


@pytest.mark.parametrize("permission", [NONE, READ])
def test_what_may_not_be_written_stays(
    device: AddressSpace, iommu: PageTable, ram: RAMRegion, permission: DMAMapFlags
) -> None:
    iommu.pages[0] = (0, permission)
    device.write(0, 4, 5)
    device.write_bytes(1, b"ab")
    assert not ram.array.any()


def test_bytes_cross_pages_that_are_mapped_apart(
    device: AddressSpace, iommu: PageTable, ram: RAMRegion
) -> None:
    iommu.pages = {0: (3 * PAGE, READ | WRITE), PAGE: (0, READ | WRITE)}
    device.write_bytes(PAGE - 2, b"abcd")
    assert ram.read_bytes(4 * PAGE - 2, 2) + ram.read_bytes(0, 2) == b"abcd"
    assert device.read_bytes(PAGE - 3, 5) == b"\0abcd"
    assert device.read(PAGE - 2, 4) == int.from_bytes(b"abcd", "little")


def test_what_crosses_into_a_page_that_is_not_mapped_is_split(
    device: AddressSpace, iommu: PageTable
) -> None:
    iommu.pages[0] = (0, READ | WRITE)
    device.write_bytes(PAGE - 1, b"ab")
    assert device.read_bytes(PAGE - 1, 2) == b"a\xff"


def test_small_pages_split_even_an_aligned_access(system: AddressSpace, ram: RAMRegion) -> None:
    """Pages of 2 bytes, each shown the other way round."""

    def swap(iova: int, _: bool) -> IOTLBEntry:
        return IOTLBEntry(iova & ~1, (iova & ~1) ^ 2, 1, READ | WRITE)

    iommu = IOMMURegion("iommu", 16, system, swap)
    iommu.write(0, 4, 0x44332211)
    assert ram.read(0, 4) == 0x22114433
    assert iommu.read(0, 4) == 0x44332211


def test_an_iommu_may_be_a_function(system: AddressSpace, ram: RAMRegion) -> None:
    iommu = IOMMURegion(
        "identity", 1 << 64, system, lambda *_: IOTLBEntry(0, 0, (1 << 64) - 1, READ)
    )
    ram.array[5] = 9
    assert iommu.read(5, 1) == 9


def test_an_iommu_that_translates_nothing_says_so(system: AddressSpace) -> None:
    with pytest.raises(NotImplementedError, match="translates nothing"):
        IOMMURegion("none", 16, system).read(0, 4)


def test_an_entry_for_other_addresses_is_an_error(system: AddressSpace) -> None:
    iommu = IOMMURegion("wrong", 1 << 64, system, lambda *_: IOTLBEntry(0, 0, PAGE - 1, READ))
    with pytest.raises(ValueError, match="translates 0x1000 by"):
        iommu.read(PAGE, 4)


@pytest.mark.parametrize(
    ("iova", "translated", "mask"),
    [(0, 0, 2), (0, 0, -1), (1, 0, 1), (0, 1, 1), (-PAGE, 0, PAGE - 1), (0, PAGE, 2 * PAGE - 1)],
)
def test_entries_that_make_no_sense_are_refused(iova: int, translated: int, mask: int) -> None:
    with pytest.raises(ValueError, match="a translation of"):
        IOTLBEntry(iova, translated, mask, READ)


# Notifications


class Heard(IOMMUNotifier):
    """Keeps what it hears."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__(first, last, self.hear)
        self.entries: list[IOTLBEntry] = []
        self.error: Exception | None = None

    def hear(self, entry: IOTLBEntry) -> None:
        self.entries.append(entry)
        if self.error is not None:
            raise self.error


def page(number: int, permission: DMAMapFlags = READ) -> IOTLBEntry:
    """One page, mapped to the first."""
    return IOTLBEntry(number * PAGE, 0, PAGE - 1, permission)


def test_who_listens_hears_of_what_concerns_it(iommu: PageTable) -> None:
    low, high = Heard(0, 2 * PAGE - 1), Heard(2 * PAGE, 4 * PAGE - 1)
    iommu.add_notifier(low)
    iommu.add_notifier(high)
    for entry in (page(1), page(2), page(4)):
        iommu.notify(entry)
    everything = IOTLBEntry(0, 0, (1 << 64) - 1, NONE)
    iommu.notify(everything)
    iommu.remove_notifier(low)
    iommu.notify(page(0, NONE))
    assert low.entries == [page(1), everything]
    assert high.entries == [page(2), everything]


def test_all_hear_although_one_fails(iommu: PageTable) -> None:
    first, second = Heard(0, PAGE), Heard(0, PAGE)
    first.error, second.error = OSError("first"), OSError("second")
    iommu.add_notifier(first)
    iommu.add_notifier(second)
    with pytest.raises(OSError, match="first") as caught:
        iommu.notify(page(0))
    assert caught.value.__notes__ == ["and then OSError: second"]
    assert second.entries == [page(0)]


def test_what_is_mapped_is_told_again_to_one_alone(iommu: PageTable) -> None:
    iommu.pages = {PAGE: (0, READ), 3 * PAGE: (0, WRITE), 1 << 40: (0, READ), 9 << 40: (0, READ)}
    asking, other = Heard(2 * PAGE, 2 << 40), Heard(0, 4 * PAGE)
    iommu.add_notifier(asking)
    iommu.add_notifier(other)
    iommu.replay(asking)
    assert asking.entries == [page(3, WRITE), page((1 << 40) // PAGE)]
    assert other.entries == []


def test_holes_are_passed_at_once(iommu: PageTable) -> None:
    iommu.pages = {1 << 40: (0, READ)}
    assert list(iommu.entries(0, (1 << 64) - 1)) == [page((1 << 40) // PAGE)]
    assert len(iommu.asked) < 200


def test_a_notifier_is_told_once_and_within_the_region(system: AddressSpace) -> None:
    iommu = PageTable(system, 2 * PAGE)
    notifier = Heard(0, PAGE)
    iommu.add_notifier(notifier)
    with pytest.raises(ValueError, match="there already"):
        iommu.add_notifier(notifier)
    iommu.remove_notifier(notifier)
    with pytest.raises(ValueError, match="not in list"):
        iommu.remove_notifier(notifier)
    for first, last in ((0, 2 * PAGE), (-1, 0), (PAGE, 0)):
        with pytest.raises(ValueError, match="notifier of iommu from"):
            iommu.add_notifier(Heard(first, last))
