# SPDX-License-Identifier: BSD-3-Clause
"""A guest whose memory a device's maps follow, and what the device says of them."""

from __future__ import annotations

from pyvfio.emulator.dma_listener import DMAListener
from pyvfio.emulator.memory import RAMRegion
from pyvfio.pci.device import PCIDevice
from tests.conformance.guest_memory import BASE, PAGE, Guest
from tests.system.map_list import heard

MODEL = "tests.system.map_list:MapList"


def refuse(device: PCIDevice, verb: int, iova: int) -> None:
    """Have the server refuse a map or an unmap."""
    device.bars[0].write64(verb, iova)


def add_all(guest: Guest, blocks: list[RAMRegion]) -> None:
    """Put the blocks side by side, in one transaction."""
    with guest.topology.transaction():
        for number, block in enumerate(blocks):
            guest.root.add(block, BASE + number * PAGE)


def served(device: PCIDevice) -> list[int]:
    """Pages that the server has, from BASE."""
    return [(entry.iova - BASE) // PAGE for entry in heard(device)]


def agree(device: PCIDevice, listener: DMAListener) -> bool:
    """Whether server, container and listener have the same maps."""
    maps = [entry.iova for entry in listener.mappings]
    return [entry.iova for entry in heard(device)] == maps and (
        device.dma.mappings == listener.mappings
    )
