# SPDX-License-Identifier: BSD-3-Clause
"""What an outside server sees of our client, and what our client makes of a server that lies.

Whatever a server sends, the outcome is a valid result or an error of :mod:`pyvfio.errors` in
bounded time; the connection stays in step or is given up, and no descriptor stays behind.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

import pyvfio
from pyvfio.errors import (
    ConnectionLost,
    DeviceClosed,
    DMABatchError,
    DMAError,
    IRQError,
    NegotiationError,
    OperationError,
    ProtocolError,
    RegionError,
    RemoteProtocolError,
    VFIOTimeout,
)
from pyvfio.pci.bars import BAR
from pyvfio.pci.device import PCIDevice
from pyvfio.transport.exchange import WINDOW
from pyvfio.uapi.vfio import DMAMapFlags
from tests.fault import raw
from tests.fault.raw import Message, RawServer, answer, unhex
from tests.support import ROOT, eventually, in_threads, open_fds, resident

pytestmark = pytest.mark.usefixtures("way")

PAGE = 4096
TIMEOUT = 0.3
READ_WRITE = raw.READABLE | raw.WRITABLE
MAPPED = READ_WRITE | raw.MAPPABLE


@pytest.fixture
def server(socket_folder: Path) -> Iterator[RawServer]:
    with RawServer(socket_folder / "raw.sock") as server:
        yield server


@pytest.fixture
def device(server: RawServer) -> Iterator[PCIDevice]:
    """Its writes are waited for, so that what answers them is seen."""
    with pyvfio.open(server.uri, posted_writes=False) as dev:
        yield dev


def once(server: RawServer, command: int, handler: raw.Handler) -> None:
    """Have the next command of a kind handled in another way; those after it as ever."""

    def handle(message: Message) -> None:
        del server.handlers[command]
        handler(message)

    server.handlers[command] = handle


def sends(server: RawServer, make: Callable[[Message], bytes]) -> raw.Handler:
    """A handler that sends what ``make`` makes of the command."""
    return lambda message: server.peer.send(make(message))


def ignore(message: Message) -> None:
    """A handler that never answers."""


def in_step(device: PCIDevice, server: RawServer) -> bool:
    """Whether the next answer is that to the next question."""
    server.memory[0][0x10:0x14] = os.urandom(4)
    return device.bars[0].read_bytes(0x10, 4) == server.memory[0][0x10:0x14]


@contextmanager
def memfd(size: int) -> Iterator[int]:
    fd = os.memfd_create("raw")
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


# What the client sends


def test_version_is_the_first_message(server: RawServer) -> None:
    pyvfio.open(server.uri).close()
    assert server.seen[0].data == (
        unhex("00000100 ca000000 00000000 00000000 | 00000100")
        + b'{"capabilities":{"max_msg_fds":64,"max_data_xfer_size":1048576,'
        b'"max_dma_maps":65535,"pgsizes":4096,"write_multiple":true,'
        b'"pyvfio_long_writes":true,"twin_socket":{"supported":true}}}\0'
    )


def test_no_twin_socket_is_offered_where_none_is_wanted(server: RawServer) -> None:
    pyvfio.open(server.uri, twin_socket=False).close()
    assert b"twin" not in server.seen[0].data


def test_get_info_is_the_second_message(server: RawServer) -> None:
    pyvfio.open(server.uri).close()
    assert server.seen[1].data == unhex(
        "01000400 20000000 00000000 00000000 | 10000000 00000000 00000000 00000000"
    )


def test_get_region_info(server: RawServer) -> None:
    pyvfio.open(server.uri).close()
    assert server.seen[2].data == unhex(
        "02000500 30000000 00000000 00000000 | 20000000 00000000 07000000 00000000"
        " 00000000 00000000 00000000 00000000"
    )


def test_region_read(server: RawServer, device: PCIDevice) -> None:
    device.bars[0].read32(0x20)
    assert server.last(raw.REGION_READ).data[2:] == unhex(
        "0900 20000000 00000000 00000000 | 20000000 00000000 00000000 04000000"
    )


def test_region_write(server: RawServer, device: PCIDevice) -> None:
    device.bars[0].write32(0x20, 0x12345678)
    assert server.last(raw.REGION_WRITE).data[2:] == unhex(
        "0a00 24000000 00000000 00000000 | 20000000 00000000 00000000 04000000 78563412"
    )


def test_a_posted_write_asks_for_no_reply(server: RawServer, device: PCIDevice) -> None:
    device.bars[0].posted = True
    device.bars[0].write32(0x10, 0xEFBEADDE)
    assert device.bars[0].read32(0x10) == 0xEFBEADDE
    assert server.last(raw.REGION_WRITE).data[2:] == unhex(
        "0a00 24000000 10000000 00000000 | 10000000 00000000 00000000 04000000 deadbeef"
    )


def test_reset(server: RawServer, device: PCIDevice) -> None:
    device.base.reset()
    assert server.last(raw.RESET).data[2:] == unhex("0d00 10000000 00000000 00000000")


def test_dma_map_and_its_descriptor(server: RawServer, device: PCIDevice) -> None:
    with device.dma.alloc(PAGE) as buffer:
        message = server.last(raw.DMA_MAP)
        assert message.payload == raw.dma_map(buffer.iova, PAGE)
        assert len(message.fds) == 1


def test_dma_unmap(server: RawServer, device: PCIDevice) -> None:
    with device.dma.alloc(PAGE) as buffer:
        iova = buffer.iova
    assert server.last(raw.DMA_UNMAP).payload == raw.dma_unmap(iova, PAGE)


def test_no_descriptor_of_memory_goes_to_a_server_in_secure_dma(server: RawServer) -> None:
    with pyvfio.open(server.uri, secure_dma=True) as device:
        memory = pyvfio.SharedMemory(2 * PAGE)
        iova = device.dma.map(memory, offset=PAGE)
        message = server.last(raw.DMA_MAP)
        assert (message.payload, message.fds) == (raw.dma_map(iova, PAGE, offset=0), ())
        memory.array[PAGE:] = 0x5A
        reply = server.ask(raw.DMA_READ, raw.dma_range(iova, PAGE))
        assert reply.payload == raw.dma_range(iova, PAGE, b"\x5a" * PAGE)
        device.dma.unmap(iova, PAGE)
        memory.close()


BATCH = 100


def test_maps_of_a_batch_do_not_wait_for_each_other(server: RawServer, device: PCIDevice) -> None:
    unanswered: list[Message] = []

    def take(message: Message) -> None:
        unanswered.append(message)
        if len(unanswered) == WINDOW // 2:  # the client need not send more: answer them all
            for waiting in unanswered:
                server.peer.send(answer(waiting))
            unanswered.clear()

    server.handlers[raw.DMA_MAP] = take
    with pyvfio.SharedMemory(PAGE) as memory, device.dma.batch():
        for _ in range(2 * WINDOW):
            device.dma.map(memory)
    assert len(device.dma.mappings) == 2 * WINDOW


def note_inodes(server: RawServer) -> list[int]:
    """Of the files that are mapped from now on."""
    inodes: list[int] = []

    def note(message: Message) -> None:
        inodes.append(os.fstat(message.fds[0]).st_ino)
        server.serve(message)

    server.handlers[raw.DMA_MAP] = note
    return inodes


def test_a_descriptor_may_be_closed_when_many_maps_of_it_are_in_a_batch(
    server: RawServer, device: PCIDevice
) -> None:
    inodes = note_inodes(server)
    memory = pyvfio.SharedMemory(BATCH * PAGE)
    inode = os.fstat(memory.fd).st_ino
    offsets = [PAGE * page for page in range(BATCH)]
    with device.dma.batch():
        device.dma.map_many(memory, [0x10000 + offset for offset in offsets], offsets, PAGE)
        memory.close()
    assert inodes == BATCH * [inode]


def test_a_descriptor_may_be_closed_when_its_map_is_in_a_batch(
    server: RawServer, device: PCIDevice
) -> None:
    inodes = note_inodes(server)
    expected = []
    with device.dma.batch():
        for _ in range(BATCH):
            memory = pyvfio.SharedMemory(PAGE)
            expected.append(os.fstat(memory.fd).st_ino)
            device.dma.map(memory)
            memory.close()
    assert inodes == expected


def refuse_some(server: RawServer) -> None:
    """Every third map is refused."""
    numbers = itertools.count()

    def handle(message: Message) -> None:
        if next(numbers) % 3:
            server.serve(message)
        else:
            server.peer.send(raw.refusal(message, errno.ENOSPC))

    server.handlers[raw.DMA_MAP] = handle


def test_a_batch_tells_of_every_map_that_was_refused(server: RawServer, device: PCIDevice) -> None:
    refuse_some(server)
    iovas: list[int] = []
    with pyvfio.SharedMemory(PAGE) as memory, pytest.raises(DMABatchError) as caught:
        map_batch(device, memory, iovas)
    failures = [(f.iova, f.size, f.errno) for f in caught.value.failures if isinstance(f, DMAError)]
    assert failures == [(iova, PAGE, errno.ENOSPC) for iova in iovas[::3]]
    assert {entry.iova for entry in device.dma.mappings} == set(iovas) - set(iovas[::3])


def map_batch(device: PCIDevice, memory: pyvfio.SharedMemory, iovas: list[int]) -> None:
    with device.dma.batch():
        iovas.extend(device.dma.map(memory) for _ in range(BATCH))


def test_a_batch_that_is_never_answered_ends_in_one_time_out(server: RawServer) -> None:
    with pyvfio.open(server.uri, timeout=TIMEOUT) as device:
        server.handlers[raw.DMA_MAP] = ignore
        start = time.monotonic()
        with pyvfio.SharedMemory(PAGE) as memory, pytest.raises(DMABatchError) as caught:
            map_batch(device, memory, [])
        assert time.monotonic() - start < 10 * TIMEOUT
        assert all(isinstance(failure, VFIOTimeout) for failure in caught.value.failures)
        assert len(caught.value.failures) == BATCH
        assert in_step(device, server)


def test_a_batch_ends_with_the_connection(server: RawServer, device: PCIDevice) -> None:
    once(server, raw.DMA_MAP, lambda _: server.hang_up())
    with pyvfio.SharedMemory(PAGE) as memory, pytest.raises(ConnectionLost, match="batch"):
        map_batch(device, memory, [])
    assert device.dma.mappings == ()


LONG_WRITES = b'{"capabilities":{"pyvfio_long_writes":true,"max_data_xfer_size":65536}}\0'


@pytest.mark.parametrize(
    ("text", "sizes"),
    [(raw.JSON, [32768, 32768, 32768, 1696]), (LONG_WRITES, [65536, 34464])],
    ids=["unknown server", "server that takes them"],
)
def test_long_writes_are_cut_as_the_server_can_take_them(
    server: RawServer, text: bytes, sizes: list[int]
) -> None:
    server.capabilities = text
    server.regions[0] = (READ_WRITE, 1 << 20)
    server.memory[0] = bytearray(1 << 20)
    with pyvfio.open(server.uri) as device:
        data = os.urandom(sum(sizes))
        device.bars[0].write_bytes(0, data)
        device.flush()
    assert [len(found) for _, _, found in writes(server)] == sizes
    assert server.memory[0][: len(data)] == data


def test_no_descriptor_goes_to_a_server_that_takes_none(server: RawServer) -> None:
    server.capabilities = b'{"capabilities":{"max_msg_fds":0}}\0'
    with pyvfio.open(server.uri) as device, device.dma.alloc(PAGE):
        assert server.last(raw.DMA_MAP).fds == ()


def irq_messages(server: RawServer) -> list[tuple[int, int, int, int]]:
    """(flags, start, count, descriptors) of each SET_IRQS."""
    found = []
    for message in server.seen:
        if message.command == raw.SET_IRQS:
            _, flags, _, start, count = message.words("IIIII")
            found.append((flags, start, count, len(message.fds)))
    return found


def test_eventfds_are_split_as_the_server_takes_them(server: RawServer) -> None:
    server.capabilities = b'{"capabilities":{"max_msg_fds":2}}\0'
    enable = raw.EVENTFD | raw.TRIGGER
    with pyvfio.open(server.uri) as device, device.msi.enable(5):
        assert irq_messages(server) == [(enable, 0, 2, 2), (enable, 2, 2, 2), (enable, 4, 1, 1)]


def test_one_descriptor_a_message_where_the_server_says_nothing(server: RawServer) -> None:
    server.capabilities = b""
    enable = raw.EVENTFD | raw.TRIGGER
    with pyvfio.open(server.uri) as device, device.msi.enable(2):
        assert irq_messages(server) == [(enable, 0, 1, 1), (enable, 1, 1, 1)]


def test_interrupts_need_a_server_that_takes_descriptors(server: RawServer) -> None:
    server.capabilities = b'{"capabilities":{"max_msg_fds":0}}\0'
    with (
        pyvfio.open(server.uri) as device,
        pytest.raises(IRQError, match="E2BIG"),
    ):
        device.msi.enable(1)


def test_closing_an_irq_set_disables_the_index(server: RawServer, device: PCIDevice) -> None:
    device.msi.enable(2).close()
    assert server.last(raw.SET_IRQS).payload == raw.irq_set(raw.NONE | raw.TRIGGER, raw.MSI, 0, 0)


def test_long_reads_are_split_as_the_server_takes_them(server: RawServer) -> None:
    server.capabilities = b'{"capabilities":{"max_data_xfer_size":1024}}\0'
    with pyvfio.open(server.uri) as device:
        device.bars[0].read_bytes(0, 2500)
    assert [m.words("QII") for m in server.seen[-3:]] == [
        (0, 0, 1024),
        (1024, 0, 1024),
        (2048, 0, 452),
    ]


# Answers that are good, but not the way they usually come


def test_answers_may_come_byte_by_byte(server: RawServer) -> None:
    def trickle(message: Message) -> None:
        for byte in answer(message, server.payload_for(message)):
            server.peer.send(bytes([byte]))

    for command in (raw.VERSION, raw.GET_INFO, raw.GET_REGION_INFO, raw.REGION_READ):
        server.handlers[command] = trickle
    with pyvfio.open(server.uri) as device:
        assert in_step(device, server)


def test_a_refusal_may_have_a_payload(server: RawServer, device: PCIDevice) -> None:
    def refuse(message: Message) -> None:
        flags, number = raw.ERROR_REPLY, message.number
        payload = message.payload
        server.peer.send(
            raw.frame(message.command, payload, number=number, flags=flags, error=errno.EIO)
        )

    once(server, raw.REGION_WRITE, refuse)
    with pytest.raises(RegionError, match="EIO"):
        device.bars[0].write32(0, 1)
    assert in_step(device, server)


def test_a_refusal_without_errno_is_eio(server: RawServer, device: PCIDevice) -> None:
    once(server, raw.REGION_READ, sends(server, lambda message: raw.refusal(message, 0)))
    with pytest.raises(RegionError) as caught:
        device.bars[0].read32(0)
    assert caught.value.errno == errno.EIO


@pytest.mark.timeout(10)
@pytest.mark.parametrize("number", [4096, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_refusal_with_an_errno_that_does_not_exist_is_an_error(
    server: RawServer, device: PCIDevice, number: int
) -> None:
    once(server, raw.REGION_READ, sends(server, lambda message: raw.refusal(message, number)))
    with pytest.raises(RegionError):
        device.bars[0].read32(0)
    assert in_step(device, server)


def test_answers_may_come_in_any_order_with_commands_between(
    server: RawServer, device: PCIDevice
) -> None:
    threads, rounds = 6, 50
    held: list[Message] = []
    wrong: list[int] = []

    def hold(message: Message) -> None:
        held.append(message)
        if len(held) == threads:
            command = raw.frame(raw.DMA_READ, raw.dma_range(0, 4))
            server.peer.send(command.join(answer(m, server.payload_for(m)) for m in reversed(held)))
            held.clear()

    def read(offset: int) -> None:
        for _ in range(rounds):
            if bar.read32(offset) != offset:
                wrong.append(offset)

    bar = device.bars[0]
    for offset in range(0, 4 * threads, 4):
        bar.write32(offset, offset)
    server.handlers[raw.REGION_READ] = hold
    for thread in in_threads(partial(read, 4 * n) for n in range(threads)):
        thread.join()
    assert wrong == []
    assert eventually(lambda: server.replies.qsize() == rounds * (threads - 1))


def test_a_short_read_is_an_error(server: RawServer, device: PCIDevice) -> None:
    def short(message: Message) -> bytes:
        return answer(message, raw.region_range(0, 0, 2, b"ab"))

    once(server, raw.REGION_READ, sends(server, short))
    with pytest.raises(RegionError, match="2 of 4 bytes"):
        device.bars[0].read32(0)
    assert in_step(device, server)


# VERSION


@pytest.mark.parametrize(("major", "minor"), [(1, 0), (0xFFFF, 0), (0, 2), (0, 0xFFFF)])
def test_another_version_is_no_agreement(server: RawServer, major: int, minor: int) -> None:
    payload = raw.version(major, minor)
    server.handlers[raw.VERSION] = sends(server, lambda message: answer(message, payload))
    with pytest.raises(NegotiationError, match=f"{major}.{minor}"):
        pyvfio.open(server.uri)


def test_a_server_that_refuses_version_is_no_agreement(server: RawServer) -> None:
    refuse = sends(server, lambda message: raw.refusal(message, errno.EINVAL))
    server.handlers[raw.VERSION] = refuse
    with pytest.raises(NegotiationError):
        pyvfio.open(server.uri)


BAD_JSON = {
    "not JSON": b"hello\0",
    "not closed": b"{\0",
    "no NUL": b"{}",
    "an array": b"[]\0",
    "null": b"null\0",
    "capabilities null": b'{"capabilities":null}\0',
    "a number as a string": b'{"capabilities":{"max_msg_fds":"8"}}\0',
    "a number as a boolean": b'{"capabilities":{"max_msg_fds":true}}\0',
    "a fraction": b'{"capabilities":{"max_data_xfer_size":4096.5}}\0',
    "infinity": b'{"capabilities":{"max_data_xfer_size":Infinity}}\0',
    "negative": b'{"capabilities":{"max_dma_maps":-1}}\0',
    "no maps": b'{"capabilities":{"max_dma_maps":0}}\0',
    "no data": b'{"capabilities":{"max_data_xfer_size":0}}\0',
    "no pages": b'{"capabilities":{"pgsizes":0}}\0',
    "2^64 pages": b'{"capabilities":{"pgsizes":18446744073709551616}}\0',
    "write_multiple 1": b'{"capabilities":{"write_multiple":1}}\0',
    "twin true": b'{"capabilities":{"twin_socket":true}}\0',
    "twin supported 1": b'{"capabilities":{"twin_socket":{"supported":1}}}\0',
    "twin index -1": b'{"capabilities":{"twin_socket":{"supported":true,"fd_index":-1}}}\0',
    "twin index a string": b'{"capabilities":{"twin_socket":{"supported":true,"fd_index":"0"}}}\0',
    "twice": b'{"capabilities":{"pgsizes":4096,"pgsizes":8192}}\0',
    "not UTF-8": b'{"\xff\xfe":1}\0',
    "deep": b"[" * 30000 + b"\0",
    "a number of 5000 digits": b'{"capabilities":{"pgsizes":' + b"9" * 5000 + b"}}\0",
}


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON)
def test_bad_version_json_breaks_the_protocol(server: RawServer, text: bytes) -> None:
    server.capabilities = text
    with pytest.raises(RemoteProtocolError, match="VERSION"):
        pyvfio.open(server.uri)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}\0",
        b'{"capabilities":{}}\0',
        b'{"capabilities":{"max_msg_fds":4294967296,"max_data_xfer_size":4294967296}}\0',
        b'{"capabilities":{"unknown":[1,2,{}]},"more":"of it"}\0',
        b'{"capabilities":{"migration":{"pgsize":4096},"twin_socket":{"supported":false}}}\0',
    ],
)
def test_unusual_version_json_is_understood(server: RawServer, text: bytes) -> None:
    server.capabilities = text
    with pyvfio.open(server.uri) as device:
        assert in_step(device, server)


@pytest.mark.parametrize("payload", [b"", bytes(3)])
def test_a_version_cut_short_breaks_the_protocol(server: RawServer, payload: bytes) -> None:
    server.handlers[raw.VERSION] = sends(server, lambda message: answer(message, payload))
    with pytest.raises(RemoteProtocolError):
        pyvfio.open(server.uri)


def test_a_server_that_hangs_up_before_version_is_lost(server: RawServer) -> None:
    server.handlers[raw.VERSION] = lambda _: server.hang_up()
    with pytest.raises(ConnectionLost):
        pyvfio.open(server.uri)


# The twin socket


def twin_reply(text: bytes, fds: Sequence[int]) -> Callable[[RawServer], raw.Handler]:
    """A server that answers VERSION with descriptors."""

    def make(server: RawServer) -> raw.Handler:
        return lambda message: server.peer.send(answer(message, raw.version(text=text)), fds)

    return make


TWIN_0 = b'{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}\0'


def test_dma_is_served_on_the_twin_socket(server: RawServer) -> None:
    ours, theirs = socket.socketpair()
    with raw.Peer(ours) as twin, theirs:
        server.handlers[raw.VERSION] = twin_reply(TWIN_0, [theirs.fileno()])(server)
        with pyvfio.open(server.uri) as device, device.dma.alloc(PAGE) as buffer:
            buffer.array[:4] = list(b"twin")
            twin.send(raw.frame(raw.DMA_READ, raw.dma_range(buffer.iova, 4)))
            assert twin.receive().payload == raw.dma_range(buffer.iova, 4, b"twin")


@pytest.mark.parametrize(
    ("twin", "sockets"),
    [
        (b'{"supported":true,"fd_index":1}', 1),
        (b'{"supported":true,"fd_index":252}', 1),
        (b'{"supported":true,"fd_index":0}', 0),
        (b'{"supported":true,"fd_index":0}', 2),
        (b'{"supported":true}', 1),
        (b'{"supported":false}', 1),
        (b"{}", 1),
    ],
    ids=[
        "another index",
        "an index far out",
        "no descriptor",
        "two descriptors",
        "no index",
        "a descriptor though unsupported",
        "a descriptor that is not announced",
    ],
)
def test_a_twin_socket_that_contradicts_itself_is_no_agreement(
    server: RawServer, twin: bytes, sockets: int
) -> None:
    text = b'{"capabilities":{"twin_socket":' + twin + b"}}\0"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server.handlers[raw.VERSION] = twin_reply(text, [theirs.fileno()] * sockets)(server)
        before = len(open_fds())
        with pytest.raises(NegotiationError):
            pyvfio.open(server.uri)
        assert len(open_fds()) <= before + 1  # the server's end of the connection


def test_a_descriptor_with_version_that_nobody_asked_for_is_no_agreement(
    server: RawServer,
) -> None:
    with memfd(PAGE) as fd:
        server.handlers[raw.VERSION] = twin_reply(raw.JSON, [fd])(server)
        with pytest.raises(NegotiationError):
            pyvfio.open(server.uri)


def test_a_twin_socket_that_was_not_offered_is_no_agreement(server: RawServer) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server.handlers[raw.VERSION] = twin_reply(TWIN_0, [theirs.fileno()])(server)
        with pytest.raises(NegotiationError):
            pyvfio.open(server.uri, twin_socket=False)


def test_a_twin_that_is_no_socket_is_no_agreement(server: RawServer) -> None:
    with memfd(PAGE) as fd:
        server.handlers[raw.VERSION] = twin_reply(TWIN_0, [fd])(server)
        with pytest.raises(NegotiationError, match="no socket"):
            pyvfio.open(server.uri)


# Answers that do not come, or come late


def timed(action: Callable[[], object]) -> float:
    """Seconds until an action ends in a time-out."""
    start = time.monotonic()
    with pytest.raises(VFIOTimeout):
        action()
    return time.monotonic() - start


def test_open_of_a_server_that_never_answers_times_out(server: RawServer) -> None:
    server.handlers[raw.VERSION] = ignore
    assert TIMEOUT <= timed(lambda: pyvfio.open(server.uri, timeout=TIMEOUT)) < 3 * TIMEOUT


def test_open_of_a_server_that_accepts_nobody_times_out(socket_folder: Path) -> None:
    path = socket_folder / "full.sock"
    clients = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        try:
            for _ in range(2):
                clients.append(socket.socket(socket.AF_UNIX))
                clients[-1].setblocking(False)
                clients[-1].connect_ex(str(path))
            spent = timed(lambda: pyvfio.open(f"vfio-user:{path}", timeout=TIMEOUT))
        finally:
            for client in clients:
                client.close()
            path.unlink()
    assert TIMEOUT <= spent < 3 * TIMEOUT


def test_a_read_that_is_never_answered_times_out(server: RawServer) -> None:
    with pyvfio.open(server.uri, timeout=TIMEOUT) as device:
        bar = device.bars[0]
        server.handlers[raw.REGION_READ] = ignore
        assert TIMEOUT <= timed(lambda: bar.read32(0)) < 3 * TIMEOUT


def test_a_late_reply_is_drained(server: RawServer) -> None:
    late: list[Message] = []
    with pyvfio.open(server.uri, timeout=TIMEOUT) as device:
        bar = device.bars[0]
        once(server, raw.REGION_READ, late.append)
        timed(lambda: bar.read32(0))
        server.peer.send(answer(late[0], raw.region_range(0, 0, 4, b"late")))
        assert in_step(device, server)


def test_a_late_reply_may_take_its_descriptor_along(server: RawServer) -> None:
    late: list[Message] = []
    with pyvfio.open(server.uri, timeout=TIMEOUT) as device, memfd(PAGE) as fd:
        before = len(open_fds())
        once(server, raw.GET_REGION_INFO, late.append)
        timed(lambda: device.base.region(8))
        server.peer.send(answer(late[0], raw.region_info(8, size=PAGE, flags=MAPPED)), [fd])
        assert in_step(device, server)
        assert len(open_fds()) == before


def test_a_late_refusal_is_drained(server: RawServer) -> None:
    late: list[Message] = []
    with pyvfio.open(server.uri, timeout=TIMEOUT, posted_writes=False) as device:
        bar = device.bars[0]
        once(server, raw.REGION_WRITE, late.append)
        timed(lambda: bar.write32(0, 1))
        server.peer.send(raw.refusal(late[0], errno.EIO))
        assert in_step(device, server)


def test_a_half_sent_reply_times_out_and_is_drained(server: RawServer) -> None:
    late: list[Message] = []

    def half(message: Message) -> None:
        late.append(message)
        server.peer.send(answer(message, raw.region_range(0, 0, 4, b"half"))[:20])

    with pyvfio.open(server.uri, timeout=TIMEOUT) as device:
        bar = device.bars[0]
        once(server, raw.REGION_READ, half)
        timed(lambda: bar.read32(0))
        server.peer.send(answer(late[0], raw.region_range(0, 0, 4, b"half"))[20:])
        assert in_step(device, server)


def test_a_read_that_is_interrupted_leaves_the_stream_in_step(
    server: RawServer, device: PCIDevice
) -> None:
    late: list[Message] = []

    def interrupt(message: Message) -> None:
        late.append(message)
        time.sleep(0.1)  # until the client has sent and waits
        os.kill(os.getpid(), signal.SIGINT)

    bar = device.bars[0]
    once(server, raw.REGION_READ, interrupt)
    with pytest.raises(KeyboardInterrupt):
        bar.read32(0)
    server.peer.send(answer(late[0], raw.region_range(0, 0, 4, b"late")))
    assert in_step(device, server)


def test_close_does_not_wait_for_a_server_that_does_not_answer(server: RawServer) -> None:
    device = pyvfio.open(server.uri, timeout=60)
    server.handlers[raw.SET_IRQS] = ignore
    device.close()
    assert device.closed


def test_close_ends_the_wait_of_another_thread(server: RawServer) -> None:
    device = pyvfio.open(server.uri, timeout=60)
    bar = device.bars[0]
    asked = threading.Event()
    server.handlers[raw.REGION_READ] = lambda _: asked.set()
    found: list[Exception] = []

    def read() -> None:
        try:
            bar.read32(0)
        except pyvfio.VFIOError as error:
            found.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert asked.wait(raw.SECONDS)
    device.close()
    thread.join(raw.SECONDS)
    assert [type(error) for error in found] == [pyvfio.DeviceClosed]


def deaf(server: RawServer, device: PCIDevice) -> AbstractContextManager[None]:
    """The server reads nothing for a while."""
    bar = device.bars[0]
    bar.posted = True
    return server.deaf(lambda: bar.write8(0, 0))


def test_posted_writes_to_a_server_that_does_not_read_time_out(server: RawServer) -> None:
    with pyvfio.open(server.uri, timeout=TIMEOUT) as device, deaf(server, device):
        bar = device.bars[0]

        def write_for_ever() -> None:
            while True:
                bar.write_bytes(0, bytes(PAGE))

        timed(write_for_ever)


# Registers that are kicked through eventfds


def io_fds(*entries: bytes, count: int | None = None, argsz: int | None = None) -> bytes:
    """Payload of the reply to DEVICE_GET_REGION_IO_FDS."""
    body = b"".join(entries)
    head = struct.pack(
        "<IIII",
        16 + len(body) if argsz is None else argsz,
        0,
        0,
        len(entries) if count is None else count,
    )
    return head + body


def io_fd(offset: int, size: int, index: int, *, kind: int = 0, match: int | None = None) -> bytes:
    """One entry as the specification has it."""
    return struct.pack("<QQIIIIQ", offset, size, index, kind, int(match is not None), 0, match or 0)


def long_io_fd(offset: int, size: int, index: int, *, match: int | None = None) -> bytes:
    """One entry of 48 bytes, with a shadow offset, as libvfio-user sends it."""
    flags = int(match is not None)
    return struct.pack("<QQIIIIQQ", offset, size, index, 0, flags, 0, 0x5A5A, match or 0)


@pytest.fixture
def eventfds() -> Iterator[list[int]]:
    found = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    yield found
    raw.close(found)


def offers(server: RawServer, payload: bytes, fds: Sequence[int]) -> None:
    """Have the server answer DEVICE_GET_REGION_IO_FDS."""
    server.handlers[raw.GET_REGION_IO_FDS] = lambda message: server.peer.send(
        answer(message, payload), fds
    )


def fired(fd: int) -> int:
    """How often an eventfd was signalled."""
    return raw.fired(fd, 0)


@pytest.mark.parametrize("entry", [io_fd, long_io_fd], ids=["40 bytes", "48 bytes"])
def test_io_eventfds_are_listed_and_kicked(
    server: RawServer, device: PCIDevice, eventfds: list[int], entry: Callable[..., bytes]
) -> None:
    offers(server, io_fds(entry(0x10, 4, 1, match=0x77), entry(0x20, 0, 0)), eventfds)
    matched, plain = device.bars[0].io_eventfds
    assert (matched.offset, matched.size, matched.datamatch) == (0x10, 4, 0x77)
    assert (plain.offset, plain.size, plain.datamatch) == (0x20, 0, None)
    matched.kick()
    matched.kick()
    assert (fired(eventfds[0]), fired(eventfds[1])) == (0, 2)
    plain.kick()
    assert fired(eventfds[0]) == 1


def test_an_eventfd_may_serve_several_registers(
    server: RawServer, device: PCIDevice, eventfds: list[int]
) -> None:
    offers(server, io_fds(io_fd(0, 4, 0), io_fd(4, 4, 0)), eventfds[:1])
    for entry in device.bars[0].io_eventfds:
        entry.kick()
    assert fired(eventfds[0]) == 2


def test_io_eventfds_are_asked_for_once(
    server: RawServer, device: PCIDevice, eventfds: list[int]
) -> None:
    offers(server, io_fds(io_fd(0, 4, 0)), eventfds[:1])
    assert device.bars[0].io_eventfds is device.bars[0].io_eventfds
    assert server.last(raw.GET_REGION_IO_FDS).payload == struct.pack("<IIII", 4096, 0, 0, 0)


def test_a_long_list_is_asked_for_again(
    server: RawServer, device: PCIDevice, eventfds: list[int]
) -> None:
    entries = [io_fd(8 * number, 8, 0) for number in range(200)]

    def handle(message: Message) -> None:
        (argsz,) = message.words("I")
        payload = io_fds(*entries) if argsz >= 16 + 8000 else io_fds(count=200, argsz=8016)
        server.peer.send(answer(message, payload), eventfds)

    server.handlers[raw.GET_REGION_IO_FDS] = handle
    assert [entry.offset for entry in device.bars[0].io_eventfds] == list(range(0, 1600, 8))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_server_without_io_fds_has_none(
    server: RawServer, device: PCIDevice, number: int
) -> None:
    server.handlers[raw.GET_REGION_IO_FDS] = sends(server, lambda m: raw.refusal(m, number))
    assert device.bars[0].io_eventfds == ()


def test_another_refusal_of_io_fds_is_an_error(server: RawServer, device: PCIDevice) -> None:
    server.handlers[raw.GET_REGION_IO_FDS] = sends(server, lambda m: raw.refusal(m, errno.EIO))
    with pytest.raises(RegionError, match="EIO"):
        device.bars[0].io_eventfds  # noqa: B018


def test_descriptors_that_only_kvm_can_use_are_left_alone(
    server: RawServer, device: PCIDevice, eventfds: list[int]
) -> None:
    offers(server, io_fds(io_fd(0, 4, 0, kind=1), io_fd(4, 4, 1, kind=2)), eventfds)
    assert device.bars[0].io_eventfds == ()


BAD_IO_FDS = {
    "outside of the region": [io_fd(PAGE, 4, 0)],
    "across its end": [io_fd(PAGE - 4, 8, 0)],
    "far outside": [io_fd((1 << 64) - 4, 8, 0)],
    "no such descriptor": [io_fd(0, 4, 2)],
    "one good and one bad": [io_fd(0, 4, 0), io_fd(0, 4, 99)],
}


@pytest.mark.parametrize("entries", BAD_IO_FDS.values(), ids=BAD_IO_FDS)
def test_io_fds_that_make_no_sense_are_refused(
    server: RawServer, device: PCIDevice, eventfds: list[int], entries: list[bytes]
) -> None:
    offers(server, io_fds(*entries), eventfds)
    with pytest.raises(RemoteProtocolError):
        device.bars[0].io_eventfds  # noqa: B018
    assert in_step(device, server)


def test_a_descriptor_that_is_no_eventfd_is_refused(server: RawServer, device: PCIDevice) -> None:
    pipe = os.pipe()
    offers(server, io_fds(io_fd(0, 4, 0)), pipe[1:])
    with pytest.raises(RemoteProtocolError, match="no eventfd"):
        device.bars[0].io_eventfds  # noqa: B018
    raw.close(pipe)


def test_a_full_eventfd_does_not_block_a_kick(server: RawServer, device: PCIDevice) -> None:
    full = os.eventfd(0)
    os.eventfd_write(full, (1 << 64) - 2)
    offers(server, io_fds(io_fd(0, 4, 0)), [full])
    device.bars[0].io_eventfds[0].kick()
    os.close(full)


def test_nothing_is_kicked_after_close(server: RawServer, eventfds: list[int]) -> None:
    with pyvfio.open(server.uri) as device:
        offers(server, io_fds(io_fd(0, 4, 0)), eventfds[:1])
        (entry,) = device.bars[0].io_eventfds
    with pytest.raises(DeviceClosed):
        entry.kick()


# Posted writes that wait for the socket

MULTI = b'{"capabilities":{"write_multiple":true}}\0'
MANY = 3000


@pytest.fixture
def slow(server: RawServer) -> Iterator[PCIDevice]:
    """A device whose server takes several writes in a message."""
    server.capabilities = MULTI
    with pyvfio.open(server.uri) as device:
        yield device


def writes(server: RawServer) -> list[tuple[int, int, bytes]]:
    """(region, offset, data) of each write to BAR 0, in the order in which the server took them."""
    found = []
    for message in server.seen:
        if message.command == raw.REGION_WRITE:
            offset, region, _ = message.words("QII")
            found.append((region, offset, message.payload[16:]))
        elif message.command == raw.WRITE_MULTI:
            for at in range(8, len(message.payload), 24):
                offset, region, size = struct.unpack_from("<QII", message.payload, at)
                found.append((region, offset, message.payload[at + 16 :][:size]))
    return [write for write in found if write[0] == 0]


def post_many(bar: BAR, first: int = 0) -> list[tuple[int, int, bytes]]:
    """Post more than a socket holds, in all widths; returns what the server is to see."""
    expected = []
    for number in range(first, first + MANY):
        width = (1, 2, 4, 8)[number % 4]
        value = number & ((1 << 8 * width) - 1)
        bar.write(8 * (number % 500), width, value)
        expected.append((0, 8 * (number % 500), value.to_bytes(width, "little")))
    return expected


def test_writes_that_wait_for_the_socket_go_together(server: RawServer, slow: PCIDevice) -> None:
    with deaf(server, slow):
        expected = post_many(slow.bars[0])
    slow.flush()
    assert writes(server)[1:] == expected
    together = [message for message in server.seen if message.command == raw.WRITE_MULTI]
    assert together
    assert all(message.flags == raw.NO_REPLY for message in together)
    counts = [message.words("Q")[0] for message in together]
    assert max(counts) == 200
    assert [len(message.payload) for message in together] == [8 + 24 * n for n in counts]


def test_writes_go_one_by_one_where_the_socket_takes_them(
    server: RawServer, slow: PCIDevice
) -> None:
    for _ in range(10):
        slow.bars[0].write32(0, 1)
    slow.flush()
    assert raw.WRITE_MULTI not in server.commands()
    assert writes(server) == [(0, 0, b"\1\0\0\0")] * 10


def test_writes_go_one_by_one_to_a_server_that_takes_no_more(server: RawServer) -> None:
    with pyvfio.open(server.uri) as device:
        with deaf(server, device):
            expected = post_many(device.bars[0])
        device.flush()
        assert writes(server)[1:] == expected
        assert raw.WRITE_MULTI not in server.commands()


def test_a_command_stands_behind_the_writes_before_it(server: RawServer, slow: PCIDevice) -> None:
    bar = slow.bars[0]
    with deaf(server, slow):
        expected = post_many(bar)
        bar.write_bytes(0x10, b"longer than eight")
        expected += [(0, 0x10, b"longer than eight"), *post_many(bar, MANY)]
    slow.flush()
    assert writes(server)[1:] == expected
    commands = server.commands()
    between = len(commands) - 1 - commands[::-1].index(raw.REGION_WRITE)
    assert commands[between - 1] == commands[between + 1] == raw.WRITE_MULTI


def test_the_caller_may_change_data_that_waits(server: RawServer, slow: PCIDevice) -> None:
    data = bytearray(8)
    with deaf(server, slow):
        post_many(slow.bars[0])
        slow.bars[0].write_bytes(0x18, data)
        data[:] = b"\xff" * 8
    slow.flush()
    assert writes(server)[-1] == (0, 0x18, bytes(8))


def test_writes_that_wait_are_sent_at_close(server: RawServer) -> None:
    server.capabilities = MULTI
    with pyvfio.open(server.uri) as device, deaf(server, device):
        expected = post_many(device.bars[0])
    assert eventually(lambda: writes(server)[1:] == expected)


def test_a_flush_asks_only_where_something_was_posted(server: RawServer, slow: PCIDevice) -> None:
    sent = len(server.seen)
    slow.flush()
    assert len(server.seen) == sent
    slow.bars[0].write32(0, 1)
    slow.flush()
    slow.flush()
    assert server.commands()[sent:] == [raw.REGION_WRITE, raw.GET_INFO]


def test_a_flush_takes_a_refusal_for_an_answer(server: RawServer, slow: PCIDevice) -> None:
    server.handlers[raw.GET_INFO] = sends(server, lambda m: raw.refusal(m, errno.EINVAL))
    slow.bars[0].write32(0, 1)
    slow.flush()


def test_a_flush_of_a_server_that_does_not_answer_times_out(server: RawServer) -> None:
    with pyvfio.open(server.uri, timeout=TIMEOUT) as device:
        server.handlers[raw.GET_INFO] = ignore
        device.bars[0].write32(0, 1)
        timed(device.flush)


def test_answers_to_a_server_that_does_not_read_are_not_piled_up(server: RawServer) -> None:
    with pyvfio.open(server.uri) as device, device.dma.alloc(1 << 20) as buffer:
        question = raw.frame(raw.DMA_READ, raw.dma_range(buffer.iova, 1 << 20))
        before = resident()
        with deaf(server, device):
            server.peer.send(question * 300)
            time.sleep(1)
            assert resident() - before < 180 << 20


# Answers that break the protocol


BREAKERS: dict[str, Callable[[Message], bytes]] = {
    "unknown id": lambda m: raw.frame(m.command, m.payload, number=m.number + 1, flags=raw.REPLY),
    "another command": lambda m: raw.frame(
        raw.REGION_WRITE, m.payload, number=m.number, flags=raw.REPLY
    ),
    "too long": lambda m: answer(m, m.payload + bytes(5)),
    "much too long": lambda m: struct.pack("<HHIII", m.number, m.command, 0xFFFFFFFF, raw.REPLY, 0),
    "error too long": lambda m: raw.frame(
        m.command, bytes(65536), number=m.number, flags=raw.ERROR_REPLY, error=5
    ),
    "size 15": lambda m: struct.pack("<HHIII", m.number, m.command, 15, raw.REPLY, 0),
    "size 0": lambda m: struct.pack("<HHIII", m.number, m.command, 0, raw.REPLY, 0),
    "type 2": lambda m: raw.frame(m.command, m.payload, number=m.number, flags=2),
    "a command of 2 MiB": lambda _: struct.pack("<HHIII", 0, raw.DMA_WRITE, 2 << 20, 0, 0),
    "garbage": lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("make", BREAKERS.values(), ids=BREAKERS)
def test_an_answer_that_cannot_be_understood_is_told_to_the_caller(
    server: RawServer, device: PCIDevice, make: Callable[[Message], bytes]
) -> None:
    bar = device.bars[0]
    server.handlers[raw.REGION_READ] = sends(server, make)
    with pytest.raises(RemoteProtocolError):
        bar.read32(0)


@pytest.mark.parametrize("make", BREAKERS.values(), ids=BREAKERS)
def test_an_answer_that_cannot_be_understood_ends_the_connection(
    server: RawServer, device: PCIDevice, make: Callable[[Message], bytes]
) -> None:
    bar = device.bars[0]
    server.handlers[raw.REGION_READ] = sends(server, make)
    with pytest.raises(ProtocolError):
        bar.read32(0)
    with pytest.raises(ConnectionLost):
        bar.read32(0)


MISFITS: dict[str, Callable[[Message], bytes]] = {
    "another region": lambda m: answer(m, raw.region_range(1, 0, 4, bytes(4))),
    "another offset": lambda m: answer(m, raw.region_range(0, 4, 4, bytes(4))),
    "count without data": lambda m: answer(m, raw.region_range(0, 0, 4)),
    "less data than count": lambda m: answer(m, raw.region_range(0, 0, 4, bytes(3))),
    "more data than count": lambda m: answer(m, raw.region_range(0, 0, 3, bytes(4))),
    "cut short": lambda m: answer(m, m.payload[:15]),
}


@pytest.mark.parametrize("make", MISFITS.values(), ids=MISFITS)
def test_an_answer_that_does_not_fit_its_question_is_an_error_in_step(
    server: RawServer, device: PCIDevice, make: Callable[[Message], bytes]
) -> None:
    bar = device.bars[0]
    once(server, raw.REGION_READ, sends(server, make))
    with pytest.raises(RemoteProtocolError):
        bar.read32(0)
    assert in_step(device, server)


def test_an_answer_that_comes_twice_ends_the_connection(
    server: RawServer, device: PCIDevice
) -> None:
    bar = device.bars[0]
    server.handlers[raw.REGION_READ] = sends(server, lambda m: answer(m, m.payload + bytes(4)) * 2)
    bar.read32(0)
    assert eventually(lambda: device.lost)


@pytest.mark.parametrize("count", [1, 3, 253])
def test_descriptors_with_an_answer_that_has_none_are_closed(
    server: RawServer, device: PCIDevice, count: int
) -> None:
    def irq_info(message: Message) -> None:
        payload = raw.irq_info(raw.MSI, flags=1, count=1)
        server.peer.send(answer(message, payload), [fd] * count)

    with memfd(PAGE) as fd:
        before = len(open_fds())
        once(server, raw.GET_IRQ_INFO, irq_info)
        with pytest.raises(RemoteProtocolError, match="descriptors"):
            device.base.irq_info(raw.MSI)
        assert len(open_fds()) == before
        assert in_step(device, server)


def test_descriptors_with_a_refusal_are_closed(server: RawServer, device: PCIDevice) -> None:
    with memfd(PAGE) as fd:
        before = len(open_fds())
        once(
            server,
            raw.GET_IRQ_INFO,
            lambda message: server.peer.send(raw.refusal(message, errno.EIO), [fd]),
        )
        with pytest.raises(OperationError, match="EIO"):
            device.base.irq_info(raw.MSI)
        assert len(open_fds()) == before


# What a server says of its device


@pytest.mark.parametrize(("regions", "irqs"), [(101, 5), (0xFFFFFFFF, 5), (9, 51)])
def test_more_regions_or_interrupts_than_a_device_has_are_refused(
    server: RawServer, regions: int, irqs: int
) -> None:
    info = raw.device_info(regions=regions, irqs=irqs)
    server.handlers[raw.GET_INFO] = sends(server, lambda message: answer(message, info))
    with pytest.raises(RemoteProtocolError):
        pyvfio.open(server.uri)


@pytest.mark.parametrize(("flags", "regions", "irqs"), [(1, 9, 5), (3, 7, 5), (3, 9, 2)])
def test_what_is_no_pci_device_is_unsupported(
    server: RawServer, flags: int, regions: int, irqs: int
) -> None:
    info = raw.device_info(flags, regions, irqs)
    server.handlers[raw.GET_INFO] = sends(server, lambda message: answer(message, info))
    with pytest.raises(pyvfio.UnsupportedError):
        pyvfio.open(server.uri)


@pytest.mark.parametrize("vectors", [3000, 0xFFFFFFFF])
def test_more_vectors_than_there_can_be_are_refused(
    server: RawServer, device: PCIDevice, vectors: int
) -> None:
    server.vectors[raw.MSI] = vectors
    with pytest.raises(RemoteProtocolError, match=str(vectors)):
        device.msi.enable(1)


class Region:
    """What a raw server says of region 1 once the device is open."""

    def __init__(self, server: RawServer, device: PCIDevice) -> None:
        self.server, self.device = server, device
        self.asked: list[int] = []

    def says(self, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Answer the next question with ``payload``, shortened to the room that there is."""

        def handle(message: Message) -> None:
            argsz = message.words("I")[0]
            self.asked.append(argsz)
            fits = len(payload) <= argsz
            shown = payload if fits else payload[:32]
            self.server.peer.send(answer(message, shown), fds if fits else ())

        self.server.handlers[raw.GET_REGION_INFO] = handle

    def open(self) -> pyvfio.Region:
        return self.device.base.region(8)


