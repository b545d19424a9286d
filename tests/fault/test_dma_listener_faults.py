# SPDX-License-Identifier: BSD-3-Clause
"""DMA maps that follow guest memory where the server refuses, stalls or dies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

import pyvfio
from pyvfio.emulator.dma_listener import DMAListener
from pyvfio.emulator.memory import (
    RAMDeviceRegion,
    RAMDiscardManager,
    RAMRegion,
)
from pyvfio.errors import DeviceClosed, DMAError
from pyvfio.pci.device import PCIDevice
from pyvfio.vectors import MmapArea
from tests.conformance.devices import MEMORY
from tests.conformance.guest_memory import BASE, PAGE, Guest
from tests.fault.guests import MODEL, add_all, agree, refuse, served
from tests.support import ServerProcess
from tests.system import map_list
from tests.system.map_list import NOWHERE, REFUSE_MAP, REFUSE_UNMAP, heard


@pytest.fixture(scope="module")
def server(host: Callable[..., ServerProcess]) -> ServerProcess:
    """One for all tests."""
    return host(MODEL)


@pytest.fixture
def device(server: ServerProcess) -> Iterator[PCIDevice]:
    """It refuses nothing yet."""
    with pyvfio.open(server.uri) as dev:
        dev.reset()
        yield dev


# Refusals of the server


def test_a_map_that_the_server_refuses_at_the_start_leaves_it_nothing(
    device: PCIDevice, guest: Guest, blocks: list[RAMRegion]
) -> None:
    add_all(guest, blocks)
    refuse(device, REFUSE_MAP, BASE + 2 * PAGE)
    listener = DMAListener(device.dma, device.uri)
    with pytest.raises(DMAError) as caught:
        listener.attach(guest.space)
    assert caught.value.iova == BASE + 2 * PAGE
    assert device.bars[0].read32(map_list.HEARD) == 6  # three maps were made, and taken away
    assert (served(device), listener.mappings, guest.space.listeners) == ([], (), ())
    refuse(device, REFUSE_MAP, NOWHERE)
    listener.attach(guest.space)
    assert served(device) == [0, 1, 2, 3]
    listener.detach()


def test_what_the_server_refused_is_not_unmapped_later(
    device: PCIDevice,
    listener: DMAListener,
    guest: Guest,
    blocks: list[RAMRegion],
) -> None:
    refuse(device, REFUSE_MAP, BASE + PAGE)
    with pytest.raises(DMAError):
        add_all(guest, blocks)
    assert served(device) == [0, 2, 3]
    assert agree(device, listener)
    guest.root.remove(blocks[1])
    assert device.bars[0].read32(map_list.HEARD) == 3
    listener.detach()
    assert device.bars[0].read32(map_list.HEARD) == 6


def test_what_could_not_be_unmapped_is_tried_again_at_the_end(
    device: PCIDevice, listener: DMAListener, guest: Guest, blocks: list[RAMRegion]
) -> None:
    guest.root.add(blocks[0], BASE)
    refuse(device, REFUSE_UNMAP, BASE)
    with pytest.raises(DMAError) as caught:
        guest.root.remove(blocks[0])
    assert caught.value.iova == BASE
    assert [entry.iova for entry in listener.mappings] == [BASE]
    listener.detach()
    assert (listener.mappings, device.dma.mappings) == ((), ())


def test_an_end_that_fails_can_be_repeated(
    device: PCIDevice, listener: DMAListener, guest: Guest, blocks: list[RAMRegion]
) -> None:
    guest.root.add(blocks[0], BASE)
    guest.root.add(blocks[1], BASE + PAGE)
    refuse(device, REFUSE_UNMAP, BASE)
    with pytest.raises(DMAError):
        listener.detach()
    assert [entry.iova for entry in listener.mappings] == [BASE]
    listener.detach()
    assert (listener.mappings, device.dma.mappings) == ((), ())


def test_ram_where_an_unmap_failed_is_refused_and_all_agree(
    device: PCIDevice,
    listener: DMAListener,
    guest: Guest,
    blocks: list[RAMRegion],
) -> None:
    guest.root.add(blocks[0], BASE)
    refuse(device, REFUSE_UNMAP, BASE)
    with pytest.raises(DMAError):
        _replace(guest, blocks)
    assert agree(device, listener)
    assert len(listener.mappings) == 1
    refuse(device, REFUSE_UNMAP, NOWHERE)


def _replace(guest: Guest, blocks: list[RAMRegion]) -> None:
    with guest.topology.transaction():
        guest.root.remove(blocks[0])
        guest.root.add(blocks[1], BASE)


def test_parts_that_the_server_refuses_are_not_there(
    device: PCIDevice, listener: DMAListener, guest: Guest
) -> None:
    with RAMRegion("dimm", 8 * PAGE) as dimm:
        parts = RAMDiscardManager(dimm, PAGE)
        guest.root.add(dimm, BASE)
        parts.populate(0, 2 * PAGE)
        refuse(device, REFUSE_MAP, BASE + 5 * PAGE)
        with pytest.raises(DMAError):
            parts.populate(0, 8 * PAGE)
        assert served(device) == [0, 1]
        assert agree(device, listener)
        assert not parts.is_populated(2 * PAGE, PAGE)
        guest.root.remove(dimm)


# Peer to peer


@pytest.fixture
def peer(testdev: PCIDevice) -> PCIDevice:
    """Another device."""
    return testdev


@pytest.fixture
def bar(peer: PCIDevice) -> RAMDeviceRegion:
    """Mapped memory of another device."""
    return RAMDeviceRegion("peer bar", peer.bars[MEMORY], MmapArea(0, 4 * PAGE))


def test_a_device_reaches_the_bar_of_another(
    device: PCIDevice,
    listener: DMAListener,
    guest: Guest,
    peer: PCIDevice,
    bar: RAMDeviceRegion,
) -> None:
    device.bus_master = True
    peer.bars[MEMORY].write64(0, 0x1122334455667788)
    guest.root.add(bar, BASE)
    (entry,) = heard(device)
    assert (entry.iova, entry.size, entry.first) == (BASE, 4 * PAGE, 0x1122334455667788)
    assert agree(device, listener)


def test_a_bar_that_the_server_refuses_is_a_warning_once(
    device: PCIDevice,
    listener: DMAListener,
    guest: Guest,
    bar: RAMDeviceRegion,
    caplog: pytest.LogCaptureFixture,
) -> None:
    refuse(device, REFUSE_MAP, BASE)
    for _ in range(2):
        guest.root.add(bar, BASE)
        assert agree(device, listener)
        guest.root.remove(bar)
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage().count("no DMA to another device's BAR") for record in warned] == [1]


def test_a_refused_bar_does_not_hide_refused_ram(
    device: PCIDevice, guest: Guest, bar: RAMDeviceRegion
) -> None:
    with RAMRegion("ram", PAGE) as ram:
        guest.root.add(ram, BASE)
        guest.root.add(bar, BASE + PAGE)
        device.dma.map(ram.memory, iova=BASE)
        refuse(device, REFUSE_MAP, BASE + PAGE)
        with pytest.raises(DMAError, match="overlaps"):
            DMAListener(device.dma, device.uri).attach(guest.space)
        device.dma.unmap(BASE, PAGE)


def test_a_bar_does_not_hide_ram_that_could_not_be_unmapped(
    device: PCIDevice,
    listener: DMAListener,
    guest: Guest,
    bar: RAMDeviceRegion,
    blocks: list[RAMRegion],
) -> None:
    guest.root.add(blocks[0], BASE)
    refuse(device, REFUSE_UNMAP, BASE)
    with pytest.raises(DMAError, match="dma unmap of 4096 bytes"):
        guest.root.add(bar, BASE, priority=1)
    assert agree(device, listener)
    refuse(device, REFUSE_UNMAP, NOWHERE)


def test_the_bar_of_a_closed_device_is_a_warning(
    listener: DMAListener,
    guest: Guest,
    peer: PCIDevice,
    bar: RAMDeviceRegion,
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer.close()
    guest.root.add(bar, BASE)
    assert "closed, or reached again" in caplog.text
    assert listener.mappings == ()
    with pytest.raises(DeviceClosed):
        bar.read(0, 4)


@pytest.mark.parametrize("area", [MmapArea(0x800, 2 * PAGE), MmapArea(0, PAGE + 0x800)])
def test_a_bar_that_is_not_whole_pages_is_skipped(
    device: PCIDevice,
    listener: DMAListener,
    guest: Guest,
    peer: PCIDevice,
    area: MmapArea,
) -> None:
    guest.root.add(RAMDeviceRegion("odd", peer.bars[MEMORY], area), BASE + area.offset)
    assert list(listener.skipped.values()) == ["not whole pages of 4096 bytes"]
    assert served(device) == []
