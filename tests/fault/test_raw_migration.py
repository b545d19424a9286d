# SPDX-License-Identifier: BSD-3-Clause
"""Migration with a device made by hand: what it is told, and what becomes of it when it fails."""

from __future__ import annotations

import errno
import gc
import io
import os
import shutil
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import pyvfio
from pyvfio.errors import (
    ConnectionLost,
    DeviceClosed,
    MigrationError,
    OperationError,
    RemoteProtocolError,
    UnsupportedError,
    VFIOTimeout,
)
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DeviceState, Feature, FeatureFlags, MigrationFlags
from tests.fault import raw, raw_migration
from tests.fault.raw import Message, RawServer, answer, refusal
from tests.fault.raw_migration import (
    ERROR,
    PRE_COPY,
    RESUMING,
    RUNNING,
    STOP,
    STOP_COPY,
    MigratingDevice,
    data_reply,
    feature_reply,
)

TIMEOUT = 0.3


class Interrupted(Exception):
    """Raised by a test in the midst of something."""


@pytest.fixture
def server(socket_folder: Path) -> Iterator[RawServer]:
    with RawServer(socket_folder / "raw.sock") as server:
        yield server


@pytest.fixture
def model(server: RawServer) -> MigratingDevice:
    return MigratingDevice(server)


@pytest.fixture
def device(model: MigratingDevice) -> Iterator[PCIDevice]:
    with pyvfio.open(model.server.uri) as dev:
        yield dev


@pytest.fixture
def impatient(model: MigratingDevice) -> Iterator[PCIDevice]:
    """A device that waits for answers for a moment only."""
    with pyvfio.open(model.server.uri, timeout=TIMEOUT) as dev:
        yield dev


def hang_up(server: RawServer) -> raw.Handler:
    """A handler that closes the connection."""
    return lambda _: server.hang_up()


def sends(server: RawServer, make: Callable[[Message], bytes]) -> raw.Handler:
    """A handler that sends what ``make`` makes of the command."""
    return lambda message: server.peer.send(make(message))


# Features


@pytest.mark.parametrize(
    "number", [errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL], ids=errno.errorcode.get
)
def test_a_device_that_does_not_know_a_feature_has_no_support(
    number: int, device: PCIDevice, server: RawServer
) -> None:
    server.handlers[raw.DEVICE_FEATURE] = sends(server, lambda message: refusal(message, number))
    assert not device.features.probe(Feature.MIGRATION)
    assert not device.migration.supported
    with pytest.raises(UnsupportedError, match="MIGRATION"):
        _ = device.migration.flags
    with pytest.raises(UnsupportedError):
        device.migration.save()


def test_a_probe_names_the_methods_that_are_asked_about(
    device: PCIDevice, server: RawServer
) -> None:
    server.handlers[raw.DEVICE_FEATURE] = sends(
        server, lambda message: answer(message, message.payload)
    )
    assert device.features.probe(Feature.MIG_DEVICE_STATE, FeatureFlags.GET | FeatureFlags.SET)
    assert server.last(raw.DEVICE_FEATURE).words("II") == (8, 7 << 16 | 2)
    with pytest.raises(ValueError, match="methods"):
        device.features.probe(Feature.MIG_DEVICE_STATE, 1)


def test_a_refusal_that_is_not_about_support_is_kept(device: PCIDevice, server: RawServer) -> None:
    def refuse(message: Message) -> None:
        server.peer.send(refusal(message, errno.EINVAL))

    server.handlers[raw.DEVICE_FEATURE] = refuse
    with pytest.raises(OperationError) as caught:
        device.features.set(Feature.MIG_DEVICE_STATE, bytes(8))
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OperationError):
        device.features.get(Feature.DMA_LOGGING_REPORT, 32, bytes(24))


@pytest.mark.parametrize("size", [0, 4, 7])
def test_a_feature_with_too_little_data_breaks_the_protocol(
    size: int, device: PCIDevice, server: RawServer
) -> None:
    server.handlers[raw.DEVICE_FEATURE] = sends(
        server, lambda message: feature_reply(message, bytes(size))
    )
    with pytest.raises(RemoteProtocolError, match=f"{size} bytes of 8"):
        _ = device.migration.flags


