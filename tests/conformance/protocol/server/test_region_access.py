# SPDX-License-Identifier: BSD-3-Clause
"""REGION_READ, REGION_WRITE and REGION_WRITE_MULTI."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.conformance.protocol.device import INTERRUPT_LINE, Device, in_step
from tests.conformance.protocol.peers import Host
from tests.conformance.protocol.specification import READ_AND_WRITE_OPERATIONS, needs, spec
from tests.fault import raw
from tests.fault.raw import RawClient

MULTI = b'{"capabilities":{"write_multiple":true}}\0'


@pytest.fixture
def multi(peer: Host) -> Iterator[RawClient]:
    """A client that has negotiated REGION_WRITE_MULTI."""
    with peer.connect() as client:
        client.negotiate(MULTI)
        yield client


# REGION_READ


@spec("VFIO_USER_REGION_READ / Reply", "Device Read and Write")
@pytest.mark.parametrize(("offset", "count"), [(0, 4), (0, 2), (2, 2), (8, 4), (0x3D, 1)])
def test_a_read_is_answered_with_its_range_and_the_data(
    client: RawClient, offset: int, count: int
) -> None:
    reply = client.done(raw.REGION_READ, raw.region_range(raw.CONFIG, offset, count))
    assert reply.payload[:16] == raw.region_range(raw.CONFIG, offset, count)
    assert len(reply.payload) == 16 + count


@spec("VFIO_USER_REGION_READ / Request", READ_AND_WRITE_OPERATIONS)
def test_configuration_space_is_the_same_at_once_and_in_pieces(device: Device) -> None:
    size = device.region(raw.CONFIG).size
    whole = device.client.read(raw.CONFIG, 0, size)
    pieces = [device.client.read(raw.CONFIG, at, 4) for at in range(0, size, 4)]
    assert b"".join(pieces) == whole


@spec("VFIO_USER_REGION_READ")
def test_configuration_space_is_that_of_a_pci_device(client: RawClient) -> None:
    vendor, _ = struct.unpack("<HH", client.read(raw.CONFIG, 0, 4))
    assert vendor not in (0, 0xFFFF)


@spec(READ_AND_WRITE_OPERATIONS)
@needs("memory")
def test_a_region_that_can_be_mapped_can_be_read_by_messages(device: Device) -> None:
    for region in device.memories:
        for offset, size in region.areas:
            assert len(device.client.read(region.index, offset, min(size, 8192))) > 0


@spec(READ_AND_WRITE_OPERATIONS, "VFIO_USER_REGION_READ / Request", "Message sizes")
def test_as_much_as_was_negotiated_is_read_in_one_message(device: Device) -> None:
    for region in device.memories or device.regions:
        count = min(region.size, 1 << 20)
        reply = device.client.ask(raw.REGION_READ, raw.region_range(region.index, 0, count))
        assert len(reply.payload) == 16 + count


@spec("VFIO_USER_REGION_READ / Request")
def test_a_read_beyond_a_region_is_refused(device: Device) -> None:
    for region in device.regions:
        for offset, count in (
            (region.size, 1),
            (region.size - 1, 2),
            ((1 << 64) - 1, 1),
            ((1 << 64) - 4, 8),
        ):
            request = raw.region_range(region.index, offset, count)
            assert device.client.refused(raw.REGION_READ, request)
    assert in_step(device.client)


@spec("VFIO_USER_REGION_READ / Request", "VFIO_USER_REGION_WRITE / Request")
@pytest.mark.parametrize("command", [raw.REGION_READ, raw.REGION_WRITE], ids=["read", "write"])
def test_an_access_to_a_region_that_is_not_there_is_refused(device: Device, command: int) -> None:
    data = bytes(4) if command == raw.REGION_WRITE else b""
    there = {region.index for region in device.regions}
    for index in ({*range(device.info[1])} - there) | {device.info[1], 0xFFFF_FFFF}:
        assert device.client.refused(command, raw.region_range(index, 0, 4, data))
    assert in_step(device.client)


# REGION_WRITE


@spec("VFIO_USER_REGION_WRITE / Reply", "Device Read and Write")
def test_a_write_is_answered_with_its_range_and_no_data(client: RawClient) -> None:
    reply = client.done(raw.REGION_WRITE, raw.register_write(raw.CONFIG, INTERRUPT_LINE, b"\x0a"))
    assert reply.payload == raw.region_range(raw.CONFIG, INTERRUPT_LINE, 1)


@spec("VFIO_USER_REGION_WRITE / Request")
@pytest.mark.parametrize("value", [b"\x0a", b"\x05"])
def test_what_was_written_is_read(client: RawClient, value: bytes) -> None:
    client.write(raw.CONFIG, INTERRUPT_LINE, value)
    assert client.read(raw.CONFIG, INTERRUPT_LINE, 1) == value


@spec("VFIO_USER_REGION_WRITE / Request", READ_AND_WRITE_OPERATIONS)
@needs("memory")
@pytest.mark.parametrize("size", [1, 2, 4, 8, 64, 4096])
def test_memory_is_written_in_any_length(device: Device, size: int) -> None:
    for region in device.memories:
        data = bytes((7 * at + size) & 0xFF for at in range(size))
        device.client.write(region.index, 0, data)
        assert device.client.read(region.index, 0, size) == data


@spec("VFIO_USER_REGION_WRITE / Request")
def test_a_write_beyond_a_region_is_refused(device: Device) -> None:
    for region in device.regions:
        for offset in (region.size, region.size - 1, (1 << 64) - 1):
            request = raw.register_write(region.index, offset, bytes(2))
            assert device.client.refused(raw.REGION_WRITE, request)
    assert in_step(device.client)


@spec("VFIO_USER_REGION_WRITE / Request")
@pytest.mark.parametrize("count", [0, 1, 3, 0xFFFF_FFFF])
def test_a_write_of_more_or_less_data_than_its_count_is_refused(
    client: RawClient, count: int
) -> None:
    request = raw.region_range(raw.CONFIG, INTERRUPT_LINE, count, bytes(2))
    assert client.refused(raw.REGION_WRITE, request)
    assert in_step(client)


@spec("Header", "VFIO_USER_REGION_WRITE", "Command Concurrency")
def test_a_write_without_reply_is_seen_by_the_next_read(client: RawClient) -> None:
    for value in (b"\x0a", b"\x05"):
        request = raw.register_write(raw.CONFIG, INTERRUPT_LINE, value)
        client.send(raw.frame(raw.REGION_WRITE, request, flags=raw.NO_REPLY))
        assert client.read(raw.CONFIG, INTERRUPT_LINE, 1) == value


# REGION_WRITE_MULTI


def line(value: int) -> tuple[int, int, bytes]:
    """A write of the register that has no effect."""
    return raw.CONFIG, INTERRUPT_LINE, bytes([value])


@spec("VFIO_USER_REGION_WRITE_MULTI / Reply")
@needs("multi")
@pytest.mark.parametrize("count", [1, 2, 200])
def test_write_multi_is_answered_with_the_number_of_writes(multi: RawClient, count: int) -> None:
    request = raw.write_multi(*[line(value & 0xFF) for value in range(count)])
    reply = multi.done(raw.WRITE_MULTI, request)
    assert reply.payload == count.to_bytes(8, "little")


@spec("VFIO_USER_REGION_WRITE_MULTI / Request")
@needs("multi")
def test_the_writes_are_done_in_order(multi: RawClient) -> None:
    multi.done(raw.WRITE_MULTI, raw.write_multi(line(3), line(1), line(2)))
    assert multi.read(raw.CONFIG, INTERRUPT_LINE, 1) == b"\x02"


@spec("VFIO_USER_REGION_WRITE_MULTI / Single Device Write Format")
@needs("multi", "memory")
@pytest.mark.parametrize("size", range(1, 9))
def test_a_write_of_many_has_1_to_8_bytes(multi: RawClient, size: int) -> None:
    for region in Device(multi).memories:
        multi.write(region.index, 0, b"\x5a" * 8)
        multi.done(raw.WRITE_MULTI, raw.write_multi((region.index, 0, b"\xa5" * size)))
        assert multi.read(region.index, 0, 8) == (b"\xa5" * size).ljust(8, b"\x5a")


@spec("VFIO_USER_REGION_WRITE_MULTI / Single Device Write Format")
@needs("multi")
def test_a_write_of_more_than_8_bytes_is_refused(multi: RawClient) -> None:
    request = struct.pack("<QQII8s", 1, INTERRUPT_LINE, raw.CONFIG, 9, bytes(8))
    assert multi.refused(raw.WRITE_MULTI, request)
    assert in_step(multi)


@spec("VFIO_USER_REGION_WRITE_MULTI / Request")
@needs("multi")
@pytest.mark.parametrize("count", [0, 3, 1 << 61])
def test_a_count_that_is_not_that_of_the_writes_is_refused(multi: RawClient, count: int) -> None:
    request = raw.write_multi(line(1), line(2), count=count)
    assert multi.refused(raw.WRITE_MULTI, request)
    assert in_step(multi)


@spec("VFIO_USER_REGION_WRITE_MULTI", "Header")
@needs("multi")
def test_write_multi_without_reply_is_seen_by_the_next_read(multi: RawClient) -> None:
    request = raw.write_multi(line(1), line(0x0B))
    multi.send(raw.frame(raw.WRITE_MULTI, request, flags=raw.NO_REPLY))
    assert multi.read(raw.CONFIG, INTERRUPT_LINE, 1) == b"\x0b"
