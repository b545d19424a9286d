# SPDX-License-Identifier: BSD-3-Clause
"""Every command of the specification: its reply to the byte, its errno, and none where none is
wanted ("Header", No_reply).  Section names are those of the specification.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pyvfio.wire.commands import COMMANDS
from tests.fault import raw
from tests.fault.clients import (
    BAR0,
    BAR2,
    IOVA,
    PAGE,
    TEST_FIRE,
    TEST_SCRATCH,
    TWIN,
    eventfds,
    finish_test_dma,
    have_test_device_ask,
    in_step,
    memfd,
)
from tests.fault.moving import feature
from tests.fault.raw import RawClient, fired
from tests.fault.raw_migration import (
    GET,
    MIGRATION,
    PROBE,
    SET,
    STATE,
)
from tests.support import ServerProcess, open_fds

ACCESSES = 0x20
IO_FDS = struct.pack("<IIII", PAGE, 0, BAR0, 0)
LOW_POWER = 3
"""A feature that is the kernel's only."""
MIG_READ, MIG_WRITE = struct.pack("<II", 16, 8), struct.pack("<II", 16, 8) + bytes(8)
EVENTFDS = raw.EVENTFD | raw.TRIGGER
LONG = 1 << 30


# Replies

REPLIES = {
    "DMA_MAP": (raw.DMA_MAP, raw.dma_map(IOVA, PAGE), b""),
    "DMA_MAP with a large argsz": (raw.DMA_MAP, raw.dma_map(IOVA, PAGE, argsz=LONG), b""),
    "DMA_UNMAP": (raw.DMA_UNMAP, raw.dma_unmap(IOVA, PAGE), raw.dma_unmap(IOVA, PAGE)),
    "DMA_UNMAP with room for more": (
        raw.DMA_UNMAP,
        raw.dma_unmap(IOVA, PAGE, argsz=LONG),
        raw.dma_unmap(IOVA, PAGE),
    ),
    "DMA_UNMAP of all": (
        raw.DMA_UNMAP,
        raw.dma_unmap(0, 0, flags=2),
        raw.dma_unmap(0, 0, flags=2),
    ),
    "GET_INFO": (raw.GET_INFO, raw.device_info(0, 0, 0), raw.device_info()),
    "GET_INFO with room for more": (
        raw.GET_INFO,
        raw.device_info(0, 0, 0, argsz=LONG),
        raw.device_info(),
    ),
    "GET_INFO of a longer struct": (
        raw.GET_INFO,
        raw.device_info(0, 0, 0, argsz=20) + bytes(4),
        raw.device_info(),
    ),
    "GET_INFO, fields that must be zero": (
        raw.GET_INFO,
        raw.device_info(7, 8, 9),
        raw.device_info(),
    ),
    "GET_REGION_INFO": (
        raw.GET_REGION_INFO,
        raw.region_info(BAR0),
        raw.region_info(BAR0, flags=3, size=PAGE),
    ),
    "GET_REGION_INFO with room for more": (
        raw.GET_REGION_INFO,
        raw.region_info(BAR0, LONG),
        raw.region_info(BAR0, flags=3, size=PAGE),
    ),
    "GET_REGION_INFO, fields that must be zero": (
        raw.GET_REGION_INFO,
        raw.region_info(BAR0, flags=15, size=1, offset=2, cap_offset=3),
        raw.region_info(BAR0, flags=3, size=PAGE),
    ),
    "GET_REGION_INFO, a byte too little for the capabilities": (
        raw.GET_REGION_INFO,
        raw.region_info(BAR2, 79),
        raw.region_info(BAR2, 80, flags=7, size=64 << 20),
    ),
    "GET_IRQ_INFO": (
        raw.GET_IRQ_INFO,
        raw.irq_info(raw.MSIX),
        raw.irq_info(raw.MSIX, flags=1, count=32),
    ),
    "GET_IRQ_INFO with room for more": (
        raw.GET_IRQ_INFO,
        raw.irq_info(raw.MSIX, argsz=LONG),
        raw.irq_info(raw.MSIX, flags=1, count=32),
    ),
    "GET_IRQ_INFO, fields that must be zero": (
        raw.GET_IRQ_INFO,
        raw.irq_info(raw.MSIX, flags=9, count=9),
        raw.irq_info(raw.MSIX, flags=1, count=32),
    ),
    "SET_IRQS": (raw.SET_IRQS, raw.irq_set(raw.NONE | raw.TRIGGER, raw.MSIX, 0, 0), b""),
    "REGION_READ": (
        raw.REGION_READ,
        raw.region_range(BAR0, 0, 4),
        raw.region_range(BAR0, 0, 4, b"TEST"),
    ),
    "REGION_READ of nothing": (
        raw.REGION_READ,
        raw.region_range(BAR0, 0, 0),
        raw.region_range(BAR0, 0, 0),
    ),
    "REGION_READ of nothing at the end": (
        raw.REGION_READ,
        raw.region_range(BAR0, PAGE, 0),
        raw.region_range(BAR0, PAGE, 0),
    ),
    "REGION_WRITE": (
        raw.REGION_WRITE,
        raw.register_write(BAR0, TEST_SCRATCH, bytes(8)),
        raw.region_range(BAR0, TEST_SCRATCH, 8),
    ),
    "REGION_WRITE of nothing": (
        raw.REGION_WRITE,
        raw.register_write(BAR0, TEST_SCRATCH, b""),
        raw.region_range(BAR0, TEST_SCRATCH, 0),
    ),
    "REGION_WRITE_MULTI": (
        raw.WRITE_MULTI,
        raw.write_multi((BAR0, TEST_SCRATCH, b"\1"), (BAR2, 0, bytes(8))),
        struct.pack("<Q", 2),
    ),
    "REGION_WRITE_MULTI of nothing": (raw.WRITE_MULTI, raw.write_multi(), bytes(8)),
    "DEVICE_RESET": (raw.RESET, b"", b""),
}


