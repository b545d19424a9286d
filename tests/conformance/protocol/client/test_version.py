# SPDX-License-Identifier: BSD-3-Clause
"""VERSION: what the client proposes, what it accepts, and that it keeps to it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import pyvfio
from pyvfio.errors import DMAError, NegotiationError, ProtocolError
from tests.conformance.protocol.client.script import READ_WRITE, says, sent, text
from tests.conformance.protocol.specification import READ_AND_WRITE_OPERATIONS, spec
from tests.fault import raw
from tests.fault.clients import PAGE
from tests.fault.raw import Message, Peer, RawServer, answer


def proposed(server: RawServer) -> dict[str, Any]:
    """The capabilities in the client's VERSION."""
    data = server.seen[0].payload[4:]
    assert data.endswith(b"\0")
    found = json.loads(data[:-1])["capabilities"]
    assert isinstance(found, dict)
    return found


# What the client proposes


@spec("VFIO_USER_VERSION", "Connection Initiation")
def test_version_is_the_first_message_and_none_follows_before_its_reply(server: RawServer) -> None:
    def late(message: Message) -> None:
        assert server.peer.quiet(0.05)
        server.peer.sock.settimeout(None)
        server.serve(message)

    server.handlers[raw.VERSION] = late
    pyvfio.open(server.uri).close()
    assert server.commands()[0] == raw.VERSION
    assert server.commands().count(raw.VERSION) == 1


@spec("VFIO_USER_VERSION / Request")
def test_the_proposal_is_a_version_and_json(server: RawServer) -> None:
    pyvfio.open(server.uri).close()
    major, _ = server.seen[0].words("HH")
    assert major == 0
    assert server.seen[0].fds == ()
    assert proposed(server)


@spec("VFIO_USER_VERSION / Request")
def test_the_capabilities_are_of_their_types(server: RawServer) -> None:
    pyvfio.open(server.uri).close()
    found = proposed(server)
    for key in ("max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes"):
        assert type(found.get(key, 1)) is int
    assert type(found.get("write_multiple", True)) is bool
    assert type(found["twin_socket"]["supported"]) is bool
    assert "fd_index" not in found["twin_socket"]  # in the reply only


# What the client accepts


@spec("VFIO_USER_VERSION")
@pytest.mark.parametrize("data", [raw.JSON, b"{}\0", b'{"capabilities":{}}\0', b""])
def test_a_reply_needs_no_capabilities(server: RawServer, data: bytes) -> None:
    server.capabilities = data
    with pyvfio.open(server.uri) as device:
        assert device.bars[0].read32(0) == 0


@spec("VFIO_USER_VERSION")
def test_an_earlier_minor_is_accepted(server: RawServer) -> None:
    says(server, raw.VERSION, raw.version(0, 0))
    pyvfio.open(server.uri).close()


@spec("VFIO_USER_VERSION", "Connection Initiation")
@pytest.mark.parametrize(("major", "minor"), [(1, 0), (0, 0xFFFF)])
def test_another_major_or_a_later_minor_ends_the_connection(
    server: RawServer, major: int, minor: int
) -> None:
    says(server, raw.VERSION, raw.version(major, minor))
    with pytest.raises(NegotiationError):
        pyvfio.open(server.uri)
    assert server.commands() == [raw.VERSION]


@spec("VFIO_USER_VERSION")
def test_a_capability_of_a_later_minor_is_no_obstacle(server: RawServer) -> None:
    server.capabilities = text(of_tomorrow={"deep": [1, None]})
    pyvfio.open(server.uri).close()


# Limits, which are the server's to set


@spec("VFIO_USER_VERSION / Request", "VFIO_USER_DEVICE_SET_IRQS / Request")
@pytest.mark.parametrize(
    ("capabilities", "most"), [({}, 1), ({"max_msg_fds": 1}, 1), ({"max_msg_fds": 3}, 3)]
)
def test_no_message_has_more_descriptors_than_the_server_takes(
    server: RawServer, capabilities: dict[str, int], most: int
) -> None:
    server.capabilities = text(**capabilities)
    with pyvfio.open(server.uri) as device, device.msi.enable(8):
        messages = sent(server, raw.SET_IRQS)
        assert max(len(message.fds) for message in messages) == most
        assert sum(len(message.fds) for message in messages) == 8


@spec("VFIO_USER_VERSION / Request", "VFIO_USER_DMA_MAP / Request")
def test_no_descriptor_goes_to_a_server_that_takes_none(server: RawServer) -> None:
    server.capabilities = text(max_msg_fds=0)
    with pyvfio.open(server.uri) as device, device.dma.alloc(PAGE):
        assert server.last(raw.DMA_MAP).fds == ()


@spec(READ_AND_WRITE_OPERATIONS, "VFIO_USER_VERSION / Request", "Message sizes")
@pytest.mark.parametrize(
    ("capabilities", "most"),
    [({}, 1 << 20), ({"max_data_xfer_size": 512}, 512), ({"max_data_xfer_size": 1 << 30}, None)],
)
def test_no_count_is_more_than_the_server_takes(
    server: RawServer, capabilities: dict[str, int], most: int | None
) -> None:
    size = 3 << 20
    server.capabilities = text(**capabilities)
    server.regions[0], server.memory[0] = (READ_WRITE, size), bytearray(os.urandom(1024) * 3072)
    limit = most or size
    wanted = min(size, 8 * limit)
    with pyvfio.open(server.uri) as device:
        assert device.bars[0].read_bytes(0, wanted) == server.memory[0][:wanted]
        device.bars[0].write_bytes(0, bytes(wanted))
        device.flush()
    assert server.memory[0][:wanted] == bytes(wanted)
    for command in (raw.REGION_READ, raw.REGION_WRITE):
        assert max(message.words("QII")[2] for message in sent(server, command)) <= limit


