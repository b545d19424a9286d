# SPDX-License-Identifier: BSD-3-Clause
"""The migration states of a served device: every pair of them, failures, and clients that leave.

Specification: "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE", "Direct State Transitions", "Complex State
Transitions".
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest

from tests.fault import raw
from tests.fault.clients import BAR0, IOVA, PAGE, in_step
from tests.fault.moving import (
    connected,
    data_read,
    data_write,
    feature,
    go,
    load,
    read_all,
    read_some,
    refuses,
    save,
    state,
    to_state,
    write_all,
)
from tests.fault.raw import RawClient
from tests.fault.raw_migration import (
    ERROR,
    GET,
    HAS_PRE_COPY,
    HAS_STOP_COPY,
    MIGRATION,
    PRE_COPY,
    RESUMING,
    RUNNING,
    SET,
    STATE,
    STOP,
    STOP_COPY,
)
from tests.support import ServerProcess

EVERY_STATE = range(10)
NAMES = (
    *("error", "stop", "running", "stop_copy", "resuming"),
    *("running_p2p", "pre_copy", "pre_copy_p2p", "8", "9"),
)
STATES = {STOP: "stop", RUNNING: "running", STOP_COPY: "stop_copy", RESUMING: "resuming"}

FAIL, CALLS_OF_STOPPED, CALLS_OF_STARTED, VERSION = 0x08, 0x10, 0x18, 0x20
AT_STOPPED, AT_STARTED, AT_SAVE, AT_LOAD, NO_OSERROR = 1, 2, 4, 8, 16


@pytest.fixture(scope="module")
def failing(host: Callable[..., ServerProcess]) -> ServerProcess:
    """A server of a device that fails on its way as it is told."""
    return host("tests.fault.migrating:Failing")


def bring_to(client: RawClient, wanted: int) -> None:
    """Have a device that was reset be in a state, with a stream that is whole where it resumes."""
    if wanted == RESUMING:
        stream = save(client)
        go(client, STOP, RESUMING)
        write_all(client, stream)
    elif wanted == ERROR:
        go(client, RESUMING)
        assert refuses(client, STOP)
    else:
        go(client, wanted)


def allowed(before: int, after: int, states: set[int]) -> bool:
    """The rules in words: whatever is known can be asked for but ERROR, and can be left but ERROR;
    a save does not begin again."""
    known = {before, after} <= states and ERROR not in (before, after)
    return known and (before, after) != (STOP_COPY, PRE_COPY)


WITHOUT, WITH = {ERROR, *STATES}, {ERROR, *STATES, PRE_COPY}


@pytest.mark.parametrize("after", EVERY_STATE, ids=NAMES)
@pytest.mark.parametrize("before", sorted(WITHOUT), ids=lambda number: NAMES[number])
def test_each_state_can_be_reached_from_each_other(
    movable: ServerProcess, before: int, after: int
) -> None:
    check_pair(movable, before, after, WITHOUT)


@pytest.mark.parametrize("after", EVERY_STATE, ids=NAMES)
@pytest.mark.parametrize("before", sorted(WITH), ids=lambda number: NAMES[number])
def test_each_state_can_be_reached_from_each_other_with_pre_copy(
    streaming: ServerProcess, before: int, after: int
) -> None:
    check_pair(streaming, before, after, WITH)


def check_pair(server: ServerProcess, before: int, after: int, states: set[int]) -> None:
    """One state to another: done, or refused and left as it was."""
    with connected(server) as client:
        bring_to(client, before)
        if allowed(before, after, states):
            go(client, after)
            assert state(client) == after
        else:
            assert refuses(client, after) == errno.EINVAL
            assert state(client) == before
        assert in_step(client)


@pytest.mark.parametrize("before", [ERROR, *STATES, PRE_COPY], ids=lambda number: NAMES[number])
def test_a_reset_leads_from_any_state_to_running(streaming: ServerProcess, before: int) -> None:
    with connected(streaming) as client:
        bring_to(client, before)
        client.done(raw.RESET)
        assert state(client) == RUNNING
        client.write32(BAR0, 0, 5)
        assert client.read32(BAR0, 0) == 5


@pytest.mark.parametrize(("model", "flags"), [("movable", 0), ("streaming", HAS_PRE_COPY)])
def test_a_device_says_whether_it_has_pre_copy(
    request: pytest.FixtureRequest, model: str, flags: int
) -> None:
    with connected(request.getfixturevalue(model)) as client:
        reply = client.done(raw.DEVICE_FEATURE, feature(GET | MIGRATION))
        assert reply.words("IIQ") == (16, GET | MIGRATION, HAS_STOP_COPY | flags)


# What a stopped device refuses


@pytest.mark.parametrize("stopped", [STOP, STOP_COPY, RESUMING, ERROR], ids=lambda n: NAMES[n])
def test_registers_of_a_stopped_device_are_refused(movable: ServerProcess, stopped: int) -> None:
    with connected(movable) as client:
        bring_to(client, stopped)
        assert client.refused(raw.REGION_READ, raw.region_range(BAR0, 0, 4)) == errno.EBUSY
        write = raw.register_write(BAR0, 0x40, bytes(4))
        assert client.refused(raw.REGION_WRITE, write) == errno.EBUSY
        assert in_step(client)


def test_configuration_space_of_a_stopped_device_is_served(movable: ServerProcess) -> None:
    """Clients set it up before they load and before they run a device (QEMU does)."""
    with connected(movable) as client:
        go(client, STOP)
        client.write(raw.CONFIG, 4, b"\x06\x00")
        assert client.read(raw.CONFIG, 4, 2) == b"\x06\x00"


def test_maps_and_interrupts_of_a_stopped_device_are_set_up(movable: ServerProcess) -> None:
    with connected(movable) as client:
        go(client, STOP)
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
        client.done(raw.SET_IRQS, raw.irq_set(raw.NONE | raw.TRIGGER, raw.INTX, 0, 0))
        client.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, PAGE))


def test_a_write_that_is_posted_to_a_stopped_device_is_lost(movable: ServerProcess) -> None:
    with connected(movable) as client:
        client.write32(BAR0, 0, 1)
        go(client, STOP)
        client.send(
            raw.frame(raw.REGION_WRITE, raw.register_write(BAR0, 0, bytes(4)), flags=raw.NO_REPLY)
        )
        go(client, RUNNING)
        assert client.read32(BAR0, 0) == 1


@pytest.mark.parametrize("resting", [ERROR, STOP, RUNNING, RESUMING], ids=lambda n: NAMES[n])
def test_there_is_data_to_read_in_saving_states_only(movable: ServerProcess, resting: int) -> None:
    with connected(movable) as client:
        bring_to(client, resting)
        assert client.refused(raw.MIG_DATA_READ, data_read(PAGE)) == errno.EINVAL


@pytest.mark.parametrize(
    "resting", [ERROR, STOP, RUNNING, STOP_COPY, PRE_COPY], ids=lambda n: NAMES[n]
)
def test_data_is_written_in_resuming_only(streaming: ServerProcess, resting: int) -> None:
    with connected(streaming) as client:
        bring_to(client, resting)
        assert client.refused(raw.MIG_DATA_WRITE, data_write(bytes(8))) == errno.EINVAL


def test_a_device_without_migration_has_no_data(serve: Callable[..., ServerProcess]) -> None:
    with connected(serve("tests.fault.models:Small")) as client:
        assert client.refused(raw.DEVICE_FEATURE, feature(GET | STATE)) == errno.ENOTSUP
        assert client.refused(raw.MIG_DATA_READ, data_read(PAGE)) == errno.ENOTSUP
        assert client.refused(raw.MIG_DATA_WRITE, data_write(bytes(8))) == errno.ENOTSUP


# Arcs that fail


def test_a_device_that_cannot_stop_runs_on(failing: ServerProcess) -> None:
    with connected(failing) as client:
        client.write32(BAR0, FAIL, AT_STOPPED)
        assert refuses(client, STOP) == errno.EIO
        assert state(client) == RUNNING
        assert client.read32(BAR0, CALLS_OF_STARTED) == 1  # what had stopped of it goes on


def test_a_device_that_cannot_start_stays_stopped(failing: ServerProcess) -> None:
    with connected(failing) as client:
        client.write32(BAR0, FAIL, AT_STARTED)
        go(client, STOP)
        assert refuses(client, RUNNING) == errno.EIO
        assert state(client) == STOP
        assert refuses(client, PRE_COPY) == errno.EINVAL


def test_a_device_that_can_neither_stop_nor_go_on_is_in_error(failing: ServerProcess) -> None:
    with connected(failing) as client:
        client.write32(BAR0, FAIL, AT_STOPPED | AT_STARTED)
        assert refuses(client, STOP) == errno.EIO
        assert state(client) == ERROR
        client.done(raw.RESET)
        assert (state(client), client.read32(BAR0, FAIL)) == (RUNNING, 0)


def test_a_device_that_cannot_be_saved_is_left_where_it_got_to(failing: ServerProcess) -> None:
    with connected(failing) as client:
        client.write32(BAR0, FAIL, AT_SAVE)
        assert refuses(client, STOP_COPY) == errno.EIO
        assert state(client) == STOP
        go(client, RUNNING)


def test_an_error_that_is_a_mistake_is_told_as_well(failing: ServerProcess) -> None:
    with connected(failing) as client:
        client.write32(BAR0, FAIL, AT_SAVE | NO_OSERROR)
        assert refuses(client, STOP_COPY) == errno.EIO
        assert in_step(client)


def test_a_load_that_the_model_refuses_ends_in_error(failing: ServerProcess) -> None:
    with connected(failing) as client:
        client.write32(BAR0, FAIL, AT_LOAD)
        stream = save(client)
        client.done(raw.RESET)
        go(client, RESUMING)
        write_all(client, stream)
        assert refuses(client, STOP) == errno.EIO
        assert state(client) == ERROR


def test_a_model_learns_the_version_that_has_saved(
    serve: Callable[..., ServerProcess], movable: ServerProcess
) -> None:
    older, newer = serve("tests.fault.migrating:Older"), movable
    with connected(older) as client:
        client.write32(BAR0, 0x40, 7)
        stream = save(client)
    with connected(newer) as client:
        load(client, stream)
        go(client, RUNNING)
        assert (client.read32(BAR0, 0x40), client.read32(BAR0, VERSION)) == (7, 1)


def test_hooks_are_called_once_for_each_way(failing: ServerProcess) -> None:
    with connected(failing) as client:
        go(client, STOP, STOP_COPY, STOP, RESUMING)
        client.done(raw.RESET)
        assert client.read32(BAR0, CALLS_OF_STARTED) == 1
        go(client, RUNNING, STOP_COPY, RUNNING, RUNNING)
        calls = [client.read32(BAR0, at) for at in (CALLS_OF_STOPPED, CALLS_OF_STARTED)]
        assert calls == [1, 2]


# Clients that leave


@pytest.mark.parametrize(
    ("left", "found"),
    [
        (RUNNING, RUNNING),
        (PRE_COPY, RUNNING),
        (STOP, STOP),
        (STOP_COPY, STOP),
        (RESUMING, ERROR),
        (ERROR, ERROR),
    ],
    ids=lambda number: NAMES[number],
)
def test_what_the_next_client_finds(streaming: ServerProcess, left: int, found: int) -> None:
    with connected(streaming) as client:
        bring_to(client, left)
    with connected(streaming, reset=False) as client:
        assert state(client) == found


def test_the_next_client_saves_what_one_has_left(movable: ServerProcess) -> None:
    with connected(movable) as client:
        client.write32(BAR0, 0x40, 7)
        go(client, STOP_COPY)
        read_some(client, 16)
    with connected(movable, reset=False) as client:
        stream = save(client)
        load(client, stream)
        go(client, RUNNING)
        assert client.read32(BAR0, 0x40) == 7


def test_the_next_client_runs_what_one_has_left(movable: ServerProcess) -> None:
    with connected(movable) as client:
        client.write32(BAR0, 0x40, 7)
        go(client, STOP_COPY)
    with connected(movable, reset=False) as client:
        go(client, RUNNING)
        assert client.read32(BAR0, 0x40) == 7


def test_a_device_that_is_half_loaded_does_not_run(movable: ServerProcess) -> None:
    with connected(movable) as client:
        stream = save(client)
        go(client, RESUMING)
        write_all(client, stream[:-1])
    with connected(movable, reset=False) as client:
        assert [refuses(client, wanted) for wanted in STATES] == [errno.EINVAL] * len(STATES)
        assert client.refused(raw.REGION_READ, raw.region_range(BAR0, 0, 4)) == errno.EBUSY
        client.done(raw.RESET)
        assert client.read32(BAR0, 0) == 0


# Requests that are not right


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<I", STOP),
        struct.pack("<II", STOP, 0)[:7],
        struct.pack("<IIB", STOP, 0, 0),
    ],
    ids=["none", "short", "shorter by one", "longer by one"],
)
def test_a_state_of_another_size_is_refused(movable: ServerProcess, data: bytes) -> None:
    with connected(movable) as client:
        assert client.refused(raw.DEVICE_FEATURE, feature(SET | STATE, data)) == errno.EINVAL
        assert state(client) == RUNNING


@pytest.mark.parametrize("flags", [GET | STATE, GET | MIGRATION, SET | STATE])
def test_a_reply_that_the_client_has_no_room_for_is_refused(
    movable: ServerProcess, flags: int
) -> None:
    data = struct.pack("<II", STOP, 0) if flags & SET else b""
    with connected(movable) as client:
        assert client.refused(raw.DEVICE_FEATURE, feature(flags, data, 15)) == errno.EINVAL
        assert state(client) == RUNNING
        client.done(raw.DEVICE_FEATURE, feature(flags, data, 16))


def test_data_beyond_what_was_negotiated_is_refused(movable: ServerProcess) -> None:
    with connected(movable) as client:
        go(client, STOP_COPY)
        assert client.refused(raw.MIG_DATA_READ, data_read((1 << 20) + 1)) == errno.EINVAL
        assert client.refused(raw.MIG_DATA_READ, data_read((1 << 32) - 9)) == errno.EINVAL
        assert read_all(client, 1 << 20)


def test_no_bytes_may_be_read_and_written(movable: ServerProcess) -> None:
    with connected(movable) as client:
        go(client, STOP_COPY)
        assert read_some(client, 0) == b""
        stream = read_all(client)
        go(client, RESUMING)
        write_all(client, stream)
        client.done(raw.MIG_DATA_WRITE, data_write(b""))
        go(client, STOP)


def test_states_may_be_asked_for_without_a_reply(movable: ServerProcess) -> None:
    with connected(movable) as client:
        for wanted in (STOP, STOP_COPY, ERROR, STOP):
            client.send(raw.frame(raw.DEVICE_FEATURE, to_state(wanted), flags=raw.NO_REPLY))
        assert state(client) == STOP
