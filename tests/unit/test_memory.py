# SPDX-License-Identifier: BSD-3-Clause
"""Shared memory: with a descriptor, without a name, and alive as long as somebody looks at it."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import posix_ipc
import pytest

from pyvfio.errors import BufferInUse, DeviceClosed, VFIOError
from pyvfio.memory import PAGE_SIZE, MemoryKind, SharedMemory
from tests.support import ROOT, open_fds

HUGE = 2 << 20

EACH = pytest.mark.parametrize("kind", MemoryKind)


@EACH
@pytest.mark.parametrize("size", [1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1])
def test_sizes_are_rounded_up_to_whole_pages(kind: MemoryKind, size: int) -> None:
    with SharedMemory(size, kind) as memory:
        wanted = -(-size // PAGE_SIZE) * PAGE_SIZE
        assert (memory.size, memory.array.size) == (wanted, wanted)


@EACH
def test_the_file_is_as_large_as_the_memory(kind: MemoryKind) -> None:
    with SharedMemory(3 * PAGE_SIZE, kind) as memory:
        assert os.fstat(memory.fd).st_size == 3 * PAGE_SIZE


@EACH
def test_it_is_zeroed(kind: MemoryKind) -> None:
    with SharedMemory(16 * PAGE_SIZE, kind) as memory:
        assert not memory.array.any()


@EACH
def test_who_has_the_descriptor_sees_the_memory(kind: MemoryKind) -> None:
    with SharedMemory(PAGE_SIZE, kind) as memory:
        memory.array[5] = 0x42
        assert os.pread(memory.fd, 1, 5) == b"\x42"


@EACH
def test_the_memory_shows_what_another_mapping_writes(kind: MemoryKind) -> None:
    with SharedMemory(PAGE_SIZE, kind) as memory:
        with mmap.mmap(memory.fd, PAGE_SIZE) as other:
            other[7] = 0x43
        assert memory.array[7] == 0x43


@EACH
def test_the_address_is_that_of_the_first_byte(kind: MemoryKind) -> None:
    with SharedMemory(PAGE_SIZE, kind) as memory:
        assert memory.address == memory.array.ctypes.data


@EACH
def test_it_has_no_name(kind: MemoryKind) -> None:
    with SharedMemory(PAGE_SIZE, kind):
        assert [name for name in os.listdir("/dev/shm") if "pyvfio" in name] == []


@EACH
def test_the_descriptor_is_not_inherited(kind: MemoryKind) -> None:
    with SharedMemory(PAGE_SIZE, kind) as memory:
        assert not os.get_inheritable(memory.fd)


@pytest.mark.parametrize("size", [0, -1])
def test_memory_of_no_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"^{size} bytes"):
        SharedMemory(size)


@EACH
def test_more_than_the_system_has_is_refused(kind: MemoryKind) -> None:
    with pytest.raises(VFIOError, match=f"allocate {1 << 50} bytes of shared memory") as caught:
        SharedMemory(1 << 50, kind)
    assert caught.value.errno == errno.ENOMEM


@EACH
def test_what_was_refused_leaves_no_descriptor(kind: MemoryKind) -> None:
    before = open_fds()
    with pytest.raises(VFIOError):
        SharedMemory(1 << 50, kind)
    assert open_fds() == before


def test_a_denied_segment_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object, **__: object) -> None:
        raise posix_ipc.PermissionsError("no permission")

    monkeypatch.setattr(posix_ipc, "SharedMemory", deny)
    with pytest.raises(VFIOError, match="shared memory"):
        SharedMemory(PAGE_SIZE)


@pytest.mark.parametrize(
    ("age", "contents", "stays"),
    [(3600, "", False), (0, "", True), (3600, "memory", True)],
    ids=["left behind", "another process is at it", "in use"],
)
def test_a_name_that_a_killed_process_left_is_taken_away(
    age: int, contents: str, stays: bool
) -> None:
    name = Path(f"/dev/shm/pyvfio-0-test-{os.getpid()}")
    name.write_text(contents)
    try:
        then = time.time() - age
        os.utime(name, (then, then))
        program = "import pyvfio; pyvfio.SharedMemory(4096).close()"
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
        assert name.exists() == stays
    finally:
        name.unlink(missing_ok=True)


# Sealed memory


@pytest.mark.parametrize("size", [0, PAGE_SIZE, 3 * PAGE_SIZE])
def test_a_memfd_cannot_be_resized(size: int) -> None:
    with SharedMemory(2 * PAGE_SIZE, MemoryKind.MEMFD) as memory, pytest.raises(PermissionError):
        os.ftruncate(memory.fd, size)


def test_a_memfd_cannot_be_unsealed() -> None:
    with SharedMemory(PAGE_SIZE, MemoryKind.MEMFD) as memory:
        seals = fcntl.fcntl(memory.fd, fcntl.F_GET_SEALS)
    assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


# Huge pages


def test_huge_pages_are_had_or_their_lack_is_explained() -> None:
    try:
        with SharedMemory(1, MemoryKind.MEMFD, HUGE) as memory:
            memory.array[HUGE - 1] = 1
            found = f"{memory.size} bytes"
    except VFIOError as error:
        found = error.hint
    assert found in (f"{HUGE} bytes", "are huge pages reserved? (vm.nr_hugepages)")


def test_huge_pages_need_a_memfd() -> None:
    with pytest.raises(ValueError, match="MEMFD"):
        SharedMemory(HUGE, MemoryKind.POSIX, HUGE)


def test_a_size_that_no_huge_page_has_is_refused() -> None:
    with pytest.raises(ValueError, match=f"pages of {3 * PAGE_SIZE} bytes"):
        SharedMemory(HUGE, MemoryKind.MEMFD, 3 * PAGE_SIZE)


# The end


@EACH
def test_close_closes_the_descriptor(kind: MemoryKind) -> None:
    memory = SharedMemory(PAGE_SIZE, kind)
    fd = memory.fd
    memory.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_close_can_be_repeated() -> None:
    memory = SharedMemory(PAGE_SIZE)
    memory.close()
    memory.close()
    assert memory.fd == -1


def test_use_after_close_says_so() -> None:
    memory = SharedMemory(PAGE_SIZE)
    memory.close()
    with pytest.raises(DeviceClosed, match="shared memory"):
        _ = memory.array


def test_the_address_after_close_says_so() -> None:
    memory = SharedMemory(PAGE_SIZE)
    memory.close()
    with pytest.raises(DeviceClosed):
        _ = memory.address


def test_memory_with_a_view_is_not_closed() -> None:
    with SharedMemory(PAGE_SIZE) as memory:
        view = memory.array[1:2]
        with pytest.raises(BufferInUse, match="numpy view"):
            memory.close()
        view[0] = 9
        assert (memory.array[1], memory.fd >= 0) == (9, True)
        del view


def test_memory_is_closed_when_its_view_is_gone() -> None:
    memory = SharedMemory(PAGE_SIZE)
    view = memory.array
    with pytest.raises(BufferInUse):
        memory.close()
    del view
    memory.close()
    assert memory.fd == -1


def test_a_view_outlives_what_was_released() -> None:
    memory = SharedMemory(PAGE_SIZE)
    view = memory.array
    view[:] = 3
    memory.release()
    gc.collect()
    assert int(view.sum()) == 3 * PAGE_SIZE


def test_release_closes_the_descriptor_at_once() -> None:
    memory = SharedMemory(PAGE_SIZE)
    fd, view = memory.fd, memory.array
    memory.release()
    assert (fd in open_fds(), view.size) == (False, PAGE_SIZE)


def is_mapped(address: int) -> bool:
    """Whether this process has anything at an address."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = ([int(part, 16) for part in line.split()[0].split("-")] for line in lines)
    return any(low <= address < high for low, high in ranges)


def test_released_memory_is_unmapped_with_its_last_view() -> None:
    memory = SharedMemory(64 * PAGE_SIZE)
    address, view = memory.address, memory.array
    memory.release()
    seen = [is_mapped(address)]
    del view
    seen.append(is_mapped(address))
    assert seen == [True, False]


def test_in_use_tells_whether_a_view_is_alive() -> None:
    with SharedMemory(PAGE_SIZE) as memory:
        seen = [memory.in_use]
        view = np.frombuffer(memory.array, "<u4")
        seen.append(memory.in_use)
        del view
        seen.append(memory.in_use)
    assert seen == [False, True, False]


def test_memory_that_nobody_closed_is_warned_of() -> None:
    memory = SharedMemory(PAGE_SIZE)
    fd = memory.fd
    with pytest.warns(ResourceWarning, match="unclosed <SharedMemory posix size=4096"):
        del memory
    assert fd not in open_fds()


@pytest.mark.parametrize("kind", MemoryKind)
def test_more_than_a_file_can_have_is_refused(kind: MemoryKind) -> None:
    with pytest.raises(VFIOError, match="ENOMEM"):
        SharedMemory(1 << 63, kind)
