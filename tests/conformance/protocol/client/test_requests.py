# SPDX-License-Identifier: BSD-3-Clause
"""SET_IRQS, REGION_READ, REGION_WRITE, DMA_MAP and DMA_UNMAP as the client sends them."""

from __future__ import annotations

import errno
import os
import struct
import threading

import pytest

import pyvfio
from pyvfio.errors import DMAError, IRQError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DMAMapFlags, IRQSetFlags
from tests.conformance.protocol.client.script import before, sent
from tests.conformance.protocol.specification import spec
from tests.fault import raw
from tests.fault.clients import PAGE
from tests.fault.raw import RawServer, answer

ASSIGN = raw.EVENTFD | raw.TRIGGER
ONE_EACH = (1, 2, 4), (8, 16, 32)
PIN_FLAGS = 7


# DEVICE_SET_IRQS


@spec("VFIO_USER_DEVICE_SET_IRQS / Request", "Interrupts")
def test_enabling_sends_an_eventfd_for_each_vector(server: RawServer, device: PCIDevice) -> None:
    with device.msi.enable(4):
        message = server.last(raw.SET_IRQS)
        assert message.payload == raw.irq_set(ASSIGN, raw.MSI, 0, 4)
        assert len(message.fds) == 4


@spec("VFIO_USER_DEVICE_SET_IRQS / Request", "Interrupts")
def test_an_eventfd_that_the_server_signals_is_the_interrupt_of_its_vector(
    server: RawServer, device: PCIDevice
) -> None:
    kept: list[int] = []
    before(server, raw.SET_IRQS, lambda message: kept.extend(map(os.dup, message.fds)))
    with device.msi.enable(3) as irqs:
        os.eventfd_write(kept[2], 1)
        assert irqs[2].wait(5) == 1
    raw.close(kept)


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
def test_a_set_that_is_closed_disables_its_index(server: RawServer, device: PCIDevice) -> None:
    device.msi.enable(2).close()
    message = server.last(raw.SET_IRQS)
    assert message.payload == raw.irq_set(raw.NONE | raw.TRIGGER, raw.MSI, 0, 0)
    assert message.fds == ()


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
def test_vectors_are_taken_away_by_a_message_without_descriptors(
    server: RawServer, device: PCIDevice
) -> None:
    trigger = IRQSetFlags.TRIGGER
    with device.msi.enable(4) as irqs:
        fds = irqs.filenos()
        device.base.set_irqs(raw.MSI, trigger, 0, 4, eventfds=[fds[0], -1, -1, fds[3]])
        found = [(m.words("IIIII")[3:], len(m.fds)) for m in sent(server, raw.SET_IRQS)[-3:]]
    assert found == [((0, 1), 1), ((1, 2), 0), ((3, 1), 1)]


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
@pytest.mark.parametrize(
    ("action", "flag"),
    [(IRQSetFlags.MASK, 8), (IRQSetFlags.UNMASK, 16), (IRQSetFlags.TRIGGER, 32)],
)
def test_an_action_names_its_vectors(
    server: RawServer, device: PCIDevice, action: IRQSetFlags, flag: int
) -> None:
    device.base.set_irqs(raw.MSI, action, 1, 2)
    assert server.last(raw.SET_IRQS).payload == raw.irq_set(raw.NONE | flag, raw.MSI, 1, 2)


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
@pytest.mark.parametrize("action", [IRQSetFlags.MASK, IRQSetFlags.UNMASK, IRQSetFlags.TRIGGER])
def test_booleans_are_counted_in_argsz(
    server: RawServer, device: PCIDevice, action: IRQSetFlags
) -> None:
    device.base.set_irqs(raw.MSI, action, 0, 3, bools=[True, False, True])
    expected = raw.irq_set(raw.BOOL | action, raw.MSI, 0, 3, data=b"\1\0\1")
    assert server.last(raw.SET_IRQS).payload == expected


@spec("VFIO_USER_DEVICE_SET_IRQS / Request")
def test_each_message_has_one_kind_of_data_and_one_action(
    server: RawServer, device: PCIDevice
) -> None:
    with device.msi.enable(2) as irqs:
        irqs.trigger(1)
    for message in sent(server, raw.SET_IRQS):
        flags = message.words("II")[1]
        assert flags & 7 in ONE_EACH[0]
        assert flags & ~7 in ONE_EACH[1]