@pytest.fixture
def region(server: RawServer, device: PCIDevice) -> Region:
    return Region(server, device)


def with_chain(chain: bytes, size: int = 1 << 20, cap_offset: int = 32) -> bytes:
    """Info of region 8 with a capability chain behind it."""
    return raw.region_info(
        8,
        32 + len(chain),
        flags=MAPPED | raw.CAPABILITIES,
        size=size,
        cap_offset=cap_offset,
        chain=chain,
    )


def test_capabilities_are_asked_for_with_the_room_that_they_need(region: Region) -> None:
    with memfd(1 << 20) as fd:
        region.says(with_chain(raw.sparse([(0, PAGE), (8 * PAGE, PAGE)])), [fd])
        areas = region.open().mappable
    assert region.asked == [32, 80]
    assert [(area.offset, area.size) for area in areas] == [(0, PAGE), (8 * PAGE, PAGE)]


CHAIN_LIES = {
    "area outside": raw.sparse([(1 << 20, PAGE)]),
    "area over the end": raw.sparse([((1 << 20) - PAGE, 2 * PAGE)]),
    "area overflows": raw.sparse([((1 << 64) - PAGE, 2 * PAGE)]),
    "area of 2^64 - 1 bytes": raw.sparse([(0, (1 << 64) - 1)]),
    "more areas announced": raw.sparse([(0, PAGE)], count=2),
    "2^32 - 1 areas announced": raw.sparse([(0, PAGE)], count=0xFFFFFFFF),
    "leads to itself": raw.sparse([(0, PAGE)], next_=32),
    "leads back": raw.sparse([(0, PAGE)], next_=64) + raw.sparse([(0, PAGE)], next_=32),
    "leads outside": raw.sparse([(0, PAGE)], next_=4096),
    "leads far outside": raw.sparse([(0, PAGE)], next_=0xFFFFFFFF),
    "leads to its own middle": raw.sparse([(0, PAGE)], next_=36),
    "leads over the end": raw.sparse([(0, PAGE)], next_=60),
    "cut short": struct.pack("<HHI", 1, 1, 0),
    "type cut short": struct.pack("<HHII", 2, 1, 0, 1),
}


