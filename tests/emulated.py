# SPDX-License-Identifier: BSD-3-Clause
"""An emulator reduced to what the interrupts of one function need: a host, a bus of BARs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack

from pyvfio import eventfd
from pyvfio.closing import Closing
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.events import Events
from pyvfio.emulator.host import Host, IRQRoute, Requester
from pyvfio.emulator.interrupts import Interrupts
from pyvfio.emulator.memory import MemoryRegion, Topology
from pyvfio.emulator.msix_layout import MSIXLayout
from pyvfio.emulator.options import FunctionOptions
from pyvfio.native import mmio
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID, Command
from tests.support import eventually

SOON = 2.0
BAR_SPACING = 1 << 32
ADDRESS = 0xFEE0_1000
"""Where the guest's messages go."""


class Route(IRQRoute):
    """An eventfd that the host takes signals of, as an irqfd does."""

    def __init__(self, host: RecordingHost, fd: int, resample: int = -1) -> None:
        self.fd = fd
        self.resample = resample
        self.messages: list[tuple[int, int]] = []
        self.open = True
        self._host = host

    def taken(self) -> int:
        """Signals since the last time."""
        return eventfd.take(self.fd)

    def update(self, address: int, data: int) -> None:
        self.messages.append((address, data))

    def close(self) -> None:
        assert os.fstat(self.fd)  # its descriptor is there until the route has ended
        self.open = False


class RecordingHost(Host):
    """Keeps what it is told.

    :param takes: whether it takes eventfds.
    """

    def __init__(self, takes: bool = False) -> None:
        self.takes = takes
        self.messages: list[tuple[int, int]] = []
        self.levels: list[tuple[int, bool]] = []
        self.routes: list[Route] = []
        self.told: list[str] = []

    def send_msi(self, function: Requester, address: int, data: int) -> None:
        self.messages.append((address, data))

    def set_pin(self, function: Requester, pin: int, level: bool) -> None:
        self.levels.append((pin, level))

    def route_msi(self, function: Requester, address: int, data: int, eventfd: int) -> Route | None:
        return self._route(Route(self, eventfd), (address, data))

    def route_pin(self, function: Requester, pin: int, eventfd: int, resample: int) -> Route | None:
        return self._route(Route(self, eventfd, resample), (pin, pin))

    def _route(self, route: Route, message: tuple[int, int]) -> Route | None:
        if not self.takes:
            return None
        route.messages.append(message)
        self.routes.append(route)
        return route

    def device_error(self, function: Requester) -> None:
        self.told.append(f"error of {function.name}")

    def release_requested(self, function: Requester) -> None:
        self.told.append(f"release of {function.name}")

    @property
    def level(self) -> bool:
        """Of the pin, as it was told last."""
        return bool(self.levels) and self.levels[-1][1]


class Nothing:
    """Registers that do not exist; answers an MMIORegion."""

    def read(self, offset: int, width: int) -> int:
        return mmio.ALL_ONES[width]

    def write(self, offset: int, width: int, value: int) -> None:
        """It is dropped."""


class BareBAR:
    """A BAR with nothing in it.

    :param new: the device does not have it.
    """

    def __init__(self, size: int, new: bool) -> None:
        self.base = MemoryRegion("bar", size)
        self.trapped = None if new else Nothing()

    def maps(self, offset: int, size: int) -> bool:
        return False


