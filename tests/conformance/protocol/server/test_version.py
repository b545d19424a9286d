# SPDX-License-Identifier: BSD-3-Clause
"""VERSION: what a server agrees to."""

from __future__ import annotations

import json
import os
import socket
import stat
from typing import Any

import pytest

from tests.conformance.protocol.device import in_step
from tests.conformance.protocol.peers import Host
from tests.conformance.protocol.specification import READ_AND_WRITE_OPERATIONS, spec
from tests.fault import raw
from tests.fault.clients import TWIN
from tests.fault.raw import Message

NUMBERS = ("max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes")
EVERYTHING = {
    "max_msg_fds": 16,
    "max_data_xfer_size": 1 << 20,
    "max_dma_maps": 65535,
    "pgsizes": 4096,
    "twin_socket": {"supported": False},
    "write_multiple": True,
}


def text(**capabilities: Any) -> bytes:
    """Version data as a client sends it."""
    return json.dumps({"capabilities": capabilities}).encode() + b"\0"


def capabilities(reply: Message) -> dict[str, Any]:
    """What a server says it can do."""
    data = reply.payload[4:]
    if not data:
        return {}
    assert data.endswith(b"\0")
    found = json.loads(data[:-1])
    assert isinstance(found, dict)
    agreed = found.get("capabilities", {})
    assert isinstance(agreed, dict)
    return agreed


def agree(peer: Host, data: bytes) -> dict[str, Any]:
    """What a server answers to version data."""
    with peer.connect() as client:
        reply = client.negotiate(data)
        raw.close(reply.fds)
        assert in_step(client)
        return capabilities(reply)


@spec("VFIO_USER_VERSION", "Connection Initiation")
@pytest.mark.parametrize("minor", [0, 1, 2, 0xFFFF])
def test_the_reply_has_the_major_proposed_and_no_later_minor(peer: Host, minor: int) -> None:
    with peer.connect() as client:
        reply = client.done(raw.VERSION, raw.version(0, minor))
        assert reply.words("HH")[0] == 0
        assert reply.words("HH")[1] <= minor
        assert in_step(client)


@spec("VFIO_USER_VERSION", "Connection Initiation")
@pytest.mark.parametrize("major", [1, 0xFFFF])
def test_another_major_ends_the_connection(peer: Host, major: int) -> None:
    with peer.connect() as client:
        client.send(raw.frame(raw.VERSION, raw.version(major)))
        try:
            assert client.receive().flags == raw.ERROR_REPLY
        except EOFError:
            return
        assert client.ended()


@spec("VFIO_USER_VERSION", "Connection Initiation")
def test_version_is_the_first_message(peer: Host) -> None:
    with peer.connect() as client:
        client.send(raw.frame(raw.GET_INFO, raw.device_info(0, 0, 0)))
        try:
            assert client.receive().flags == raw.ERROR_REPLY
        except (EOFError, ConnectionError):
            assert client.ended()


@spec("VFIO_USER_VERSION / Request")
@pytest.mark.parametrize(
    "data",
    [b"", b"{}\0", b'{"capabilities":{}}\0', text(**EVERYTHING)],
    ids=["none", "no capabilities", "no capability", "all"],
)
def test_every_part_of_the_version_data_is_optional(peer: Host, data: bytes) -> None:
    agree(peer, data)


@spec("VFIO_USER_VERSION / Request")
@pytest.mark.parametrize("left_out", EVERYTHING)
def test_each_capability_is_optional(peer: Host, left_out: str) -> None:
    agree(peer, text(**{key: value for key, value in EVERYTHING.items() if key != left_out}))


@spec("VFIO_USER_VERSION")
def test_a_capability_of_a_later_minor_is_no_obstacle(peer: Host) -> None:
    assert "of_tomorrow" not in agree(peer, text(of_tomorrow={"deep": [1, None, "x"]}))


@spec("VFIO_USER_VERSION")
@pytest.mark.parametrize(
    "offered",
    [{}, {"max_msg_fds": 1}, {"pgsizes": 4096}, EVERYTHING],
    ids=["nothing", "descriptors", "page sizes", "everything"],
)
def test_the_capabilities_are_among_those_proposed(peer: Host, offered: dict[str, Any]) -> None:
    assert set(agree(peer, text(**offered))) <= set(offered)


