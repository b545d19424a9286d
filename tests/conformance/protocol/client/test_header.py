# SPDX-License-Identifier: BSD-3-Clause
"""The header of what the client sends, and of what it takes."""

from __future__ import annotations

import errno

import pytest

import pyvfio
from pyvfio.errors import RegionError
from pyvfio.pci.device import PCIDevice
from tests.conformance.protocol.client.script import before
from tests.conformance.protocol.specification import spec
from tests.fault import raw
from tests.fault.clients import PAGE
from tests.fault.raw import Message, RawServer, answer
from tests.support import eventually

CLIENTS = {
    raw.VERSION,
    raw.DMA_MAP,
    raw.DMA_UNMAP,
    raw.GET_INFO,
    raw.GET_REGION_INFO,
    raw.GET_REGION_IO_FDS,
    raw.GET_IRQ_INFO,
    raw.SET_IRQS,
    raw.REGION_READ,
    raw.REGION_WRITE,
    raw.RESET,
    raw.WRITE_MULTI,
    raw.DEVICE_FEATURE,
    raw.MIG_DATA_READ,
    raw.MIG_DATA_WRITE,
}
"""What a client may send."""


@pytest.fixture
def lived(server: RawServer) -> RawServer:
    """A server that saw a client do a little of everything."""
    with pyvfio.open(server.uri) as device:
        device.bars[0].write32(0x10, 7)
        device.bars[0].read32(0x10)
        with device.msi.enable(4) as irqs:
            irqs.trigger(2)
        with device.dma.alloc(PAGE):
            server.ask(raw.DMA_READ, raw.dma_range(0, 4))
        device.reset()
    return server


@spec("Commands")
def test_only_commands_of_clients_are_sent(lived: RawServer) -> None:
    assert set(lived.commands()) <= CLIENTS


@spec("Header")
def test_commands_are_of_type_command_and_have_no_error(lived: RawServer) -> None:
    assert {message.flags & ~raw.NO_REPLY for message in lived.seen} == {0}
    assert {message.error for message in lived.seen} == {0}


@spec("Header", "VFIO_USER_REGION_WRITE")
def test_only_writes_want_no_reply(lived: RawServer) -> None:
    quiet = {message.command for message in lived.seen if message.flags & raw.NO_REPLY}
    assert quiet <= {raw.REGION_WRITE, raw.WRITE_MULTI}


@spec("Header")
def test_no_message_has_more_or_less_than_its_size(lived: RawServer) -> None:
    assert all(int.from_bytes(m.data[4:8], "little") == len(m.data) for m in lived.seen)
    assert eventually(lambda: lived.peer.sock.fileno() == -1)  # nothing is left over at the end


# What the server sends


@spec("Header")
@pytest.mark.parametrize("number", [0, 1, 0x7FFF, 0xFFFF])
@pytest.mark.parametrize("command", [raw.DMA_READ, raw.DMA_WRITE])
def test_a_reply_has_the_id_and_the_command_of_its_command(
    server: RawServer, device: PCIDevice, command: int, number: int
) -> None:
    with device.dma.alloc(PAGE) as buffer:
        data = bytes(4) if command == raw.DMA_WRITE else b""
        reply = server.ask(command, raw.dma_range(buffer.iova, 4, data), number=number)
    assert (reply.number, reply.command) == (number, command)
    assert (reply.flags, reply.error) == (raw.REPLY, 0)


@spec("Header")
def test_a_server_may_use_an_id_again_at_the_same_time(
    server: RawServer, device: PCIDevice
) -> None:
    with device.dma.alloc(PAGE) as buffer:
        buffer.array[:8] = range(8)
        requests = [raw.dma_range(buffer.iova + at, 1) for at in range(8)]
        server.peer.send(b"".join(raw.frame(raw.DMA_READ, each, number=5) for each in requests))
        replies = [server.replies.get(timeout=raw.SECONDS) for _ in range(8)]
    assert [(reply.number, reply.payload[16]) for reply in replies] == [(5, n) for n in range(8)]


