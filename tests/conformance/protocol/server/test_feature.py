# SPDX-License-Identifier: BSD-3-Clause
"""DEVICE_FEATURE and the migration data: refused without migration, and asked about with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.protocol.device import in_step
from tests.conformance.protocol.specification import needs, spec
from tests.fault import raw
from tests.fault.clients import PAGE
from tests.fault.moving import data_read, data_write, feature
from tests.fault.raw import RawClient
from tests.fault.raw_migration import (
    GET,
    HAS_STOP_COPY,
    LOGGING_REPORT,
    LOGGING_START,
    LOGGING_STOP,
    MIGRATION,
    PROBE,
    RUNNING,
    SET,
    STATE,
)
from tests.support import ServerProcess

SUPPORTED = {
    "migration": GET | MIGRATION,
    "state, get": GET | STATE,
    "state, set": SET | STATE,
    "state, both": GET | SET | STATE,
    "logging start": SET | LOGGING_START,
    "logging stop": SET | LOGGING_STOP,
    "logging report": GET | LOGGING_REPORT,
}
"""What a device with migration and DMA can do."""


@spec("VFIO_USER_DEVICE_FEATURE / Request", "VFIO_USER_DEVICE_FEATURE / Device Features")
@pytest.mark.parametrize("flags", [GET, SET, PROBE, PROBE | GET | SET])
def test_a_feature_that_does_not_exist_is_refused(client: RawClient, flags: int) -> None:
    assert client.refused(raw.DEVICE_FEATURE, feature(flags | 0xFFFF, bytes(8)))
    assert in_step(client)


@spec("VFIO_USER_DEVICE_FEATURE / Request")
def test_get_and_set_exclude_each_other(client: RawClient) -> None:
    assert client.refused(raw.DEVICE_FEATURE, feature(GET | SET | STATE, bytes(8)))
    assert in_step(client)


@spec("VFIO_USER_DEVICE_FEATURE / Request")
@pytest.mark.parametrize("flags", [SET | MIGRATION, GET | LOGGING_STOP, SET | LOGGING_REPORT])
def test_a_probe_for_a_method_that_a_feature_does_not_have_is_refused(
    client: RawClient, flags: int
) -> None:
    assert client.refused(raw.DEVICE_FEATURE, feature(PROBE | flags))


# Migration


@spec("VFIO_USER_DEVICE_FEATURE / Request", "VFIO_USER_DEVICE_FEATURE / Reply")
@needs("migration")
@pytest.mark.parametrize("flags", SUPPORTED.values(), ids=SUPPORTED)
def test_a_probe_for_what_is_supported_is_answered_with_itself(
    client: RawClient, flags: int
) -> None:
    request = feature(PROBE | flags)
    assert client.done(raw.DEVICE_FEATURE, request).payload == request


@spec("VFIO_USER_DEVICE_FEATURE / VFIO_DEVICE_FEATURE_MIGRATION")
@needs("migration")
def test_migration_supports_stop_copy(client: RawClient) -> None:
    reply = client.done(raw.DEVICE_FEATURE, feature(GET | MIGRATION))
    argsz, flags, states = reply.words("IIQ")
    assert (argsz, flags, len(reply.payload)) == (16, GET | MIGRATION, 16)
    assert states & HAS_STOP_COPY


@spec("VFIO_USER_DEVICE_FEATURE / VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE")
@needs("migration")
def test_a_device_is_running_when_its_client_comes(client: RawClient) -> None:
    reply = client.done(raw.DEVICE_FEATURE, feature(GET | STATE))
    assert reply.words("IIII")[2] == RUNNING


@spec("VFIO_USER_MIG_DATA_READ", "VFIO_USER_MIG_DATA_WRITE")
@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (raw.MIG_DATA_READ, data_read(PAGE)),
        (raw.MIG_DATA_WRITE, data_write(bytes(4))),
    ],
    ids=["read", "write"],
)
def test_a_running_device_has_no_migration_data(
    client: RawClient, command: int, payload: bytes
) -> None:
    assert client.refused(command, payload)
    assert in_step(client)


# Without migration


@pytest.fixture(scope="module")
def immobile(socket_folder: Path) -> Iterator[ServerProcess]:
    """A server of a device that cannot be migrated."""
    with ServerProcess("tests.fault.models:Small", socket_folder / "immobile.sock") as server:
        yield server


@spec("VFIO_USER_DEVICE_FEATURE / Device Features")
@pytest.mark.parametrize("flags", SUPPORTED.values(), ids=SUPPORTED)
@pytest.mark.parametrize("probe", [0, PROBE], ids=["", "probe"])
def test_a_device_without_migration_refuses_its_features(
    immobile: ServerProcess, flags: int, probe: int
) -> None:
    with RawClient(immobile.path) as client:
        client.negotiate()
        data = b"" if probe else bytes(24)
        assert client.refused(raw.DEVICE_FEATURE, feature(probe | flags, data))
        assert in_step(client)