@pytest.mark.parametrize("chain", CHAIN_LIES.values(), ids=CHAIN_LIES)
def test_a_region_that_lies_about_its_areas_is_refused(region: Region, chain: bytes) -> None:
    with memfd(1 << 20) as fd:
        region.says(with_chain(chain), [fd])
        before = len(open_fds())
        with pytest.raises(RemoteProtocolError, match="region 8"):
            region.open()
        assert len(open_fds()) == before
    assert in_step(region.device, region.server)


@pytest.mark.parametrize("cap_offset", [1, 31, 57, 64, 0xFFFFFFFF])
def test_a_chain_that_starts_elsewhere_is_refused(region: Region, cap_offset: int) -> None:
    region.says(with_chain(raw.sparse([(0, PAGE)]), cap_offset=cap_offset))
    with pytest.raises(RemoteProtocolError):
        region.open()
    assert in_step(region.device, region.server)


def test_a_chain_of_4_gib_is_not_asked_for(region: Region) -> None:
    region.says(raw.region_info(8, 0xFFFFFFFF, flags=READ_WRITE, size=PAGE))
    region.open()
    assert max(region.asked) <= 1 << 20


@pytest.mark.parametrize(
    ("size", "offset"),
    [(PAGE, (1 << 64) - 1), ((1 << 64) - 1, PAGE), ((1 << 64) - 1, (1 << 64) - 1)],
)
def test_a_region_that_overflows_its_file_is_refused(
    region: Region, size: int, offset: int
) -> None:
    with memfd(PAGE) as fd:
        region.says(raw.region_info(8, flags=MAPPED, size=size, offset=offset), [fd])
        with pytest.raises(RemoteProtocolError):
            region.open()