@pytest.mark.parametrize(("command", "payload", "expected"), REPLIES.values(), ids=REPLIES)
def test_a_reply_has_exactly_what_the_specification_says(
    tester: RawClient, command: int, payload: bytes, expected: bytes
) -> None:
    reply = tester.done(command, payload)
    assert (reply.payload, reply.fds) == (expected, ())
    assert in_step(tester)


# Errors; those of one command's own arguments stand in test_raw_client.py

REFUSED = {
    "a read of nothing in a BAR that is not there": (
        raw.REGION_READ,
        raw.region_range(3, 0, 0),
        errno.EINVAL,
    ),
    "a read of nothing in region 9": (raw.REGION_READ, raw.region_range(9, 0, 0), errno.EINVAL),
    "a read of nothing in the VGA region": (
        raw.REGION_READ,
        raw.region_range(8, 0, 0),
        errno.EINVAL,
    ),
    "a read of nothing behind the end": (
        raw.REGION_READ,
        raw.region_range(BAR0, PAGE + 1, 0),
        errno.EINVAL,
    ),
    "a write of nothing in region 9": (
        raw.REGION_WRITE,
        raw.register_write(9, 0, b""),
        errno.EINVAL,
    ),
    "a write of more than max_data_xfer_size": (
        raw.REGION_WRITE,
        raw.register_write(BAR2, 0, bytes((1 << 20) + 1)),
        errno.EINVAL,
    ),
    "eventfds that unmask": (
        raw.SET_IRQS,
        raw.irq_set(raw.EVENTFD | raw.UNMASK, raw.INTX, 0, 1),
        errno.ENOTSUP,
    ),
    "eventfds that mask": (
        raw.SET_IRQS,
        raw.irq_set(raw.EVENTFD | raw.MASK, raw.INTX, 0, 1),
        errno.ENOTSUP,
    ),
    "SET_IRQS, argsz 19": (
        raw.SET_IRQS,
        struct.pack("<IIIII", 19, raw.NONE | raw.TRIGGER, raw.MSIX, 0, 0),
        errno.EINVAL,
    ),
    "SET_IRQS cut short": (raw.SET_IRQS, bytes(19), errno.EINVAL),
    "a feature": (raw.DEVICE_FEATURE, feature(GET | LOW_POWER), errno.ENOTSUP),
    "a probe of a feature": (raw.DEVICE_FEATURE, feature(PROBE | LOW_POWER), errno.ENOTSUP),
    "a method of a feature": (raw.DEVICE_FEATURE, feature(SET | MIGRATION), errno.ENOTSUP),
    "a probe of a method": (raw.DEVICE_FEATURE, feature(PROBE | SET | MIGRATION), errno.ENOTSUP),
    "a feature without a method": (raw.DEVICE_FEATURE, feature(MIGRATION), errno.EINVAL),
    "get and set": (raw.DEVICE_FEATURE, feature(GET | SET | STATE, bytes(8)), errno.EINVAL),
    "a flag": (raw.DEVICE_FEATURE, feature(GET | MIGRATION | 1 << 19), errno.EINVAL),
    "migration data to read": (raw.MIG_DATA_READ, MIG_READ, errno.EINVAL),
    "migration data to write": (raw.MIG_DATA_WRITE, MIG_WRITE, errno.EINVAL),
    "a feature, argsz 7": (raw.DEVICE_FEATURE, struct.pack("<II", 7, 1), errno.EINVAL),
    "migration data of another size": (
        raw.MIG_DATA_WRITE,
        struct.pack("<II", 16, 8) + bytes(7),
        errno.EINVAL,
    ),
    "a command of the server's": (raw.DMA_READ, raw.dma_range(0, 8), errno.ENOSYS),
    "another command of the server's": (
        raw.DMA_WRITE,
        raw.dma_range(0, 8, bytes(8)),
        errno.ENOSYS,
    ),
    "the dead command 14": (raw.DIRTY_PAGES, struct.pack("<II", 8, 1), errno.ENOSYS),
}