def test_a_feature_with_too_much_data_breaks_the_protocol(
    device: PCIDevice, server: RawServer
) -> None:
    server.handlers[raw.DEVICE_FEATURE] = sends(
        server, lambda message: feature_reply(message, bytes(9))
    )
    with pytest.raises(RemoteProtocolError):
        _ = device.migration.flags


@pytest.mark.parametrize("feature", [-1, 1 << 16])
def test_features_have_numbers_of_16_bits(feature: int, device: PCIDevice) -> None:
    with pytest.raises(ValueError, match="number"):
        device.features.get(feature, 8)


def test_a_feature_of_absurd_size_is_not_asked_for(device: PCIDevice, server: RawServer) -> None:
    with pytest.raises(ValueError, match="at most"):
        device.features.get(Feature.MIGRATION, 1 << 30)
    assert raw.DEVICE_FEATURE not in server.commands()


def test_a_closed_device_has_no_features(device: PCIDevice) -> None:
    device.close()
    with pytest.raises(DeviceClosed):
        device.features.probe(Feature.MIGRATION)


# States


def test_the_states_of_a_device_are_asked_for(device: PCIDevice, model: MigratingDevice) -> None:
    assert device.migration.flags == MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY
    for number in (RUNNING, ERROR):
        model.state = number
        assert device.migration.state == number


def test_flags_without_a_name_are_left_out(device: PCIDevice, model: MigratingDevice) -> None:
    model.flags = (1 << 64) - 1
    assert int(device.migration.flags) == 7