@spec("Header", "Command Concurrency")
def test_a_server_may_use_the_id_of_a_command_that_it_has_not_answered(
    server: RawServer, device: PCIDevice
) -> None:
    with device.dma.alloc(PAGE) as buffer:
        request = raw.dma_range(buffer.iova, 4)
        before(
            server,
            raw.REGION_READ,
            lambda m: server.peer.send(raw.frame(raw.DMA_READ, request, number=m.number)),
        )
        server.memory[0][:4] = b"\x2a\0\0\0"
        assert device.bars[0].read32(0) == 42
        assert server.replies.get(timeout=raw.SECONDS).payload == request + bytes(4)


@spec("Header", "Commands")
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("command", [raw.DMA_READ, raw.DMA_WRITE, raw.GET_INFO, 0xFFFF])
def test_an_error_reply_is_a_header_alone(server: RawServer, command: int) -> None:
    data = bytes(4) if command == raw.DMA_WRITE else b""
    reply = server.ask(command, raw.dma_range(0x123000, 4, data), number=3)
    assert (reply.number, reply.command) == (3, command)
    assert (reply.flags, reply.payload, reply.fds) == (raw.ERROR_REPLY, b"", ())
    assert reply.error > 0


@spec("Header", "VFIO_USER_DMA_WRITE")
def test_a_command_that_wants_no_reply_gets_none(server: RawServer, device: PCIDevice) -> None:
    with device.dma.alloc(PAGE) as buffer:
        for address in (buffer.iova, buffer.iova + PAGE):  # the second is refused
            write = raw.dma_range(address, 4, b"post")
            server.peer.send(raw.frame(raw.DMA_WRITE, write, flags=raw.NO_REPLY))
        assert server.ask(raw.DMA_READ, raw.dma_range(buffer.iova, 4)).payload[16:] == b"post"


@spec("Header")
@pytest.mark.parametrize("number", [0, errno.EINVAL, errno.ENOSPC])
def test_an_error_needs_no_errno(server: RawServer, device: PCIDevice, number: int) -> None:
    server.handlers[raw.REGION_READ] = lambda m: server.peer.send(raw.refusal(m, number))
    with pytest.raises(RegionError) as caught:
        device.bars[0].read32(0)
    assert caught.value.errno == (number or errno.EIO)


@spec("Socket", "Header")
@pytest.mark.parametrize("at", [1, 8, 16, 24, 35])
def test_a_reply_may_come_in_two_pieces(server: RawServer, device: PCIDevice, at: int) -> None:
    def in_pieces(message: Message) -> None:
        reply = answer(message, server.payload_for(message))
        server.peer.send(reply[:at])
        server.peer.send(reply[at:])

    server.memory[0][:4] = b"\x2a\0\0\0"
    server.handlers[raw.REGION_READ] = in_pieces
    assert device.bars[0].read32(0) == 42


# Order


@spec("Command Concurrency")
def test_commands_of_the_server_may_stand_before_a_reply(
    server: RawServer, device: PCIDevice
) -> None:
    with device.dma.alloc(PAGE) as buffer:
        request = raw.frame(raw.DMA_READ, raw.dma_range(buffer.iova, 4))
        for _ in range(3):
            before(server, raw.REGION_READ, lambda _: server.peer.send(request * 2))
            device.bars[0].read32(0)
        replies = [server.replies.get(timeout=raw.SECONDS) for _ in range(6)]
    assert {reply.flags for reply in replies} == {raw.REPLY}


@spec("Command Concurrency")
def test_a_server_may_wait_for_dma_before_it_answers(server: RawServer, device: PCIDevice) -> None:
    with device.dma.alloc(PAGE) as buffer:
        buffer.array[:4] = list(b"wait")
        found = []

        def ask(_: Message) -> None:
            server.peer.send(raw.frame(raw.DMA_READ, raw.dma_range(buffer.iova, 4)))
            found.append(server.peer.receive().payload[16:])

        before(server, raw.REGION_READ, ask)
        device.bars[0].read32(0)
        assert found == [b"wait"]


@spec("Command Concurrency", "Header")
def test_writes_without_reply_are_sent_before_the_read_that_follows(server: RawServer) -> None:
    with pyvfio.open(server.uri) as device:
        bar = device.bars[0]
        bar.posted = True
        for value in range(50):
            bar.write32(0x20, value)
            assert bar.read32(0x20) == value
