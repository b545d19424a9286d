# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's descriptor for migration data: when a session begins, goes on and ends.

Pipes stand in for it; ENOMSG, which only a migrating device gives, is made up.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from pyvfio.backends.ioctl import device_io
from pyvfio.backends.ioctl.device_io import KernelDeviceIO
from pyvfio.backends.ioctl.migration_data import MigrationData
from pyvfio.uapi import vfio
from pyvfio.uapi.vfio import DeviceState
from tests.support import open_fds

NONE = -1


@pytest.fixture
def data() -> MigrationData:
    return MigrationData()


@pytest.fixture
def pipe(data: MigrationData) -> Iterator[tuple[int, int]]:
    """The two ends of a pipe; a test closes one, or gives it away."""
    ends = os.pipe()
    what = open_fds()
    yield ends
    data.close()
    for end in ends:
        if open_fds().get(end) == what[end]:
            os.close(end)


def read(data: MigrationData, size: int) -> tuple[int | None, bytes]:
    """What a read of ``size`` bytes returns, and what it has read."""
    buffer = bytearray(size)
    got = data.read(memoryview(buffer))
    return got, bytes(buffer[: got or 0])


def test_a_save_reads_to_the_end(data: MigrationData, pipe: tuple[int, int]) -> None:
    data.follow(DeviceState.STOP_COPY, pipe[0])
    os.write(pipe[1], b"state")
    assert read(data, 3) == (3, b"sta")
    os.close(pipe[1])
    assert (read(data, 3), read(data, 3)) == ((2, b"te"), (0, b""))


def test_a_load_writes(data: MigrationData, pipe: tuple[int, int]) -> None:
    data.follow(DeviceState.RESUMING, pipe[1])
    assert data.write(memoryview(b"state")) == 5
    assert os.read(pipe[0], 10) == b"state"


def test_nothing_now_is_no_end(
    data: MigrationData, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.set_blocking(pipe[0], False)
    data.follow(DeviceState.PRE_COPY, pipe[0])
    assert read(data, 3) == (None, b"")

    def no_message(*_: object) -> int:
        raise OSError(errno.ENOMSG, "no message")

    monkeypatch.setattr(os, "readv", no_message)
    assert read(data, 3) == (None, b"")


def test_a_failed_read_is_told(data: MigrationData, pipe: tuple[int, int]) -> None:
    data.follow(DeviceState.STOP_COPY, pipe[1])
    with pytest.raises(OSError, match="Bad file descriptor"):
        read(data, 3)


def test_a_session_goes_on_when_precopy_ends(data: MigrationData, pipe: tuple[int, int]) -> None:
    data.follow(DeviceState.PRE_COPY, pipe[0])
    data.follow(DeviceState.STOP_COPY, NONE)
    os.write(pipe[1], b"rest")
    assert read(data, 9) == (4, b"rest")


@pytest.mark.parametrize("state", [DeviceState.STOP, DeviceState.RUNNING, DeviceState.RESUMING])
def test_a_session_ends_with_its_states(
    state: DeviceState, data: MigrationData, pipe: tuple[int, int]
) -> None:
    data.follow(DeviceState.STOP_COPY, pipe[0])
    data.follow(state, NONE)
    assert pipe[0] not in open_fds()
    with pytest.raises(OSError, match="no migration data"):
        read(data, 1)


def test_a_save_may_be_followed_by_a_load(data: MigrationData, pipe: tuple[int, int]) -> None:
    data.follow(DeviceState.STOP_COPY, pipe[0])
    data.follow(DeviceState.RESUMING, pipe[1])
    assert set(pipe) & set(open_fds()) == {pipe[1]}


def test_a_second_descriptor_for_a_session_is_refused_and_closed(
    data: MigrationData, pipe: tuple[int, int]
) -> None:
    data.follow(DeviceState.PRE_COPY, pipe[0])
    with pytest.raises(OSError, match="second descriptor") as caught:
        data.follow(DeviceState.STOP_COPY, pipe[1])
    assert caught.value.errno == errno.EBADF
    assert set(pipe) & set(open_fds()) == {pipe[0]}


def test_what_is_no_migration_data_has_no_precopy_info(
    data: MigrationData, pipe: tuple[int, int]
) -> None:
    data.follow(DeviceState.PRE_COPY, pipe[0])
    with pytest.raises(OSError, match="ioctl"):
        data.precopy_info()


def test_a_session_may_be_closed_twice(data: MigrationData, pipe: tuple[int, int]) -> None:
    data.follow(DeviceState.RESUMING, pipe[1])
    data.close()
    data.close()
    assert pipe[1] not in open_fds()


@pytest.mark.parametrize("how", ["reset", "hot_reset"])
def test_a_session_ends_with_a_reset_of_either_kind(
    how: str, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(_: int, __: int, request: bytearray) -> int:
        request[-vfio.FEATURE_STATE.size :] = vfio.FEATURE_STATE.pack(
            DeviceState.STOP_COPY, pipe[0]
        )
        return 0

    device = KernelDeviceIO(NONE, lambda _: None)
    monkeypatch.setattr(device_io, "ioctl", begin)
    device.set_migration_state(DeviceState.STOP_COPY)
    monkeypatch.setattr(device_io, "ioctl", lambda *_: 0)
    monkeypatch.setattr(device_io, "hot_reset", lambda *_: None)
    getattr(device, how)()
    assert pipe[0] not in open_fds()
    with pytest.raises(OSError, match="no migration data"):
        device.migration_read(memoryview(bytearray(1)))
