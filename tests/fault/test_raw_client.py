# SPDX-License-Identifier: BSD-3-Clause
"""What an outside client sees of a server: bytes of the specification, then bytes of a bad client.

Whatever arrives, the server answers or hangs up, keeps the stream in step, loses no descriptor, and
serves the next client.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.fault import raw
from tests.fault.clients import (
    BAR0,
    BAR1,
    BAR2,
    BUFFER,
    DMA_RUN,
    DMA_TO_HOST,
    IOVA,
    IRQ_RAISE,
    LIVENESS,
    PAGE,
    TEST_FIRE,
    TEST_PIN,
    TEST_SCRATCH,
    TO_CLIENT,
    TO_DEVICE,
    TWIN,
    ClientMemory,
    eventfds,
    finish_edu_dma,
    finish_test_dma,
    have_test_device_ask,
    held,
    in_step,
    memfd,
    pattern,
    pipe,
    prepare_test_dma,
    run_test_dma,
    serves,
    start_edu_dma,
    start_test_dma,
)
from tests.fault.raw import RawClient, fired, unhex
from tests.support import ServerProcess, open_fds

QEMU_VERSION = (
    b'{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535,'
    b' "max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096},'
    b' "write_multiple": true}}\0'
)


# What must be refused: why -> payload

BAD_JSON = {
    "not closed": b"{\0",
    "no NUL": b'{"capabilities":{}}',
    "empty": b"\0",
    "an array": b"[]\0",
    "a string": b'"capabilities"\0',
    "capabilities in an array": b'{"capabilities":[]}\0',
    "a number as a string": b'{"capabilities":{"max_msg_fds":"8"}}\0',
    "less than no descriptors": b'{"capabilities":{"max_msg_fds":-1}}\0',
    "a fraction": b'{"capabilities":{"max_data_xfer_size":1.5}}\0',
    "no data at all": b'{"capabilities":{"max_data_xfer_size":0}}\0',
    "a twin that is no object": b'{"capabilities":{"twin_socket":true}}\0',
    "a boolean as a number": b'{"capabilities":{"pgsizes":true}}\0',
    "not UTF-8": b"\xff\xfe{}\0",
    "deep": b"[" * 30000 + b"\0",
    "a number of 5000 digits": b'{"capabilities":{"max_msg_fds":' + b"9" * 5000 + b"}}\0",
}

BAD_QUESTIONS = {
    "region 9": (raw.GET_REGION_INFO, raw.region_info(9)),
    "region 2^32-1": (raw.GET_REGION_INFO, raw.region_info(0xFFFFFFFF)),
    "irq 5": (raw.GET_IRQ_INFO, raw.irq_info(5)),
    "irq 2^32-1": (raw.GET_IRQ_INFO, raw.irq_info(0xFFFFFFFF)),
    "info, argsz 15": (raw.GET_INFO, raw.device_info(0, 0, 0, argsz=15)),
    "region, argsz 31": (raw.GET_REGION_INFO, raw.region_info(0, 31)),
    "irq, argsz 15": (raw.GET_IRQ_INFO, raw.irq_info(0, argsz=15)),
    "info cut short": (raw.GET_INFO, raw.device_info(0, 0, 0)[:15]),
    "region cut short": (raw.GET_REGION_INFO, raw.region_info(0)[:31]),
    "irq cut short": (raw.GET_IRQ_INFO, raw.irq_info(0)[:15]),
}

BAD_WRITE_MULTI = {
    "empty": b"",
    "cut short": bytes(7),
    "more announced": raw.write_multi((BAR0, LIVENESS, bytes(4)), count=2),
    "none announced": raw.write_multi((BAR0, LIVENESS, bytes(4)), count=0),
    "overflow": raw.write_multi((BAR0, LIVENESS, bytes(4)), count=0x0AAA_AAAA_AAAA_AAAB),
    "0 bytes": raw.write_multi((BAR0, LIVENESS, b"")),
    "9 bytes": struct.pack("<QQII8s", 1, LIVENESS, BAR0, 9, bytes(8)),
    "offset at the end": raw.write_multi((BAR0, (1 << 64) - 4, bytes(4))),
    "no such region": raw.write_multi((9, LIVENESS, bytes(4))),
}

BAD_SET_IRQS = {
    "no flags": raw.irq_set(0, raw.MSI, 0, 1),
    "no action": raw.irq_set(raw.NONE, raw.MSI, 0, 1),
    "no data": raw.irq_set(raw.TRIGGER, raw.MSI, 0, 1),
    "two kinds of data": raw.irq_set(3 | raw.TRIGGER, raw.MSI, 0, 1, data=b"\1"),
    "two actions": raw.irq_set(raw.NONE | raw.MASK | raw.UNMASK, raw.INTX, 0, 1),
    "unknown flag 64": raw.irq_set(raw.NONE | raw.TRIGGER | 64, raw.MSI, 0, 1),
    "unknown flag 2^31": raw.irq_set(raw.NONE | raw.TRIGGER | 1 << 31, raw.MSI, 0, 1),
    "index 5": raw.irq_set(raw.NONE | raw.TRIGGER, 5, 0, 1),
    "index 2^32-1": raw.irq_set(raw.NONE | raw.TRIGGER, 0xFFFFFFFF, 0, 1),
    "start behind the vectors": raw.irq_set(raw.NONE | raw.TRIGGER, raw.MSI, 1, 1),
    "more vectors": raw.irq_set(raw.NONE | raw.TRIGGER, raw.MSI, 0, 2),
    "start overflows": raw.irq_set(raw.NONE | raw.TRIGGER, raw.MSI, 0xFFFFFFFF, 2),
    "count 2^32-1": raw.irq_set(raw.EVENTFD | raw.TRIGGER, raw.MSI, 0, 0xFFFFFFFF),
    "an index without vectors": raw.irq_set(raw.NONE | raw.TRIGGER, raw.MSIX, 0, 1),
    "bools missing": raw.irq_set(raw.BOOL | raw.TRIGGER, raw.MSI, 0, 1),
    "too many bools": raw.irq_set(raw.BOOL | raw.TRIGGER, raw.MSI, 0, 1, data=b"\1\1"),
    "count 0 of eventfds": raw.irq_set(raw.EVENTFD | raw.TRIGGER, raw.MSI, 0, 0),
    "count 0 masked": raw.irq_set(raw.NONE | raw.MASK, raw.MSI, 0, 0),
    "count 0 from 1": raw.irq_set(raw.NONE | raw.TRIGGER, raw.MSI, 1, 0),
    "MSI masked": raw.irq_set(raw.NONE | raw.MASK, raw.MSI, 0, 1),
}

BAD_DMA_MAP = {
    "size 0": raw.dma_map(IOVA, 0),
    "odd size": raw.dma_map(IOVA, PAGE - 1),
    "odd address": raw.dma_map(IOVA + 1, PAGE),
    "odd offset": raw.dma_map(IOVA, PAGE, offset=1),
    "offset behind the file": raw.dma_map(IOVA, PAGE, offset=PAGE),
    "offset overflows": raw.dma_map(IOVA, PAGE, offset=(1 << 64) - PAGE),
    "no access": raw.dma_map(IOVA, PAGE, flags=0),
    "unknown flag 4": raw.dma_map(IOVA, PAGE, flags=7),
    "unknown flag 2^31": raw.dma_map(IOVA, PAGE, flags=3 | 1 << 31),
    "address overflows": raw.dma_map((1 << 64) - PAGE, 2 * PAGE),
    "larger than the file": raw.dma_map(IOVA, 2 * PAGE),
    "nearly 2^64 bytes": raw.dma_map(PAGE, (1 << 64) - PAGE),
    "argsz 31": raw.dma_map(IOVA, PAGE, argsz=31),
    "cut short": raw.dma_map(IOVA, PAGE)[:31],
    "too long": raw.dma_map(IOVA, PAGE) + b"\0",
}

BAD_DMA_UNMAP = {
    "all, and an address": raw.dma_unmap(IOVA, 0, flags=2),
    "all, and a size": raw.dma_unmap(0, PAGE, flags=2),
    "dirty bitmap": raw.dma_unmap(IOVA, PAGE, flags=1),
    "unknown flag 4": raw.dma_unmap(IOVA, PAGE, flags=4),
    "size 0": raw.dma_unmap(IOVA, 0),
    "address overflows": raw.dma_unmap((1 << 64) - PAGE, 2 * PAGE),
    "argsz 23": raw.dma_unmap(IOVA, PAGE, argsz=23),
    "cut short": raw.dma_unmap(IOVA, PAGE)[:23],
}


NOT_OFFERED = {
    "low power": (raw.DEVICE_FEATURE, unhex("08000000 03000200")),
    "no feature": (raw.DEVICE_FEATURE, b""),
    "migration data": (raw.MIG_DATA_READ, struct.pack("<II", 4096 + 8, 4096)),
    "data to migrate": (raw.MIG_DATA_WRITE, struct.pack("<II", 12, 4) + bytes(4)),
}

NO_PLACE_FOR_TWO = {
    "info": (raw.GET_INFO, raw.device_info(0, 0, 0)),
    "region info": (raw.GET_REGION_INFO, raw.region_info(0)),
    "read": (raw.REGION_READ, raw.region_range(BAR0, 0, 4)),
    "write": (raw.REGION_WRITE, raw.register_write(BAR0, LIVENESS, bytes(4))),
    "unmap": (raw.DMA_UNMAP, raw.dma_unmap(IOVA, PAGE)),
    "reset": (raw.RESET, b""),
    "trigger": (raw.SET_IRQS, raw.irq_set(raw.NONE | raw.TRIGGER, raw.MSI, 0, 1)),
    "disable": (raw.SET_IRQS, raw.irq_set(raw.NONE | raw.TRIGGER, raw.MSI, 0, 0)),
    "one eventfd": (raw.SET_IRQS, raw.irq_set(raw.EVENTFD | raw.TRIGGER, raw.MSI, 0, 1)),
    "map": (raw.DMA_MAP, raw.dma_map(IOVA, PAGE)),
}


# VERSION


def test_version_is_answered_with_what_was_offered(edu_server: ServerProcess) -> None:
    with RawClient(edu_server.path) as client:
        client.send(unhex("01000100 54000000 00000000 00000000 | 00000100") + raw.JSON)
        assert client.receive().data == (
            unhex("01000100 55000000 01000000 00000000 | 00000100")
            + b'{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576}}\0'
        )


def test_version_without_json_is_answered_without_json(edu_server: ServerProcess) -> None:
    with RawClient(edu_server.path) as client:
        client.send(unhex("01000100 14000000 00000000 00000000 | 00000100"))
        assert client.receive().data == unhex("01000100 14000000 01000000 00000000 | 00000100")


def test_a_client_without_json_is_served(edu_server: ServerProcess) -> None:
    with RawClient(edu_server.path) as client:
        client.negotiate(b"")
        assert in_step(client)


def test_version_as_qemu_sends_it_fits_into_its_reply_buffer(edu_server: ServerProcess) -> None:
    with RawClient(edu_server.path) as client:
        client.send(raw.frame(raw.VERSION, raw.version(0, 0, QEMU_VERSION)))
        assert len(client.receive().data) <= 214


def test_version_as_qemu_sends_it_gets_minor_0(edu_server: ServerProcess) -> None:
    with RawClient(edu_server.path) as client:
        reply = client.done(raw.VERSION, raw.version(0, 0, QEMU_VERSION))
        assert reply.words("HH") == (0, 0)


def test_version_as_qemu_sends_it_gets_write_multiple(edu_server: ServerProcess) -> None:
    with RawClient(edu_server.path) as client:
        reply = client.done(raw.VERSION, raw.version(0, 0, QEMU_VERSION))
        assert b'"write_multiple":true' in reply.payload


def test_a_later_minor_is_answered_with_ours(edu_server: ServerProcess) -> None:
    with RawClient(edu_server.path) as client:
        assert client.done(raw.VERSION, raw.version(0, 99)).words("HH") == (0, 1)


def test_no_twin_socket_comes_unasked(edu_server: ServerProcess) -> None:
    with RawClient(edu_server.path) as client:
        assert client.negotiate().fds == ()


def test_a_twin_socket_comes_where_it_was_offered(edu_server: ServerProcess) -> None:
    with RawClient(edu_server.path) as client:
        reply = client.negotiate(TWIN)
        raw.close(reply.fds)
        assert b'"twin_socket":{"supported":true,"fd_index":0}' in reply.payload
        assert len(reply.fds) == 1


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON)
def test_bad_version_json_is_refused(edu_server: ServerProcess, text: bytes) -> None:
    with RawClient(edu_server.path) as client:
        assert client.refused(raw.VERSION, raw.version(text=text)) == errno.EINVAL
        assert client.ended()
    assert serves(edu_server)


def test_another_major_is_refused(edu_server: ServerProcess) -> None:
    with RawClient(edu_server.path) as client:
        assert client.refused(raw.VERSION, raw.version(major=1)) == errno.EINVAL
        assert client.ended()


def test_a_first_message_that_is_not_version_is_refused(edu_server: ServerProcess) -> None:
    with RawClient(edu_server.path) as client:
        assert client.refused(raw.GET_INFO, raw.device_info(0, 0, 0)) == errno.EINVAL
        assert client.ended()
    assert serves(edu_server)


def test_a_second_version_is_refused(edu_client: RawClient) -> None:
    assert edu_client.refused(raw.VERSION, raw.version()) == errno.EINVAL
    assert in_step(edu_client)


# What the device is


def test_get_info(edu_client: RawClient) -> None:
    edu_client.send(
        unhex("02000400 20000000 00000000 00000000 | 10000000 00000000 00000000 00000000")
    )
    assert edu_client.receive().data == unhex(
        "02000400 20000000 01000000 00000000 | 10000000 03000000 09000000 05000000"
    )


@pytest.mark.parametrize(
    ("index", "flags", "size"),
    [(0, 3, 1 << 20), (1, 0, 0), (5, 0, 0), (6, 0, 0), (7, 3, 256), (8, 0, 0)],
)
def test_get_region_info_of_edu(edu_client: RawClient, index: int, flags: int, size: int) -> None:
    reply = edu_client.done(raw.GET_REGION_INFO, raw.region_info(index))
    assert reply.payload == raw.region_info(index, flags=flags, size=size)
    assert reply.fds == ()


def test_region_info_with_too_small_an_argsz_says_what_is_needed(tester: RawClient) -> None:
    reply = tester.done(raw.GET_REGION_INFO, raw.region_info(BAR2, 32))
    assert reply.payload == raw.region_info(BAR2, 80, flags=0x7, size=64 << 20)
    assert reply.fds == ()


def test_region_info_with_room_has_the_areas_and_one_descriptor(tester: RawClient) -> None:
    reply = tester.done(raw.GET_REGION_INFO, raw.region_info(BAR2, 80))
    raw.close(reply.fds)
    assert len(reply.fds) == 1
    assert reply.payload == unhex(
        "50000000 0f000000 02000000 20000000 00000004 00000000 00000000 00000000"
        " 01000100 00000000 02000000 00000000"
        " 00000000 00000000 00001000 00000000 00000002 00000000 00001000 00000000"
    )


def test_a_client_cannot_truncate_the_memory_of_a_region(tester: RawClient) -> None:
    (fd,) = tester.done(raw.GET_REGION_INFO, raw.region_info(BAR2, 80)).fds
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_the_descriptor_of_a_region_is_its_memory(tester: RawClient) -> None:
    tester.write(BAR2, 0x1000, b"seen by mmap")
    (fd,) = tester.done(raw.GET_REGION_INFO, raw.region_info(BAR2, 80)).fds
    with mmap.mmap(fd, 1 << 20) as mapped:
        os.close(fd)
        assert mapped[0x1000:0x100C] == b"seen by mmap"


@pytest.mark.parametrize(
    ("index", "flags", "count"), [(0, 7, 1), (1, 9, 1), (2, 1, 0), (3, 1, 1), (4, 1, 1)]
)
def test_get_irq_info_of_edu(edu_client: RawClient, index: int, flags: int, count: int) -> None:
    reply = edu_client.done(raw.GET_IRQ_INFO, raw.irq_info(index))
    assert reply.payload == raw.irq_info(index, flags=flags, count=count)


@pytest.mark.parametrize(("command", "payload"), BAD_QUESTIONS.values(), ids=BAD_QUESTIONS)
def test_a_question_that_makes_no_sense_is_refused(
    edu_client: RawClient, command: int, payload: bytes
) -> None:
    assert edu_client.refused(command, payload) == errno.EINVAL
    assert in_step(edu_client)


# Registers


def test_region_read(edu_client: RawClient) -> None:
    edu_client.send(
        unhex("05000900 20000000 00000000 00000000 | 00000000 00000000 00000000 04000000")
    )
    assert edu_client.receive().data == unhex(
        "05000900 24000000 01000000 00000000 | 00000000 00000000 00000000 04000000 ed000001"
    )


def test_region_write(edu_client: RawClient) -> None:
    edu_client.send(
        unhex("06000a00 24000000 00000000 00000000 | 04000000 00000000 00000000 04000000 78563412")
    )
    assert edu_client.receive().data == unhex(
        "06000a00 20000000 01000000 00000000 | 04000000 00000000 00000000 04000000"
    )


def test_a_posted_write_is_not_answered_and_seen_by_the_next_read(edu_client: RawClient) -> None:
    write = raw.register_write(BAR0, LIVENESS, b"\x00\x00\xff\xff")
    edu_client.send(raw.frame(raw.REGION_WRITE, write, number=4, flags=raw.NO_REPLY))
    assert edu_client.read(BAR0, LIVENESS, 4) == b"\xff\xff\x00\x00"


def test_a_posted_write_that_fails_is_not_answered_either(edu_client: RawClient) -> None:
    write = raw.register_write(BAR0, 1 << 20, bytes(4))
    edu_client.send(raw.frame(raw.REGION_WRITE, write, flags=raw.NO_REPLY))
    assert in_step(edu_client)


def test_write_multi_applies_its_writes_in_order(edu_client: RawClient) -> None:
    payload = raw.write_multi(
        (BAR0, LIVENESS, b"\x01\x00\x00\x00"), (BAR0, LIVENESS, b"\x02\x00\x00\x00")
    )
    assert edu_client.done(raw.WRITE_MULTI, payload).payload == struct.pack("<Q", 2)
    assert edu_client.read32(BAR0, LIVENESS) == 0xFFFFFFFD


def test_write_multi_posted_as_qemu_sends_it(tester: RawClient) -> None:
    tester.send(
        unhex(
            "07000f00 30000000 10000000 00000000 | 01000000 00000000"
            " 20000000 00000000 02000000 02000000 34120000 00000000"
        )
    )
    assert tester.read(BAR2, 0x20, 2) == b"\x34\x12"


@pytest.mark.parametrize("payload", BAD_WRITE_MULTI.values(), ids=BAD_WRITE_MULTI)
def test_a_bad_write_multi_is_refused(edu_client: RawClient, payload: bytes) -> None:
    assert edu_client.refused(raw.WRITE_MULTI, payload) == errno.EINVAL
    assert in_step(edu_client)


@pytest.mark.parametrize(
    ("region", "offset", "count"),
    [
        (BAR0, 1 << 20, 1),
        (BAR0, (1 << 20) - 3, 4),
        (BAR0, (1 << 64) - 1, 4),
        (BAR0, (1 << 64) - 4, 4),
        (BAR0, (1 << 63), 8),
        (BAR0, 0, 0xFFFFFFFF),
        (BAR0, 0, (1 << 20) + 1),
        (BAR0, 0xFFFFFFFF, 0xFFFFFFFF),
        (BAR1, 0, 4),
        (raw.CONFIG, 256, 1),
        (raw.CONFIG, 255, 2),
        (6, 0, 4),
        (8, 0, 4),
        (9, 0, 4),
        (0xFFFFFFFF, 0, 4),
    ],
)
def test_a_read_outside_of_a_region_is_refused(
    edu_client: RawClient, region: int, offset: int, count: int
) -> None:
    request = raw.region_range(region, offset, count)
    assert edu_client.refused(raw.REGION_READ, request) == errno.EINVAL
    assert in_step(edu_client)


@pytest.mark.parametrize(
    ("region", "offset"),
    [(BAR0, 1 << 20), (BAR0, (1 << 20) - 3), (BAR0, (1 << 64) - 1), (BAR1, 0), (9, 0)],
)
def test_a_write_outside_of_a_region_is_refused(
    edu_client: RawClient, region: int, offset: int
) -> None:
    request = raw.register_write(region, offset, bytes(4))
    assert edu_client.refused(raw.REGION_WRITE, request) == errno.EINVAL
    assert in_step(edu_client)


@pytest.mark.parametrize("count", [(1 << 20) + 1, 64 << 20])
def test_a_read_of_more_than_was_negotiated_is_refused(tester: RawClient, count: int) -> None:
    request = raw.region_range(BAR2, 0, count)
    assert tester.refused(raw.REGION_READ, request) == errno.EINVAL


@pytest.mark.parametrize("count", [0, 3, 5, 0xFFFFFFFF])
def test_a_write_whose_count_is_not_its_data_is_refused(edu_client: RawClient, count: int) -> None:
    request = raw.region_range(BAR0, LIVENESS, count, bytes(4))
    assert edu_client.refused(raw.REGION_WRITE, request) == errno.EINVAL
    assert in_step(edu_client)


def test_a_megabyte_goes_there_and_back_in_one_message_each(tester: RawClient) -> None:
    data = pattern(1 << 20)
    tester.write(BAR2, 0, data)
    assert tester.read(BAR2, 0, 1 << 20) == data


def test_reset_clears_the_registers(edu_client: RawClient) -> None:
    edu_client.write32(BAR0, LIVENESS, 0)
    edu_client.done(raw.RESET)
    assert edu_client.read32(BAR0, LIVENESS) == 0


def test_reset_with_a_payload_is_refused(edu_client: RawClient) -> None:
    assert edu_client.refused(raw.RESET, bytes(4)) == errno.EINVAL
    assert in_step(edu_client)


# Configuration space


@pytest.mark.parametrize("offset", range(0x40, 0x60))
def test_a_config_write_may_cross_the_end_of_a_capability(
    edu_client: RawClient, offset: int
) -> None:
    edu_client.write(raw.CONFIG, offset, b"\xff" * 24)
    edu_client.write(raw.CONFIG, offset, bytes(24))
    assert edu_client.read(raw.CONFIG, 0x40, 2) == b"\x05\x00"  # MSI, the only one


def test_a_byte_of_a_register_can_be_written_alone(edu_client: RawClient) -> None:
    edu_client.write(raw.CONFIG, 4, b"\x06")
    edu_client.write(raw.CONFIG, 5, b"\x04")
    assert edu_client.read(raw.CONFIG, 4, 2) == b"\x06\x04"


# Interrupts


def enable(client: RawClient, index: int, start: int, fds: list[int]) -> None:
    flags = raw.EVENTFD | raw.TRIGGER
    client.done(raw.SET_IRQS, raw.irq_set(flags, index, start, len(fds)), fds)


def test_msi_fires_on_the_register_that_raises_it(edu_client: RawClient) -> None:
    with eventfds(1) as (fd,):
        enable(edu_client, raw.MSI, 0, [fd])
        edu_client.enable_bus_master()
        edu_client.write32(BAR0, IRQ_RAISE, 1)
        assert fired(fd) == 1


def test_msi_needs_bus_mastering(edu_client: RawClient) -> None:
    with eventfds(1) as (fd,):
        enable(edu_client, raw.MSI, 0, [fd])
        edu_client.write32(BAR0, IRQ_RAISE, 1)
        assert fired(fd, 0) == 0


def test_a_disabled_index_fires_no_more(edu_client: RawClient) -> None:
    with eventfds(1) as (fd,):
        enable(edu_client, raw.MSI, 0, [fd])
        edu_client.done(raw.SET_IRQS, raw.irq_set(raw.NONE | raw.TRIGGER, raw.MSI, 0, 0))
        edu_client.enable_bus_master()
        edu_client.write32(BAR0, IRQ_RAISE, 1)
        assert fired(fd, 0) == 0


def test_a_vector_without_a_descriptor_is_taken_away(tester: RawClient) -> None:
    with eventfds(2) as fds:
        enable(tester, raw.MSIX, 0, fds)
        tester.done(raw.SET_IRQS, raw.irq_set(raw.EVENTFD | raw.TRIGGER, raw.MSIX, 0, 1))
        tester.enable_bus_master()
        for vector in (0, 1):
            tester.write32(BAR0, TEST_FIRE, vector)
        assert [fired(fd, 0) for fd in fds] == [0, 1]


@pytest.mark.parametrize("start", [1, 2, 3])
def test_vectors_without_descriptors_are_taken_away_from_any_start(
    tester: RawClient, start: int
) -> None:
    with eventfds(5) as fds:
        enable(tester, raw.MSIX, 0, fds)
        tester.done(raw.SET_IRQS, raw.irq_set(raw.EVENTFD | raw.TRIGGER, raw.MSIX, start, 2))
        tester.enable_bus_master()
        for vector in range(5):
            tester.write32(BAR0, TEST_FIRE, vector)
        gone = {start, start + 1}
        assert [fired(fd, 0) for fd in fds] == [int(v not in gone) for v in range(5)]


def test_each_interrupt_index_has_eventfds_of_its_own(tester: RawClient) -> None:
    with eventfds(3) as (intx, first, second):
        enable(tester, raw.INTX, 0, [intx])
        enable(tester, raw.MSIX, 0, [first])
        enable(tester, 3, 0, [second])  # ERR
        tester.done(raw.SET_IRQS, raw.irq_set(raw.NONE | raw.TRIGGER, 3, 0, 0))
        tester.enable_bus_master()
        tester.write32(BAR0, TEST_PIN, 1)
        tester.write32(BAR0, TEST_FIRE, 0)
        assert [fired(fd, 0) for fd in (intx, first, second)] == [1, 1, 0]


def test_two_eventfds_in_one_message(tester: RawClient) -> None:
    with eventfds(2) as fds:
        tester.send(
            unhex(
                "05000800 24000000 00000000 00000000 | 14000000 24000000 02000000 00000000 02000000"
            ),
            fds,
        )
        assert tester.receive().data == unhex("05000800 10000000 01000000 00000000")
        tester.enable_bus_master()
        tester.write32(BAR0, TEST_FIRE, 1)
        assert [fired(fd, 0) for fd in fds] == [0, 1]


def test_disable_all_vectors(tester: RawClient) -> None:
    tester.send(
        unhex("06000800 24000000 00000000 00000000 | 14000000 21000000 02000000 00000000 00000000")
    )
    assert tester.receive().data == unhex("06000800 10000000 01000000 00000000")


def test_intx_fires_again_on_unmask_while_it_is_asserted(edu_client: RawClient) -> None:
    with eventfds(1) as (fd,):
        enable(edu_client, raw.INTX, 0, [fd])
        edu_client.write32(BAR0, IRQ_RAISE, 1)
        assert fired(fd) == 1
        edu_client.done(raw.SET_IRQS, raw.irq_set(raw.NONE | raw.UNMASK, raw.INTX, 0, 1))
        assert fired(fd) == 1


def test_the_client_can_trigger_a_vector_itself(tester: RawClient) -> None:
    with eventfds(3) as fds:
        enable(tester, raw.MSIX, 0, fds)
        flags = raw.BOOL | raw.TRIGGER
        tester.done(raw.SET_IRQS, raw.irq_set(flags, raw.MSIX, 0, 3, data=b"\1\0\1"))
        assert [fired(fd, 0) for fd in fds] == [1, 0, 1]


def test_a_reset_leaves_the_eventfds(edu_client: RawClient) -> None:
    with eventfds(1) as (fd,):
        enable(edu_client, raw.MSI, 0, [fd])
        edu_client.done(raw.RESET)
        edu_client.enable_bus_master()
        edu_client.write32(BAR0, IRQ_RAISE, 1)
        assert fired(fd) == 1


@pytest.mark.parametrize("payload", BAD_SET_IRQS.values(), ids=BAD_SET_IRQS)
def test_a_set_irqs_that_makes_no_sense_is_refused(edu_client: RawClient, payload: bytes) -> None:
    assert edu_client.refused(raw.SET_IRQS, payload) == errno.EINVAL
    assert in_step(edu_client)


@pytest.mark.parametrize(("vectors", "given"), [(2, 1), (2, 3), (1, 2), (1, 17), (32, 31)])
def test_as_many_eventfds_as_vectors_or_none(tester: RawClient, vectors: int, given: int) -> None:
    request = raw.irq_set(raw.EVENTFD | raw.TRIGGER, raw.MSIX, 0, vectors)
    with eventfds(given) as fds:
        assert tester.refused(raw.SET_IRQS, request, fds) == errno.EINVAL


def test_an_interrupt_needs_an_eventfd_not_a_pipe(edu_client: RawClient) -> None:
    request = raw.irq_set(raw.EVENTFD | raw.TRIGGER, raw.MSI, 0, 1)
    with pipe() as (_, write_end):
        assert edu_client.refused(raw.SET_IRQS, request, [write_end]) == errno.EINVAL


def test_a_full_eventfd_does_not_block_the_server(edu_client: RawClient) -> None:
    fd = os.eventfd(0, os.EFD_CLOEXEC)  # a write to it blocks
    try:
        os.eventfd_write(fd, (1 << 64) - 2)
        enable(edu_client, raw.MSI, 0, [fd])
        edu_client.enable_bus_master()
        edu_client.write32(BAR0, IRQ_RAISE, 1)
        assert in_step(edu_client)
    finally:
        os.close(fd)


# DMA to memory that the server maps


def test_dma_map_as_it_stands_in_the_document(edu_client: RawClient) -> None:
    with memfd(0x201000) as fd:
        edu_client.send(
            unhex(
                "03000200 30000000 00000000 00000000 | 20000000 03000000 00100000 00000000"
                " 00001000 00000000 00002000 00000000"
            ),
            [fd],
        )
        assert edu_client.receive().data == unhex("03000200 10000000 01000000 00000000")


def test_dma_through_a_descriptor_copies_every_byte(edu_client: RawClient) -> None:
    data = pattern(PAGE)
    with memfd(2 * PAGE, data) as fd:
        edu_client.done(raw.DMA_MAP, raw.dma_map(IOVA, 2 * PAGE), [fd])
        start_edu_dma(edu_client, IOVA, BUFFER, DMA_RUN)
        finish_edu_dma(edu_client)
        start_edu_dma(edu_client, BUFFER, IOVA + PAGE, DMA_RUN | DMA_TO_HOST)
        finish_edu_dma(edu_client)
        assert os.pread(fd, PAGE, PAGE) == data


def test_dma_honours_the_offset_into_the_file(tester: RawClient) -> None:
    with memfd(2 * PAGE) as fd:
        os.pwrite(fd, pattern(PAGE), PAGE)
        tester.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE, offset=PAGE), [fd])
        assert run_test_dma(tester, TO_DEVICE) == 0
        assert tester.read(BAR2, 0, PAGE) == pattern(PAGE)


@pytest.mark.parametrize(
    ("address", "size"), [(IOVA, PAGE), (IOVA + PAGE, PAGE), (IOVA - PAGE, 4 * PAGE)]
)
def test_an_overlapping_map_gets_eexist(edu_client: RawClient, address: int, size: int) -> None:
    edu_client.done(raw.DMA_MAP, raw.dma_map(IOVA, 2 * PAGE))
    edu_client.send(raw.frame(raw.DMA_MAP, raw.dma_map(address, size), number=3))
    assert edu_client.receive().data == unhex("03000200 10000000 21000000 11000000")


@pytest.mark.parametrize("payload", BAD_DMA_MAP.values(), ids=BAD_DMA_MAP)
def test_a_bad_dma_map_is_refused(edu_client: RawClient, payload: bytes) -> None:
    with memfd(PAGE) as fd:
        assert edu_client.refused(raw.DMA_MAP, payload, [fd]) == errno.EINVAL
    assert in_step(edu_client)


def test_a_pipe_cannot_be_mapped_for_dma(edu_client: RawClient) -> None:
    with pipe() as (read_end, _):
        request = raw.dma_map(IOVA, PAGE)
        assert edu_client.refused(raw.DMA_MAP, request, [read_end]) == errno.EINVAL


def test_a_read_only_file_cannot_be_mapped_for_writing(edu_client: RawClient) -> None:
    with memfd(PAGE) as fd:
        read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        try:
            request = raw.dma_map(IOVA, PAGE)
            assert edu_client.refused(raw.DMA_MAP, request, [read_only]) == errno.EACCES
        finally:
            os.close(read_only)


def test_a_refused_map_leaves_its_addresses_free(edu_client: RawClient) -> None:
    with memfd(PAGE) as fd:
        edu_client.refused(raw.DMA_MAP, raw.dma_map(IOVA, 2 * PAGE), [fd])
        edu_client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd])


def test_memory_mapped_for_reading_cannot_be_written(tester: RawClient) -> None:
    with memfd(PAGE, pattern(PAGE)) as fd:
        tester.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE, flags=raw.READABLE), [fd])
        assert run_test_dma(tester, TO_CLIENT) == errno.EPERM
        assert os.pread(fd, PAGE, 0) == pattern(PAGE)


def test_memory_mapped_for_writing_cannot_be_read(tester: RawClient) -> None:
    with memfd(PAGE) as fd:
        tester.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE, flags=raw.WRITABLE), [fd])
        assert run_test_dma(tester, TO_DEVICE) == errno.EPERM


def test_dma_over_the_end_of_a_map_moves_nothing(tester: RawClient) -> None:
    with memfd(PAGE, pattern(PAGE)) as fd:
        tester.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd])
        assert run_test_dma(tester, TO_CLIENT, IOVA + 4, PAGE) == errno.EFAULT
        assert os.pread(fd, PAGE, 0) == pattern(PAGE)


def test_dma_needs_bus_mastering(tester: RawClient) -> None:
    with memfd(PAGE) as fd:
        tester.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd])
        prepare_test_dma(tester)
        tester.write(raw.CONFIG, 4, bytes(2))
        start_test_dma(tester, TO_DEVICE)
        assert finish_test_dma(tester) == errno.EPERM


def test_dma_maps_stay_over_a_reset(tester: RawClient) -> None:
    with memfd(PAGE) as fd:
        tester.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd])
        tester.done(raw.RESET)
        assert run_test_dma(tester, TO_DEVICE) == 0


def test_a_file_truncated_after_its_map_is_an_error_of_the_dma(tester: RawClient) -> None:
    with memfd(2 * PAGE) as fd:
        tester.done(raw.DMA_MAP, raw.dma_map(IOVA, 2 * PAGE), [fd])
        os.ftruncate(fd, PAGE)
        assert run_test_dma(tester, TO_DEVICE, IOVA, 2 * PAGE) == errno.EFAULT
        assert run_test_dma(tester, TO_CLIENT, IOVA, 2 * PAGE) == errno.EFAULT
        assert run_test_dma(tester, TO_CLIENT, IOVA, PAGE) == 0


# DMA_UNMAP


def test_unmap_echoes_the_request(tester: RawClient) -> None:
    tester.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
    reply = tester.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, PAGE))
    assert reply.payload == raw.dma_unmap(IOVA, PAGE)


def test_unmapped_memory_cannot_be_reached(tester: RawClient) -> None:
    with memfd(PAGE) as fd:
        tester.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd])
        tester.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, PAGE))
        assert run_test_dma(tester, TO_DEVICE) == errno.EFAULT


@pytest.mark.parametrize(
    ("address", "size"), [(IOVA, PAGE), (0xFEF00000, 0xFFFFFFFF01100000), (0, 1 << 63)]
)
def test_unmap_where_nothing_is_mapped_succeeds(
    edu_client: RawClient, address: int, size: int
) -> None:
    edu_client.done(raw.DMA_UNMAP, raw.dma_unmap(address, size))


@pytest.mark.parametrize(
    ("address", "size"), [(IOVA, PAGE), (IOVA + PAGE, PAGE), (IOVA - PAGE, 2 * PAGE)]
)
def test_unmap_of_a_part_is_refused_and_the_map_stays(
    edu_client: RawClient, address: int, size: int
) -> None:
    edu_client.done(raw.DMA_MAP, raw.dma_map(IOVA, 2 * PAGE))
    assert edu_client.refused(raw.DMA_UNMAP, raw.dma_unmap(address, size)) == errno.EINVAL
    assert edu_client.refused(raw.DMA_MAP, raw.dma_map(IOVA, 2 * PAGE)) == errno.EEXIST


def test_unmap_of_a_range_removes_every_map_in_it(edu_client: RawClient) -> None:
    for address in (IOVA, IOVA + 4 * PAGE):
        edu_client.done(raw.DMA_MAP, raw.dma_map(address, PAGE))
    edu_client.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA - PAGE, 8 * PAGE))
    edu_client.done(raw.DMA_MAP, raw.dma_map(IOVA, 8 * PAGE))


def test_unmap_all(edu_client: RawClient) -> None:
    for address in (0, IOVA, (1 << 64) - PAGE):
        edu_client.done(raw.DMA_MAP, raw.dma_map(address, PAGE))
    edu_client.done(raw.DMA_UNMAP, raw.dma_unmap(0, 0, flags=2))
    edu_client.done(raw.DMA_MAP, raw.dma_map(0, 1 << 63))
    edu_client.done(raw.DMA_MAP, raw.dma_map(1 << 63, 1 << 63))


@pytest.mark.parametrize("payload", BAD_DMA_UNMAP.values(), ids=BAD_DMA_UNMAP)
def test_a_bad_dma_unmap_is_refused(edu_client: RawClient, payload: bytes) -> None:
    assert edu_client.refused(raw.DMA_UNMAP, payload) == errno.EINVAL
    assert in_step(edu_client)


# DMA by messages


def ask_edu_for_dma_read(client: RawClient) -> raw.Message:
    """Have edu read memory that it got no descriptor for; returns what it sends."""
    client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
    start_edu_dma(client, IOVA, BUFFER, DMA_RUN)
    return client.receive()


def test_memory_without_a_descriptor_is_asked_for_on_the_main_socket(
    edu_client: RawClient,
) -> None:
    request = ask_edu_for_dma_read(edu_client)
    assert request.data[2:] == unhex(
        "0b00 20000000 00000000 00000000 | 00001000 00000000 00100000 00000000"
    )
    edu_client.send(raw.answer(request, raw.dma_range(IOVA, PAGE, bytes(PAGE))))
    finish_edu_dma(edu_client)


@pytest.mark.parametrize("size", [16, 12, 0])
def test_dma_by_messages_copies_every_byte(edu_client: RawClient, size: int) -> None:
    data = pattern(PAGE)
    request = ask_edu_for_dma_read(edu_client)
    edu_client.send(raw.answer(request, raw.dma_range(IOVA, PAGE, data)))
    finish_edu_dma(edu_client)
    start_edu_dma(edu_client, BUFFER, IOVA, DMA_RUN | DMA_TO_HOST)
    request = edu_client.receive()
    edu_client.send(raw.answer(request, raw.dma_range(IOVA, PAGE)[:size]))
    finish_edu_dma(edu_client)
    assert request.command == raw.DMA_WRITE
    assert request.payload == raw.dma_range(IOVA, PAGE, data)


def test_registers_are_answered_while_a_dma_read_is_not(edu_client: RawClient) -> None:
    request = ask_edu_for_dma_read(edu_client)
    assert edu_client.read32(BAR0, 0) == 0x010000ED
    edu_client.send(raw.refusal(request, errno.EFAULT))
    finish_edu_dma(edu_client)


def test_long_dma_comes_in_pieces_that_every_client_can_answer(tester: RawClient) -> None:
    size = 256 << 10
    memory = ClientMemory(IOVA, pattern(size))
    memory.answer(tester, have_test_device_ask(tester, size))
    for _ in range(3):
        memory.answer(tester, tester.receive())
    assert finish_test_dma(tester) == 0
    pieces = [(raw.DMA_READ, IOVA + at, 64 << 10) for at in range(0, size, 64 << 10)]
    assert memory.asked == pieces
    assert tester.read(BAR2, 0, size) == pattern(size)


def test_dma_comes_on_the_twin_socket_where_there_is_one(edu_server: ServerProcess) -> None:
    with RawClient(edu_server.path) as client:
        (fd,) = client.negotiate(TWIN).fds
        client.done(raw.RESET)
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
        start_edu_dma(client, IOVA, BUFFER, DMA_RUN)
        with raw.Peer(socket.socket(fileno=fd)) as twin:
            request = twin.receive()
            twin.send(raw.answer(request, raw.dma_range(IOVA, PAGE, pattern(PAGE))))
            finish_edu_dma(client)
    assert (request.command, request.payload) == (raw.DMA_READ, raw.dma_range(IOVA, PAGE))


def test_a_command_on_the_twin_socket_is_refused(edu_server: ServerProcess) -> None:
    with RawClient(edu_server.path) as client:
        (fd,) = client.negotiate(TWIN).fds
        with raw.Peer(socket.socket(fileno=fd)) as twin:
            twin.send(raw.frame(raw.GET_INFO, raw.device_info(0, 0, 0)))
            assert twin.receive().error == errno.EINVAL
        assert in_step(client)


@pytest.mark.parametrize(
    "reply",
    [
        lambda request: raw.refusal(request, errno.EFAULT),
        lambda request: raw.refusal(request, 0),
        lambda request: raw.refusal(request, 4096),
        raw.answer,
        lambda request: raw.answer(request, raw.dma_range(IOVA, PAGE, bytes(PAGE - 1))),
        lambda request: raw.answer(request, raw.dma_range(IOVA, PAGE - 4, bytes(PAGE - 4))),
        lambda request: raw.answer(request, raw.dma_range(IOVA + PAGE, PAGE, bytes(PAGE))),
    ],
    ids=["refused", "refused without errno", "errno 4096", "empty", "short", "less", "elsewhere"],
)
def test_a_bad_answer_to_a_dma_read_ends_the_dma_only(
    edu_client: RawClient, reply: Callable[[raw.Message], bytes]
) -> None:
    edu_client.send(reply(ask_edu_for_dma_read(edu_client)))
    finish_edu_dma(edu_client)
    assert in_step(edu_client)


def test_a_dma_that_the_client_refuses_is_an_error_of_the_dma(tester: RawClient) -> None:
    tester.send(raw.refusal(have_test_device_ask(tester), errno.EFAULT))
    assert finish_test_dma(tester) == errno.EFAULT


def test_a_dma_refused_with_an_errno_that_does_not_exist_ends(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("edu")
    try:
        with RawClient(server.path) as client:
            client.negotiate()
            client.send(raw.refusal(ask_edu_for_dma_read(client), 0xFFFFFFFF))
            finish_edu_dma(client)
    finally:
        server.kill()  # it might not end otherwise


def test_an_answer_with_a_descriptor_ends_the_dma_and_the_descriptor(
    edu_server: ServerProcess,
) -> None:
    before = held(edu_server)
    with RawClient(edu_server.path) as client, pipe() as fds:
        client.negotiate()
        client.done(raw.RESET)
        request = ask_edu_for_dma_read(client)
        client.send(raw.answer(request, raw.dma_range(IOVA, PAGE, bytes(PAGE))), fds)
        finish_edu_dma(client)
        assert len(open_fds(edu_server.pid)) == before


def test_a_dma_read_that_is_never_answered_ends_by_itself(edu_client: RawClient) -> None:
    request = ask_edu_for_dma_read(edu_client)
    finish_edu_dma(edu_client)  # after the server's time-out of 5 s
    edu_client.send(raw.answer(request, raw.dma_range(IOVA, PAGE, bytes(PAGE))))
    assert in_step(edu_client)


def test_a_client_that_leaves_with_a_dma_read_unanswered_keeps_nobody_waiting(
    edu_server: ServerProcess,
) -> None:
    with RawClient(edu_server.path) as client:
        client.negotiate()
        client.done(raw.RESET)
        ask_edu_for_dma_read(client)
    with RawClient(edu_server.path) as following:
        following.sock.settimeout(4)  # less than the server waits for an answer
        following.negotiate()
        finish_edu_dma(following)


# Framing


@pytest.mark.parametrize("number", [0, 1, 0xFFFF])
def test_any_id_may_be_used_in_every_message(edu_server: ServerProcess, number: int) -> None:
    with RawClient(edu_server.path) as client:
        client.ask(raw.VERSION, raw.version(), number=number)
        for _ in range(3):
            reply = client.ask(raw.GET_INFO, raw.device_info(0, 0, 0), number=number)
            assert reply.payload == raw.device_info()


def test_header_and_body_may_come_apart(edu_client: RawClient) -> None:
    message = raw.frame(raw.GET_INFO, raw.device_info(0, 0, 0))
    edu_client.send(message[:16])
    assert edu_client.quiet()
    edu_client.send(message[16:])
    assert edu_client.receive().payload == raw.device_info()


def test_messages_may_come_byte_by_byte(edu_client: RawClient) -> None:
    message = raw.frame(raw.REGION_READ, raw.region_range(BAR0, 0, 4))
    for byte in message:
        edu_client.send(bytes([byte]))
    assert edu_client.receive().payload[16:] == unhex("ed000001")


def test_a_descriptor_goes_with_the_first_byte(tester: RawClient) -> None:
    message = raw.frame(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
    with memfd(PAGE) as fd:
        tester.send(message[:1], [fd])
        for byte in message[1:]:
            tester.send(bytes([byte]))
    assert tester.receive().flags == raw.REPLY
    assert run_test_dma(tester, TO_DEVICE) == 0


def test_descriptors_of_pipelined_messages_stay_with_their_message(
    tester: RawClient,
) -> None:
    request = raw.irq_set(raw.EVENTFD | raw.TRIGGER, raw.MSIX, 0, 1)
    questions = raw.frame(raw.GET_INFO, raw.device_info(0, 0, 0)) * 3
    with eventfds(2) as fds:
        for vector, fd in enumerate(fds):
            tester.send(questions)
            request = raw.irq_set(raw.EVENTFD | raw.TRIGGER, raw.MSIX, vector, 1)
            tester.send(raw.frame(raw.SET_IRQS, request), [fd])
        assert {tester.receive().flags for _ in range(8)} == {raw.REPLY}
        tester.enable_bus_master()
        tester.write32(BAR0, TEST_FIRE, 1)
        assert [fired(fd, 0) for fd in fds] == [0, 1]


def test_a_client_may_read_long_answers_late(tester: RawClient) -> None:
    data = pattern(1 << 20)
    tester.write(BAR2, 0, data)
    request = raw.frame(raw.REGION_READ, raw.region_range(BAR2, 0, 1 << 20))
    tester.send(request * 10)
    time.sleep(0.1)
    assert all(tester.receive().payload[16:] == data for _ in range(10))


@pytest.mark.parametrize("command", [0, 11, 12, 14, 19, 99, 0xFFFF])
def test_an_unknown_command_gets_enosys(edu_client: RawClient, command: int) -> None:
    assert edu_client.refused(command, bytes(24)) == errno.ENOSYS
    assert in_step(edu_client)


def test_an_unknown_command_without_reply_gets_none(edu_client: RawClient) -> None:
    edu_client.send(raw.frame(99, bytes(8), flags=raw.NO_REPLY))
    assert in_step(edu_client)


@pytest.mark.parametrize(("command", "payload"), NOT_OFFERED.values(), ids=NOT_OFFERED)
def test_what_the_server_does_not_offer_gets_an_errno(
    edu_client: RawClient, command: int, payload: bytes
) -> None:
    assert edu_client.refused(command, payload) in (errno.ENOTSUP, errno.EINVAL)
    assert in_step(edu_client)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<HHIII", 1, raw.GET_INFO, 0, 0, 0),
        struct.pack("<HHIII", 1, raw.GET_INFO, 15, 0, 0),
        struct.pack("<HHIII", 1, raw.REGION_WRITE, 2 << 20, 0, 0),
        struct.pack("<HHIII", 1, raw.REGION_WRITE, 0x7FFFFFFF, 0, 0),
        struct.pack("<HHIII", 1, raw.GET_INFO, 0xFFFFFFFF, 0, 0),
        struct.pack("<HHIII", 1, raw.GET_INFO, 16, 2, 0),
        struct.pack("<HHIII", 1, raw.GET_INFO, 16, 0xF, 0),
        struct.pack("<HHIII", 1, raw.DMA_READ, 16, raw.REPLY, 0),
        struct.pack("<HHIII", 1, raw.GET_INFO, 16, raw.ERROR_REPLY, 5),
    ],
    ids=["0 bytes", "15 bytes", "2 MiB", "2 GiB", "4 GiB", "type 2", "type 15", "reply", "error"],
)
@pytest.mark.parametrize("negotiated", [False, True], ids=["first", "later"])
def test_a_header_that_makes_no_sense_ends_the_connection(
    edu_server: ServerProcess, header: bytes, negotiated: bool
) -> None:
    with RawClient(edu_server.path) as client:
        if negotiated:
            client.negotiate()
        client.send(header)
        assert client.ended()
    assert serves(edu_server)


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", bytes(4096), b"\xff" * 4096, pattern(65536)],
    ids=["http", "zeros", "ones", "noise"],
)
def test_garbage_ends_the_connection(edu_server: ServerProcess, garbage: bytes) -> None:
    with RawClient(edu_server.path) as client:
        with suppress(BrokenPipeError):  # it may have seen enough before it has all
            client.send(garbage)
        assert client.ended()
    assert serves(edu_server)


# Descriptors


@pytest.mark.parametrize(("command", "payload"), NO_PLACE_FOR_TWO.values(), ids=NO_PLACE_FOR_TWO)
@pytest.mark.parametrize("count", [2, 253])
def test_descriptors_that_do_not_belong_there_are_refused_and_closed(
    edu_client: RawClient, edu_server: ServerProcess, command: int, payload: bytes, count: int
) -> None:
    before = len(open_fds(edu_server.pid))
    with eventfds(1) as (fd,):
        assert edu_client.refused(command, payload, [fd] * count) == errno.EINVAL
    assert in_step(edu_client)
    assert len(open_fds(edu_server.pid)) == before


def test_descriptors_of_an_unknown_command_are_closed(
    edu_client: RawClient, edu_server: ServerProcess
) -> None:
    before = len(open_fds(edu_server.pid))
    with pipe() as fds:
        assert edu_client.refused(99, b"", fds) == errno.ENOSYS
    assert in_step(edu_client)
    assert len(open_fds(edu_server.pid)) == before


def test_descriptors_of_a_message_that_is_not_answered_are_closed(
    edu_client: RawClient, edu_server: ServerProcess
) -> None:
    before = len(open_fds(edu_server.pid))
    with pipe() as fds:
        write = raw.register_write(BAR0, LIVENESS, bytes(4))
        edu_client.send(raw.frame(raw.REGION_WRITE, write, flags=raw.NO_REPLY), fds)
    assert in_step(edu_client)
    assert len(open_fds(edu_server.pid)) == before


def test_descriptors_with_every_byte_of_a_message_are_not_piled_up(
    edu_server: ServerProcess,
) -> None:
    before = held(edu_server)
    with RawClient(edu_server.path) as client, eventfds(1) as (fd,):
        client.negotiate()
        write = raw.frame(raw.REGION_WRITE, raw.register_write(BAR0, 0, bytes(64)))
        with suppress(ConnectionError):  # the server has had enough before the end
            for byte in write:
                client.send(bytes([byte]), [fd] * 250)
        assert client.ended()
    assert held(edu_server) == before


def test_descriptors_with_version_are_refused_and_closed(edu_server: ServerProcess) -> None:
    before = held(edu_server)
    with RawClient(edu_server.path) as client, pipe() as fds:
        assert client.refused(raw.VERSION, raw.version(), fds) == errno.EINVAL
    assert held(edu_server) == before


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (raw.DMA_MAP, raw.dma_map(IOVA, PAGE)),
        (raw.SET_IRQS, raw.irq_set(raw.EVENTFD | raw.TRIGGER, raw.MSI, 0, 1)),
    ],
    ids=["memory", "eventfds"],
)
def test_replaced_descriptors_are_closed(
    edu_client: RawClient, edu_server: ServerProcess, command: int, payload: bytes
) -> None:
    with eventfds(1) as (event,), memfd(PAGE) as memory:
        fd = event if command == raw.SET_IRQS else memory
        edu_client.done(command, payload, [fd])
        assert in_step(edu_client)
        before = len(open_fds(edu_server.pid))
        for _ in range(20):
            edu_client.done(raw.DMA_UNMAP, raw.dma_unmap(IOVA, PAGE))
            edu_client.done(command, payload, [fd])
        assert in_step(edu_client)
        assert len(open_fds(edu_server.pid)) == before


def test_more_descriptors_than_the_server_may_open_end_the_connection(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("edu")
    before = held(server)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (40, 40))
    with RawClient(server.path) as client, eventfds(1) as (fd,):
        client.negotiate()
        client.send(raw.frame(raw.GET_INFO, raw.device_info(0, 0, 0)), [fd] * 100)
        assert client.ended()
    assert held(server) == before


# Clients that leave, stall or die


def test_a_client_gone_in_the_middle_of_a_message_takes_its_descriptors_along(
    edu_server: ServerProcess,
) -> None:
    before = held(edu_server)
    message = raw.frame(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
    for cut in (1, 15, 16, 17, len(message) - 1):
        with RawClient(edu_server.path) as client, memfd(PAGE) as fd:
            client.negotiate()
            client.send(message[:cut], [fd])
    assert held(edu_server) == before


def test_a_client_gone_with_maps_and_eventfds_leaves_none(testdev_server: ServerProcess) -> None:
    before = held(testdev_server)
    with RawClient(testdev_server.path) as client, memfd(PAGE) as memory, eventfds(8) as fds:
        client.negotiate()
        for number in range(8):
            client.done(raw.DMA_MAP, raw.dma_map(IOVA + number * PAGE, PAGE), [memory])
        enable(client, raw.MSIX, 0, fds)
        assert len(open_fds(testdev_server.pid)) > before
    assert held(testdev_server) == before


def test_the_maps_of_a_client_are_gone_for_the_next(testdev_server: ServerProcess) -> None:
    with RawClient(testdev_server.path) as client, memfd(PAGE) as fd:
        client.negotiate()
        client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE), [fd])
    with RawClient(testdev_server.path) as following:
        following.negotiate()
        assert run_test_dma(following, TO_DEVICE) == errno.EFAULT


def test_the_interrupts_of_a_client_are_off_for_the_next(edu_server: ServerProcess) -> None:
    with RawClient(edu_server.path) as client, eventfds(1) as fds:
        client.negotiate()
        client.done(raw.RESET)
        enable(client, raw.MSI, 0, fds)
        assert client.read(raw.CONFIG, 0x42, 1) == b"\x81"
    with RawClient(edu_server.path) as following:
        following.negotiate()
        assert following.read(raw.CONFIG, 0x42, 1) == b"\x80"


def test_the_device_keeps_its_state_for_the_next_client(testdev_server: ServerProcess) -> None:
    with RawClient(testdev_server.path) as client:
        client.negotiate()
        client.write(BAR0, TEST_SCRATCH, b"remember")
    with RawClient(testdev_server.path) as following:
        following.negotiate()
        assert following.read(BAR0, TEST_SCRATCH, 8) == b"remember"


def test_a_second_client_waits_for_the_first(
    edu_client: RawClient, edu_server: ServerProcess
) -> None:
    with RawClient(edu_server.path) as second:
        second.send(raw.frame(raw.VERSION, raw.version()))
        assert in_step(edu_client)
        assert second.quiet()
        edu_client.close()
        assert second.receive().command == raw.VERSION


@pytest.mark.parametrize(
    "start", [b"", raw.frame(raw.VERSION, raw.version())[:10]], ids=["nothing", "half a header"]
)
def test_a_client_that_stalls_holds_the_next_up_for_ten_seconds_at_most(
    edu_server: ServerProcess, start: bytes
) -> None:
    with RawClient(edu_server.path) as silent:
        silent.send(start)
        assert serves(edu_server)  # a wait of a raw client ends after ten seconds
        assert silent.ended()


def test_clients_that_come_and_go_at_once_do_not_disturb(edu_server: ServerProcess) -> None:
    before = held(edu_server)
    for _ in range(50):
        RawClient(edu_server.path).close()
    assert held(edu_server) == before
