# SPDX-License-Identifier: BSD-3-Clause
"""What an emulator needs to give a guest a VFIO device: the function, a bus, a memory map."""

from pyvfio.emulator.bus import Bus, BusKind
from pyvfio.emulator.events import Events
from pyvfio.emulator.function import GuestFunction
from pyvfio.emulator.host import Host, IRQRoute, Requester
from pyvfio.emulator.memory import AddressSpace, MemoryRegion, RAMRegion, Topology
from pyvfio.emulator.options import FunctionOptions

__all__ = [
    "AddressSpace",
    "Bus",
    "BusKind",
    "Events",
    "FunctionOptions",
    "GuestFunction",
    "Host",
    "IRQRoute",
    "MemoryRegion",
    "RAMRegion",
    "Requester",
    "Topology",
]
