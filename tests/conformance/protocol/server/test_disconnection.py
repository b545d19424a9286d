# SPDX-License-Identifier: BSD-3-Clause
"""What is left of a client when it has gone, and the program itself."""

from __future__ import annotations

import pytest

from tests.conformance.protocol.device import (
    INTERRUPT_LINE,
    Device,
    eventfds_held,
    in_step,
    references,
)
from tests.conformance.protocol.peers import Host
from tests.conformance.protocol.specification import needs, spec
from tests.fault import raw
from tests.fault.clients import IOVA, PAGE, eventfds, memfd
from tests.support import eventually


def held(peer: Host) -> int:
    """Eventfds that the server has of its own: none of a client's while this one is connected."""
    with peer.connect() as client:
        client.negotiate()
        return eventfds_held(peer.pid)


@spec("Client Disconnection")
@needs("stays")
def test_the_memory_of_a_client_that_has_gone_is_unmapped(peer: Host) -> None:
    with memfd(4 * PAGE) as fd:
        with peer.connect() as client:
            client.negotiate()
            for number in range(4):
                request = raw.dma_map(IOVA + 2 * number * PAGE, PAGE, offset=number * PAGE)
                client.done(raw.DMA_MAP, request, [fd])
            assert references(peer.pid) > 0
        assert eventually(lambda: references(peer.pid) == 0)


@spec("Client Disconnection")
@needs("stays")
def test_the_eventfds_of_a_client_that_has_gone_are_closed(peer: Host) -> None:
    before = held(peer)
    with peer.connect() as client:
        client.negotiate()
        device = Device(client)
        for irq in device.irqs:
            with eventfds(1) as fds:
                device.enable(irq, fds)
        assert in_step(client)
        assert eventfds_held(peer.pid) == before + len(device.irqs)
    assert held(peer) == before


@spec("Client Disconnection")
@needs("stays")
def test_the_maps_of_a_client_are_not_in_the_way_of_the_next(peer: Host) -> None:
    for _ in range(2):
        with peer.connect() as client:
            client.negotiate()
            client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))


@spec("Client Disconnection")
@needs("stays")
def test_the_next_client_sets_interrupts_up_again(peer: Host) -> None:
    for _ in range(2):
        with peer.connect() as client, eventfds(1) as fds:
            client.negotiate()
            device = Device(client)
            device.trigger(device.irqs[0])
            device.enable(device.irqs[0], fds)
            assert raw.fired(fds[0], 0) == 0
            device.trigger(device.irqs[0])
            assert raw.fired(fds[0], 0) == 1


@spec("Client Disconnection")
@needs("stays")
@pytest.mark.parametrize("value", [b"\x0b", b"\x06"])
def test_the_device_keeps_its_state_for_the_next_client(peer: Host, value: bytes) -> None:
    with peer.connect() as client:
        client.negotiate()
        client.write(raw.CONFIG, INTERRUPT_LINE, value)
    with peer.connect() as following:
        following.negotiate()
        assert following.read(raw.CONFIG, INTERRUPT_LINE, 1) == value


@spec("Client Disconnection", "Security Considerations")
@needs("stays")
@pytest.mark.parametrize("sent", [0, 3, 16, 20])
def test_a_client_may_go_in_the_middle_of_a_message(peer: Host, sent: int) -> None:
    with memfd(PAGE) as fd:
        with peer.connect() as client:
            client.negotiate()
            message = raw.frame(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))[:sent]
            if message:
                client.send(message, [fd])
        with peer.connect() as following:
            following.negotiate()
            assert in_step(following)
            assert references(peer.pid) == 0
