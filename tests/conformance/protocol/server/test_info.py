# SPDX-License-Identifier: BSD-3-Clause
"""DEVICE_GET_INFO, DEVICE_GET_REGION_INFO and DEVICE_GET_IRQ_INFO."""

from __future__ import annotations

import mmap
import os
import struct

import pytest

from tests.conformance.protocol.device import (
    AUTOMASKED,
    MASKABLE,
    ROOM,
    Device,
    in_step,
    region_facts,
)
from tests.conformance.protocol.specification import needs, spec
from tests.fault import raw
from tests.fault.clients import PAGE
from tests.fault.raw import RawClient

PCI_REGIONS, PCI_IRQS = 9, 5
SPARSE = 1


# The device


@spec("VFIO_USER_DEVICE_GET_INFO / Reply", "Device Information")
def test_the_device_is_a_pci_device(device: Device) -> None:
    flags, _, _ = device.info
    assert flags & ~1 == 2


@spec("VFIO_USER_DEVICE_GET_INFO / Reply", "Device-Specific Regions")
def test_a_pci_device_has_its_regions_and_interrupts(device: Device) -> None:
    _, regions, irqs = device.info
    assert regions >= PCI_REGIONS
    assert irqs >= PCI_IRQS


@spec("VFIO_USER_DEVICE_GET_INFO / Request", "Message sizes")
@pytest.mark.parametrize("argsz", [16, 20, 24, 4096])
def test_info_needs_16_bytes_whatever_room_there_is(client: RawClient, argsz: int) -> None:
    reply = client.done(raw.GET_INFO, raw.device_info(0, 0, 0, argsz=argsz))
    assert reply.words("I") == (16,)
    assert len(reply.payload) == 16


# Regions


@spec("VFIO_USER_DEVICE_GET_REGION_INFO / Reply", "Region Information")
def test_a_reply_is_about_the_region_asked_for(device: Device) -> None:
    assert [device.region(index).index for index in range(device.info[1])] == list(
        range(device.info[1])
    )


@spec("VFIO_USER_DEVICE_GET_REGION_INFO / Reply", "Region Information")
def test_regions_have_no_other_flags_than_there_are(device: Device) -> None:
    assert all(region.flags < 16 for region in device.regions)


@spec("VFIO_USER_DEVICE_GET_REGION_INFO / Reply")
def test_configuration_space_can_be_read_and_written(device: Device) -> None:
    (config,) = (region for region in device.regions if region.index == raw.CONFIG)
    assert config.flags == raw.READABLE | raw.WRITABLE
    assert config.size in (256, 4096)


@spec("VFIO_USER_DEVICE_GET_REGION_INFO / Request", "Message sizes")
def test_info_of_a_region_that_fits_comes_whole(device: Device) -> None:
    for region in device.regions:
        again = device.client.done(raw.GET_REGION_INFO, raw.region_info(region.index, region.argsz))
        raw.close(again.fds)
        assert len(again.payload) == region.argsz
        assert region_facts(again) == region


@spec("Message sizes", "VFIO_USER_DEVICE_GET_REGION_INFO / Reply")
def test_info_of_a_region_that_does_not_fit_says_what_it_needs(device: Device) -> None:
    for region in device.regions:
        short = device.client.done(raw.GET_REGION_INFO, raw.region_info(region.index, 32))
        raw.close(short.fds)
        assert len(short.payload) == 32
        assert short.words("I") == (region.argsz,)
        assert short.words("IIIIQQ")[4] == region.size


@spec("VFIO_USER_DEVICE_GET_REGION_INFO / Request")
@pytest.mark.parametrize("beyond", [0, 1, 0xFFFF_0000])
def test_there_are_no_regions_beyond_the_last(device: Device, beyond: int) -> None:
    request = raw.region_info(device.info[1] + beyond)
    assert device.client.refused(raw.GET_REGION_INFO, request)
    assert in_step(device.client)


@spec("VFIO_USER_DEVICE_GET_REGION_INFO / VFIO cap header format", "Region Capabilities")
def test_capabilities_stand_within_the_reply(device: Device) -> None:
    for region in device.regions:
        assert all(32 <= at <= region.argsz - 8 for at, _, _ in region.chain)
        assert all(version == 1 for _, _, version in region.chain)


@spec(
    "VFIO_USER_DEVICE_GET_REGION_INFO / VFIO region capabilities",
    "VFIO_USER_DEVICE_GET_REGION_INFO / Reply",
)
def test_a_region_without_capabilities_needs_room_for_none(device: Device) -> None:
    for region in device.regions:
        assert (region.argsz > 32) == bool(region.flags & raw.CAPABILITIES) == bool(region.chain)


