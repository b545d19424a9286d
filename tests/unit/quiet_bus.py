# SPDX-License-Identifier: BSD-3-Clause
"""A bus for tests of what shows on it, where no interrupt is to be sent."""

from __future__ import annotations

from pyvfio.emulator.bus import Bus
from pyvfio.emulator.host import Host, Requester
from pyvfio.emulator.memory import MemoryRegion, Topology


class NoHost(Host):
    """No interrupt is to be sent."""

    def send_msi(self, function: Requester, address: int, data: int) -> None:
        raise AssertionError("an MSI")

    def set_pin(self, function: Requester, pin: int, level: bool) -> None:
        raise AssertionError("a pin")


def quiet_bus() -> Bus:
    """A root complex with 64 bits of memory, 16 bits of ports, and no interrupts."""
    topology = Topology()
    memory, ports = MemoryRegion("memory", 1 << 64), MemoryRegion("io", 1 << 16)
    space = topology.space("memory", memory)
    topology.space("io", ports)
    return Bus(topology, memory=memory, io=ports, dma=space, host=NoHost())