@spec("VFIO_USER_VERSION / Request", "VFIO_USER_VERSION / Reply")
def test_the_capabilities_are_of_their_types(peer: Host) -> None:
    agreed = agree(peer, text(**EVERYTHING))
    for key in NUMBERS:
        assert isinstance(agreed.get(key, 1), int)
        assert agreed.get(key, 1) > 0
    assert isinstance(agreed.get("write_multiple", True), bool)
    assert isinstance(agreed.get("twin_socket", {}), dict)


@spec("VFIO_USER_VERSION / Request")
def test_pages_of_4_kib_can_be_mapped(peer: Host) -> None:
    assert agree(peer, text(**EVERYTHING)).get("pgsizes", 4096) & 4096


@spec("VFIO_USER_VERSION / Request", READ_AND_WRITE_OPERATIONS, "Message sizes")
@pytest.mark.parametrize("size", [4096, 1 << 20, 1 << 30])
def test_a_server_takes_any_max_data_xfer_size(peer: Host, size: int) -> None:
    agreed = agree(peer, text(max_data_xfer_size=size))
    assert agreed.get("max_data_xfer_size", 1 << 20) >= 256  # configuration space at once


# The twin socket


@spec("VFIO_USER_VERSION / Reply")
@pytest.mark.parametrize(
    "data",
    [text(), text(twin_socket={}), text(twin_socket={"supported": False})],
    ids=["no object", "no key", "false"],
)
def test_no_twin_socket_comes_unless_the_client_supports_it(peer: Host, data: bytes) -> None:
    with peer.connect() as client:
        reply = client.negotiate(data)
        assert reply.fds == ()
        assert not capabilities(reply).get("twin_socket", {}).get("supported", False)


@spec("VFIO_USER_VERSION / Reply", "VFIO_USER_VERSION / Request")
@pytest.mark.parametrize("room", [{}, {"max_msg_fds": 1}, {"max_msg_fds": 8}])
def test_a_twin_socket_comes_with_its_index_or_not_at_all(peer: Host, room: dict[str, int]) -> None:
    with peer.connect() as client:
        reply = client.negotiate(text(twin_socket={"supported": True}, **room))
        twin = capabilities(reply).get("twin_socket", {})
        assert len(reply.fds) == int(twin.get("supported", False))
        if reply.fds:
            assert stat.S_ISSOCK(os.fstat(reply.fds[twin["fd_index"]]).st_mode)
            raw.close(reply.fds)
        assert in_step(client)


@spec("VFIO_USER_VERSION / Request", "VFIO_USER_VERSION / Reply")
def test_a_client_that_takes_no_descriptors_gets_no_twin_socket(peer: Host) -> None:
    with peer.connect() as client:
        reply = client.negotiate(text(twin_socket={"supported": True}, max_msg_fds=0))
        assert reply.fds == ()
        assert not capabilities(reply).get("twin_socket", {}).get("supported", False)


@spec("Socket", "VFIO_USER_VERSION / Reply")
def test_commands_and_their_replies_stay_on_the_main_socket(peer: Host) -> None:
    with peer.connect() as client:
        (fd,) = client.negotiate(TWIN).fds
        with raw.Peer(socket.socket(fileno=fd)) as twin:
            assert in_step(client)
            assert twin.quiet(0.02)


@spec("VFIO_USER_VERSION / Request", "Security Considerations")
@pytest.mark.parametrize(
    "data",
    [b"{\0", b"[]\0", b'{"capabilities":[]}\0', b'{"capabilities":{"max_msg_fds":"8"}}\0', b"{}"],
    ids=["not closed", "an array", "capabilities in an array", "a number as a string", "no NUL"],
)
def test_version_data_of_another_format_is_refused(peer: Host, data: bytes) -> None:
    with peer.connect() as client:
        client.send(raw.frame(raw.VERSION, raw.version(text=data)))
        try:
            assert client.receive().flags == raw.ERROR_REPLY
        except (EOFError, ConnectionError):
            return
        assert client.ended()
