# SPDX-License-Identifier: BSD-3-Clause
"""A server that makes the client's own eventfds block, which both ends can at any moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvfio
from pyvfio import ConnectionLost, VFIOTimeout
from tests.fault import raw
from tests.fault.raw import Message, RawServer

FULL = (1 << 64) - 2


@pytest.fixture
def server(socket_folder: Path) -> Iterator[RawServer]:
    """A server that makes each eventfd block that it gets."""
    with RawServer(socket_folder / "blocking.sock") as found:

        def set_irqs(message: Message) -> None:
            for fd in message.fds:
                os.set_blocking(fd, True)
            found.serve(message)

        found.handlers[raw.SET_IRQS] = set_irqs
        yield found


def test_a_wait_ends_in_time(server: RawServer) -> None:
    with pyvfio.open(server.uri) as device, device.intx.enable() as irqs:
        for timeout in (0.0, 0.01):
            with pytest.raises(VFIOTimeout):
                irqs[0].wait(timeout)


def test_an_interrupt_is_still_delivered(server: RawServer) -> None:
    with pyvfio.open(server.uri) as device, device.intx.enable() as irqs:
        os.eventfd_write(irqs[0].fileno(), 2)
        assert irqs[0].wait(timeout=1.0) == 2


def test_closing_does_not_wait_for_a_full_one(server: RawServer) -> None:
    with pyvfio.open(server.uri) as device, device.intx.enable() as irqs:
        os.eventfd_write(irqs[0].fileno(), FULL)


def test_loss_does_not_wait_for_a_full_one(server: RawServer) -> None:
    with pyvfio.open(server.uri) as device, device.intx.enable() as irqs:
        os.eventfd_write(irqs[0].fileno(), FULL)
        server.hang_up()
        with pytest.raises(ConnectionLost):
            device.bars[0].read32(0)
        with pytest.raises(ConnectionLost):
            irqs[0].wait(timeout=1.0)
