# SPDX-License-Identifier: BSD-3-Clause
"""The states of migration, and the data that is read in some and written in others."""

from __future__ import annotations

import pytest

from tests.conformance.protocol.device import INTERRUPT_LINE, in_step
from tests.conformance.protocol.specification import needs, spec
from tests.fault import raw
from tests.fault.clients import PAGE
from tests.fault.moving import (
    data_read,
    data_write,
    feature,
    go,
    load,
    read_all,
    read_some,
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
    MIGRATION,
    PRE_COPY,
    RESUMING,
    RUNNING,
    STOP,
    STOP_COPY,
)

DIRECT = "VFIO_USER_DEVICE_FEATURE / Direct State Transitions"
COMPLEX = "VFIO_USER_DEVICE_FEATURE / Complex State Transitions"
STATES = "VFIO_USER_DEVICE_FEATURE / VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE"
READ, WRITE = "VFIO_USER_MIG_DATA_READ", "VFIO_USER_MIG_DATA_WRITE"


def refuses(client: RawClient, wanted: int) -> int:
    """The errno that a state is answered with; some servers add a payload."""
    return client.ask(raw.DEVICE_FEATURE, to_state(wanted)).error


def has_precopy(client: RawClient) -> bool:
    """Whether the device has the state PRE_COPY."""
    reply = client.done(raw.DEVICE_FEATURE, feature(GET | MIGRATION))
    return bool(reply.words("IIQ")[2] & HAS_PRE_COPY)


def check(client: RawClient, before: int, after: int) -> None:
    """A transition is made, or refused where the device lacks the state."""
    if PRE_COPY in (before, after) and not has_precopy(client):
        assert refuses(client, PRE_COPY)
        return
    go(client, before, after)
    assert state(client) == after


@needs("states")
@spec(DIRECT, STATES)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (RUNNING, STOP),
        (STOP_COPY, STOP),
        (STOP, RUNNING),
        (RUNNING, PRE_COPY),
        (STOP, STOP_COPY),
        (PRE_COPY, RUNNING),
        (PRE_COPY, STOP_COPY),
        (STOP, RESUMING),
    ],
)
def test_the_transitions_that_a_server_needs_to_support(
    client: RawClient, before: int, after: int
) -> None:
    check(client, before, after)


@needs("states")
@spec(COMPLEX)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (RUNNING, STOP_COPY),
        (RUNNING, RESUMING),
        (STOP, PRE_COPY),
        (STOP_COPY, RUNNING),
        (STOP_COPY, RESUMING),
        (PRE_COPY, STOP),
        (PRE_COPY, RESUMING),
    ],
)
def test_the_remaining_transitions_are_combinations(
    client: RawClient, before: int, after: int
) -> None:
    check(client, before, after)


@needs("states")
@spec(DIRECT)
def test_a_save_does_not_begin_again(client: RawClient) -> None:
    go(client, STOP_COPY)
    assert refuses(client, PRE_COPY)
    assert state(client) == STOP_COPY


@needs("states")
@spec(DIRECT)
@pytest.mark.parametrize("before", [RUNNING, STOP, STOP_COPY, RESUMING])
def test_error_cannot_be_asked_for(client: RawClient, before: int) -> None:
    go(client, before)
    assert refuses(client, ERROR)
    assert state(client) == before


@needs("states")
@spec(STATES)
@pytest.mark.parametrize("unused", [5, 7, 8, (1 << 32) - 1])
def test_states_that_are_not_used_are_refused(client: RawClient, unused: int) -> None:
    assert refuses(client, unused)
    assert (state(client), in_step(client)) == (RUNNING, True)


@needs("states")
@spec(READ, WRITE)
def test_data_is_read_and_written_in_states_of_its_own(client: RawClient) -> None:
    for before in (STOP, RESUMING):
        go(client, before)
        assert client.refused(raw.MIG_DATA_READ, data_read(PAGE))
    client.done(raw.RESET)
    if state(client) == RESUMING:  # libvfio-user's servers stay there
        go(client, STOP)
    for before in (STOP, STOP_COPY):
        go(client, before)
        assert client.refused(raw.MIG_DATA_WRITE, data_write(bytes(4)))


# The data


@needs("stream")
@spec(f"{READ} / Request", f"{READ} / Reply", f"{WRITE} / Request", f"{WRITE} / Reply")
@pytest.mark.parametrize("size", [64, 4096, 1 << 20])
def test_what_was_saved_is_there_after_the_load(client: RawClient, size: int) -> None:
    client.write(raw.CONFIG, INTERRUPT_LINE, b"\x5a")
    go(client, STOP_COPY)
    stream = read_all(client, size)
    client.done(raw.RESET)
    assert client.read(raw.CONFIG, INTERRUPT_LINE, 1) == b"\0"
    go(client, RESUMING)
    write_all(client, stream, size)
    go(client, RUNNING)
    assert client.read(raw.CONFIG, INTERRUPT_LINE, 1) == b"\x5a"


@needs("stream")
@spec(f"{READ} / Reply")
def test_less_than_was_asked_for_is_the_end(client: RawClient) -> None:
    assert save(client)
    assert read_some(client, PAGE) == b""


@needs("stream")
@spec(DIRECT)
@pytest.mark.parametrize("size", [0, 1, -1])
def test_data_that_is_not_complete_fails_the_transition(client: RawClient, size: int) -> None:
    stream = save(client)[:size]
    go(client, RESUMING)
    write_all(client, stream)
    assert refuses(client, STOP)


@needs("stream")
@spec(DIRECT, "VFIO_USER_DEVICE_RESET")
def test_a_reset_leads_from_error_to_running(client: RawClient) -> None:
    go(client, RESUMING)
    assert refuses(client, STOP)
    assert state(client) == ERROR
    assert refuses(client, RUNNING)
    client.done(raw.RESET)
    assert state(client) == RUNNING


@needs("stream")
@spec(DIRECT)
def test_leaving_a_saving_state_ends_the_session(client: RawClient) -> None:
    go(client, STOP_COPY)
    read_some(client, 64)
    go(client, STOP)
    load(client, save(client))