@spec(
    "VFIO_USER_DEVICE_GET_REGION_INFO / VFIO region info cap sparse mmap",
    "VFIO_USER_DEVICE_GET_REGION_INFO / VFIO sparse mmap cap header",
    "Sparse Regions",
)
@needs("memory")
def test_areas_are_pages_of_their_region(device: Device) -> None:
    for region in device.memories:
        assert region.areas
        for offset, size in region.areas:
            assert size > 0
            assert offset % PAGE == 0
            assert offset + size <= region.size


@spec("VFIO_USER_DEVICE_GET_REGION_INFO / Reply", "Region Information")
def test_a_region_has_a_descriptor_if_it_can_be_mapped_and_else_none(device: Device) -> None:
    for region in device.regions:
        reply = device.client.done(raw.GET_REGION_INFO, raw.region_info(region.index, ROOM))
        raw.close(reply.fds)
        assert len(reply.fds) == bool(region.flags & raw.MAPPABLE)


@spec("VFIO_USER_DEVICE_GET_REGION_INFO / VFIO region info cap sparse mmap")
@needs("memory")
def test_an_area_that_is_mapped_is_the_memory_that_messages_reach(device: Device) -> None:
    for region in device.memories:
        reply = device.client.done(raw.GET_REGION_INFO, raw.region_info(region.index, ROOM))
        (fd,) = reply.fds
        try:
            for number, (offset, size) in enumerate(region.areas):
                data = struct.pack("<Q", 0x1122334455667700 + number)
                with mmap.mmap(fd, size, offset=region.offset + offset) as area:
                    device.client.write(region.index, offset + 8, data)
                    assert area[8:16] == data
        finally:
            os.close(fd)


@spec(
    "VFIO_USER_DEVICE_GET_REGION_INFO / VFIO region info cap sparse mmap", "VFIO_USER_REGION_READ"
)
@needs("memory")
def test_what_is_written_by_mapping_is_read_by_messages(device: Device) -> None:
    for region in device.memories:
        (fd,) = device.client.done(raw.GET_REGION_INFO, raw.region_info(region.index, ROOM)).fds
        try:
            for offset, size in region.areas:
                with mmap.mmap(fd, size, offset=region.offset + offset) as area:
                    area[:8] = struct.pack("<Q", ~offset & 0xFFFF_FFFF)
                    assert device.client.read(region.index, offset, 8) == area[:8]
        finally:
            os.close(fd)


# Interrupts


@spec("VFIO_USER_DEVICE_GET_IRQ_INFO / Reply", "Interrupts")
def test_a_reply_is_about_the_interrupt_asked_for(device: Device) -> None:
    for index in range(device.info[2]):
        device.irq(index)  # looks at the index


@spec("VFIO_USER_DEVICE_GET_IRQ_INFO / Reply")
def test_interrupts_have_no_other_flags_than_there_are(device: Device) -> None:
    assert all(irq.flags < 16 for irq in device.irqs)


@spec("VFIO_USER_DEVICE_GET_IRQ_INFO / Reply")
def test_what_masks_itself_can_be_unmasked(device: Device) -> None:
    assert all(irq.flags & MASKABLE for irq in device.irqs if irq.flags & AUTOMASKED)


@spec("VFIO_USER_DEVICE_GET_IRQ_INFO / Reply")
def test_a_device_has_one_interrupt_pin_at_most(device: Device) -> None:
    assert device.irq(raw.INTX).count <= 1


@spec("VFIO_USER_DEVICE_GET_IRQ_INFO / Reply", "Message sizes")
@pytest.mark.parametrize("argsz", [16, 64])
def test_interrupt_info_needs_16_bytes_whatever_room_there_is(
    client: RawClient, argsz: int
) -> None:
    reply = client.done(raw.GET_IRQ_INFO, raw.irq_info(raw.INTX, argsz=argsz))
    assert reply.words("I") == (16,)
    assert len(reply.payload) == 16


@spec("VFIO_USER_DEVICE_GET_IRQ_INFO / Request")
@pytest.mark.parametrize("beyond", [0, 1, 0xFFFF_0000])
def test_there_are_no_interrupts_beyond_the_last(device: Device, beyond: int) -> None:
    request = raw.irq_info(device.info[2] + beyond)
    assert device.client.refused(raw.GET_IRQ_INFO, request)
    assert in_step(device.client)
