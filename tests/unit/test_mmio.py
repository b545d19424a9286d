# SPDX-License-Identifier: BSD-3-Clause
"""Loads, stores and copies of mapped memory survive a bus error; mappings live as long as needed.

That each touches memory once is shown in test_touches.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from pyvfio.native import mmio
from tests.support import ROOT

PAGE = 4096
WIDTHS = (1, 2, 4, 8)

# Bus errors


class Halved(NamedTuple):
    """Two mapped pages of a file that lost the second."""

    memory: mmio.MappedMemory

    @property
    def good(self) -> int:
        """An address that still has memory."""
        return self.memory.address + 16

    @property
    def gone(self) -> int:
        """An address that has none any more."""
        return self.memory.address + PAGE


@pytest.fixture
def halved() -> Iterator[Halved]:
    """Two pages, of which one is gone."""
    with tempfile.TemporaryFile() as file:
        file.truncate(2 * PAGE)
        memory = mmio.MappedMemory(file.fileno(), 0, 2 * PAGE)
        file.truncate(PAGE)
        yield Halved(memory)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_read_of_what_is_gone_gives_all_ones(halved: Halved, width: int) -> None:
    assert mmio.READ[width](halved.gone) == mmio.ALL_ONES[width]
    mmio.faulted()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_read_of_what_is_gone_leaves_a_mark(halved: Halved, width: int) -> None:
    mmio.READ[width](halved.gone)
    assert mmio.faulted()


def test_the_mark_is_taken_once(halved: Halved) -> None:
    mmio.READ[4](halved.gone)
    assert (mmio.faulted(), mmio.faulted()) == (True, False)


@pytest.mark.parametrize("width", WIDTHS)
def test_all_ones_in_memory_leave_no_mark(halved: Halved, width: int) -> None:
    mmio.WRITE[8](halved.good, mmio.ALL_ONES[8])
    value = mmio.READ[width](halved.good)
    assert (value, mmio.faulted()) == (mmio.ALL_ONES[width], False)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_write_of_what_is_gone_says_so(halved: Halved, width: int) -> None:
    assert mmio.WRITE[width](halved.gone, 0) != 0


@pytest.mark.parametrize("width", WIDTHS)
def test_a_write_of_what_is_there_says_so(halved: Halved, width: int) -> None:
    assert mmio.WRITE[width](halved.good, 0) == 0


def test_memory_that_is_left_answers_after_a_fault(halved: Halved) -> None:
    for _ in range(3):
        mmio.READ[4](halved.gone)
        mmio.faulted()
        mmio.WRITE[4](halved.good, 0x1234)
    assert mmio.READ[4](halved.good) == 0x1234


def test_the_mark_belongs_to_its_thread(halved: Halved) -> None:
    seen = []
    mmio.READ[4](halved.gone)
    thread = threading.Thread(target=lambda: seen.append(mmio.faulted()))
    thread.start()
    thread.join()
    assert (seen, mmio.faulted()) == ([False], True)


STORM = """
import tempfile, threading
from pyvfio.native import mmio

ROUNDS = 2000
with tempfile.TemporaryFile() as file:
    file.truncate(8192)
    memory = mmio.MappedMemory(file.fileno(), 0, 8192)
    file.truncate(4096)
wrong = []

def storm(number):
    good, gone = memory.address + 16 * number, memory.address + 4096 + 16 * number
    for _ in range(ROUNDS):
        mmio.WRITE[4](good, number)
        answers = (
            mmio.READ[4](gone) == 0xFFFFFFFF and mmio.faulted(),
            mmio.READ[4](good) == number and not mmio.faulted(),
            mmio.WRITE[8](gone, 0) != 0,
            mmio.copy_out(gone, 8) is None,
            not mmio.copy_in(gone, b"12345678"),
        )
        if not all(answers):
            wrong.append(answers)