def test_a_device_that_cannot_be_stopped_and_copied_does_not_migrate(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.flags = raw_migration.HAS_PRE_COPY
    assert not device.migration.supported


def test_a_state_that_does_not_exist_breaks_the_protocol(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.state = 8
    with pytest.raises(RemoteProtocolError, match="state 8"):
        _ = device.migration.state


def test_the_device_finds_the_way_itself(device: PCIDevice, model: MigratingDevice) -> None:
    device.migration.set_state(DeviceState.STOP_COPY)
    device.migration.set_state(DeviceState.RUNNING)
    assert model.states == [STOP_COPY, RUNNING]


def test_where_it_is_a_device_is_not_told_to_go(device: PCIDevice, model: MigratingDevice) -> None:
    device.migration.run()
    assert model.states == []


def test_nobody_can_ask_for_error(device: PCIDevice, model: MigratingDevice) -> None:
    with pytest.raises(ValueError, match="ERROR"):
        device.migration.set_state(DeviceState.ERROR)
    assert model.states == []


def test_a_device_without_a_state_is_not_told_to_go_there(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.flags = raw_migration.HAS_STOP_COPY
    for state in (DeviceState.PRE_COPY, DeviceState.RUNNING_P2P, DeviceState.PRE_COPY_P2P):
        with pytest.raises(UnsupportedError, match="no such state"):
            device.migration.set_state(state)
    with pytest.raises(UnsupportedError):
        device.migration.save(precopy=True)
    assert model.states == []


def test_a_way_that_does_not_exist_is_refused_before_the_device_is_touched(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.state = STOP_COPY
    with pytest.raises(MigrationError, match="no way") as caught:
        device.migration.set_state(DeviceState.PRE_COPY)
    assert (caught.value.state, model.states) == (DeviceState.STOP_COPY, [])


def test_error_is_left_by_a_reset_only(device: PCIDevice, model: MigratingDevice) -> None:
    model.state = ERROR
    for state in (DeviceState.RUNNING, DeviceState.STOP, DeviceState.RESUMING):
        with pytest.raises(MigrationError, match="failed") as caught:
            device.migration.set_state(state)
        assert caught.value.state is DeviceState.ERROR
    assert model.states == []
    device.reset()
    assert device.migration.state is DeviceState.RUNNING


# An arc that fails


def test_a_device_that_stays_where_it_was_is_left_there(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.refusals[STOP_COPY] = errno.EIO, None
    with pytest.raises(MigrationError, match="is in RUNNING") as caught:
        device.migration.set_state(DeviceState.STOP_COPY)
    assert (caught.value.errno, caught.value.state) == (errno.EIO, DeviceState.RUNNING)
    assert (model.states, model.resets) == ([STOP_COPY], 0)


def test_a_device_that_stands_half_way_is_put_back(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.refusals[STOP_COPY] = errno.EIO, STOP
    with pytest.raises(MigrationError, match="put back to RUNNING") as caught:
        device.migration.set_state(DeviceState.STOP_COPY)
    assert caught.value.state is DeviceState.RUNNING
    assert (model.states, model.resets) == ([STOP_COPY, RUNNING], 0)


def test_a_caller_says_where_to_go_back(device: PCIDevice, model: MigratingDevice) -> None:
    model.refusals[STOP_COPY] = errno.EIO, None
    with pytest.raises(MigrationError, match="put back to STOP") as caught:
        device.migration.set_state(DeviceState.STOP_COPY, recover=DeviceState.STOP)
    assert caught.value.state is DeviceState.STOP


def test_a_device_that_cannot_go_back_is_reset(device: PCIDevice, model: MigratingDevice) -> None:
    model.refusals[STOP_COPY] = errno.EIO, STOP
    model.refusals[RUNNING] = errno.EIO, None
    with pytest.raises(MigrationError, match="was reset, and is in RUNNING") as caught:
        device.migration.set_state(DeviceState.STOP_COPY)
    assert caught.value.state is DeviceState.RUNNING
    assert (model.states, model.resets) == ([STOP_COPY, RUNNING], 1)


def test_a_device_that_failed_is_reset(device: PCIDevice, model: MigratingDevice) -> None:
    model.refusals[STOP] = errno.EIO, ERROR
    model.refusals[RUNNING] = errno.EINVAL, None
    with pytest.raises(MigrationError, match="reset") as caught:
        device.migration.stop()
    assert caught.value.state is DeviceState.RUNNING
    assert model.resets == 1


def test_where_data_were_transferred_a_device_is_reset_at_once(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.state = RESUMING
    model.refusals[STOP] = errno.EINVAL, None
    with pytest.raises(MigrationError, match="reset"):
        device.migration.stop()
    assert (model.states, model.resets) == ([STOP], 1)


def test_a_device_that_cannot_be_reset_is_left_where_it_is(
    device: PCIDevice, model: MigratingDevice, server: RawServer
) -> None:
    model.refusals[STOP] = errno.EIO, ERROR
    server.handlers[raw.RESET] = sends(server, lambda message: refusal(message, errno.EPERM))
    with pytest.raises(MigrationError, match="could not be reset") as caught:
        device.migration.set_state(DeviceState.STOP, recover=DeviceState.ERROR)
    assert caught.value.state is DeviceState.ERROR


def test_a_reset_that_does_not_leave_the_state_is_told(
    device: PCIDevice, model: MigratingDevice, server: RawServer
) -> None:
    model.state = RESUMING
    model.refusals[STOP] = errno.EIO, None
    server.handlers[raw.RESET] = sends(server, answer)
    with pytest.raises(MigrationError, match="was reset, and is in RESUMING") as caught:
        device.migration.stop()
    assert caught.value.state is DeviceState.RESUMING


def test_a_server_that_dies_on_the_way_is_lost(
    device: PCIDevice, model: MigratingDevice, server: RawServer
) -> None:
    def die(message: Message) -> None:
        if message.words("II")[1] == raw_migration.SET | raw_migration.STATE:
            server.hang_up()
        else:
            model.feature(message)

    server.handlers[raw.DEVICE_FEATURE] = die
    with pytest.raises(ConnectionLost):
        device.migration.stop()


def test_a_device_that_does_not_answer_is_not_put_right(
    impatient: PCIDevice, model: MigratingDevice, server: RawServer
) -> None:
    def stall(message: Message) -> None:
        if message.words("II")[1] == raw_migration.SET | raw_migration.STATE:
            model.state = STOP  # it gets there
        else:
            model.feature(message)

    server.handlers[raw.DEVICE_FEATURE] = stall
    with pytest.raises(VFIOTimeout):
        impatient.migration.stop()
    assert model.resets == 0
    assert impatient.migration.state is DeviceState.STOP


def test_a_signal_on_the_way_has_the_device_go_back(
    device: PCIDevice, model: MigratingDevice, server: RawServer
) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    def stall(message: Message) -> None:
        if message.words("IIII")[1:3] == (raw_migration.SET | raw_migration.STATE, STOP):
            model.state = STOP
            time.sleep(0.05)  # the client waits for the answer by now
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            time.sleep(0.05)
            server.peer.send(answer(message, message.payload))
        else:
            model.feature(message)

    server.handlers[raw.DEVICE_FEATURE] = lambda message: (
        stall(message) if len(message.payload) == 16 else model.feature(message)
    )
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupted):
            device.migration.stop()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert device.migration.state is DeviceState.RUNNING


# Saving


def test_a_save_reads_to_the_end_and_leaves_the_device_stopped(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.rest.extend([b"state ", b"of the ", b"device"])
    with device.migration.save() as f:
        assert not f.in_precopy
        assert (f.read(), f.tell(), f.complete) == (b"state of the device", 19, True)
        assert f.read() == b""
    assert f.closed
    assert model.states == [STOP_COPY, STOP]


def test_a_save_can_be_copied_like_any_file(device: PCIDevice, model: MigratingDevice) -> None:
    data = os.urandom(3_000_000)
    model.rest.append(data)
    copy = io.BytesIO()
    with device.migration.save() as f:
        shutil.copyfileobj(f, copy, 1 << 20)
    assert copy.getvalue() == data


def test_reads_are_bounded_by_what_was_negotiated(
    device: PCIDevice, model: MigratingDevice, server: RawServer
) -> None:
    model.rest.append(bytes(3 << 20))
    with device.migration.save() as f:
        assert len(f.read(2 << 20) or b"") == 1 << 20
        assert server.last(raw.MIG_DATA_READ).words("II") == ((1 << 20) + 8, 1 << 20)
        assert len(f.read(10) or b"") == 10
        f.read()


def test_a_short_read_is_not_the_end(device: PCIDevice, model: MigratingDevice) -> None:
    model.rest.extend([b"ab", b"c"])
    with device.migration.save() as f:
        assert (f.read(10), f.complete, f.read(10), f.read(10)) == (b"ab", False, b"c", b"")


def test_precopy_tells_nothing_now_from_the_end(device: PCIDevice, model: MigratingDevice) -> None:
    model.precopy.extend([b"first", b"", b"more"])
    model.rest.append(b"rest")
    with device.migration.save(precopy=True) as f:
        assert f.in_precopy
        assert (f.read(100), f.read(100), f.read(100), f.read(100)) == (
            b"first",
            None,
            b"more",
            None,
        )
        assert f.read() is None
        assert not f.complete
        f.stop()
        f.stop()
        assert not f.in_precopy
        assert (f.read(), f.read()) == (b"rest", b"")
    assert model.states == [PRE_COPY, STOP_COPY, STOP]


def test_all_that_there_is_in_precopy_is_read_at_once(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.precopy.extend([b"a", b"b"])
    with device.migration.save(precopy=True) as f:
        assert f.read() == b"ab"
        f.stop()
        assert f.read() == b""


def test_a_padded_read_is_as_long_as_it_says(device: PCIDevice, server: RawServer) -> None:
    replies = iter([b"abc", b""])
    server.handlers[raw.MIG_DATA_READ] = sends(
        server, lambda message: data_reply(message, next(replies), pad=4)
    )
    with device.migration.save() as f:
        assert (f.read(10), f.read(10)) == (b"abc", b"")


@pytest.mark.parametrize(
    "make",
    [
        lambda message: answer(message, struct.pack("<II", 8, 0)[:7]),
        lambda message: data_reply(message, b"abc", size=4),
        lambda message: data_reply(message, b"abc", size=0xFFFF_FFFF),
        lambda message: data_reply(message, bytes(11)),
    ],
    ids=["no head", "less than it says", "absurd size", "more than was asked for"],
)
def test_a_read_that_contradicts_itself_breaks_the_protocol(
    make: Callable[[Message], bytes], device: PCIDevice, server: RawServer
) -> None:
    server.handlers[raw.MIG_DATA_READ] = sends(server, make)
    with pytest.raises(RemoteProtocolError), device.migration.save() as f:
        f.read(10)


def test_an_answer_that_comes_twice_does_not_repeat_data(
    device: PCIDevice, server: RawServer
) -> None:
    server.handlers[raw.MIG_DATA_READ] = sends(
        server, lambda message: data_reply(message, b"abc") * 2
    )
    read: list[bytes | None] = []
    with pytest.raises((RemoteProtocolError, ConnectionLost)), device.migration.save() as f:
        read.extend(iter(partial(f.read, 10), b""))
    assert len(read) <= len([m for m in server.seen if m.command == raw.MIG_DATA_READ])


def test_a_refused_read_leaves_the_device_running(device: PCIDevice, server: RawServer) -> None:
    server.handlers[raw.MIG_DATA_READ] = sends(server, lambda message: refusal(message, errno.EIO))
    with (
        pytest.raises(MigrationError, match="read migration") as caught,
        device.migration.save() as f,
    ):
        f.read()
    assert (caught.value.errno, caught.value.state) == (errno.EIO, DeviceState.STOP_COPY)
    assert device.migration.state is DeviceState.RUNNING


def test_a_save_with_a_read_that_was_not_answered_can_only_be_given_up(
    impatient: PCIDevice, model: MigratingDevice, server: RawServer
) -> None:
    def loses(_: Message) -> None:
        model.rest.popleft()
        server.handlers[raw.MIG_DATA_READ] = model.read

    model.rest.extend([b"lost", b"rest"])
    server.handlers[raw.MIG_DATA_READ] = loses
    f = impatient.migration.save()
    with pytest.raises(VFIOTimeout):
        f.read(100)
    with pytest.raises(MigrationError, match="earlier read or write has failed"):
        f.read(100)
    with pytest.raises(MigrationError, match="end was not read"):
        f.finish()
    assert not f.complete
    f.close()
    assert model.states == [STOP_COPY, RUNNING]


def test_a_load_with_a_write_that_was_not_answered_can_only_be_given_up(
    impatient: PCIDevice, model: MigratingDevice, server: RawServer
) -> None:
    server.handlers[raw.MIG_DATA_WRITE] = lambda message: model.loaded.extend(message.payload[8:])
    f = impatient.migration.load()
    with pytest.raises(VFIOTimeout):
        f.write(b"taken")
    server.handlers[raw.MIG_DATA_WRITE] = model.write
    for again in (lambda: f.write(b"taken"), f.finish):
        with pytest.raises(MigrationError, match="earlier read or write has failed"):
            again()
    with pytest.raises(MigrationError, match="the device was reset"):
        f.close()
    f.close()
    assert (bytes(model.loaded), model.states, model.resets) == (b"taken", [RESUMING], 1)


def test_a_server_that_dies_in_the_middle_of_a_save_is_lost(
    device: PCIDevice, model: MigratingDevice, server: RawServer
) -> None:
    model.rest.append(b"half")
    f = device.migration.save()
    assert f.read(100) == b"half"
    server.handlers[raw.MIG_DATA_READ] = hang_up(server)
    with pytest.raises(ConnectionLost, match="MIG_DATA_READ"), f:
        f.read(100)
    assert f.closed


def test_a_save_that_fails_lets_the_device_go_on(device: PCIDevice, model: MigratingDevice) -> None:
    model.rest.append(b"state")
    for precopy in (False, True):
        with pytest.raises(Interrupted), device.migration.save(precopy=precopy):
            raise Interrupted
        assert model.states[-1] == RUNNING


def test_a_device_that_was_stopped_stays_so_after_a_save_that_fails(
    device: PCIDevice, model: MigratingDevice
) -> None:
    device.migration.stop()
    with pytest.raises(Interrupted), device.migration.save():
        raise Interrupted
    assert model.states == [STOP, STOP_COPY, STOP]


def test_a_device_that_cannot_go_on_after_a_save_that_fails_is_left_whole(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.refusals[RUNNING] = errno.EIO, None
    with pytest.raises(Interrupted) as caught, device.migration.save():
        raise Interrupted
    assert "was put back to STOP" in caught.value.__notes__[0]
    assert (model.state, model.resets) == (STOP, 0)


def test_a_save_that_is_left_before_its_end_says_so(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.rest.extend([b"a", b"b"])
    with (
        pytest.raises(MigrationError, match="before its end") as caught,
        device.migration.save() as f,
    ):
        f.read(1)
    assert caught.value.state is DeviceState.RUNNING
    assert device.migration.state is DeviceState.RUNNING


def test_a_save_can_be_given_up(device: PCIDevice, model: MigratingDevice) -> None:
    with device.migration.save(precopy=True) as f:
        f.abort()
        f.abort()
        with pytest.raises(ValueError, match="closed"):
            f.read(1)
        with pytest.raises(ValueError, match="closed"):
            f.stop()
    assert model.states == [PRE_COPY, RUNNING]


def test_a_save_without_a_with_statement_is_closed(
    device: PCIDevice, model: MigratingDevice
) -> None:
    f = device.migration.save()
    f.read()
    f.close()
    f.close()
    device.migration.run()
    device.migration.save().close()
    assert model.states == [STOP_COPY, STOP, RUNNING, STOP_COPY, RUNNING]


def test_a_device_that_cannot_be_stopped_goes_on(device: PCIDevice, model: MigratingDevice) -> None:
    model.refusals[STOP_COPY] = errno.EIO, None
    f = device.migration.save(precopy=True)
    with pytest.raises(MigrationError, match="put back to RUNNING") as caught, f:
        f.stop()
    assert caught.value.state is DeviceState.RUNNING
    assert model.states == [PRE_COPY, STOP_COPY, RUNNING]


def test_the_end_of_a_save_that_is_refused_is_told(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.refusals[STOP] = errno.EIO, None
    with pytest.raises(MigrationError, match="put back to RUNNING"), device.migration.save() as f:
        f.read()


def test_a_forgotten_save_says_nothing_to_the_device(
    device: PCIDevice, model: MigratingDevice
) -> None:
    device.migration.save()
    device.migration._stream = None
    gc.collect()
    assert model.states == [STOP_COPY]


def test_one_save_or_load_goes_on_at_a_time(device: PCIDevice) -> None:
    with device.migration.save() as f:
        for again in (device.migration.save, device.migration.load):
            with pytest.raises(MigrationError, match="another") as caught:
                again()
            assert caught.value.errno == errno.EBUSY
        f.read()
    device.migration.load().abort()


def test_a_device_may_be_closed_while_it_is_saved(model: MigratingDevice) -> None:
    with pyvfio.open(model.server.uri) as device:
        f = device.migration.save()
    with pytest.raises(DeviceClosed):
        f.read(1)
    f.close()
    assert f.closed


def test_a_socket_has_no_precopy_info(device: PCIDevice) -> None:
    with device.migration.save(precopy=True) as f:
        with pytest.raises(UnsupportedError):
            f.precopy_info()
        f.abort()


def test_the_size_of_a_save_is_told_by_some(device: PCIDevice, server: RawServer) -> None:
    with pytest.raises(UnsupportedError):
        device.migration.data_size()
    server.handlers[raw.DEVICE_FEATURE] = sends(
        server, lambda message: feature_reply(message, struct.pack("<Q", 123456))
    )
    assert device.migration.data_size() == 123456
    assert server.last(raw.DEVICE_FEATURE).words("II")[1] == raw_migration.GET | 9


# Loading


def test_a_load_writes_all_and_leaves_the_device_stopped(
    device: PCIDevice, model: MigratingDevice
) -> None:
    with device.migration.load() as f:
        assert f.write(b"state ") == 6
        assert f.write(memoryview(b"of a device")) == 11
        assert f.write(b"") == 0
        assert f.tell() == 17
    assert model.loaded == b"state of a device"
    assert model.states == [RESUMING, STOP]
    device.migration.run()
    assert model.states[-1] == RUNNING


def test_writes_are_short_to_a_server_that_may_not_read_them_whole(
    device: PCIDevice, model: MigratingDevice
) -> None:
    data = os.urandom(100_000)
    with device.migration.load() as f:
        assert f.write(data) == len(data)
    assert model.loaded == data
    assert model.writes == [32768, 32768, 32768, 1696]


def test_writes_are_bounded_by_what_was_negotiated(server: RawServer) -> None:
    model = MigratingDevice(server)
    server.capabilities = (
        b'{"capabilities":{"max_data_xfer_size":65536,"pyvfio_long_writes":true}}\0'
    )
    with pyvfio.open(server.uri) as device, device.migration.load() as f:
        f.write(bytes(100_000))
    assert model.writes == [65536, 34464]


def test_a_refused_load_is_told_and_the_device_is_reset(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.refusals[STOP] = errno.EINVAL, ERROR
    f = device.migration.load()
    with pytest.raises(MigrationError, match="migration to STOP") as caught, f:
        f.write(b"nonsense")
    assert (caught.value.errno, caught.value.state) == (errno.EINVAL, DeviceState.RUNNING)
    assert model.resets == 1


def test_a_refused_write_is_told_and_the_device_is_reset(
    device: PCIDevice, model: MigratingDevice, server: RawServer
) -> None:
    server.handlers[raw.MIG_DATA_WRITE] = sends(
        server, lambda message: refusal(message, errno.ENOSPC)
    )
    f = device.migration.load()
    with pytest.raises(MigrationError, match="write migration data") as caught, f:
        f.write(b"too much")
    assert (caught.value.errno, caught.value.state) == (errno.ENOSPC, DeviceState.RESUMING)
    assert (model.states, model.resets) == ([RESUMING], 1)


def test_a_load_that_fails_resets_the_device(device: PCIDevice, model: MigratingDevice) -> None:
    f = device.migration.load()
    f.write(b"half")
    with pytest.raises(Interrupted), f:
        raise Interrupted
    assert (model.states, model.resets) == ([RESUMING], 1)
    assert device.migration.state is DeviceState.RUNNING


def test_a_load_that_cannot_be_undone_says_so(device: PCIDevice, server: RawServer) -> None:
    server.handlers[raw.RESET] = sends(server, answer)
    f = device.migration.load()
    with pytest.raises(MigrationError, match="is in RESUMING") as caught:
        f.abort()
    assert caught.value.state is DeviceState.RESUMING
    assert f.closed
    f.abort()


def test_a_server_that_dies_in_the_middle_of_a_load_is_lost(
    device: PCIDevice, server: RawServer
) -> None:
    f = device.migration.load()
    f.write(b"half")
    server.handlers[raw.MIG_DATA_WRITE] = hang_up(server)
    with pytest.raises(ConnectionLost), f:
        f.write(b"rest")
    assert f.closed


def test_a_closed_load_takes_nothing(device: PCIDevice, model: MigratingDevice) -> None:
    f = device.migration.load()
    f.close()
    f.close()
    with pytest.raises(ValueError, match="closed"):
        f.write(b"late")
    assert model.states == [RESUMING, STOP]


def test_a_save_is_read_and_a_load_is_written(device: PCIDevice) -> None:
    with device.migration.save() as saved:
        assert (saved.readable(), saved.writable(), saved.seekable()) == (True, False, False)
        saved.abort()
    with device.migration.load() as loaded:
        assert (loaded.readable(), loaded.writable(), loaded.seekable()) == (False, True, False)


# Transfers that are finished for who has two devices to put right


def test_a_load_that_was_finished_can_be_taken_back(
    device: PCIDevice, model: MigratingDevice
) -> None:
    loading = device.migration.load()
    loading.finish()
    assert (model.state, model.resets) == (STOP, 0)
    loading.abort()
    assert (model.states, model.resets) == ([RESUMING, STOP], 1)


def test_a_load_that_was_finished_is_closed_without_a_word(
    device: PCIDevice, model: MigratingDevice
) -> None:
    with device.migration.load() as loading:
        loading.finish()
        device.migration.run()
    assert (model.state, model.resets) == (RUNNING, 0)


def test_a_load_whose_finish_is_refused_is_reset_when_it_is_given_up(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.refusals[STOP] = errno.EINVAL, ERROR
    loading = device.migration.load()
    with pytest.raises(MigrationError, match="the device is in ERROR") as caught:
        loading.finish()
    assert (caught.value.state, model.resets) == (DeviceState.ERROR, 0)
    loading.abort()
    assert model.resets == 1


def test_a_save_is_finished_behind_its_end(device: PCIDevice, model: MigratingDevice) -> None:
    model.rest.append(b"all")
    with device.migration.save() as saving:
        with pytest.raises(MigrationError, match="end was not read"):
            saving.finish()
        saving.readall()
        saving.finish()
        assert saving.closed
    assert model.states == [STOP_COPY, STOP]


def test_a_save_whose_finish_is_refused_is_left_as_it_is(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.refusals[STOP] = errno.EIO, None
    with device.migration.save() as saving:
        saving.readall()
        with pytest.raises(MigrationError, match="the device is in STOP_COPY"):
            saving.finish()
    assert (model.states, model.resets) == ([STOP_COPY, STOP], 0)


def test_a_device_that_must_not_be_reset_is_left_as_it_is(
    device: PCIDevice, model: MigratingDevice
) -> None:
    model.refusals[STOP] = errno.EIO, ERROR
    model.refusals[RUNNING] = errno.EINVAL, None
    with pytest.raises(MigrationError, match="the device is in ERROR"):
        device.migration.set_state(DeviceState.STOP, reset=False)
    assert (model.states, model.resets) == ([STOP, RUNNING], 0)
