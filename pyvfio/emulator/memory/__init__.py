# SPDX-License-Identifier: BSD-3-Clause
"""The guest's memory map: regions that overlap by priority, flattened, and who listens to it.

The model is QEMU's (docs/devel/memory.rst): a tree of regions is what the machine is built of, an
address space is the flat view of one tree, and listeners hear how the view changes.

Threads: whatever changes a map holds one lock, :data:`~pyvfio.emulator.memory.region.MAP_LOCK`, and
listeners are called with it, so that changes happen one after the other.  An access takes no lock
and sees a view as it was before a transaction, or as it is after it.
"""

from pyvfio.emulator.memory.address_space import AddressSpace
from pyvfio.emulator.memory.alias import AliasRegion
from pyvfio.emulator.memory.discard import RAMDiscardListener, RAMDiscardManager
from pyvfio.emulator.memory.flat_view import FlatRange
from pyvfio.emulator.memory.iommu import IOMMUNotifier, IOMMURegion, IOTLBEntry
from pyvfio.emulator.memory.listener import MemoryListener, Section
from pyvfio.emulator.memory.mmio import MMIOHandler, MMIORegion
from pyvfio.emulator.memory.ram import RAMDeviceRegion, RAMRegion
from pyvfio.emulator.memory.region import MemoryRegion
from pyvfio.emulator.memory.terminal import TerminalRegion
from pyvfio.emulator.memory.topology import Topology

__all__ = [
    "AddressSpace",
    "AliasRegion",
    "FlatRange",
    "IOMMUNotifier",
    "IOMMURegion",
    "IOTLBEntry",
    "MMIOHandler",
    "MMIORegion",
    "MemoryListener",
    "MemoryRegion",
    "RAMDeviceRegion",
    "RAMDiscardListener",
    "RAMDiscardManager",
    "RAMRegion",
    "Section",
    "TerminalRegion",
    "Topology",
]