@spec("VFIO_USER_DEVICE_GET_IRQ_INFO / Reply", "VFIO_USER_DEVICE_SET_IRQS / Request")
def test_a_pin_that_masks_itself_is_unmasked(server: RawServer, device: PCIDevice) -> None:
    server.handlers[raw.GET_IRQ_INFO] = lambda message: server.peer.send(
        answer(message, raw.irq_info(raw.INTX, flags=PIN_FLAGS, count=1))
    )
    with device.intx.enable() as irqs:
        assert irqs.automasked
        irqs.unmask()
        expected = raw.irq_set(raw.NONE | raw.UNMASK, raw.INTX, 0, 1)
        assert server.last(raw.SET_IRQS).payload == expected


@spec("Header", "VFIO_USER_DEVICE_SET_IRQS / Reply")
def test_interrupts_that_are_refused_are_an_error(server: RawServer, device: PCIDevice) -> None:
    server.handlers[raw.SET_IRQS] = lambda m: server.peer.send(raw.refusal(m, errno.ENOSPC))
    with pytest.raises(IRQError) as caught:
        device.msi.enable(1)
    assert caught.value.errno == errno.ENOSPC


# REGION_READ and REGION_WRITE


@spec("VFIO_USER_REGION_READ / Request", "VFIO_USER_REGION_READ / Reply")
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_read_has_offset_region_and_count(
    server: RawServer, device: PCIDevice, width: int
) -> None:
    server.memory[0][0x40:0x48] = bytes(range(1, 9))
    expected = int.from_bytes(bytes(range(1, 1 + width)), "little")
    assert device.bars[0].read(0x40, width) == expected
    assert server.last(raw.REGION_READ).payload == raw.region_range(0, 0x40, width)


@spec("VFIO_USER_REGION_WRITE / Request", "VFIO_USER_REGION_WRITE / Reply")
@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("posted", [False, True])
def test_a_write_has_offset_region_count_and_data(
    server: RawServer, width: int, posted: bool
) -> None:
    data = bytes(range(1, 1 + width))
    with pyvfio.open(server.uri, posted_writes=posted) as device:
        device.bars[0].write(0x40, width, int.from_bytes(data, "little"))
        device.flush()
    message = server.last(raw.REGION_WRITE)
    assert message.payload == raw.register_write(0, 0x40, data)
    assert message.flags in ((0, raw.NO_REPLY) if posted else (0,))


@spec("Device Read and Write")
def test_configuration_space_is_reached_by_messages_with_replies(
    server: RawServer, device: PCIDevice
) -> None:
    device.config.write8(0x3C, 0x0B)
    assert device.config.read8(0x3C) == 0x0B
    message = server.last(raw.REGION_WRITE)
    assert (message.payload, message.flags) == (raw.register_write(raw.CONFIG, 0x3C, b"\x0b"), 0)


# REGION_WRITE_MULTI


@spec(
    "VFIO_USER_REGION_WRITE_MULTI / Request",
    "VFIO_USER_REGION_WRITE_MULTI / Single Device Write Format",
)
def test_writes_that_had_to_wait_go_together(server: RawServer) -> None:
    server.capabilities = b'{"capabilities":{"write_multiple":true}}\0'
    go_on = threading.Event()
    with pyvfio.open(server.uri) as device:
        bar = device.bars[0]
        bar.posted = True
        before(server, raw.REGION_WRITE, lambda _: wait_for(go_on))
        for number in range(3000):  # more than a socket holds
            bar.write(8 * (number % 512), (1, 2, 4, 8)[number % 4], number & 0xFF)
        go_on.set()
        device.flush()
    messages = sent(server, raw.WRITE_MULTI)
    assert messages
    for message in messages:
        (count,) = message.words("Q")
        assert len(message.payload) == 8 + 24 * count
        assert message.payload == raw.write_multi(*entries(message))


def wait_for(event: threading.Event) -> None:
    assert event.wait(raw.SECONDS)


def entries(message: raw.Message) -> list[tuple[int, int, bytes]]:
    """(region, offset, data) of each write; data behind the count is zero."""
    found = []
    for offset, region, count, data in struct.iter_unpack("<QII8s", message.payload[8:]):
        assert 1 <= count <= 8
        found.append((region, offset, data[:count]))
    return found


@spec("VFIO_USER_REGION_WRITE_MULTI / Reply", "Command Concurrency")
def test_a_read_comes_behind_all_writes_that_went_together(server: RawServer) -> None:
    server.capabilities = b'{"capabilities":{"write_multiple":true}}\0'
    with pyvfio.open(server.uri) as device:
        bar = device.bars[0]
        bar.posted = True
        for number in range(3000):
            bar.write32(0x20, number)
        assert bar.read32(0x20) == 2999


