# SPDX-License-Identifier: BSD-3-Clause
"""A function whose device vanishes under its guest, and comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyvfio
from pyvfio.emulator import FunctionOptions, GuestFunction, RAMRegion
from pyvfio.errors import ConnectionLost
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID
from pyvfio.uapi.vfio import PCIIRQ
from tests.conformance.devices import (
    MEMORY,
    REGISTERS,
    TABLE,
    TO_CLIENT,
    TO_DEVICE,
    Dev,
    Edu,
    run_dma,
)
from tests.emulated import ADDRESS
from tests.small_machine import RAM_SIZE, Guest, SmallMachine
from tests.support import ServerProcess, eventually, open_fds

SLOT = 3
Served = Callable[[str], ServerProcess]


@pytest.fixture
def machine() -> Iterator[SmallMachine]:
    with SmallMachine() as found:
        yield found


@pytest.fixture
def edu_device(path: Path, served: Served) -> Iterator[PCIDevice]:
    """An edu device whose server is to be killed."""
    served("edu")
    with pyvfio.open(f"vfio-user:{path}") as dev:
        yield dev


@pytest.fixture
def test_device(path: Path, served: Served) -> Iterator[PCIDevice]:
    """A test device whose server is to be started again."""
    served("testdev")
    with pyvfio.open(f"vfio-user:{path}") as dev:
        yield dev


def kill(server: ServerProcess, dev: PCIDevice) -> None:
    """The device is gone."""
    server.kill()
    assert eventually(lambda: dev.lost)


def test_a_guest_reads_ones_of_a_device_that_is_gone(
    machine: SmallMachine, path: Path, served: Served
) -> None:
    server = served("edu")
    with pyvfio.open(f"vfio-user:{path}") as dev, GuestFunction(dev) as function:
        function.realize(machine.bus, SLOT)
        guest = Guest(machine, function)
        bar = guest.place_bars()[0]
        guest.enable_msi()
        kill(server, dev)
        assert guest.read32(bar + Edu.ID) == 0xFFFF_FFFF
        assert guest.get(pci.DEVICE_ID) == 0xFFFF
        guest.write32(bar + Edu.LIVENESS, 1)
        guest.set(pci.COMMAND, 0)
        assert function.events.dispatch() == 0


def test_a_function_without_a_device_leaves_its_bus(
    machine: SmallMachine, path: Path, served: Served
) -> None:
    server = served("edu")
    dev = pyvfio.open(f"vfio-user:{path}")
    function = GuestFunction(dev)
    before = len(machine.memory.flat_view), len(open_fds())
    function.realize(machine.bus, SLOT)
    Guest(machine, function).place_bars()
    kill(server, dev)
    function.unrealize()
    assert (len(machine.memory.flat_view), len(machine.memory.listeners)) == (before[0], 0)
    assert dev.dma.mappings == ()
    assert list(machine.bus) == []
    dev.close()


def test_an_interrupt_that_came_before_the_loss_is_delivered(
    machine: SmallMachine, edu_device: PCIDevice, served: Served
) -> None:
    with GuestFunction(edu_device) as function:
        function.realize(machine.bus, SLOT)
        guest = Guest(machine, function)
        bar = guest.place_bars()[0]
        guest.enable_msi(0x44)
        guest.write32(bar + Edu.IRQ_RAISE, 1)
        assert guest.read32(bar + Edu.IRQ_STATUS) == 1
        served("edu")
        assert eventually(lambda: edu_device.lost)
        function.reconnect(timeout=20)
        assert machine.host.messages == [(ADDRESS, 0x44)]


def test_the_reset_of_a_device_that_is_gone_says_so(
    machine: SmallMachine, path: Path, served: Served
) -> None:
    server = served("edu")
    with pyvfio.open(f"vfio-user:{path}") as dev, GuestFunction(dev) as function:
        function.realize(machine.bus, SLOT)
        kill(server, dev)
        with pytest.raises(ConnectionLost):
            machine.bus.reset()


def test_memory_of_the_guest_changes_while_its_device_is_gone(
    machine: SmallMachine, test_device: PCIDevice, served: Served
) -> None:
    with GuestFunction(test_device) as function:
        function.realize(machine.bus, SLOT)
        served("testdev").kill()
        assert eventually(lambda: test_device.lost)
        machine.memory_root.remove(machine.ram)
        assert test_device.dma.mappings == ()


def test_a_guest_goes_on_with_a_device_that_is_reached_again(
    machine: SmallMachine, test_device: PCIDevice, served: Served
) -> None:
    with GuestFunction(test_device) as function:
        function.realize(machine.bus, SLOT)
        guest = Guest(machine, function)
        placed = guest.place_bars()
        table = guest.get(pci.MSIX_TABLE, guest.capability(CapabilityID.MSIX)) & ~pci.MSIX_BIR
        guest.enable_msix(placed[TABLE] + table, vector=5, data=0x77)
        served("testdev")
        assert eventually(lambda: test_device.lost)
        assert function.reconnect(timeout=20).failures == ()
        assert function.realized.interrupts.mode is PCIIRQ.MSIX
        guest.write32(placed[REGISTERS] + Dev.FIRE, 5)
        assert guest.interrupted()
        assert machine.host.messages == [(ADDRESS, 0x77)]
        machine.memory.write_bytes(0x2000, b"pyvfio..")
        assert run_dma(test_device, TO_DEVICE, 0x2000, 0, 8) == 0
        assert run_dma(test_device, TO_CLIENT, 0x3000, 0, 8) == 0
        assert machine.memory.read_bytes(0x3000, 8) == b"pyvfio.."
        assert [entry.iova for entry in test_device.dma.mappings if entry.iova < RAM_SIZE] == [0]


def test_what_changed_meanwhile_is_mapped_when_it_is_reached_again(
    machine: SmallMachine, test_device: PCIDevice, served: Served
) -> None:
    more = RAMRegion("more", RAM_SIZE)
    with more, GuestFunction(test_device, FunctionOptions(mmap=False)) as function:
        function.realize(machine.bus, SLOT)
        served("testdev")
        assert eventually(lambda: test_device.lost)
        machine.memory_root.remove(machine.ram)
        with pytest.raises(ConnectionLost):
            machine.memory_root.add(more, 1 << 30)
        function.reconnect(timeout=20)
        assert [entry.iova for entry in test_device.dma.mappings] == [1 << 30]
        assert test_device.bars[MEMORY].read32(0) == 0
