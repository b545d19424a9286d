# SPDX-License-Identifier: BSD-3-Clause
"""What the client asks about a device, and what it makes of the answers."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

import pyvfio
from pyvfio.errors import RegionError, UnsupportedError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import IRQFlags
from tests.conformance.protocol.client.script import READ_WRITE, about_region, says, sent
from tests.conformance.protocol.specification import spec
from tests.fault import raw
from tests.fault.clients import PAGE, memfd
from tests.fault.raw import RawServer, answer

MAPPED = READ_WRITE | raw.MAPPABLE
SIZE = 8 * PAGE
BASE = 4 * PAGE
"""Where a region starts in its file."""
AREAS = [(PAGE, PAGE), (4 * PAGE, 2 * PAGE)]
VGA = 8
"""A region that is not asked about before a test does."""
SPECIAL = 9
"""A region beyond those of every PCI device."""


# The device


@spec("VFIO_USER_DEVICE_GET_INFO / Request", "Device Information")
@pytest.mark.usefixtures("device")
def test_get_info_has_an_argsz_and_zeros(server: RawServer) -> None:
    argsz, *rest = server.last(raw.GET_INFO).words("IIII")
    assert argsz >= 16
    assert rest == [0, 0, 0]


@spec("VFIO_USER_DEVICE_GET_INFO / Reply", "Device-Specific Regions")
def test_a_device_may_have_more_regions_and_interrupts(server: RawServer) -> None:
    says(server, raw.GET_INFO, raw.device_info(3, 12, 7))
    with pyvfio.open(server.uri) as device:
        assert (device.base.info.num_regions, device.base.info.num_irqs) == (12, 7)


@spec("VFIO_USER_DEVICE_GET_INFO / Reply")
def test_what_is_no_pci_device_is_not_driven(server: RawServer) -> None:
    says(server, raw.GET_INFO, raw.device_info(1))
    with pytest.raises(UnsupportedError):
        pyvfio.open(server.uri)


@spec("VFIO_USER_DEVICE_GET_INFO / Reply", "VFIO_USER_DEVICE_RESET")
def test_reset_is_sent_only_where_the_device_supports_it(server: RawServer) -> None:
    says(server, raw.GET_INFO, raw.device_info(2))
    with pyvfio.open(server.uri) as device, pytest.raises(UnsupportedError):
        device.reset()
    assert raw.RESET not in server.commands()


@spec("VFIO_USER_DEVICE_RESET")
def test_reset_has_no_payload(server: RawServer, device: PCIDevice) -> None:
    device.reset()
    assert server.last(raw.RESET).payload == b""


# Regions


@spec("VFIO_USER_DEVICE_GET_REGION_INFO / Request", "Region Information")
def test_get_region_info_has_an_argsz_an_index_and_zeros(
    server: RawServer, device: PCIDevice
) -> None:
    device.base.region(5)
    for message in sent(server, raw.GET_REGION_INFO):
        argsz, flags, index, cap_offset, size, offset = message.words("IIIIQQ")
        assert argsz >= 32
        assert index < 9
        assert (flags, cap_offset, size, offset) == (0, 0, 0, 0)


@spec("Message sizes", "VFIO_USER_DEVICE_GET_REGION_INFO / Reply")
def test_what_did_not_fit_is_asked_for_again_with_the_room_it_needs(
    server: RawServer, device: PCIDevice
) -> None:
    with mapped(server, READ_WRITE | raw.CAPABILITIES, kind()) as asked:
        assert device.base.region(VGA).size == SIZE
    assert asked[-1] == 48


@spec("VFIO_USER_DEVICE_GET_REGION_INFO / Reply", "Region Information")
@pytest.mark.parametrize(
    ("flags", "reads", "writes"), [(raw.READABLE, True, False), (raw.WRITABLE, False, True)]
)
def test_a_region_is_accessed_only_as_it_allows(
    server: RawServer, device: PCIDevice, flags: int, reads: bool, writes: bool
) -> None:
    server.regions[VGA], server.memory[VGA] = (flags, PAGE), bytearray(PAGE)
    region = device.base.region(VGA)
    with nullcontext() if reads else pytest.raises(RegionError):
        region.read32(0)
    with nullcontext() if writes else pytest.raises(RegionError):
        region.write32(0, 1)
    accesses = [m for m in server.seen if m.command in (raw.REGION_READ, raw.REGION_WRITE)]
    touched = [message.command for message in accesses if message.words("QI")[1] == VGA]
    assert touched == [raw.REGION_READ if reads else raw.REGION_WRITE]


def kind() -> bytes:
    """A type capability."""
    return struct.pack("<HHIII", 2, 1, 0, 0x80001234, 1)


@contextmanager
def mapped(server: RawServer, flags: int, chain: bytes, index: int = VGA) -> Iterator[list[int]]:
    """A region with memory that starts at ``BASE`` of its file; gives the argsz asked with."""
    asked = []
    with memfd(BASE + SIZE) as fd:
        os.pwrite(fd, bytes(range(256)) * (SIZE // 256), BASE)
        server.memory[index] = bytearray(SIZE)

        def tell(argsz: int) -> tuple[bytes, list[int]]:
            asked.append(argsz)
            needed = 32 + len(chain)
            fits = argsz >= needed
            info = raw.region_info(
                index,
                needed,
                flags=flags,
                size=SIZE,
                offset=BASE if flags & raw.MAPPABLE else 0,
                cap_offset=32 if chain and fits else 0,
                chain=chain if fits else b"",
            )
            return info, [fd] if fits and flags & raw.MAPPABLE else []

        about_region(server, index, tell)
        yield asked


def reads(server: RawServer, index: int = VGA) -> list[int]:
    """The offsets at which a region was read by messages."""
    ranges = (message.words("QII") for message in sent(server, raw.REGION_READ))
    return [offset for offset, region, _ in ranges if region == index]


@spec("VFIO_USER_DEVICE_GET_REGION_INFO / Reply", "Region Information")
def test_a_region_that_can_be_mapped_is_mapped_at_its_offset(
    server: RawServer, device: PCIDevice
) -> None:
    with mapped(server, MAPPED, b""):
        region = device.base.region(VGA)
        assert region.read32(4) == 0x07060504
        assert region.read8(SIZE - 1) == 0xFF
    assert reads(server) == []


@spec(
    "VFIO_USER_DEVICE_GET_REGION_INFO / VFIO sparse mmap cap header",
    "VFIO_USER_DEVICE_GET_REGION_INFO / VFIO region info cap sparse mmap",
    "Sparse Regions",
)
def test_only_the_areas_of_a_sparse_region_are_mapped(server: RawServer, device: PCIDevice) -> None:
    with mapped(server, MAPPED | raw.CAPABILITIES, raw.sparse(AREAS)):
        region = device.base.region(VGA)
        assert [(area.offset, area.size) for area in region.mappable] == AREAS
        assert [region.read8(at) for at in (PAGE + 7, 6 * PAGE - 1)] == [7, 0xFF]
        assert reads(server) == []
        assert [region.read8(at) for at in (7, 2 * PAGE + 7, SIZE - 1)] == [0, 0, 0]
        assert reads(server) == [7, 2 * PAGE + 7, SIZE - 1]


@spec(
    "VFIO_USER_DEVICE_GET_REGION_INFO / VFIO cap header format",
    "VFIO_USER_DEVICE_GET_REGION_INFO / VFIO region capabilities",
    "Region Capabilities",
)
def test_capabilities_that_the_client_does_not_know_are_passed_over(
    server: RawServer, device: PCIDevice
) -> None:
    unknown = struct.pack("<HHIQ", 0x7777, 1, 48, 0)
    with mapped(server, MAPPED | raw.CAPABILITIES, unknown + raw.sparse(AREAS)):
        assert [area.offset for area in device.base.region(VGA).mappable] == [PAGE, 4 * PAGE]


@spec("Device-Specific Regions")
def test_a_region_of_the_devices_own_is_read_like_any_other(server: RawServer) -> None:
    says(server, raw.GET_INFO, raw.device_info(3, 10))
    with (
        pyvfio.open(server.uri) as device,
        mapped(server, READ_WRITE | raw.CAPABILITIES, kind(), SPECIAL),
    ):
        server.memory[SPECIAL][:4] = b"own\0"
        assert device.base.region(SPECIAL).read_bytes(0, 4) == b"own\0"


@spec("VFIO_USER_DEVICE_GET_REGION_INFO / Reply")
def test_a_region_of_no_size_is_no_bar(device: PCIDevice) -> None:
    assert set(device.bars) == {0}


# Registers with descriptors


@spec("VFIO_USER_DEVICE_GET_REGION_IO_FDS / Request", "Region I/O via file descriptors")
def test_get_region_io_fds_has_an_argsz_an_index_and_zeros(
    server: RawServer, device: PCIDevice
) -> None:
    says(server, raw.GET_REGION_IO_FDS, struct.pack("<IIII", 16, 0, 0, 0))
    assert device.bars[0].io_eventfds == ()
    argsz, flags, index, count = server.last(raw.GET_REGION_IO_FDS).words("IIII")
    assert argsz >= 16
    assert (flags, index, count) == (0, 0, 0)


@spec(
    "VFIO_USER_DEVICE_GET_REGION_IO_FDS / Reply",
    "VFIO_USER_DEVICE_GET_REGION_IO_FDS / Sub-Region IO FD info format (ioeventfd)",
    "VFIO_USER_DEVICE_GET_REGION_IO_FDS / Sub-Region IO FD info format (ioregionfd)",
)
def test_each_sub_region_has_its_descriptor_or_shares_one(
    server: RawServer, device: PCIDevice
) -> None:
    sub_regions = b"".join(
        struct.pack("<QQIIIIQ", *entry)
        for entry in (
            (0x10, 4, 0, 0, 0, 0, 0),
            (0x14, 0, 0, 0, 0, 0, 0),
            (0x18, 4, 1, 1, 0, 0, 7),  # an ioregionfd, which is KVM's to use
            (0x20, 8, 0, 0, 1, 0, 0x77),
        )
    )
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        payload = struct.pack("<IIII", 16 + len(sub_regions), 0, 0, 4) + sub_regions
        says(server, raw.GET_REGION_IO_FDS, payload, [fd, fd])
        found = device.bars[0].io_eventfds
        assert [(entry.offset, entry.size, entry.datamatch) for entry in found] == [
            (0x10, 4, None),
            (0x14, 0, None),
            (0x20, 8, 0x77),
        ]
        for entry in found:
            entry.kick()
        assert os.eventfd_read(fd) == 3
    finally:
        os.close(fd)


@spec("Region I/O via file descriptors")
def test_a_server_may_not_have_this_command(server: RawServer, device: PCIDevice) -> None:
    server.handlers[raw.GET_REGION_IO_FDS] = lambda m: server.peer.send(raw.refusal(m, 22))
    assert device.bars[0].io_eventfds == ()


# Interrupts


@spec("VFIO_USER_DEVICE_GET_IRQ_INFO / Request", "Interrupts")
def test_get_irq_info_has_an_argsz_an_index_and_zeros(server: RawServer, device: PCIDevice) -> None:
    for index in range(5):
        device.base.irq_info(index)
        argsz, *rest = server.last(raw.GET_IRQ_INFO).words("IIII")
        assert argsz >= 16
        assert rest == [0, index, 0]


@spec("VFIO_USER_DEVICE_GET_IRQ_INFO / Reply")
@pytest.mark.parametrize(("flags", "count"), [(1, 1), (7, 1), (9, 8), (0, 0)])
def test_flags_and_vectors_are_those_that_the_server_tells(
    server: RawServer, device: PCIDevice, flags: int, count: int
) -> None:
    server.handlers[raw.GET_IRQ_INFO] = lambda message: server.peer.send(
        answer(message, raw.irq_info(raw.MSIX, flags=flags, count=count))
    )
    found = device.base.irq_info(raw.MSIX)
    assert (found.flags, found.count) == (IRQFlags(flags), count)