@spec("VFIO_USER_VERSION / Request")
def test_no_more_maps_are_asked_for_than_the_server_takes(server: RawServer) -> None:
    server.capabilities = text(max_dma_maps=2)
    with pyvfio.open(server.uri) as device, pyvfio.SharedMemory(PAGE) as memory:
        for _ in range(2):
            device.dma.map(memory)
        with pytest.raises(DMAError):
            device.dma.map(memory)
        device.dma.unmap_all()
    assert len(sent(server, raw.DMA_MAP)) == 2


@spec("VFIO_USER_VERSION / Request", "VFIO_USER_DMA_MAP / Request")
@pytest.mark.parametrize(
    ("capabilities", "page"),
    [({}, PAGE), ({"pgsizes": 1 << 16}, 1 << 16), ({"pgsizes": 3 << 12}, PAGE)],
)
def test_maps_are_made_of_the_pages_that_the_server_supports(
    server: RawServer, capabilities: dict[str, int], page: int
) -> None:
    server.capabilities = text(**capabilities)
    with pyvfio.open(server.uri) as device, pyvfio.SharedMemory(4 * page) as memory:
        with pytest.raises(DMAError):
            device.dma.map(memory, size=page // 2)
        device.dma.map(memory, size=page)
        device.dma.map(memory, iova=64 * page, offset=page, size=3 * page)
        device.dma.unmap_all()
    for message in sent(server, raw.DMA_MAP):
        _, _, offset, address, size = message.words("IIQQQ")
        assert (offset % page, address % page, size % page) == (0, 0, 0)


@spec("VFIO_USER_VERSION / Request", "VFIO_USER_REGION_WRITE_MULTI")
@pytest.mark.parametrize("capabilities", [{}, {"write_multiple": False}])
def test_write_multi_is_sent_only_to_a_server_that_supports_it(
    server: RawServer, capabilities: dict[str, bool]
) -> None:
    server.capabilities = text(**capabilities)
    with pyvfio.open(server.uri) as device:
        for number in range(3000):  # more than a socket holds
            device.bars[0].write32(4 * (number % 8), number)
        device.flush()
    assert raw.WRITE_MULTI not in server.commands()


# The twin socket


@contextmanager
def twin_end(server: RawServer, twin: dict[str, Any], ends: int = 1) -> Iterator[Peer]:
    """A server that answers VERSION with the other end of a socket."""
    ours, theirs = socket.socketpair()
    payload = raw.version(text=text(twin_socket=twin))

    def agree(message: Message) -> None:
        with theirs:
            server.peer.send(answer(message, payload), [theirs.fileno()] * ends)

    with Peer(ours) as peer:
        server.handlers[raw.VERSION] = agree
        yield peer


@spec("VFIO_USER_VERSION / Reply", "Socket")
@pytest.mark.parametrize("command", [raw.DMA_READ, raw.DMA_WRITE])
def test_the_twin_socket_carries_the_servers_commands_and_their_replies(
    server: RawServer, command: int
) -> None:
    with (
        twin_end(server, {"supported": True, "fd_index": 0}) as twin,
        pyvfio.open(server.uri) as device,
        device.dma.alloc(PAGE) as buffer,
    ):
        data = b"twin" if command == raw.DMA_WRITE else b""
        twin.send(raw.frame(command, raw.dma_range(buffer.iova, 4, data), number=9))
        reply = twin.receive()
        assert (reply.number, reply.command, reply.flags) == (9, command, raw.REPLY)
        assert server.replies.empty()


@spec("VFIO_USER_VERSION / Reply", "Socket")
def test_the_clients_commands_stay_on_the_main_socket(server: RawServer) -> None:
    with twin_end(server, {"supported": True, "fd_index": 0}) as twin:
        with pyvfio.open(server.uri) as device:
            device.bars[0].read32(0)
            assert twin.quiet(0.02)
        assert twin.ended()


@spec("VFIO_USER_VERSION / Reply")
@pytest.mark.parametrize("twin", [{"supported": False}, {}, None], ids=["false", "no key", "none"])
def test_a_server_without_a_twin_socket_is_served_on_the_main_socket(
    server: RawServer, twin: dict[str, bool] | None
) -> None:
    server.capabilities = text() if twin is None else text(twin_socket=twin)
    with pyvfio.open(server.uri) as device, device.dma.alloc(PAGE) as buffer:
        assert server.ask(raw.DMA_READ, raw.dma_range(buffer.iova, 4)).flags == raw.REPLY


@spec("VFIO_USER_VERSION / Reply", "Security Considerations")
@pytest.mark.parametrize(
    ("twin", "ends"),
    [
        ({"supported": True}, 1),
        ({"supported": True, "fd_index": 0}, 0),
        ({"supported": True, "fd_index": 1}, 1),
    ],
    ids=["no index", "no descriptor", "no such descriptor"],
)
def test_an_inconsistent_twin_socket_ends_the_connection(
    server: RawServer, twin: dict[str, Any], ends: int
) -> None:
    with twin_end(server, twin, ends):
        with pytest.raises((NegotiationError, ProtocolError)):
            pyvfio.open(server.uri)
        assert server.commands() == [raw.VERSION]
