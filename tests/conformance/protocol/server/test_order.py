# SPDX-License-Identifier: BSD-3-Clause
"""Pipelined commands, and reset."""

from __future__ import annotations

from tests.conformance.protocol.device import INTERRUPT_LINE, Device, in_step
from tests.conformance.protocol.specification import spec
from tests.fault import raw
from tests.fault.clients import IOVA, PAGE
from tests.fault.raw import RawClient

RESET_FLAG = 1


def line(value: int, flags: int = 0) -> bytes:
    """A command that writes the register that has no effect."""
    request = raw.register_write(raw.CONFIG, INTERRUPT_LINE, bytes([value]))
    return raw.frame(raw.REGION_WRITE, request, number=value, flags=flags)


READ_LINE = raw.frame(raw.REGION_READ, raw.region_range(raw.CONFIG, INTERRUPT_LINE, 1))


@spec("Command Concurrency")
def test_commands_are_answered_in_the_order_they_came(client: RawClient) -> None:
    questions = (
        raw.frame(raw.REGION_READ, raw.region_range(raw.CONFIG, at % 64, 1), number=at)
        for at in range(500)
    )
    client.send(b"".join(questions))
    assert [client.receive().number for _ in range(500)] == list(range(500))


@spec("Command Concurrency")
def test_commands_are_carried_out_in_the_order_they_came(client: RawClient) -> None:
    client.send(b"".join(line(value) + READ_LINE for value in range(1, 101)))
    replies = [client.receive() for _ in range(200)]
    assert [reply.payload[16] for reply in replies[1::2]] == list(range(1, 101))


@spec("Command Concurrency", "Header")
def test_commands_without_reply_are_done_before_the_next_reply(client: RawClient) -> None:
    writes = b"".join(line(value, raw.NO_REPLY) for value in range(1, 101))
    client.send(writes + READ_LINE)
    assert client.receive().payload[16] == 100


@spec("Command Concurrency", "VFIO_USER_DMA_MAP")
def test_maps_may_be_sent_without_waiting(client: RawClient) -> None:
    maps = (raw.dma_map(IOVA + 2 * at * PAGE, PAGE) for at in range(64))
    client.send(b"".join(raw.frame(raw.DMA_MAP, each, number=at) for at, each in enumerate(maps)))
    replies = [client.receive() for _ in range(64)]
    assert [(reply.number, reply.error) for reply in replies] == [(at, 0) for at in range(64)]


@spec("Command Concurrency", "Header")
def test_a_refused_command_among_others_spoils_none(client: RawClient) -> None:
    refused = raw.frame(raw.GET_REGION_INFO, raw.region_info(0xFFFF_FFFF))
    client.send(line(0x0C) + refused + READ_LINE)
    assert [client.receive().flags for _ in range(2)] == [raw.REPLY, raw.ERROR_REPLY]
    assert client.receive().payload[16] == 0x0C


# DEVICE_RESET


@spec("VFIO_USER_DEVICE_RESET", "VFIO_USER_DEVICE_GET_INFO / Reply")
def test_a_device_that_says_so_is_reset_without_any_payload(device: Device) -> None:
    reply = device.client.ask(raw.RESET)
    if device.info[0] & RESET_FLAG:
        assert (reply.flags, reply.payload) == (raw.REPLY, b"")
    else:
        assert reply.flags == raw.ERROR_REPLY
    assert in_step(device.client)


@spec("VFIO_USER_DEVICE_RESET")
def test_the_device_is_there_after_a_reset_as_before(device: Device) -> None:
    regions, irqs = device.regions, device.irqs
    device.client.ask(raw.RESET)
    again = Device(device.client)
    assert (again.regions, again.irqs) == (regions, irqs)
