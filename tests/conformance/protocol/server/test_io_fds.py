# SPDX-License-Identifier: BSD-3-Clause
"""DEVICE_GET_REGION_IO_FDS, which is optional: what a server lists must be consistent."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from tests.conformance.devices import REGISTERS, Dev
from tests.conformance.protocol.device import ROOM, Device, in_step
from tests.conformance.protocol.peers import Host
from tests.conformance.protocol.specification import needs, spec
from tests.fault import raw
from tests.fault.raw import Message, RawClient
from tests.support import eventually

IOEVENTFD, IOREGIONFD = 0, 1
DATAMATCH, PIO, VIRTIO_CCW = 1, 2, 8


class SubRegion(NamedTuple):
    """An entry of the list."""

    offset: int
    size: int
    fd_index: int
    kind: int
    flags: int
    padding: int
    datamatch: int


def question(index: int, argsz: int = ROOM) -> bytes:
    """Payload of DEVICE_GET_REGION_IO_FDS."""
    return struct.pack("<IIII", argsz, 0, index, 0)


@contextmanager
def answers(device: Device) -> Iterator[list[tuple[int, Message]]]:
    """(size of the region, reply) for each region with a list; a refusal is an answer as well."""
    found = []
    for region in device.regions:
        reply = device.client.ask(raw.GET_REGION_IO_FDS, question(region.index))
        if reply.error == 0:
            found.append((region.size, reply))
    try:
        yield found
    finally:
        for _, reply in found:
            raw.close(reply.fds)


def sub_regions(reply: Message) -> list[SubRegion]:
    """The entries of a reply."""
    argsz, _, _, count = reply.words("IIII")
    stride = (argsz - 16) // count if count else 0
    return [
        SubRegion._make(struct.unpack_from("<QQIIIIQ", reply.payload, 16 + at * stride))
        for at in range(count)
    ]


@spec("VFIO_USER_DEVICE_GET_REGION_IO_FDS / Reply", "Region I/O via file descriptors")
def test_a_list_has_the_size_that_it_says(device: Device) -> None:
    with answers(device) as replies:
        for _, reply in replies:
            argsz, flags, _, count = reply.words("IIII")
            assert (len(reply.payload), flags) == (argsz, 0)
            assert argsz >= 16 + 40 * count
            assert (argsz - 16) % max(count, 1) == 0
            assert bool(reply.fds) == bool(count)


@spec(
    "VFIO_USER_DEVICE_GET_REGION_IO_FDS / Sub-Region IO FD info format (ioeventfd)",
    "VFIO_USER_DEVICE_GET_REGION_IO_FDS / Reply",
)
def test_each_sub_region_is_of_its_region_and_has_a_descriptor(device: Device) -> None:
    with answers(device) as replies:
        for size, reply in replies:
            for entry in sub_regions(reply):
                assert entry.offset + entry.size <= size
                assert entry.fd_index < len(reply.fds)
                assert entry.kind in (IOEVENTFD, IOREGIONFD)
                assert not entry.flags & ~(DATAMATCH | PIO | VIRTIO_CCW)


@spec("VFIO_USER_DEVICE_GET_REGION_IO_FDS / Request")
def test_a_region_that_the_device_does_not_have_has_no_list(device: Device) -> None:
    for index in (device.info[1], 0xFFFF_FFFF):
        assert device.client.refused(raw.GET_REGION_IO_FDS, question(index))
    assert in_step(device.client)


@spec("VFIO_USER_DEVICE_GET_REGION_IO_FDS / Reply", "Message sizes")
@needs("registers")
@pytest.mark.parametrize("room", [16, 56, 95])
def test_a_list_that_does_not_fit_says_what_it_needs(client: RawClient, room: int) -> None:
    reply = client.done(raw.GET_REGION_IO_FDS, question(REGISTERS, room))
    raw.close(reply.fds)
    argsz, _, index, _ = reply.words("IIII")
    assert (argsz, index) == (16 + 2 * 40, REGISTERS)
    assert len(reply.payload) <= room
    whole = client.done(raw.GET_REGION_IO_FDS, question(REGISTERS, argsz))
    raw.close(whole.fds)
    assert len(whole.payload) == argsz


@spec("VFIO_USER_DEVICE_GET_REGION_IO_FDS / Reply", "VFIO_USER_VERSION / Request")
@needs("registers")
def test_no_more_descriptors_come_than_the_client_takes(peer: Host) -> None:
    with peer.connect() as client:
        client.negotiate(b"")  # one
        reply = client.done(raw.GET_REGION_IO_FDS, question(REGISTERS))
        raw.close(reply.fds)
        assert len(reply.fds) == 1
        assert {entry.fd_index for entry in sub_regions(reply)} == {0}


@spec("VFIO_USER_DEVICE_GET_REGION_IO_FDS", "Region I/O via file descriptors")
@needs("registers")
def test_a_descriptor_that_is_signalled_is_a_write_of_its_sub_region(device: Device) -> None:
    with answers(device) as ((_, reply), *_):
        for entry in sub_regions(reply):
            os.eventfd_write(reply.fds[entry.fd_index], 1)
        client = device.client
        assert eventually(lambda: client.read32(REGISTERS, Dev.KICKS) == 1)
        assert eventually(lambda: client.read32(REGISTERS, Dev.MATCHED_KICKS) == 1)
