# SPDX-License-Identifier: BSD-3-Clause
"""The header of every message: ids, sizes, No_reply and errors."""

from __future__ import annotations

import errno
import struct

import pytest

from tests.conformance.protocol.device import Device, in_step
from tests.conformance.protocol.peers import Host
from tests.conformance.protocol.specification import spec
from tests.fault import raw
from tests.fault.clients import IOVA, PAGE
from tests.fault.raw import RawClient

COMMANDS = {
    "map": (raw.DMA_MAP, raw.dma_map(IOVA, PAGE)),
    "info": (raw.GET_INFO, raw.device_info(0, 0, 0)),
    "region info": (raw.GET_REGION_INFO, raw.region_info(raw.CONFIG)),
    "irq info": (raw.GET_IRQ_INFO, raw.irq_info(raw.INTX)),
    "read": (raw.REGION_READ, raw.region_range(raw.CONFIG, 0, 4)),
    "write": (raw.REGION_WRITE, raw.register_write(raw.CONFIG, 0x3C, b"\x05")),
    "reset": (raw.RESET, b""),
}
"""Commands that every PCI device carries out."""

NOWHERE = 0xFFFF_FFFF
IMPOSSIBLE = {
    "map over a map": (raw.DMA_MAP, raw.dma_map(IOVA, 2 * PAGE)),
    "region info": (raw.GET_REGION_INFO, raw.region_info(NOWHERE)),
    "irq info": (raw.GET_IRQ_INFO, raw.irq_info(NOWHERE)),
    "interrupt": (raw.SET_IRQS, raw.irq_set(raw.NONE | raw.TRIGGER, NOWHERE, 0, 1)),
    "read": (raw.REGION_READ, raw.region_range(NOWHERE, 0, 4)),
    "write": (raw.REGION_WRITE, raw.register_write(NOWHERE, 0, bytes(4))),
    "feature": (raw.DEVICE_FEATURE, struct.pack("<II", 8, 0x4_FFFF)),
}
"""Commands that no device carries out, once a page is mapped at ``IOVA``."""


@spec("Header")
@pytest.mark.parametrize("number", [0, 1, 0x7FFF, 0xFFFF])
def test_a_reply_has_the_id_of_its_command(client: RawClient, number: int) -> None:
    assert client.ask(raw.GET_INFO, raw.device_info(0, 0, 0), number=number).flags == raw.REPLY


@spec("Header")
def test_ids_may_be_used_again_at_the_same_time(client: RawClient) -> None:
    questions = [(raw.GET_INFO, raw.device_info(0, 0, 0)), (raw.GET_IRQ_INFO, raw.irq_info(0))]
    client.send(b"".join(raw.frame(*question, number=7) for question in questions * 2))
    replies = [client.receive() for _ in range(4)]
    assert [(reply.number, reply.command) for reply in replies] == [
        (7, raw.GET_INFO),
        (7, raw.GET_IRQ_INFO),
    ] * 2


@spec("Header")
@pytest.mark.parametrize(("command", "payload"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_gets_one_reply(client: RawClient, command: int, payload: bytes) -> None:
    client.done(command, payload)
    assert in_step(client)


@spec("Header")
@pytest.mark.parametrize(("command", "payload"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_with_no_reply_gets_none(client: RawClient, command: int, payload: bytes) -> None:
    client.send(raw.frame(command, payload, number=1, flags=raw.NO_REPLY))
    assert in_step(client)


@spec("Header")
@pytest.mark.parametrize(("command", "payload"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_error_reply_is_a_header_alone(client: RawClient, command: int, payload: bytes) -> None:
    client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
    assert 0 <= client.refused(command, payload) < 4096
    assert in_step(client)


@spec("Header")
@pytest.mark.parametrize(("command", "payload"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_command_with_no_reply_gets_no_error_either(
    client: RawClient, command: int, payload: bytes
) -> None:
    client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
    client.send(raw.frame(command, payload, number=1, flags=raw.NO_REPLY))
    assert in_step(client)


@spec("Header", "VFIO_USER_REGION_READ / Reply")
def test_a_register_that_a_device_refuses_to_read_is_refused_with_a_header_alone(
    device: Device,
) -> None:
    for region in device.regions:
        request = raw.region_range(region.index, 0, 3)
        reply = device.client.ask(raw.REGION_READ, request)
        assert len(reply.payload) == (0 if reply.error else 16 + 3)


@spec("Commands")
@pytest.mark.parametrize("command", [0, raw.DIRTY_PAGES, 19, 0xFFFF])
def test_a_command_that_does_not_exist_is_refused(client: RawClient, command: int) -> None:
    assert client.refused(command, bytes(24)) in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
    assert in_step(client)


@spec("Commands")
@pytest.mark.parametrize("command", [raw.DMA_READ, raw.DMA_WRITE])
def test_a_command_that_only_servers_send_is_refused(client: RawClient, command: int) -> None:
    assert client.refused(command, raw.dma_range(IOVA, 0))
    assert in_step(client)


@spec("Socket", "Header")
def test_header_and_data_may_come_apart(client: RawClient) -> None:
    message = raw.frame(raw.REGION_READ, raw.region_range(raw.CONFIG, 0, 4))
    client.send(message[:16])
    assert client.quiet(0.02)
    client.send(message[16:])
    assert len(client.receive().payload) == 20


@spec("Socket", "Header")
@pytest.mark.parametrize("at", [8, 24], ids=["header", "data"])
def test_a_message_may_come_in_two_pieces(client: RawClient, at: int) -> None:
    message = raw.frame(raw.REGION_READ, raw.region_range(raw.CONFIG, 0, 4))
    client.send(message[:at])
    assert client.quiet(0.02)
    client.send(message[at:])
    assert len(client.receive().payload) == 20


@spec("Security Considerations", "Header")
@pytest.mark.parametrize(("size", "flags"), [(15, 0), (16, 2), (0xFFFF_FFFF, 0)])
def test_a_header_that_makes_no_sense_is_refused_or_ends_the_connection(
    peer: Host, size: int, flags: int
) -> None:
    with peer.connect() as client:
        client.negotiate()
        client.send(struct.pack("<HHIII", 1, raw.GET_INFO, size, flags, 0))
        try:
            assert client.receive().flags == raw.ERROR_REPLY
        except (EOFError, ConnectionError):
            assert client.ended()


@spec("Commands", "Header")
def test_messages_are_in_the_order_of_bytes_of_the_host(client: RawClient) -> None:
    reply = client.done(raw.GET_INFO, raw.device_info(0, 0, 0))
    assert struct.unpack_from("=I", reply.data, 4) == (32,)
    assert struct.unpack_from("=I", reply.payload) == (16,)