# DMA_MAP and DMA_UNMAP


@spec("VFIO_USER_DMA_MAP / Request", "Client memory access")
@pytest.mark.parametrize(
    ("flags", "wire"),
    [
        (DMAMapFlags.READ, raw.READABLE),
        (DMAMapFlags.WRITE, raw.WRITABLE),
        (DMAMapFlags.READ | DMAMapFlags.WRITE, raw.READABLE | raw.WRITABLE),
    ],
)
def test_a_map_has_its_permissions_its_offset_and_a_descriptor(
    server: RawServer, device: PCIDevice, flags: DMAMapFlags, wire: int
) -> None:
    with pyvfio.SharedMemory(4 * PAGE) as memory:
        files: list[os.stat_result] = []
        before(server, raw.DMA_MAP, lambda message: files.extend(map(os.fstat, message.fds)))
        device.dma.map(memory, iova=0x40000, offset=PAGE, size=2 * PAGE, flags=flags)
        expected = raw.dma_map(0x40000, 2 * PAGE, flags=wire, offset=PAGE)
        assert server.last(raw.DMA_MAP).payload == expected
        assert [file.st_ino for file in files] == [os.fstat(memory.fd).st_ino]
        device.dma.unmap_all()


@spec("VFIO_USER_DMA_MAP / Request")
@pytest.mark.parametrize("options", [{"secure_dma": True}, {}], ids=["secure", "no descriptors"])
def test_a_map_without_a_descriptor_has_offset_0(
    server: RawServer, options: dict[str, bool]
) -> None:
    if not options:
        server.capabilities = b'{"capabilities":{"max_msg_fds":0}}\0'
    with pyvfio.open(server.uri, **options) as device, pyvfio.SharedMemory(2 * PAGE) as memory:
        device.dma.map(memory, iova=0x40000, offset=PAGE, size=PAGE)
        message = server.last(raw.DMA_MAP)
        assert (message.payload, message.fds) == (raw.dma_map(0x40000, PAGE), ())
        device.dma.unmap_all()


@spec("VFIO_USER_DMA_MAP / Request", "VFIO_USER_DMA_MAP / Reply")
@pytest.mark.parametrize("number", [errno.EEXIST, errno.ENOSPC, errno.EINVAL])
def test_a_map_that_is_refused_is_an_error(
    server: RawServer, device: PCIDevice, number: int
) -> None:
    server.handlers[raw.DMA_MAP] = lambda m: server.peer.send(raw.refusal(m, number))
    with pyvfio.SharedMemory(PAGE) as memory:
        with pytest.raises(DMAError) as caught:
            device.dma.map(memory)
        assert caught.value.errno == number
        assert device.dma.mappings == ()


@spec("VFIO_USER_DMA_UNMAP / Request")
def test_an_unmap_is_exactly_an_earlier_map(server: RawServer, device: PCIDevice) -> None:
    with pyvfio.SharedMemory(4 * PAGE) as memory:
        device.dma.map(memory, iova=0x40000, size=2 * PAGE)
        with pytest.raises(DMAError):
            device.dma.unmap(0x40000, PAGE)
        device.dma.unmap(0x40000, 2 * PAGE)
    assert [m.payload for m in sent(server, raw.DMA_UNMAP)] == [raw.dma_unmap(0x40000, 2 * PAGE)]


@spec("VFIO_USER_DMA_UNMAP / Reply", "VFIO_USER_DMA_READ / Request")
def test_memory_that_was_unmapped_is_out_of_reach(server: RawServer, device: PCIDevice) -> None:
    with device.dma.alloc(PAGE) as buffer:
        iova = buffer.iova
    assert server.ask(raw.DMA_READ, raw.dma_range(iova, 4)).flags == raw.ERROR_REPLY


@spec("VFIO_USER_DMA_MAP / Request")
def test_no_two_maps_overlap(server: RawServer, device: PCIDevice) -> None:
    with pyvfio.SharedMemory(2 * PAGE) as memory:
        device.dma.map(memory, iova=0x40000)
        for iova in (0x40000, 0x40000 + PAGE, 0x40000 - PAGE):
            with pytest.raises(DMAError):
                device.dma.map(memory, iova=iova)
        device.dma.unmap_all()
    assert len(sent(server, raw.DMA_MAP)) == 1
