# SPDX-License-Identifier: BSD-3-Clause
"""Register programs and polling: the same on memory that is mapped and on what is not."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest

from pyvfio import program
from pyvfio.errors import ConnectionLost, DeviceClosed, RegionError, VFIOTimeout
from pyvfio.native._native import ffi
from pyvfio.pci.bars import BAR
from pyvfio.program import STEP, Op, Step
from pyvfio.uapi.pci import BARType
from pyvfio.uapi.vfio import RegionFlags
from pyvfio.vectors import MmapArea, RegionInfo
from tests.unit.test_region import PAGE, READ_WRITE, SIZE, FakeIO

SOON = 5.0


class Presence:
    """A device that can go away."""

    def __init__(self) -> None:
        self.lost = False

    def check(self, op: str) -> None:
        """Raise where it has."""
        if self.lost:
            raise ConnectionLost("gone", op=op)


@pytest.fixture
def presence() -> Presence:
    return Presence()


@pytest.fixture
def device() -> FakeIO:
    return FakeIO()


@pytest.fixture(params=["mapped", "trapped", "both"])
def bar(request: pytest.FixtureRequest, device: FakeIO, presence: Presence) -> Iterator[BAR]:
    """A BAR; of ``both`` the first page alone is mapped."""
    areas = {"mapped": (MmapArea(0, SIZE),), "trapped": (), "both": (MmapArea(0, PAGE),)}
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        flags = READ_WRITE | RegionFlags.MMAP
        info = RegionInfo(2, flags, SIZE, file.fileno(), areas=areas[request.param])
        found = BAR(device, info, "fake:x", check_present=presence.check)
        yield found
        found.close()


def run(bar: BAR, *steps: Step) -> list[int]:
    """Run a program; returns its results."""
    array = program.program(*steps)
    bar.run(array)
    results: list[int] = array["result"].tolist()
    return results


def test_a_step_is_laid_out_as_in_c() -> None:
    assert STEP.itemsize == ffi.sizeof("struct pyvfio_step")
    assert STEP.names is not None
    offsets = {name: STEP.fields[name][1] for name in STEP.names}  # type: ignore[index]
    assert offsets == {name: ffi.offsetof("struct pyvfio_step", name) for name in STEP.names}


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_what_is_written_is_read(bar: BAR, width: int) -> None:
    value = 0x8877665544332211 & (1 << 8 * width) - 1
    for at in (PAGE - width, PAGE, SIZE - width):
        assert run(bar, program.write(at, value, width), program.read(at, width)) == [0, value]
        assert bar.read(at, width) == value


def test_halves_make_a_whole(bar: BAR) -> None:
    value = 0x8877665544332211
    for at in (4, PAGE - 4, PAGE + 4):
        steps = [
            program.write64_lo_hi(at, value),
            program.read64_lo_hi(at),
            program.read64_hi_lo(at),
            program.write64_hi_lo(at, value + 1),
            program.read64_lo_hi(at),
        ]
        assert run(bar, *steps) == [0, value, value, 0, value + 1]


@pytest.mark.parametrize("first", ["lo", "hi"])
def test_halves_are_methods_as_well(bar: BAR, first: str) -> None:
    read = bar.read64_lo_hi if first == "lo" else bar.read64_hi_lo
    write = bar.write64_lo_hi if first == "lo" else bar.write64_hi_lo
    for at in (4, PAGE - 4, SIZE - 8):
        write(at, 0x8877665544332211)
        assert (read(at), bar.read32(at)) == (0x8877665544332211, 0x44332211)


@pytest.mark.parametrize("at", [2, SIZE - 4, -4, 1 << 64])
def test_halves_that_cannot_be_are_refused(bar: BAR, device: FakeIO, at: int) -> None:
    for refused in (
        lambda: bar.read64_lo_hi(at),
        lambda: bar.read64_hi_lo(at),
        lambda: bar.write64_lo_hi(at, 0),
        lambda: bar.write64_hi_lo(at, 0),
    ):
        with pytest.raises(RegionError):
            refused()
    assert device.calls == []


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_halves_of_more_than_64_bits_are_refused(bar: BAR, value: int) -> None:
    with pytest.raises(ValueError, match="does not fit into 64 bits"):
        bar.write64_lo_hi(0, value)


@pytest.mark.parametrize("at", [16, PAGE + 16])
def test_a_modification_changes_the_bits_of_its_mask(bar: BAR, at: int) -> None:
    bar.write32(at, 0xFFFF0000)
    assert run(bar, program.modify(at, 0x12345678, 0x0FF0FF0F)) == [0xFFFF0000]
    assert bar.read32(at) == 0xF23F5608


def test_barriers_are_steps_without_a_result(bar: BAR) -> None:
    barriers = [program.barrier(), program.read_barrier(), program.write_barrier()]
    assert run(bar, *barriers) == [0, 0, 0]
    bar.barrier()
    bar.read_barrier()
    bar.write_barrier()


def test_a_program_of_nothing_does_nothing(bar: BAR, device: FakeIO) -> None:
    bar.run(program.program())
    assert device.calls == []


def test_a_long_program_runs_to_its_end(bar: BAR) -> None:
    steps = np.zeros(10_000, STEP)
    steps["op"], steps["width"] = Op.WRITE, 4
    steps["offset"] = 4 * (np.arange(10_000) % 1024)
    steps["value"] = np.arange(10_000)
    bar.run(steps)
    assert [bar.read32(4 * at) for at in (0, 783, 784, 1023)] == [9216, 9999, 8976, 9215]


def test_a_program_can_be_run_again(bar: BAR) -> None:
    steps = program.program(program.read(0), program.write(0, 7))
    for expected in (0, 7):
        bar.run(steps)
        assert steps["result"][0] == expected


# What makes no sense

NONSENSE: dict[str, tuple[Step, type[Exception], str]] = {
    "operation": (Step(11, 4), ValueError, "there is no operation 11"),
    "width": (program.read(0, 3), ValueError, "an access of 3 bytes"),
    "width of 0": (program.write(0, 1, 0), ValueError, "an access of 0 bytes"),
    "halves": (Step(Op.READ_LO_HI, 4), ValueError, "halves of 4 bytes"),
    "not aligned": (program.read(2), RegionError, "not a multiple of the 4"),
    "halves not aligned": (program.read64_lo_hi(2), RegionError, "not a multiple"),
    "outside": (program.read(SIZE), RegionError, "outside"),
    "far outside": (program.write((1 << 64) - 4, 0), RegionError, "outside"),
    "half outside": (program.write64_hi_lo(SIZE - 4, 0), RegionError, "outside"),
    "value": (program.write(0, 0x1_0000, 2), ValueError, "0x10000 does not fit into 16 bits"),
    "value of modify": (program.modify(0, 256, 255, 1), ValueError, "does not fit"),
    "wanted": (program.poll(0, 1 << 32), ValueError, "does not fit"),
    "wanted and mask": (program.poll(0, 3, mask=1), ValueError, "the mask 0x1 leaves"),
    "time-out": (program.poll(0, 0, timeout=-1.0), ValueError, "a time-out of -1.0 s"),
}


@pytest.mark.parametrize(("step", "kind", "text"), NONSENSE.values(), ids=NONSENSE.keys())
def test_a_step_that_makes_no_sense_keeps_all_from_being_done(
    bar: BAR, device: FakeIO, step: Step, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=rf"^step 1: .*{text}") as caught:
        run(bar, program.write(0, 1), step)
    assert getattr(caught.value, "step", 1) == 1
    assert (bar.read32(0), [call for call in device.calls if call[0] == "write"]) == (0, [])


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (RegionFlags.READ, [program.write(0, 1), program.modify(0, 1, 1)]),
        (RegionFlags.WRITE, [program.read(0), program.poll(0, 0), program.modify(0, 1, 1)]),
    ],
)
@pytest.mark.parametrize("is_mapped", [False, True])
def test_what_a_region_does_not_allow_is_refused(
    device: FakeIO, flags: RegionFlags, steps: list[Step], is_mapped: bool
) -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        areas = (MmapArea(0, SIZE),) if is_mapped else ()
        bar = BAR(device, RegionInfo(2, flags, SIZE, file.fileno(), areas=areas), "fake:x")
        for step in steps:
            with pytest.raises(RegionError, match="cannot be") as caught:
                run(bar, step)
            assert caught.value.errno == errno.EACCES
        bar.close()


@pytest.mark.parametrize(
    "steps",
    [
        [program.read(0)],
        np.zeros(2, np.uint64),
        np.zeros((2, 2), STEP),
        np.zeros(4, STEP)[::2],
        np.frombuffer(bytes(STEP.itemsize), STEP),
    ],
    ids=["list", "of numbers", "matrix", "not contiguous", "read-only"],
)
def test_what_is_no_program_is_refused(bar: BAR, steps: program.Steps) -> None:
    with pytest.raises(ValueError, match="a register program"):
        bar.run(steps)


@pytest.mark.parametrize(
    "step",
    [
        program.read(-4),
        program.read(0, 1 << 16),
        program.write(0, -1, 8),
        program.write(0, 1 << 64, 8),
        program.poll(0, 0, timeout=float("nan")),
        program.write(0, 1.5),  # type: ignore[arg-type]
        program.write(0, None),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_a_number_that_has_no_room_is_refused(step: Step) -> None:
    with pytest.raises(ValueError, match="of a register program"):
        program.program(step)


# Failures on the way


def test_an_error_says_at_which_step(bar: BAR, device: FakeIO) -> None:
    at = SIZE - 4
    if not bar.mappable or bar.mappable[0].size < SIZE:
        device.error = OSError(errno.EIO, "?")
    else:
        os.ftruncate(bar.info.fd or 0, PAGE)
    with pytest.raises(RegionError, match=rf"^step 2: read bar2\+{at:#x} on fake:x: ") as caught:
        run(bar, program.barrier(), program.write_barrier(), program.read(at))
    assert caught.value.step == 2


def test_what_precedes_a_failure_is_done(device: FakeIO) -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        areas = (MmapArea(0, SIZE),)
        bar = BAR(device, RegionInfo(2, READ_WRITE, SIZE, file.fileno(), areas=areas), "fake:x")
        bar.write32(0, 5)
        file.truncate(PAGE)
        steps = program.program(program.read(0), program.write(4, 6), program.write(PAGE, 7))
        with pytest.raises(RegionError, match=r"step 2: write bar2\+0x1000 .*no memory answers"):
            bar.run(steps)
        assert (steps["result"][0], bar.read32(4)) == (5, 6)
        for failing in (
            lambda: bar.poll(PAGE, 4, 0),
            lambda: run(bar, program.modify(PAGE, 0, 1)),
            lambda: bar.read64_hi_lo(PAGE - 4),
            lambda: bar.write64_lo_hi(PAGE - 4, 1),
            lambda: bar.read_bytes(0, SIZE, width=4),
            lambda: bar.write_bytes(0, bytes(SIZE), width=8),
            lambda: bar.read64(PAGE),
            lambda: bar.write8(PAGE, 0),
        ):
            with pytest.raises(RegionError, match="no memory answers") as caught:
                failing()
            assert caught.value.errno == errno.EFAULT
        bar.close()


def test_a_program_of_a_closed_region_is_refused(bar: BAR) -> None:
    bar.read8(0)
    bar.close()
    with pytest.raises(DeviceClosed):
        run(bar, program.read(0))
    with pytest.raises(DeviceClosed):
        bar.poll(0, 4, 0)


# Polling


@pytest.mark.parametrize("at", [8, PAGE + 8])
def test_a_poll_ends_at_once_where_nothing_is_awaited(bar: BAR, at: int) -> None:
    bar.write32(at, 0xA5)
    assert bar.poll(at, 4, 0xA5) == 0xA5
    assert bar.poll(at, 4, 0x05, mask=0x0F, timeout=0) == 0xA5


def after(seconds: float, call: Callable[[], object]) -> threading.Timer:
    """Have something done later, in a thread."""
    timer = threading.Timer(seconds, call)
    timer.start()
    return timer


@pytest.mark.parametrize("at", [8, PAGE + 8])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_poll_waits_for_its_value(bar: BAR, at: int, width: int) -> None:
    bar.write8(at, 0x40)
    timer = after(0.03, lambda: bar.write8(at, 0xC1))
    assert bar.poll(at, width, 0x81, mask=0x8F, timeout=SOON) == 0xC1
    timer.join()


@pytest.mark.parametrize("at", [8, PAGE + 8])
def test_a_poll_that_waits_for_ever_ends_with_its_value(bar: BAR, at: int) -> None:
    timer = after(0.03, lambda: bar.write32(at, 1))
    assert bar.poll(at, 4, 1) == 1
    timer.join()


@pytest.mark.parametrize("at", [8, PAGE + 8])
@pytest.mark.parametrize("timeout", [0, 0.02])
def test_a_poll_has_a_time_out(bar: BAR, at: int, timeout: float) -> None:
    bar.write32(at, 0x12)
    started = time.monotonic()
    with pytest.raises(VFIOTimeout) as caught:
        bar.poll(at, 4, 0x11, mask=0xFF, timeout=timeout)
    assert time.monotonic() - started >= timeout
    assert str(caught.value) == (
        f"poll bar2+{at:#x} on fake:x: 0x12 after {float(timeout)} s, not 0x11 in 0xff"
    )


def test_a_poll_in_a_program_says_its_step_and_keeps_what_it_saw(bar: BAR) -> None:
    bar.write32(8, 0x12)
    steps = program.program(program.write(0, 1), program.poll(8, 1, timeout=0.01))
    with pytest.raises(VFIOTimeout, match=r"^step 1: poll bar2\+0x8") as caught:
        bar.run(steps)
    assert (caught.value.step, steps["result"][1]) == (1, 0x12)


@pytest.mark.parametrize("at", [8, PAGE + 8])
def test_a_poll_ends_when_the_device_goes_away(bar: BAR, presence: Presence, at: int) -> None:
    bar.read8(0)

    def lose() -> None:
        presence.lost = True

    timer = after(0.03, lose)
    with pytest.raises(ConnectionLost, match=rf"poll bar2\+{at:#x}: gone"):
        bar.poll(at, 4, 1)
    timer.join()


@pytest.mark.parametrize("at", [8, PAGE + 8])
def test_a_poll_ends_when_the_region_is_closed(bar: BAR, at: int) -> None:
    bar.read8(0)
    timer = after(0.03, bar.close)
    with pytest.raises(DeviceClosed):
        bar.poll(at, 4, 1)
    timer.join()


class Interrupted(Exception):
    """What a signal handler raises."""


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """Have a signal handler raise after some seconds."""

    def raise_it(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, raise_it)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("at", [8, PAGE + 8])
def test_a_poll_is_interrupted_by_a_signal_handler(
    bar: BAR, at: int, alarm: Callable[[float], None]
) -> None:
    alarm(0.03)
    with pytest.raises(Interrupted):
        bar.poll(at, 4, 1)


def test_other_threads_run_while_a_register_is_polled(bar: BAR) -> None:
    counted, stop = 0, threading.Event()

    def count() -> None:
        nonlocal counted
        while not stop.is_set():
            counted += 1

    thread = threading.Thread(target=count)
    thread.start()
    with suppress(VFIOTimeout):
        bar.poll(8, 4, 1, timeout=0.05)
    stop.set()
    thread.join()
    assert counted > 100


# Blocks


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("at", [16, PAGE - 16, PAGE + 16])
def test_a_block_is_what_was_written(bar: BAR, width: int, at: int) -> None:
    data = os.urandom(32)
    bar.write_bytes(at, data, width=width)
    target = bytearray(32)
    bar.read_into(at, target, width=width)
    assert bar.read_bytes(at, 32, width=width) == bytes(target) == data


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_block_is_transfers_of_its_width(device: FakeIO, width: int) -> None:
    bar = BAR(device, RegionInfo(2, READ_WRITE, SIZE), "fake:x")
    bar.type = BARType.MEM32
    bar.write_bytes(8, bytes(16), width=width)
    bar.read_bytes(8, 16, width=width)
    places = range(8, 24, width)
    assert device.calls == [("write", at, width) for at in places] + [
        ("read", at, width) for at in places
    ]


@pytest.mark.parametrize(("at", "size"), [(2, 8), (4, 6)])
def test_a_block_of_odd_places_is_refused(bar: BAR, at: int, size: int) -> None:
    with pytest.raises(RegionError, match="not a multiple of the 4 bytes"):
        bar.read_bytes(at, size, width=4)
    with pytest.raises(RegionError, match="not a multiple of the 4 bytes"):
        bar.write_bytes(at, bytes(size), width=4)


@pytest.mark.parametrize("width", [0, 3, -1, 16])
def test_a_block_of_a_width_that_does_not_exist_is_refused(bar: BAR, width: int) -> None:
    with pytest.raises(ValueError, match=f"an access of {width} bytes"):
        bar.read_bytes(0, 16, width=width)


def test_a_block_of_nothing_is_nothing(bar: BAR, device: FakeIO) -> None:
    bar.write_bytes(SIZE, b"", width=4)
    bar.read_into(SIZE, bytearray(), width=4)
    assert (bar.read_bytes(SIZE, 0, width=8), device.calls) == (b"", [])
