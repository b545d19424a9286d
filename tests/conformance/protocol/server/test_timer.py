# SPDX-License-Identifier: BSD-3-Clause
"""Interrupt and DMA of a server of another make: the timer of libvfio-user's ``server``.

A time written to BAR 0 is when the device raises its interrupt, then writes 4 KiB to its second DMA
region by mapping, and to the first by messages, and reads both back.
"""

from __future__ import annotations

import os
import socket
import time

import pytest

from tests.conformance.protocol.device import Device, in_step
from tests.conformance.protocol.peers import Host
from tests.conformance.protocol.server.test_dma_requests import serve
from tests.conformance.protocol.specification import needs, spec
from tests.fault import raw
from tests.fault.clients import IOVA, PAGE, TWIN, eventfds, memfd
from tests.fault.raw import Peer, RawClient, fired

TIMER = 0
WRITTEN = b"".join(letter * 1024 for letter in (b"A", b"B", b"C", b"D"))


def start(client: RawClient, mapped: int) -> None:
    """Map two pages, the second by ``mapped``, and have the timer fire in a second."""
    client.done(raw.DMA_MAP, raw.dma_map(IOVA, PAGE))
    client.done(raw.DMA_MAP, raw.dma_map(IOVA + PAGE, PAGE), [mapped])
    client.write64(TIMER, 0, int(time.time()) + 1)


def follow(peer: Peer) -> tuple[bytes, list[int]]:
    """Serve the six requests; returns what was written, and the commands."""
    contents, commands = bytearray(PAGE), []
    for _ in range(6):
        request = peer.receive()
        commands.append(request.command)
        serve(peer, request, contents)
    return bytes(contents), commands


@spec("VFIO_USER_DMA_READ", "VFIO_USER_DMA_WRITE", "VFIO_USER_DMA_MAP / Request", "Interrupts")
@needs("timer")
@pytest.mark.parametrize("twin", [False, True], ids=["main socket", "twin socket"])
def test_interrupt_and_dma(peer: Host, twin: bool) -> None:
    with peer.connect() as client, memfd(PAGE) as fd, eventfds(1) as irqs:
        ends = client.negotiate(TWIN if twin else raw.JSON).fds
        assert len(ends) == twin
        with Peer(socket.socket(fileno=ends[0]) if twin else client.sock.dup()) as channel:
            device = Device(client)
            device.enable(device.irq(raw.INTX), irqs)
            start(client, fd)
            assert follow(channel) == (WRITTEN, [raw.DMA_WRITE] * 4 + [raw.DMA_READ] * 2)
        assert fired(irqs[0]) == 1
        assert in_step(client)
        assert os.pread(fd, PAGE, 0) == WRITTEN