class EmulatedFunction(Closing):
    """A device with its interrupts as a guest has them, and the guest's accesses.

    :param layout: where MSI-X is for the guest, if not where the device has it.
    :param new_bars: sizes of BARs that the device does not have.
    :ivar mmaps: whether mapped BARs are reached without a trap, as it was asked for, in order.
    :ivar memory: BAR n is at n * ``BAR_SPACING``.
    """

    name = "guest's"

    def __init__(
        self,
        dev: PCIDevice,
        host: RecordingHost | None = None,
        options: FunctionOptions | None = None,
        layout: MSIXLayout | None = None,
        new_bars: Mapping[int, int] | None = None,
    ) -> None:
        self.dev = dev
        self.host = host or RecordingHost()
        self.mmaps: list[bool] = []
        self.topology = Topology()
        root = MemoryRegion("memory", 1 << 64)
        self.memory = self.topology.space("memory", root)
        self._closing = ExitStack()
        self.events = self._closing.enter_context(Events())
        self.config = EmulatedConfig(dev.config, pci.CONFIG_SIZE, self.name)
        self.layout = layout or MSIXLayout.probe(dev)
        sizes = {number: bar.size for number, bar in dev.bars.items()} | dict(new_bars or {})
        self.bars = {n: BareBAR(size, n not in dev.bars) for n, size in sizes.items()}
        for number, bar in self.bars.items():
            root.add(bar.base, number * BAR_SPACING)
        self.interrupts = Interrupts(
            dev.base,
            self.config,
            host=self.host,
            events=self.events,
            options=options or FunctionOptions(),
            function=self,
        )
        self._closing.callback(self.interrupts.tear_down)
        self.at: dict[int, int] = {}
        for capability in dev.config.capabilities():
            if capability.id in (CapabilityID.MSI, CapabilityID.MSIX):
                self.at[capability.id] = capability.offset
                self._add(CapabilityID(capability.id), capability.offset)

    def _add(self, number: CapabilityID, offset: int) -> None:
        room = pci.CONFIG_SIZE - offset
        if number == CapabilityID.MSI:
            assert self.interrupts.add_msi(offset, room)
        else:
            assert self.layout is not None
            assert self.interrupts.add_msix(self.layout, self.bars, offset, room)

    def set_up(self) -> None:
        """The last step; and the guest lets the function write to memory."""
        self.interrupts.set_up(self.mmaps.append)
        self.command(Command.MEMORY | Command.MASTER)

    def close(self) -> None:
        self._closing.close()

    # The guest's accesses

    def command(self, value: int) -> None:
        """Write the command register."""
        self.config.write(pci.COMMAND.offset, 2, value)

    def read_config(self, register: pci.Register, number: CapabilityID) -> int:
        """Read a register of a capability."""
        return self.config.read(self.at[number] + register.offset, register.width)

    def write_config(self, register: pci.Register, number: CapabilityID, value: int) -> None:
        """Write a register of a capability."""
        self.config.write(self.at[number] + register.offset, register.width, value)

    def enable_msi(self, data: int = 0x40) -> None:
        """Give MSI a message and enable it."""
        msi = CapabilityID.MSI
        self.write_config(pci.MSI_ADDRESS_LO, msi, ADDRESS)
        self.write_config(pci.MSI_ADDRESS_HI, msi, 0)
        self.write_config(pci.MSI_DATA_64, msi, data)
        self.write_config(pci.MSI_CONTROL, msi, pci.MSI_CONTROL_ENABLE)

    def disable_msi(self) -> None:
        """Disable MSI."""
        self.write_config(pci.MSI_CONTROL, CapabilityID.MSI, 0)

    def control_msix(self, bits: int) -> None:
        """Write the control register of MSI-X."""
        self.write_config(pci.MSIX_CONTROL, CapabilityID.MSIX, bits)

    def entry(self, vector: int) -> int:
        """The address of an entry of the MSI-X table."""
        assert self.layout is not None
        table = self.layout.table
        return table.bar * BAR_SPACING + table.offset + vector * pci.MSIX_ENTRY_SIZE

    def unmask(self, vector: int, data: int | None = None) -> None:
        """Give an MSI-X vector a message, and unmask it."""
        at = self.entry(vector)
        self.memory.write(at, 4, ADDRESS)
        self.memory.write(at + 4, 4, 0)
        self.memory.write(at + pci.MSIX_ENTRY_DATA, 4, 0x100 + vector if data is None else data)
        self.memory.write(at + pci.MSIX_ENTRY_CONTROL, 4, 0)

    def mask(self, vector: int) -> None:
        """Mask an MSI-X vector."""
        self.memory.write(self.entry(vector) + pci.MSIX_ENTRY_CONTROL, 4, pci.MSIX_ENTRY_MASKED)

    def pending_bits(self) -> int:
        """The first pending bits that the guest reads; all ones where they are not emulated."""
        assert self.layout is not None
        pba = self.layout.pba
        return self.memory.read(pba.bar * BAR_SPACING + pba.offset, 8)

    # Signals

    def signalled(self) -> bool:
        """Whether an interrupt comes, which is handed over then."""
        return self.events.dispatch(SOON) > 0

    def quiet(self) -> bool:
        """Whether no interrupt comes; what there is is handed over."""
        return self.events.dispatch(0.03) == 0

    def routed(self, number: int = -1) -> bool:
        """Whether the host gets a signal of a route."""
        route = self.host.routes[number]
        return eventually(lambda: route.taken() > 0)
