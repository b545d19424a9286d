# SPDX-License-Identifier: BSD-3-Clause
"""A PCI bus of an emulator: functions by slot and number, configuration access, address spaces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Protocol

from pyvfio.container import Container
from pyvfio.emulator.bus_reset import ResettableFunction, reset_all
from pyvfio.emulator.dma_listener import DMAListener
from pyvfio.emulator.host import Host
from pyvfio.emulator.memory import AddressSpace, MemoryRegion, Topology
from pyvfio.uapi import pci

SLOTS, FUNCTIONS = 32, 8


class BusKind(Enum):
    """Where a bus is, which decides what PCI Express functions on it look like.

    ``ROOT_COMPLEX`` is the root bus of an Express machine, ``PORT`` the other side of a root or
    downstream port, ``CONVENTIONAL`` a PCI bus of a machine without PCI Express, and
    ``BRIDGED`` a conventional bus somewhere below an Express root.
    """

    CONVENTIONAL = "conventional"
    BRIDGED = "conventional, below PCI Express"
    ROOT_COMPLEX = "root complex"
    PORT = "port"

    @property
    def express(self) -> bool:
        """Whether its functions have extended configuration space."""
        return self in (BusKind.ROOT_COMPLEX, BusKind.PORT)


class BusFunction(ResettableFunction, Protocol):
    """What the bus needs of a function on it."""

    @property
    def multifunction(self) -> bool:
        """Whether it says that its slot has further functions."""

    def config_read(self, offset: int, width: int) -> int:
        """A read of the guest from configuration space."""

    def config_write(self, offset: int, width: int, value: int) -> None:
        """A write of the guest to configuration space."""


class Bus:
    """A PCI bus; the emulator makes it and gives it what its functions need.

    :param topology: the guest's memory map.
    :param memory: where memory BARs appear, at the addresses that the guest gives them.
    :param io: where I/O BARs appear.
    :param dma: the address space that functions reach by DMA.
    :param host: takes their interrupts.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        memory: MemoryRegion,
        io: MemoryRegion,
        dma: AddressSpace,
        host: Host,
        kind: BusKind = BusKind.ROOT_COMPLEX,
    ) -> None:
        self.topology = topology
        self.memory = memory
        self.io = io
        self.dma = dma
        self.host = host
        self.kind = kind
        self._functions: dict[tuple[int, int], BusFunction] = {}

    def __iter__(self) -> Iterator[BusFunction]:
        return iter(list(self._functions.values()))

    def check_free(self, slot: int, number: int) -> None:
        """Raise :class:`ValueError` where no function can be added."""
        if not 0 <= slot < SLOTS or not 0 <= number < FUNCTIONS:
            raise ValueError(f"there is no function {slot:02x}.{number} on a bus")
        if (slot, number) in self._functions:
            raise ValueError(f"{slot:02x}.{number} is {self._functions[slot, number].name} already")

    def add(self, function: BusFunction, slot: int, number: int) -> None:
        """Put a function on the bus; called by it.

        :raises ValueError: the place is taken, or function 0 of the slot does not say that there
            are others, so that no guest would look for this one.
        """
        self.check_free(slot, number)
        first = function if number == 0 else self._functions.get((slot, 0))
        others = number or any(place[0] == slot for place in self._functions)
        if first is not None and others and not first.multifunction:
            raise ValueError(
                f"{first.name} in slot {slot:02x} is not multifunction, so it has no other beside"
            )
        self._functions[slot, number] = function

    def remove(self, function: BusFunction) -> None:
        """Take a function off the bus; called by it.  May be repeated."""
        for place, found in list(self._functions.items()):
            if found is function:
                del self._functions[place]

    # DMA

    def attach(self, container: Container, uri: str) -> DMAListener:
        """Have a device reach by DMA what :attr:`dma` shows; called by its function.

        Devices that share a container (of one IOMMU group) share the listener as well, on whatever
        bus of the machine they are.

        :param uri: the device, for what is logged.
        :raises VFIOError: the first map that was refused; nothing is mapped.
        """
        for listener in self.dma.listeners:
            if isinstance(listener, DMAListener) and listener.container is container:
                listener.users += 1
                return listener
        new = DMAListener(container, uri)
        new.attach(self.dma)
        new.users = 1
        return new

    def detach(self, listener: DMAListener) -> None:
        """The counterpart of :meth:`attach`: the last one takes the maps away.

        :raises VFIOError: the device refused.
        """
        listener.users -= 1
        if not listener.users:
            listener.detach()

    @contextmanager
    def detached(self, listener: DMAListener) -> Iterator[None]:
        """Reach a lost device again in a ``with`` block: its maps are made anew behind it.

        :raises VFIOError: the first map that was refused; nothing is mapped.
        """
        listener.detach()
        yield
        listener.attach(self.dma)

    # Configuration space

    def config_read(self, slot: int, number: int, offset: int, width: int) -> int:
        """A configuration read of the guest; all ones where no function answers."""
        function = self._functions.get((slot, number))
        if function is None or offset + width > self._config_size:
            return (1 << 8 * width) - 1
        return function.config_read(offset, width)

    def config_write(self, slot: int, number: int, offset: int, width: int, value: int) -> None:
        """A configuration write of the guest; dropped where no function answers."""
        function = self._functions.get((slot, number))
        if function is not None and offset + width <= self._config_size:
            function.config_write(offset, width, value)

    @property
    def _config_size(self) -> int:
        return pci.EXTENDED_CONFIG_SIZE if self.kind.express else pci.CONFIG_SIZE

    def reset(self) -> None:
        """Reset every function; those that only a hot reset really resets by one, together.

        :raises VFIOError: what the first refused; the others are reset all the same.
        """
        reset_all(list(self))
