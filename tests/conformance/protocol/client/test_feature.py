# SPDX-License-Identifier: BSD-3-Clause
"""DEVICE_FEATURE and the migration data, as the client sends them and takes them."""

from __future__ import annotations

import struct

import pytest

from pyvfio.memory import SharedMemory
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DeviceState, Feature, FeatureFlags
from tests.conformance.protocol.specification import spec
from tests.fault import raw
from tests.fault.clients import PAGE
from tests.fault.raw import Message, RawServer, answer, unhex
from tests.fault.raw_migration import MigratingDevice, data_reply, feature_reply

FEATURE = "VFIO_USER_DEVICE_FEATURE"
IOVA = 0x10_0000


@pytest.fixture
def model(server: RawServer) -> MigratingDevice:
    """A device that migrates, with pre-copy."""
    return MigratingDevice(server)


def features(server: RawServer, flags: int) -> list[bytes]:
    """The payloads of each DEVICE_FEATURE that was sent with these flags."""
    found = [message for message in server.seen if message.command == raw.DEVICE_FEATURE]
    return [message.payload for message in found if message.words("II")[1] == flags]


@spec(f"{FEATURE} / Request", f"{FEATURE} / Device Features")
@pytest.mark.parametrize(
    ("methods", "flags"),
    [
        (FeatureFlags(0), "0600 0400"),
        (FeatureFlags.SET, "0600 0600"),
        (FeatureFlags.GET | FeatureFlags.SET, "0600 0700"),
    ],
)
def test_a_probe_names_feature_and_methods_and_has_no_data(
    server: RawServer, device: PCIDevice, methods: FeatureFlags, flags: str
) -> None:
    server.handlers[raw.DEVICE_FEATURE] = lambda message: server.peer.send(
        answer(message, message.payload)
    )
    assert device.features.probe(Feature.DMA_LOGGING_START, methods)
    assert server.last(raw.DEVICE_FEATURE).payload == unhex(f"08000000 {flags}")


@spec(f"{FEATURE} / Request", f"{FEATURE} / Reply", f"{FEATURE} / VFIO_DEVICE_FEATURE_MIGRATION")
def test_what_a_device_can_is_got_with_room_for_the_answer(
    server: RawServer, device: PCIDevice, model: MigratingDevice
) -> None:
    model.flags = 5
    assert device.migration.flags == 5
    assert server.last(raw.DEVICE_FEATURE).payload == unhex("10000000 01000100")


@spec(f"{FEATURE} / VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE", f"{FEATURE} / Direct State Transitions")
def test_a_state_is_set_with_its_number(
    server: RawServer, device: PCIDevice, model: MigratingDevice
) -> None:
    device.migration.set_state(DeviceState.PRE_COPY)
    assert model.states == [6]
    (request,) = features(server, 2 << 16 | 2)
    assert request[:12] == unhex("10000000 02000200 06000000")
    assert len(request) == 16


@spec(f"{FEATURE} / Complex State Transitions")
def test_the_way_is_left_to_the_server(
    server: RawServer, device: PCIDevice, model: MigratingDevice
) -> None:
    model.state = DeviceState.RESUMING
    device.migration.set_state(DeviceState.PRE_COPY)
    assert len(features(server, 2 << 16 | 2)) == 1
    assert model.state == DeviceState.PRE_COPY


@spec(
    f"{FEATURE} / VFIO_DEVICE_FEATURE_DMA_LOGGING_START / VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP",
    f"{FEATURE} / VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT",
)
def test_a_log_is_started_reported_and_stopped(server: RawServer, device: PCIDevice) -> None:
    def handle(message: Message) -> None:
        data = message.payload[8:]
        if message.words("II")[1] == 1 << 16 | 8:
            data += struct.pack("<Q", 0b100)
        server.peer.send(feature_reply(message, data))

    server.handlers[raw.DEVICE_FEATURE] = handle
    with SharedMemory(3 * PAGE) as memory:
        device.dma.map(memory, iova=IOVA)
        device.dma.dirty.start()
        assert device.dma.dirty.report(IOVA, 3 * PAGE).page_numbers().tolist() == [2]
        device.dma.dirty.stop()
    start = unhex("18000000 06000200 00100000 00000000 00000000 00000000")
    report = unhex("28000000 08000100 00001000 00000000 00300000 00000000 00100000 00000000")
    assert [message.payload for message in server.seen if message.command == 16][-3:] == [
        start,
        report,
        unhex("08000000 07000200"),
    ]


@spec("VFIO_USER_MIG_DATA_READ / Request", "VFIO_USER_MIG_DATA_READ / Reply")
def test_data_are_read_with_room_for_the_answer(
    server: RawServer, device: PCIDevice, model: MigratingDevice
) -> None:
    with device.migration.save() as f:
        server.handlers[raw.MIG_DATA_READ] = lambda message: server.peer.send(
            data_reply(message, b"abc")
        )
        assert f.read(5) == b"abc"
        assert server.last(raw.MIG_DATA_READ).payload == unhex("0d000000 05000000")
        f.abort()
    assert model.states == [3, 2]


@spec("VFIO_USER_MIG_DATA_WRITE / Request", "VFIO_USER_MIG_DATA_WRITE / Reply")
def test_data_are_written_with_their_size(
    server: RawServer, device: PCIDevice, model: MigratingDevice
) -> None:
    with device.migration.load() as f:
        assert f.write(b"abc") == 3
        assert server.last(raw.MIG_DATA_WRITE).payload == unhex("0b000000 03000000 616263")
    assert model.states == [4, 1]