@pytest.mark.parametrize(("command", "payload", "number"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_gets_a_bare_header_with_the_errno(
    tester: RawClient, command: int, payload: bytes, number: int
) -> None:
    assert tester.refused(command, payload) == number
    assert in_step(tester)


def test_write_multi_stops_at_the_first_write_that_fails(tester: RawClient) -> None:
    writes = [(BAR2, 0, b"\1"), (9, 0, b"\1"), (BAR2, 1, b"\1")]
    tester.write(BAR2, 0, bytes(2))
    reply = tester.done(raw.WRITE_MULTI, raw.write_multi(*writes))
    assert reply.payload == struct.pack("<Q", 1)
    assert tester.read(BAR2, 0, 2) == b"\1\0"


# No_reply


@dataclass(frozen=True)
class Silent:
    """A command without reply.

    :ivar payload: carried out, where the server does.
    :ivar seen: whether it was, as the next commands see it.
    :ivar with_memory: a descriptor goes with it.
    """

    payload: bytes
    seen: Callable[[RawClient], bool] = in_step
    with_memory: bool = False


def _is_mapped(client: RawClient) -> bool:
    return client.refused(raw.DMA_MAP, raw.dma_map(IOVA, PAGE)) == errno.EEXIST


def _is_not_mapped(client: RawClient) -> bool:
    return client.done(raw.DMA_MAP, raw.dma_map(IOVA + PAGE, PAGE)).payload == b""


def _was_reset(client: RawClient) -> bool:
    return client.read(raw.CONFIG, 4, 2) == bytes(2)


SILENT = {
    raw.VERSION: Silent(raw.version()),
    raw.DMA_MAP: Silent(raw.dma_map(IOVA, PAGE), _is_mapped, with_memory=True),
    raw.DMA_UNMAP: Silent(raw.dma_unmap(IOVA + PAGE, PAGE), _is_not_mapped),
    raw.GET_INFO: Silent(raw.device_info(0, 0, 0)),
    raw.GET_REGION_INFO: Silent(raw.region_info(BAR2, 80)),
    raw.GET_REGION_IO_FDS: Silent(IO_FDS),
    raw.GET_IRQ_INFO: Silent(raw.irq_info(0)),
    raw.SET_IRQS: Silent(raw.irq_set(raw.NONE | raw.TRIGGER, raw.MSIX, 0, 0)),
    raw.REGION_READ: Silent(
        raw.region_range(BAR0, TEST_SCRATCH, 8), lambda client: client.read32(BAR0, ACCESSES) == 1
    ),
    raw.REGION_WRITE: Silent(
        raw.register_write(BAR0, TEST_SCRATCH, b"\x5a" * 4),
        lambda client: client.read(BAR0, TEST_SCRATCH, 4) == b"\x5a" * 4,
    ),
    raw.DMA_READ: Silent(raw.dma_range(0, 8)),
    raw.DMA_WRITE: Silent(raw.dma_range(0, 8, bytes(8))),
    raw.RESET: Silent(b"", _was_reset),
    raw.WRITE_MULTI: Silent(
        raw.write_multi((BAR0, TEST_SCRATCH, b"\1"), (BAR0, TEST_SCRATCH + 1, b"\2")),
        lambda client: client.read(BAR0, TEST_SCRATCH, 2) == b"\1\2",
    ),
    raw.DEVICE_FEATURE: Silent(feature(GET | MIGRATION)),
    raw.MIG_DATA_READ: Silent(MIG_READ),
    raw.MIG_DATA_WRITE: Silent(MIG_WRITE),
}


def test_every_command_is_looked_at() -> None:
    assert set(SILENT) == set(COMMANDS)


@pytest.mark.parametrize("command", SILENT, ids=lambda command: COMMANDS[command].command.name)
def test_a_command_without_reply_is_carried_out_and_not_answered(
    tester: RawClient, command: int
) -> None:
    silent = SILENT[command]
    tester.enable_bus_master()
    tester.done(raw.DMA_MAP, raw.dma_map(IOVA + PAGE, PAGE))
    with memfd(PAGE) as fd:
        fds = [fd] if silent.with_memory else []
        tester.send(raw.frame(command, silent.payload, flags=raw.NO_REPLY), fds)
    assert silent.seen(tester)  # the next answer is that of the next command
    assert tester.quiet(0.01)


@pytest.mark.parametrize("command", SILENT, ids=lambda command: COMMANDS[command].command.name)
def test_a_command_without_reply_is_not_answered_where_it_fails_either(
    tester: RawClient, testdev_server: ServerProcess, command: int
) -> None:
    before = open_fds(testdev_server.pid)
    with eventfds(2) as fds:
        tester.send(raw.frame(command, b"\xff" * 3, flags=raw.NO_REPLY), fds)
    assert in_step(tester)
    assert open_fds(testdev_server.pid) == before


def test_set_irqs_without_reply_keeps_its_eventfds(tester: RawClient) -> None:
    with eventfds(2) as fds:
        request = raw.irq_set(EVENTFDS, raw.MSIX, 0, 2)
        tester.send(raw.frame(raw.SET_IRQS, request, flags=raw.NO_REPLY), fds)
        tester.enable_bus_master()
        tester.write32(BAR0, TEST_FIRE, 1)
        assert [fired(fd, 0) for fd in fds] == [0, 1]


def test_version_without_reply_is_enough_to_be_served(testdev_server: ServerProcess) -> None:
    with RawClient(testdev_server.path) as client:
        client.send(raw.frame(raw.VERSION, raw.version(), flags=raw.NO_REPLY))
        assert in_step(client)


def test_version_without_reply_makes_no_twin_socket(testdev_server: ServerProcess) -> None:
    with RawClient(testdev_server.path) as client:
        client.send(raw.frame(raw.VERSION, raw.version(text=TWIN), flags=raw.NO_REPLY))
        request = have_test_device_ask(client)  # on the main socket
        client.send(raw.refusal(request, errno.EFAULT))
        assert finish_test_dma(client) == errno.EFAULT


def test_a_bad_version_without_reply_ends_the_connection(testdev_server: ServerProcess) -> None:
    with RawClient(testdev_server.path) as client:
        client.send(raw.frame(raw.VERSION, raw.version(major=1), flags=raw.NO_REPLY))
        assert client.ended()


# Ends of a client ("Client Disconnection")


def test_posted_writes_of_a_client_that_leaves_at_once_are_carried_out(
    testdev_server: ServerProcess,
) -> None:
    with RawClient(testdev_server.path) as client:
        client.negotiate()
        client.done(raw.RESET)
        for number in range(100):
            write = raw.register_write(BAR0, TEST_SCRATCH, struct.pack("<Q", number))
            client.send(raw.frame(raw.REGION_WRITE, write, flags=raw.NO_REPLY))
    with RawClient(testdev_server.path) as following:
        following.negotiate()
        assert following.read32(BAR0, ACCESSES) == 100
        assert following.read(BAR0, TEST_SCRATCH, 8) == struct.pack("<Q", 99)


def test_a_client_without_capabilities_gets_the_defaults_of_the_specification(
    testdev_server: ServerProcess,
) -> None:
    with RawClient(testdev_server.path) as client:
        client.negotiate(b"")
        # max_msg_fds is 1 then, so one sub-region of two is listed.
        reply = client.done(raw.GET_REGION_IO_FDS, IO_FDS)
        assert reply.words("IIII")[3] == 1
        for fd in reply.fds:
            os.close(fd)
        assert len(reply.fds) == 1
