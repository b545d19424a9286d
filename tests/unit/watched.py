# SPDX-License-Identifier: BSD-3-Clause
"""Accesses of a region in watched memory, in a process of their own.

``python -m tests.unit.watched WATCHER.so`` makes them all and prints, as JSON, what each returned,
which addresses the process touched for it, and which bytes are others than before.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from pyvfio import program
from pyvfio.native import mmio
from pyvfio.pci.bars import BAR
from pyvfio.program import Step
from pyvfio.uapi.vfio import RegionFlags
from pyvfio.vectors import DeviceIO, MmapArea, RegionInfo

PAGE = 4096
SIZE = 3 * PAGE
WIDTHS = (1, 2, 4, 8)
MOST = 256
FILLING = bytes(range(256)) * (SIZE // 256)
"""What is in the memory before each access."""
VALUE = 0xF7E6D5C4B3A29181
"""What is written, or so much of it as there is room for."""
BLOCK = 24


def places(width: int) -> dict[str, int]:
    """Where an access of a width has a neighbouring page to slip into."""
    return {"first": PAGE, "last": 2 * PAGE - width}


class Touch(ctypes.Structure):
    """``struct touch`` of watcher.c."""

    _fields_ = (
        ("address", ctypes.c_size_t),
        ("width", ctypes.c_int),
        ("is_write", ctypes.c_int),
    )


class NoDevice:
    """All that a region asks for which is mapped as a whole."""

    def flush(self) -> None:
        """Nothing was posted."""

    def register_messages(self, index: int) -> None:
        """There are no messages."""


def steps(bar: BAR, *steps: Step) -> list[int]:
    """Run a program; returns its results."""
    array = program.program(*steps)
    bar.run(array)
    return cast("list[int]", array["result"].tolist())


def block(bar: BAR, place: int, width: int | None) -> str:
    """Read a block into memory that is not aligned."""
    target = bytearray(BLOCK + 1)
    bar.read_into(place, memoryview(target)[1:], width=width)
    return target[1:].hex()


def read_bytes(bar: BAR, place: int, width: int | None, size: int = BLOCK) -> str:
    """Read a block."""
    return bar.read_bytes(place, size, width=width).hex()


def single(
    bar: BAR, start: int, width: int, place: int, value: int
) -> dict[str, Callable[[], object]]:
    """The ways to make one access."""
    return {
        "raw read": partial(mmio.READ[width], start + place),
        "raw write": partial(mmio.WRITE[width], start + place, value),
        "read": partial(bar.read, place, width),
        "write": partial(bar.write, place, width, value),
        "step read": partial(steps, bar, program.read(place, width)),
        "step write": partial(steps, bar, program.write(place, value, width)),
        "step modify": partial(
            steps, bar, program.modify(place, value, mmio.ALL_ONES[width], width)
        ),
        "poll": partial(bar.poll, place, width, 0, mask=0),
    }


def cases(bar: BAR, start: int) -> dict[str, Callable[[], object]]:
    """The accesses; ``start`` is the address of the memory."""
    found: dict[str, Callable[[], object]] = {}
    for width in WIDTHS:
        value, at = VALUE & mmio.ALL_ONES[width], 2 * PAGE - BLOCK
        for name, place in places(width).items():
            found |= {
                f"{kind} {width} {name}": call
                for kind, call in single(bar, start, width, place, value).items()
            }
        found |= {
            f"block read {width}": partial(block, bar, at, width),
            f"bytes read {width}": partial(read_bytes, bar, at, width),
            f"block write {width}": partial(bar.write_bytes, at, bytes(BLOCK), width=width),
        }
    half = 2 * PAGE - 4
    found |= {
        "read lo hi": lambda: bar.read64_lo_hi(half),
        "read hi lo": lambda: bar.read64_hi_lo(half),
        "write lo hi": lambda: bar.write64_lo_hi(half, VALUE),
        "write hi lo": lambda: bar.write64_hi_lo(half, VALUE),
        "step read lo hi": lambda: steps(bar, program.read64_lo_hi(half)),
        "step read hi lo": lambda: steps(bar, program.read64_hi_lo(half)),
        "step write lo hi": lambda: steps(bar, program.write64_lo_hi(half, VALUE)),
        "step write hi lo": lambda: steps(bar, program.write64_hi_lo(half, VALUE)),
        "any width read": partial(read_bytes, bar, PAGE + 3, None, 20),
        "any width write": lambda: bar.write_bytes(PAGE + 3, bytes(20)),
        "many steps": lambda: steps(
            bar,
            program.write(PAGE, 0x11),
            program.write_barrier(),
            program.read(PAGE + 8, 2),
            program.barrier(),
            program.modify(PAGE + 4, 0, 0xFF, 1),
            program.read_barrier(),
            program.write(PAGE, 0x22),
        ),
        "two looks": lambda: steps(bar, *[program.poll(PAGE, 0, mask=0)] * 2),
        "two pages": lambda: mmio.READ[4](start + 2 * PAGE - 2),
    }
    return found


def watched(library: Any, start: int, call: Callable[[], object]) -> dict[str, object]:
    """Make a call; says what it has touched."""
    seen = (Touch * MOST)()
    library.watch(start, SIZE)
    result = call()
    count = library.unwatch(seen)
    touches = [
        ("write" if touch.is_write else "read", touch.address - start, touch.width)
        for touch in seen[:count]
    ]
    return {"result": result, "touches": touches}


def main() -> None:
    """Make all accesses."""
    fd = os.memfd_create("watched")
    os.ftruncate(fd, SIZE)
    flags = RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP
    info = RegionInfo(2, flags, SIZE, fd, areas=(MmapArea(0, SIZE),))
    bar = BAR(cast(DeviceIO, NoDevice()), info, "watched:")
    library = ctypes.CDLL(sys.argv[1])
    library.watch.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    start = int(bar.view().__array_interface__["data"][0])
    found = {}
    for name, call in cases(bar, start).items():
        os.pwrite(fd, FILLING, 0)
        found[name] = watched(library, start, call)
        after = os.pread(fd, SIZE, 0)
        found[name]["changed"] = {at: after[at] for at in range(SIZE) if after[at] != FILLING[at]}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