threads = [threading.Thread(target=storm, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(wrong))
"""


def run_python(code: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    """Run a program that may crash."""
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)


def test_bus_errors_in_several_threads_at_once_are_survived() -> None:
    done = run_python(STORM)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0\n", b"")


CRASH = """
import os, tempfile
import numpy as np
from pyvfio.native import mmio

with tempfile.TemporaryFile() as file:
    file.truncate(4096)
    memory = mmio.MappedMemory(file.fileno(), 0, 4096)
    file.truncate(0)
print(mmio.READ[1](memory.address), flush=True)
np.asarray(memory)[0]
"""


def test_a_bus_error_of_somebody_else_ends_the_process_as_usual() -> None:
    done = run_python(CRASH)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, b"255\n")


SENT = """
import os, signal
{}
from pyvfio.native import mmio
os.kill(os.getpid(), signal.SIGBUS)
print("alive", flush=True)
"""


def test_a_bus_error_that_was_sent_ends_the_process_as_usual() -> None:
    done = run_python(SENT.format(""))
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, b"")


def test_a_bus_error_that_was_sent_is_ignored_where_it_was_before() -> None:
    done = run_python(SENT.format("signal.signal(signal.SIGBUS, signal.SIG_IGN)"))
    assert (done.returncode, done.stdout) == (0, b"alive\n")


def test_a_handler_that_was_there_before_is_called() -> None:
    done = run_python(CRASH, "-X", "faulthandler")
    assert (done.stdout, b"Fatal Python error: Bus error" in done.stderr) == (b"255\n", True)


LATE_HANDLER = f"""
import faulthandler
from pyvfio.native import mmio
faulthandler.enable()
{CRASH}
"""


def test_a_handler_that_came_between_two_mappings_is_called() -> None:
    done = run_python(LATE_HANDLER)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, b"255\n")
    assert done.stderr.count(b"Fatal Python error: Bus error") == 1


# Copies


def copied(address: int, size: int) -> bytes:
    """What a copy gives that can be made."""
    found = mmio.copy_out(address, size)
    assert found is not None
    return bytes(found)


@pytest.mark.parametrize("size", [0, 1, 3, 64, PAGE - 16])
def test_what_is_copied_in_is_copied_out(halved: Halved, size: int) -> None:
    data = os.urandom(size)
    assert mmio.copy_in(halved.good, data)
    assert copied(halved.good, size) == data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_copied_in(halved: Halved, kind: type[bytes | bytearray]) -> None:
    mmio.copy_in(halved.good, kind(b"abc"))
    assert copied(halved.good, 3) == b"abc"


@pytest.mark.parametrize("back", [0, 1, 100])
def test_a_copy_out_of_what_is_gone_gives_nothing(halved: Halved, back: int) -> None:
    assert mmio.copy_out(halved.gone - back, 2 * back + 1) is None


@pytest.mark.parametrize("back", [0, 1, 100])
def test_a_copy_into_what_is_gone_says_so(halved: Halved, back: int) -> None:
    assert not mmio.copy_in(halved.gone - back, bytes(2 * back + 1))


def test_a_copy_that_failed_leaves_no_mark(halved: Halved) -> None:
    mmio.copy_out(halved.gone, 1)
    assert not mmio.faulted()


# Mappings


@pytest.fixture
def fd() -> Iterator[int]:
    """A file of two pages, the second starts with ``second``."""
    with tempfile.TemporaryFile() as file:
        file.truncate(2 * PAGE)
        file.seek(PAGE)
        file.write(b"second")
        file.flush()
        yield file.fileno()


def is_mapped(address: int) -> bool:
    """Whether this process has a mapping that starts at an address."""
    return f"\n{address:x}-" in "\n" + Path("/proc/self/maps").read_text()


def test_a_mapping_starts_where_it_was_told_to(fd: int) -> None:
    memory = mmio.MappedMemory(fd, PAGE, PAGE)
    assert copied(memory.address, 6) == b"second"


def test_a_mapping_needs_no_descriptor_any_more() -> None:
    other = os.memfd_create("test")
    os.ftruncate(other, PAGE)
    memory = mmio.MappedMemory(other, 0, PAGE)
    os.close(other)
    mmio.WRITE[4](memory.address, 7)
    assert mmio.READ[4](memory.address) == 7


def test_stores_reach_the_file(fd: int) -> None:
    memory = mmio.MappedMemory(fd, 0, PAGE)
    mmio.WRITE[2](memory.address, 0x4241)
    assert os.pread(fd, 2, 0) == b"AB"


def test_a_mapping_goes_with_its_last_reference(fd: int) -> None:
    memory = mmio.MappedMemory(fd, 0, PAGE)
    address = memory.address
    seen = [is_mapped(address)]
    del memory
    seen.append(is_mapped(address))
    assert seen == [True, False]


def test_an_array_keeps_the_mapping(fd: int) -> None:
    array = np.asarray(mmio.MappedMemory(fd, PAGE, PAGE))
    assert bytes(array[:6]) == b"second"


@pytest.mark.parametrize("writable", [False, True])
def test_an_array_is_as_writable_as_its_mapping(fd: int, writable: bool) -> None:
    array = np.asarray(mmio.MappedMemory(fd, 0, PAGE, writable=writable))
    assert array.flags.writeable == writable


@pytest.mark.parametrize(
    ("offset", "size", "error"),
    [(1, PAGE, "Invalid argument"), (0, 0, "Invalid argument"), (0, 1 << 60, "Cannot allocate")],
)
def test_a_mapping_that_cannot_be_is_an_error(fd: int, offset: int, size: int, error: str) -> None:
    with pytest.raises(OSError, match=error):
        mmio.MappedMemory(fd, offset, size)


def test_a_mapping_of_no_file_is_an_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        mmio.MappedMemory(-1, 0, PAGE)