@pytest.mark.parametrize(
    ("size", "offset"),
    [(PAGE, 1 << 63), (PAGE, (1 << 64) - 2 * PAGE), (1 << 63, 0), ((1 << 64) - PAGE, 0), (PAGE, 1)],
)
def test_a_region_that_cannot_be_mapped_is_read_by_messages(
    region: Region, size: int, offset: int
) -> None:
    region.server.memory[8] = bytearray(b"\x01\x02\x03\x04")
    with memfd(PAGE) as fd:
        region.says(raw.region_info(8, flags=MAPPED, size=size, offset=offset), [fd])
        assert region.open().read32(0) == 0x04030201


def test_another_region_than_the_one_asked_for_is_refused(region: Region) -> None:
    region.says(raw.region_info(3, flags=READ_WRITE, size=PAGE))
    with pytest.raises(RemoteProtocolError):
        region.open()


def test_two_descriptors_for_one_region_are_refused_and_closed(region: Region) -> None:
    with memfd(PAGE) as fd:
        before = len(open_fds())
        region.says(raw.region_info(8, flags=MAPPED, size=PAGE), [fd, fd])
        with pytest.raises(RemoteProtocolError, match="descriptors"):
            region.open()
        assert len(open_fds()) == before


@pytest.mark.parametrize(("flags", "size"), [(READ_WRITE, PAGE), (MAPPED, 0)])
def test_a_descriptor_that_a_region_cannot_use_is_closed(
    region: Region, flags: int, size: int
) -> None:
    with memfd(PAGE) as fd:
        before = len(open_fds())
        region.says(raw.region_info(8, flags=flags, size=size), [fd])
        region.open()
        assert len(open_fds()) == before


