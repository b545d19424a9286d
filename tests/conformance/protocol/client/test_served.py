# SPDX-License-Identifier: BSD-3-Clause
"""DMA_READ and DMA_WRITE, which the client serves; and the end of a server."""

from __future__ import annotations

import threading

import pytest

import pyvfio
from pyvfio.errors import ConnectionLost, VFIOError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DMAMapFlags
from tests.conformance.protocol.specification import READ_AND_WRITE_OPERATIONS, spec
from tests.fault import raw
from tests.fault.clients import PAGE
from tests.fault.raw import RawServer, unhex
from tests.support import eventually

# The layout of both replies


@spec("VFIO_USER_DMA_READ / Reply", "VFIO_USER_DMA_READ / Request")
@pytest.mark.parametrize("count", [1, 8, PAGE])
def test_dma_read_is_answered_with_its_range_and_the_data(
    server: RawServer, device: PCIDevice, count: int
) -> None:
    with device.dma.alloc(PAGE) as buffer:
        buffer.array[:] = [at & 0xFF for at in range(PAGE)]
        reply = server.ask(raw.DMA_READ, raw.dma_range(buffer.iova, count))
        assert reply.payload == raw.dma_range(buffer.iova, count, buffer.array[:count].tobytes())


@spec("VFIO_USER_DMA_WRITE / Reply", "VFIO_USER_DMA_WRITE / Request")
@pytest.mark.parametrize("count", [1, 8, PAGE])
def test_dma_write_is_done_and_answered_with_its_range(
    server: RawServer, device: PCIDevice, count: int
) -> None:
    data = bytes(at & 0xFF for at in range(count))
    with device.dma.alloc(PAGE) as buffer:
        reply = server.ask(raw.DMA_WRITE, raw.dma_range(buffer.iova, count, data))
        # The table gives the count 4 bytes; read with 8, as servers do, it is the same number.
        assert reply.payload[:12] == raw.dma_range(buffer.iova, count)[:12]
        assert reply.payload[12:] in (b"", unhex("00000000"))
        assert buffer.array[:count].tobytes() == data


@spec("VFIO_USER_DMA_READ / Request", "VFIO_USER_DMA_WRITE / Request", "VFIO_USER_DMA_MAP")
@pytest.mark.parametrize("offset", [-1, PAGE - 3, PAGE])
@pytest.mark.parametrize("command", [raw.DMA_READ, raw.DMA_WRITE])
def test_memory_that_is_not_mapped_is_not_served(
    server: RawServer, device: PCIDevice, command: int, offset: int
) -> None:
    with device.dma.alloc(PAGE, address_bits=32) as buffer:
        data = b"evil" if command == raw.DMA_WRITE else b""
        reply = server.ask(command, raw.dma_range(buffer.iova + offset, 4, data))
        assert reply.flags == raw.ERROR_REPLY
        assert not buffer.array.any()


@spec("VFIO_USER_DMA_MAP / Request")
@pytest.mark.parametrize(
    ("flags", "command"),
    [(DMAMapFlags.READ, raw.DMA_WRITE), (DMAMapFlags.WRITE, raw.DMA_READ)],
)
def test_memory_is_served_only_as_it_was_mapped(
    server: RawServer, device: PCIDevice, flags: DMAMapFlags, command: int
) -> None:
    with device.dma.alloc(PAGE, flags=flags) as buffer:
        data = b"evil" if command == raw.DMA_WRITE else b""
        reply = server.ask(command, raw.dma_range(buffer.iova, 4, data))
        assert reply.flags == raw.ERROR_REPLY
        assert not buffer.array.any()


@spec(READ_AND_WRITE_OPERATIONS, "VFIO_USER_VERSION / Request")
@pytest.mark.parametrize("command", [raw.DMA_READ, raw.DMA_WRITE])
def test_as_much_as_the_client_takes_is_served_in_one_message(
    server: RawServer, device: PCIDevice, command: int
) -> None:
    size = 1 << 20
    data = bytes(range(256)) * (size // 256)
    with device.dma.alloc(size) as buffer:
        buffer.array[:] = list(range(256)) * (size // 256)
        sent = data if command == raw.DMA_WRITE else b""
        reply = server.ask(command, raw.dma_range(buffer.iova, size, sent))
        assert reply.flags == raw.REPLY
        assert buffer.array.tobytes() == data


@spec(READ_AND_WRITE_OPERATIONS)
@pytest.mark.parametrize("command", [raw.DMA_READ, raw.DMA_WRITE])
def test_memory_that_the_server_could_map_is_served_as_well(
    server: RawServer, device: PCIDevice, command: int
) -> None:
    with device.dma.alloc(PAGE) as buffer:
        assert len(server.last(raw.DMA_MAP).fds) == 1
        data = b"both" if command == raw.DMA_WRITE else b""
        assert server.ask(command, raw.dma_range(buffer.iova, 4, data)).flags == raw.REPLY


# The end of a server


@spec("Server Disconnection")
def test_a_server_that_is_gone_is_told_to_whoever_waits(
    server: RawServer, device: PCIDevice
) -> None:
    bar = device.bars[0]
    server.handlers[raw.REGION_READ] = lambda _: server.hang_up()
    with pytest.raises(ConnectionLost):
        bar.read32(0)


@spec("Server Disconnection")
def test_a_server_that_is_gone_is_told_to_who_waits_for_an_interrupt(
    server: RawServer, device: PCIDevice
) -> None:
    found: list[VFIOError] = []

    def wait() -> None:
        try:
            irqs[0].wait(raw.SECONDS)
        except VFIOError as error:
            found.append(error)

    irqs = device.msi.enable(1)
    thread = threading.Thread(target=wait)
    thread.start()
    server.hang_up()
    thread.join()
    assert [type(error) for error in found] == [ConnectionLost]


@spec("Server Disconnection")
def test_a_server_that_is_gone_is_told_to_every_later_call(
    server: RawServer, device: PCIDevice
) -> None:
    server.hang_up()
    assert eventually(lambda: device.lost)
    for call in (lambda: device.bars[0].read32(0), device.reset, lambda: device.dma.alloc(PAGE)):
        with pytest.raises(ConnectionLost):
            call()


@spec("Server Disconnection")
def test_memory_is_the_clients_own_again_when_the_server_is_gone(
    server: RawServer, device: PCIDevice
) -> None:
    with device.dma.alloc(PAGE) as buffer:
        buffer.array[:4] = list(b"mine")
        server.hang_up()
        assert eventually(lambda: device.lost)
        assert buffer.array[:4].tobytes() == b"mine"


@spec("Client Disconnection")
def test_a_client_that_goes_closes_its_end(server: RawServer) -> None:
    device = pyvfio.open(server.uri)
    device.dma.alloc(PAGE)
    device.close()
    assert eventually(lambda: server.peer.sock.fileno() == -1)
