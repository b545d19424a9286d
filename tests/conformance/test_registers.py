# SPDX-License-Identifier: BSD-3-Clause
"""Register access: one access of the width that was asked for, and nothing where it is refused.

The scratch register of the test device counts its accesses and keeps the width of the last.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from pyvfio.drivers.edu import EduDriver
from pyvfio.errors import DeviceClosed, RegionError
from pyvfio.pci.bars import BAR
from pyvfio.pci.device import PCIDevice
from tests.conformance.devices import MEMORY, REGISTERS, Dev, Edu, fire

PAGE = 4096

WIDTHS = (1, 2, 4, 8)

READ: dict[int, Callable[[BAR, int], int]] = {
    1: BAR.read8,
    2: BAR.read16,
    4: BAR.read32,
    8: BAR.read64,
}
WRITE: dict[int, Callable[[BAR, int, int], None]] = {
    1: BAR.write8,
    2: BAR.write16,
    4: BAR.write32,
    8: BAR.write64,
}


def accesses(bar: BAR) -> int:
    """How often the scratch register was accessed since the reset."""
    return bar.read32(Dev.ACCESSES)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_read_is_one_access_of_its_width(testdev: PCIDevice, width: int) -> None:
    bar = testdev.bars[REGISTERS]
    READ[width](bar, Dev.SCRATCH)
    assert (accesses(bar), bar.read32(Dev.WIDTH)) == (1, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_write_is_one_access_of_its_width(testdev: PCIDevice, width: int) -> None:
    bar = testdev.bars[REGISTERS]
    WRITE[width](bar, Dev.SCRATCH, 0x5A)
    assert (accesses(bar), bar.read32(Dev.WIDTH)) == (1, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_write_changes_its_own_bytes_only(testdev: PCIDevice, width: int) -> None:
    bar = testdev.bars[REGISTERS]
    bar.write64(Dev.SCRATCH, 0)
    WRITE[width](bar, Dev.SCRATCH + 8 - width, (1 << 8 * width) - 1)
    assert bar.read64(Dev.SCRATCH) == (1 << 64) - (1 << 64 - 8 * width)


@pytest.mark.parametrize("number", [REGISTERS, MEMORY])
def test_values_are_little_endian(testdev: PCIDevice, number: int) -> None:
    bar = testdev.bars[number]
    bar.write64(Dev.SCRATCH, 0x8877665544332211)
    assert [bar.read8(Dev.SCRATCH + at) for at in range(8)] == [
        0x11 * number for number in range(1, 9)
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_read_and_write_take_the_width_as_a_number(testdev: PCIDevice, width: int) -> None:
    bar = testdev.bars[REGISTERS]
    bar.write(Dev.SCRATCH, width, 0x42)
    assert (bar.read(Dev.SCRATCH, width), accesses(bar)) == (0x42, 2)


@pytest.mark.parametrize("number", [REGISTERS, MEMORY])
@pytest.mark.parametrize("width", [2, 4, 8])
def test_an_access_that_is_not_aligned_is_refused(
    testdev: PCIDevice, number: int, width: int
) -> None:
    with pytest.raises(RegionError, match="not a multiple") as caught:
        READ[width](testdev.bars[number], Dev.SCRATCH + width // 2)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("number", [REGISTERS, MEMORY])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_last_register_of_a_bar_can_be_read(
    testdev: PCIDevice, number: int, width: int
) -> None:
    bar = testdev.bars[number]
    contents = bar.read_bytes(bar.size - width, width)  # of memory, what an earlier test left there
    assert READ[width](bar, bar.size - width) == int.from_bytes(contents, "little")


@pytest.mark.parametrize("number", [REGISTERS, MEMORY])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_read_behind_the_end_is_refused(testdev: PCIDevice, number: int, width: int) -> None:
    bar = testdev.bars[number]
    with pytest.raises(RegionError, match="outside"):
        READ[width](bar, bar.size)


@pytest.mark.parametrize("number", [REGISTERS, MEMORY])
def test_a_write_behind_the_end_is_refused(testdev: PCIDevice, number: int) -> None:
    bar = testdev.bars[number]
    with pytest.raises(RegionError, match="outside"):
        bar.write32(bar.size, 0)


@pytest.mark.parametrize("number", [REGISTERS, MEMORY])
@pytest.mark.parametrize("offset", [-8, -1, 1 << 63, 1 << 64])
def test_an_offset_that_no_bar_has_is_refused(testdev: PCIDevice, number: int, offset: int) -> None:
    with pytest.raises(RegionError, match="outside"):
        testdev.bars[number].read8(offset)


@pytest.mark.parametrize("number", [REGISTERS, MEMORY])
@pytest.mark.parametrize("offset", [np.uint64(0xFFFF_FFFF_FFFF_FFFC), np.int8(-4)])
def test_a_numpy_integer_is_no_other_offset_than_its_value(
    testdev: PCIDevice, number: int, offset: int
) -> None:
    """Its sums would wrap around."""
    bar, memory, small = testdev.bars[number], bytearray(4), cast(int, np.uint8(0))
    for use in (
        lambda: bar.read32(offset),
        lambda: bar.write32(offset, 0),
        lambda: bar.read64_lo_hi(offset),
        lambda: bar.read_bytes(offset, 4),
        lambda: bar.read_into(offset, memory),
        lambda: bar.write_bytes(offset, memory),
    ):
        with pytest.raises(RegionError, match="outside"):
            use()
    assert len(bar.read_bytes(small, 1024)) == 1024


@pytest.mark.parametrize("number", [REGISTERS, MEMORY])
@pytest.mark.parametrize("other", [None, "1", 1.0, [1], np.array([1, 2])], ids=repr)
def test_what_is_no_integer_is_refused(testdev: PCIDevice, number: int, other: Any) -> None:
    bar = testdev.bars[number]
    for use in (
        lambda: bar.read32(other),
        lambda: bar.write32(other, 0),
        lambda: bar.write32(Dev.SCRATCH, other),
        lambda: bar.read_bytes(other, 4),
    ):
        with pytest.raises(TypeError, match=r"integer|0-dimensional"):
            use()


@pytest.mark.parametrize("number", [REGISTERS, MEMORY])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("value", ["too large", "negative"])
def test_a_value_that_does_not_fit_is_refused(
    testdev: PCIDevice, number: int, width: int, value: str
) -> None:
    number_written = -1 if value == "negative" else 1 << 8 * width
    with pytest.raises(ValueError, match="does not fit"):
        WRITE[width](testdev.bars[number], Dev.SCRATCH, number_written)


@pytest.mark.parametrize("width", [-1, 0, 3, 5, 16])
def test_a_width_that_does_not_exist_is_refused(testdev: PCIDevice, width: int) -> None:
    with pytest.raises(ValueError, match="1, 2, 4 and 8"):
        testdev.bars[REGISTERS].read(Dev.SCRATCH, width)


def test_the_device_sees_nothing_of_a_refused_access(testdev: PCIDevice) -> None:
    bar = testdev.bars[REGISTERS]
    for offset, width, value in ((Dev.SCRATCH + 1, 4, 0), (Dev.SCRATCH, 3, 0), (0x10, 1, 256)):
        with pytest.raises((RegionError, ValueError)):
            bar.write(offset, width, value)
    assert accesses(bar) == 0


def test_an_error_names_the_access_and_the_device(testdev: PCIDevice) -> None:
    with pytest.raises(RegionError) as caught:
        testdev.bars[REGISTERS].read32(0x1000)
    assert str(caught.value).startswith(f"read bar0+0x1000 on {testdev.uri}: ")


@pytest.mark.parametrize("number", [REGISTERS, MEMORY])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_read_after_close_is_refused(testdev: PCIDevice, number: int, width: int) -> None:
    bar = testdev.bars[number]
    bar.read8(0)
    testdev.close()
    with pytest.raises(DeviceClosed):
        READ[width](bar, 0)


@pytest.mark.parametrize("number", [REGISTERS, MEMORY])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_write_after_close_is_refused(testdev: PCIDevice, number: int, width: int) -> None:
    bar = testdev.bars[number]
    bar.write8(0, 0)
    testdev.close()
    with pytest.raises(DeviceClosed):
        WRITE[width](bar, 0, 0)


# Posted writes


def test_posted_writes_are_seen_by_the_next_read(testdev: PCIDevice) -> None:
    bar = testdev.bars[REGISTERS]
    assert bar.posted
    for value in range(100):
        bar.write32(Dev.SCRATCH, value)
    assert (bar.read32(Dev.SCRATCH), accesses(bar)) == (99, 101)


def test_posted_writes_are_seen_before_a_read_of_another_region(testdev: PCIDevice) -> None:
    testdev.bars[REGISTERS].write32(Dev.PIN, 1)
    assert testdev.intx.asserted


def test_posted_writes_are_done_before_a_load_of_mapped_memory(testdev: PCIDevice) -> None:
    with testdev.msix.enable(1) as irqs:
        assert testdev.bars[REGISTERS].posted
        for _ in range(100):
            fire(testdev, 0)
        testdev.bars[MEMORY].read64(0)  # by itself it waits for nothing
        assert irqs[0].wait(0) == 100


def test_a_flush_waits_for_posted_writes(testdev: PCIDevice) -> None:
    with testdev.msix.enable(1) as irqs:
        for _ in range(100):
            fire(testdev, 0)
        testdev.flush()
        assert irqs[0].wait(0) == 100


def test_registers_are_waited_for_where_a_region_is_mapped(testdev: PCIDevice) -> None:
    assert testdev.bars[MEMORY].mapped
    assert not testdev.bars[REGISTERS].posted
    testdev.bars[REGISTERS].write32(Dev.SCRATCH, 1)
    assert testdev.bars[REGISTERS].read32(Dev.SCRATCH) == 1


# The edu device answers some widths only


def test_edu_identifies_itself(edu: PCIDevice) -> None:
    assert edu.bars[0].read32(Edu.ID) == 0x010000ED


@pytest.mark.parametrize("value", [0, 1, 0x12345678, 0xFFFFFFFF])
def test_edu_inverts_what_it_is_told(edu: PCIDevice, value: int) -> None:
    edu.bars[0].write32(Edu.LIVENESS, value)
    assert edu.bars[0].read32(Edu.LIVENESS) == value ^ 0xFFFFFFFF


@pytest.mark.parametrize("width", [1, 2])
def test_edu_reads_0_where_the_access_is_narrow(edu: PCIDevice, width: int) -> None:
    assert READ[width](edu.bars[0], Edu.ID) == 0


def test_edu_reads_all_ones_where_the_access_is_too_wide(edu: PCIDevice) -> None:
    assert edu.bars[0].read64(Edu.ID) == 0xFFFFFFFF_FFFFFFFF


@pytest.mark.parametrize("offset", [0x0C, 0x68, 0xA0, 0xFFFFC])
def test_edu_reads_all_ones_where_there_is_no_register(edu: PCIDevice, offset: int) -> None:
    assert edu.bars[0].read32(offset) == 0xFFFFFFFF


@pytest.mark.parametrize("width", [1, 2, 8])
def test_edu_drops_a_write_of_the_wrong_width(edu: PCIDevice, width: int) -> None:
    EduDriver(edu).factorial(4)
    WRITE[width](edu.bars[0], Edu.FACTORIAL, 5)
    assert edu.bars[0].read32(Edu.FACTORIAL) == 24


@pytest.mark.parametrize("width", [4, 8])
def test_edu_takes_both_widths_in_the_registers_of_its_dma(edu: PCIDevice, width: int) -> None:
    WRITE[width](edu.bars[0], Edu.DMA_SOURCE, 0x1234_5000)
    assert READ[width](edu.bars[0], Edu.DMA_SOURCE) == 0x1234_5000


# Many writes


@pytest.mark.parametrize("width", WIDTHS)
def test_many_writes_are_one_access_each_of_their_width(testdev: PCIDevice, width: int) -> None:
    bar = testdev.bars[REGISTERS]
    bar.write_many([Dev.SCRATCH] * 500, np.arange(500) % 256, width)
    assert (accesses(bar), bar.read32(Dev.WIDTH)) == (500, width)


def test_many_writes_are_made_in_their_order(testdev: PCIDevice) -> None:
    bar = testdev.bars[REGISTERS]
    places = np.array([0, 4, 0, 4, 0]) + Dev.SCRATCH
    bar.write_many(places, [1, 2, 3, 4, 5])
    bar.write32(Dev.SCRATCH + 4, 6)
    assert bar.read64(Dev.SCRATCH) == 6 << 32 | 5


@pytest.mark.parametrize("posted", [True, False])
def test_many_writes_are_done_before_what_follows(testdev: PCIDevice, posted: bool) -> None:
    bar = testdev.bars[REGISTERS]
    bar.posted = posted
    for count in (1, 199, 200, 201, 1000, 1001, 2500):
        bar.write_many(Dev.SCRATCH, np.arange(count))
        assert bar.read32(Dev.SCRATCH) == count - 1


def test_many_writes_reach_mapped_memory(testdev: PCIDevice) -> None:
    bar = testdev.bars[MEMORY]
    bar.write_many(range(0, 4000, 8), np.arange(500, dtype=np.uint64) << 40, 8)
    assert [bar.read64(8 * at) for at in (0, 1, 499)] == [0, 1 << 40, 499 << 40]


@pytest.mark.parametrize(
    "offset",
    [4096, 4094, Dev.SCRATCH + 2],
    ids=["behind the region", "over its end", "not aligned"],
)
def test_of_many_writes_none_is_made_where_one_has_no_place(
    testdev: PCIDevice, offset: int
) -> None:
    bar = testdev.bars[REGISTERS]
    with pytest.raises(RegionError) as caught:
        bar.write_many([Dev.SCRATCH, offset], 1)
    assert caught.value.errno == errno.EINVAL
    assert accesses(bar) == 0


@pytest.mark.parametrize(
    ("offsets", "values", "width"),
    [
        ([Dev.SCRATCH], [1 << 32], 4),
        ([Dev.SCRATCH], [-1], 4),
        ([-4], [1], 4),
        ([Dev.SCRATCH], [1.5], 4),
        ([Dev.SCRATCH] * 2, [1, 2, 3], 4),
        ([[Dev.SCRATCH]], [[1]], 4),
        ([Dev.SCRATCH], [1], 3),
    ],
    ids=["too large", "negative", "before the region", "no integer", "not as many", "2-D", "width"],
)
def test_many_writes_that_make_no_sense_are_refused(
    testdev: PCIDevice, offsets: list[int], values: list[int], width: int
) -> None:
    bar = testdev.bars[REGISTERS]
    with pytest.raises(ValueError, match=r"."):
        bar.write_many(offsets, values, width)
    assert accesses(bar) == 0


def test_no_writes_at_all_are_many_enough(testdev: PCIDevice) -> None:
    bar = testdev.bars[REGISTERS]
    bar.write_many([], [])
    assert accesses(bar) == 0