def test_the_descriptor_of_the_first_try_is_closed(region: Region) -> None:
    payload = with_chain(raw.sparse([(0, PAGE)]))

    def handle(message: Message) -> None:
        fits = message.words("I")[0] >= len(payload)
        region.server.peer.send(answer(message, payload if fits else payload[:32]), [fd])

    with memfd(1 << 20) as fd:
        before = len(open_fds())
        region.server.handlers[raw.GET_REGION_INFO] = handle
        region.open()
        assert len(open_fds()) == before + 1


DRIVER = """
import faulthandler, sys, pyvfio
faulthandler.enable()
with pyvfio.open(sys.argv[1]) as device:
    region = device.base.region(8)
    if region.info.flags & 1:
        region.read8(0)  # maps it
    device.base.reset()
    try:
        region.{access}
    except pyvfio.VFIOError as error:
        print(type(error).__name__, flush=True)
"""
"""A program of its own, for accesses that could end one."""

ACCESSES = [
    "read8(0)",
    "read16(0)",
    "read32(0)",
    "read64(0)",
    "write8(0, 1)",
    "write16(0, 1)",
    "write32(0, 1)",
    "write64(0, 1)",
    "read_bytes(0, 64)",
    "write_bytes(0, bytes(64))",
]


def drive(server: RawServer, access: str, flags: int, fd: int) -> tuple[int, str, str]:
    """Run a program that maps region 8, resets the device, and then makes an access."""

    def tell(message: Message) -> None:
        if message.words("III")[2] == 8:
            info = raw.region_info(8, flags=flags, size=2 * PAGE)
            server.peer.send(answer(message, info), [fd])
        else:
            server.serve(message)

    server.handlers[raw.GET_REGION_INFO] = tell
    done = subprocess.run(
        [sys.executable, "-c", DRIVER.format(access=access), server.uri],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def truncates(server: RawServer, fd: int) -> raw.Handler:
    """A device that takes its memory away when it is reset."""

    def reset(message: Message) -> None:
        os.ftruncate(fd, 0)
        server.serve(message)

    return reset


@pytest.mark.parametrize("access", ACCESSES)
def test_access_to_a_mapped_region_whose_file_is_truncated_is_an_error(
    server: RawServer, access: str
) -> None:
    with memfd(2 * PAGE) as fd:
        server.handlers[raw.RESET] = truncates(server, fd)
        status, output, _ = drive(server, access, MAPPED, fd)
    assert (status, output) == (0, "RegionError\n")


def test_an_access_that_is_survived_is_not_reported_as_a_crash(server: RawServer) -> None:
    with memfd(2 * PAGE) as fd:
        server.handlers[raw.RESET] = truncates(server, fd)
        _, _, errors = drive(server, "read32(0)", MAPPED, fd)
    assert errors == ""


@pytest.mark.parametrize(
    ("flags", "access"),
    [
        (raw.READABLE | raw.MAPPABLE, "write32(0, 1)"),
        (raw.READABLE | raw.MAPPABLE, "write_bytes(0, bytes(64))"),
        (raw.MAPPABLE, "read32(0)"),
        (raw.MAPPABLE, "read_bytes(0, 64)"),
    ],
)
def test_an_access_that_a_mapped_region_does_not_allow_is_an_error(
    server: RawServer, flags: int, access: str
) -> None:
    with memfd(2 * PAGE) as fd:
        status, output, _ = drive(server, access, flags, fd)
    assert (status, output) == (0, "RegionError\n")


def test_a_view_of_a_mapped_region_that_cannot_be_read_is_refused(server: RawServer) -> None:
    with memfd(2 * PAGE) as fd:
        status, output, _ = drive(server, "view()[0]", raw.MAPPABLE, fd)
    assert (status, output) == (0, "UnsupportedError\n")


# The server's own commands


def test_dma_read_is_answered_while_the_program_does_nothing(
    server: RawServer, device: PCIDevice
) -> None:
    with device.dma.alloc(PAGE) as buffer:
        buffer.array[:8] = range(8)
        reply = server.ask(raw.DMA_READ, raw.dma_range(buffer.iova, 8), number=8)
        assert reply.data == unhex("08000b00 28000000 01000000 00000000") + raw.dma_range(
            buffer.iova, 8, bytes(range(8))
        )


def test_dma_write_is_done_and_answered(server: RawServer, device: PCIDevice) -> None:
    with device.dma.alloc(PAGE) as buffer:
        request = raw.dma_range(buffer.iova + 16, 4, b"data")
        reply = server.ask(raw.DMA_WRITE, request, number=9)
        assert reply.data == unhex("09000c00 20000000 01000000 00000000") + request[:16]
        assert buffer.array[16:20].tobytes() == b"data"


def test_dma_is_served_while_the_client_waits_for_a_reply(
    server: RawServer, device: PCIDevice
) -> None:
    answers: list[Message] = []

    def read_memory_first(message: Message) -> None:
        server.peer.send(raw.frame(raw.DMA_READ, raw.dma_range(iova, 4)))
        answers.append(server.peer.receive())
        server.serve(message)

    bar = device.bars[0]
    with device.dma.alloc(PAGE) as buffer:
        buffer.array[:4] = list(b"busy")
        iova = buffer.iova
        once(server, raw.REGION_READ, read_memory_first)
        bar.read32(0)
    assert answers[0].payload == raw.dma_range(iova, 4, b"busy")


def test_dma_is_served_while_the_program_computes(server: RawServer, device: PCIDevice) -> None:
    answered = threading.Event()

    def ask() -> None:
        for _ in range(20):
            server.ask(raw.DMA_READ, raw.dma_range(iova, PAGE))
        answered.set()

    with device.dma.alloc(PAGE) as buffer:
        iova = buffer.iova
        thread = threading.Thread(target=ask)
        thread.start()
        deadline = time.monotonic() + raw.SECONDS
        rounds = 0
        while not answered.is_set() and time.monotonic() < deadline:
            rounds += 1
        thread.join()
    assert answered.is_set()


def test_dma_without_reply_is_done(server: RawServer, device: PCIDevice) -> None:
    with device.dma.alloc(PAGE) as buffer:
        request = raw.dma_range(buffer.iova, 4, b"post")
        server.peer.send(raw.frame(raw.DMA_WRITE, request, flags=raw.NO_REPLY))
        server.ask(raw.DMA_READ, raw.dma_range(buffer.iova, 4))
        assert buffer.array[:4].tobytes() == b"post"


def test_dma_goes_over_neighbouring_maps(server: RawServer, device: PCIDevice) -> None:
    with pyvfio.SharedMemory(2 * PAGE) as memory:
        memory.array[PAGE - 2 : PAGE + 2] = list(b"seam")
        for page in range(2):
            device.dma.map(memory, iova=0x100000 + page * PAGE, offset=page * PAGE, size=PAGE)
        reply = server.ask(raw.DMA_READ, raw.dma_range(0x100000 + PAGE - 2, 4))
        assert reply.payload[16:] == b"seam"


@pytest.mark.parametrize(
    ("offset", "count"),
    [(-1, 1), (PAGE, 1), (PAGE - 1, 2), (-PAGE, 2 * PAGE), (1 << 40, 1), (0, 2 * PAGE)],
)
@pytest.mark.parametrize("command", [raw.DMA_READ, raw.DMA_WRITE], ids=["read", "write"])
def test_dma_outside_of_the_maps_gets_efault(
    server: RawServer, device: PCIDevice, command: int, offset: int, count: int
) -> None:
    with device.dma.alloc(PAGE, address_bits=32) as buffer:
        data = bytes(count) if command == raw.DMA_WRITE else b""
        reply = server.ask(command, raw.dma_range(buffer.iova + offset, count, data))
    assert (reply.flags, reply.error, reply.payload) == (raw.ERROR_REPLY, errno.EFAULT, b"")


@pytest.mark.parametrize("address", [0, (1 << 64) - 1, (1 << 64) - 8])
def test_dma_at_the_ends_of_the_address_space_gets_efault(
    server: RawServer, device: PCIDevice, address: int
) -> None:
    assert server.ask(raw.DMA_READ, raw.dma_range(address, 16)).error == errno.EFAULT
    assert in_step(device, server)


def test_a_write_that_is_refused_writes_nothing(server: RawServer, device: PCIDevice) -> None:
    with device.dma.alloc(PAGE) as buffer:
        data = b"\xff" * PAGE
        server.ask(raw.DMA_WRITE, raw.dma_range(buffer.iova + 8, PAGE, data))
        assert not buffer.array.any()


def test_memory_mapped_for_reading_cannot_be_written(server: RawServer, device: PCIDevice) -> None:
    with device.dma.alloc(PAGE, flags=DMAMapFlags.READ) as buffer:
        reply = server.ask(raw.DMA_WRITE, raw.dma_range(buffer.iova, 4, b"evil"))
        assert reply.error == errno.EPERM
        assert not buffer.array.any()


def test_memory_mapped_for_writing_cannot_be_read(server: RawServer, device: PCIDevice) -> None:
    with device.dma.alloc(PAGE, flags=DMAMapFlags.WRITE) as buffer:
        assert server.ask(raw.DMA_READ, raw.dma_range(buffer.iova, 4)).error == errno.EPERM


@pytest.mark.parametrize("count", [(1 << 20) + 1, 1 << 32, (1 << 64) - 1])
def test_a_dma_read_of_more_than_was_negotiated_gets_e2big(
    server: RawServer, device: PCIDevice, count: int
) -> None:
    with device.dma.alloc(2 << 20) as buffer:
        assert server.ask(raw.DMA_READ, raw.dma_range(buffer.iova, count)).error == errno.E2BIG


def test_a_dma_write_of_more_than_was_negotiated_gets_e2big(
    server: RawServer, device: PCIDevice
) -> None:
    count = (1 << 20) + PAGE
    with device.dma.alloc(2 << 20) as buffer:
        request = raw.dma_range(buffer.iova, count, bytes(count))
        assert server.ask(raw.DMA_WRITE, request).error == errno.E2BIG


def test_a_megabyte_is_served_in_one_message(server: RawServer, device: PCIDevice) -> None:
    with device.dma.alloc(1 << 20) as buffer:
        buffer.array[-1] = 0x5A
        reply = server.ask(raw.DMA_READ, raw.dma_range(buffer.iova, 1 << 20))
        assert reply.payload[16:] == bytes((1 << 20) - 1) + b"\x5a"


@pytest.mark.parametrize("command", [0, 1, 4, 9, 14, 19, 99, 0xFFFF])
def test_a_command_that_is_no_servers_gets_enosys(
    server: RawServer, device: PCIDevice, command: int
) -> None:
    reply = server.ask(command, bytes(24), number=command)
    assert (reply.number, reply.command, reply.error) == (command, command, errno.ENOSYS)
    assert in_step(device, server)


@pytest.mark.parametrize(
    "payload", [b"", bytes(15), raw.dma_range(0, 8, bytes(7)), raw.dma_range(0, 8, bytes(9))]
)
def test_a_dma_write_that_makes_no_sense_gets_einval(
    server: RawServer, device: PCIDevice, payload: bytes
) -> None:
    assert server.ask(raw.DMA_WRITE, payload).error == errno.EINVAL
    assert in_step(device, server)


def test_descriptors_with_a_servers_command_are_refused_and_closed(
    server: RawServer, device: PCIDevice
) -> None:
    with device.dma.alloc(PAGE) as buffer, memfd(PAGE) as fd:
        assert in_step(device, server)  # and the server has let go of the buffer's descriptor
        before = len(open_fds())
        server.peer.send(raw.frame(raw.DMA_READ, raw.dma_range(buffer.iova, 4)), [fd, fd])
        assert server.replies.get(timeout=raw.SECONDS).error == errno.EINVAL
        assert len(open_fds()) == before


def test_dma_before_anything_is_mapped_gets_efault(server: RawServer) -> None:
    answers: list[Message] = []

    def too_early(message: Message) -> None:
        server.peer.send(raw.frame(raw.DMA_READ, raw.dma_range(0, 4)))
        answers.append(server.peer.receive())
        server.serve(message)

    server.handlers[raw.VERSION] = too_early
    pyvfio.open(server.uri).close()
    assert answers[0].error == errno.EFAULT


# Eventfds in the server's hands


@pytest.fixture
def filled(server: RawServer) -> RawServer:
    """A server that puts the first eventfd it gets to its end, so that nothing can be added."""

    def fill(message: Message) -> None:
        os.eventfd_write(message.fds[0], (1 << 64) - 2)
        server.serve(message)

    once(server, raw.SET_IRQS, fill)
    return server


@pytest.mark.usefixtures("filled")
def test_an_eventfd_that_the_server_filled_can_be_waited_for(device: PCIDevice) -> None:
    with device.msi.enable(1) as irqs:
        assert irqs[0].wait(1) == (1 << 64) - 2


@pytest.mark.usefixtures("filled")
def test_an_irq_set_whose_eventfd_the_server_filled_closes(device: PCIDevice) -> None:
    before = len(open_fds())
    device.msi.enable(4).close()
    assert len(open_fds()) == before


def test_loss_of_a_server_that_filled_an_eventfd_wakes_every_vector(
    filled: RawServer, device: PCIDevice
) -> None:
    lost: list[int] = []

    def wait(vector: int) -> None:
        with pytest.raises(ConnectionLost):
            irqs[vector].wait(2)
        lost.append(vector)

    irqs = device.msi.enable(4)
    threads = in_threads(partial(wait, vector) for vector in (1, 2, 3))
    filled.hang_up()
    for thread in threads:
        thread.join()
    assert sorted(lost) == [1, 2, 3]
