# SPDX-License-Identifier: BSD-3-Clause
"""DMA maps that follow guest memory where the server stalls, dies, or the device is closed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyvfio
from pyvfio.emulator.dma_listener import DMAListener
from pyvfio.emulator.memory import (
    IOMMURegion,
    IOTLBEntry,
    RAMDiscardManager,
    RAMRegion,
)
from pyvfio.errors import ConnectionLost, DeviceClosed
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DMAMapFlags
from tests.conformance.guest_memory import BASE, PAGE, Guest
from tests.fault.guests import MODEL, agree, served
from tests.support import ServerProcess, eventually

Serve = Callable[..., ServerProcess]


@pytest.fixture
def server(serve: Serve) -> ServerProcess:
    return serve(MODEL)


@pytest.fixture
def device(server: ServerProcess) -> Iterator[PCIDevice]:
    with pyvfio.open(server.uri) as dev:
        yield dev


def test_a_lost_device_lets_ram_go_and_takes_no_more(
    server: ServerProcess,
    device: PCIDevice,
    listener: DMAListener,
    guest: Guest,
    blocks: list[RAMRegion],
) -> None:
    guest.root.add(blocks[0], BASE)
    guest.root.add(blocks[1], BASE + PAGE)
    server.kill()
    assert eventually(lambda: device.lost)
    guest.root.remove(blocks[0])
    with pytest.raises(ConnectionLost):
        guest.root.add(blocks[2], BASE)
    assert [entry.iova for entry in listener.mappings] == [BASE + PAGE]
    listener.detach()
    assert (listener.mappings, device.dma.mappings) == ((), ())


def test_a_device_that_is_lost_at_the_start_leaves_nothing(
    server: ServerProcess, device: PCIDevice, guest: Guest, blocks: list[RAMRegion]
) -> None:
    guest.root.add(blocks[0], BASE)
    server.kill()
    listener = DMAListener(device.dma, device.uri)
    with pytest.raises(ConnectionLost):
        listener.attach(guest.space)
    assert (listener.mappings, device.dma.mappings, guest.space.listeners) == ((), (), ())


@pytest.mark.parametrize("unmap", [False, True])
def test_a_server_that_dies_in_a_transaction_ends_it_at_once(
    server: ServerProcess,
    listener: DMAListener,
    guest: Guest,
    blocks: list[RAMRegion],
    unmap: bool,
) -> None:
    guest.root.add(blocks[0], BASE)
    os.kill(server.pid, signal.SIGSTOP)
    killer = threading.Timer(0.2, server.kill)
    killer.start()
    if unmap:
        guest.root.remove(blocks[0])
    else:
        with pytest.raises(ConnectionLost):
            blocks[0].move(BASE + PAGE)
    killer.join()
    assert listener.mappings == ()


@pytest.mark.usefixtures("listener")
def test_other_listeners_of_a_space_hear_all_where_a_device_is_lost(
    server: ServerProcess, guest: Guest, serve: Serve, blocks: list[RAMRegion]
) -> None:
    with pyvfio.open(serve(MODEL).uri) as other:
        healthy = DMAListener(other.dma, other.uri)
        healthy.attach(guest.space)
        server.kill()
        with pytest.raises(ConnectionLost):
            guest.root.add(blocks[0], BASE)
        assert served(other) == [0]
        healthy.detach()


class OnePage(IOMMURegion):
    """An IOMMU in which one page is mapped, to the first of the RAM."""

    def entries(self, first: int, last: int) -> Iterator[IOTLBEntry]:
        yield IOTLBEntry(0x5000, BASE, PAGE - 1, DMAMapFlags.READ)


def test_a_virtual_iommu_and_parts_survive_the_loss_of_the_device(
    server: ServerProcess, device: PCIDevice, listener: DMAListener, guest: Guest
) -> None:
    with RAMRegion("dimm", 4 * PAGE) as dimm:
        parts = RAMDiscardManager(dimm, PAGE)
        parts.populate(0, 2 * PAGE)
        guest.root.add(dimm, BASE)
        iommu = OnePage("iommu", 1 << 64, guest.space)
        behind = DMAListener(device.dma, device.uri)
        behind.attach(guest.topology.space("device", iommu))
        server.kill()
        assert eventually(lambda: device.lost)
        parts.discard(0, PAGE)
        with pytest.raises(ConnectionLost):
            parts.populate(0, PAGE)
        assert not parts.is_populated(0, PAGE)
        iommu.notify(IOTLBEntry(0, 0, (1 << 64) - 1, DMAMapFlags(0)))
        behind.detach()
        listener.detach()
        assert device.dma.mappings == ()


def test_a_device_that_is_reached_again_is_attached_again(
    socket_folder: Path, guest: Guest, blocks: list[RAMRegion]
) -> None:
    path = socket_folder / "memory-again.sock"
    guest.root.add(blocks[0], BASE)
    with ServerProcess(MODEL, path) as first, pyvfio.open(first.uri) as device:
        listener = DMAListener(device.dma, device.uri)
        listener.attach(guest.space)
        first.kill()
        assert eventually(lambda: device.lost)
        with pytest.raises(ConnectionLost):
            guest.root.add(blocks[1], BASE + PAGE)
        with ServerProcess(MODEL, path):
            device.reconnect()
            assert served(device) == [0]
            listener.detach()
            listener.attach(guest.space)
            assert served(device) == [0, 1]
            assert agree(device, listener)
            listener.detach()


def test_a_closed_device_takes_its_maps_along(
    device: PCIDevice, listener: DMAListener, guest: Guest, blocks: list[RAMRegion]
) -> None:
    guest.root.add(blocks[0], BASE)
    device.close()
    with pytest.raises(DeviceClosed):
        blocks[0].move(BASE + PAGE)
    guest.space.close()
    listener.detach()
    assert listener.mappings == ()
