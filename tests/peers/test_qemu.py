# SPDX-License-Identifier: BSD-3-Clause
"""QEMU's vfio-user client on ``pyvfio serve``: what a driver in the machine can do with a device.

Seen with QEMU 11.1.3 (Debian), and with 10.1.0 (Ubuntu) but for what is marked.  The machine's
processor never starts; the test itself reads and writes its buses.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from pyvfio.models import edu, testdev
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID, Command, Status
from tests.peers import models
from tests.peers.drive import (
    BAR,
    DATA,
    MAILBOX,
    MEMORY,
    MESSAGE,
    PORTS,
    RESULT,
    SLOT,
    TABLE,
    arm,
    arrived,
    driven_edu,
    driven_testdev,
    run_edu_dma,
    run_testdev_dma,
)
from tests.peers.faults import SHARED_OR_NOT, SHORT_COUNT
from tests.peers.function import Function
from tests.peers.held import memory_of_ram, shared_maps
from tests.peers.machine import MEMORY_MIB, Machine
from tests.peers.qemu import vfio_user
from tests.support import ServerProcess, eventually, open_fds

Serve = Callable[..., ServerProcess]
Start = Callable[..., Machine]

PAGE, LARGE = 4096, 8 << 20
UNMAPPED = 2 << 20
"""An offset in testdev's memory that cannot be mapped."""
BAR_MEMORY = "pyvfio (deleted)"
"""The name of a BAR's memory in the maps of a process."""
LOW_MEMORY = 0x0800_0000
"""An address for a BAR that edu, with its 28 bits, reaches."""


def noise(size: int) -> bytes:
    """Bytes without a pattern, the same each time."""
    return random.Random(size).randbytes(size)


# What the machine finds


def test_edu_is_found_with_its_bar_and_msi(served: Serve, plugged: Start) -> None:
    function = Function(plugged(served("edu")).bus, SLOT)
    assert function.ids == (0x1234, 0x11E8)
    assert function.size_of(0) == 1 << 20
    assert [found for found, _ in function.capabilities()] == [CapabilityID.MSI]
    assert function.read(*pci.INTERRUPT_PIN) == 1


def test_testdev_is_found_with_every_kind_of_bar(served: Serve, plugged: Start) -> None:
    function = Function(plugged(served("testdev")).bus, SLOT)
    assert function.ids == (0x1B36, 0x0005)
    assert [function.size_of(bar) for bar in (0, 1, 2, 4)] == [4096, 4096, 64 << 20, 32]
    capabilities = [CapabilityID.PM, CapabilityID.VNDR, CapabilityID.EXP, CapabilityID.MSIX]
    assert [found for found, _ in function.capabilities()] == capabilities


def test_qemu_ends_and_the_server_is_free_for_the_next(served: Serve, plugged: Start) -> None:
    server = served("testdev")
    for _ in range(3):
        machine = plugged(server)
        driven_testdev(machine)
        assert machine.bus.load(BAR + testdev.ID, 4) == testdev.IDENTIFICATION
        assert machine.quit() == 0
        assert machine.said() == ""


# Registers and memory


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_an_access_reaches_the_model_in_its_width(
    served: Serve, plugged: Start, width: int
) -> None:
    machine = plugged(served("testdev"))
    driven_testdev(machine)
    value = int.from_bytes(bytes(range(1, 1 + width)), "little")
    machine.bus.store(BAR + testdev.SCRATCH, width, value)
    assert machine.bus.load(BAR + testdev.WIDTH, 4) == width
    assert machine.bus.load(BAR + testdev.SCRATCH, width) == value
    assert machine.bus.load(BAR + testdev.ACCESSES, 4) == 2


@pytest.mark.parametrize("width", [1, 2, 4])
def test_ports_are_read_and_written(served: Serve, plugged: Start, width: int) -> None:
    machine = plugged(served("testdev"))
    driven_testdev(machine)
    machine.bus.port_out(PORTS + 8, width, 0x12345678 & (1 << 8 * width) - 1)
    assert machine.bus.port_in(PORTS + 8, 4) == 0x12345678 & (1 << 8 * width) - 1


def test_nothing_answers_where_memory_space_is_off(served: Serve, plugged: Start) -> None:
    machine = plugged(served("edu"))
    function = driven_edu(machine)
    function.enable(Command(0))
    assert machine.bus.load(BAR + edu.ID, 4) != edu.IDENTIFICATION
    function.enable()
    assert machine.bus.load(BAR + edu.ID, 4) == edu.IDENTIFICATION


@pytest.mark.parametrize("offset", [0, UNMAPPED, testdev.MAPPABLE[1][0], (64 << 20) - PAGE])
def test_memory_is_the_models_mapped_or_not(served: Serve, plugged: Start, offset: int) -> None:
    machine = plugged(served("testdev"))
    driven_testdev(machine)
    sent = noise(PAGE)
    machine.bus.write(MEMORY + offset, sent)
    assert run_testdev_dma(machine.bus, RESULT, offset, PAGE, testdev.TO_CLIENT) == 0
    assert machine.bus.read(RESULT, PAGE) == sent
    assert machine.bus.read(MEMORY + offset, PAGE) == sent


def test_each_area_that_can_be_mapped_is_mapped(served: Serve, plugged: Start) -> None:
    machine = plugged(served("testdev"))
    assert shared_maps(machine.pid).count(BAR_MEMORY) == len(testdev.MAPPABLE)


def test_a_bar_that_can_be_mapped_as_a_whole_is_mapped(served: Serve, plugged: Start) -> None:
    """Its description comes with a descriptor at once, without capabilities."""
    machine = plugged(served("tests.peers.models:Memory"))
    assert shared_maps(machine.pid).count(BAR_MEMORY) == 1
    function = Function(machine.bus, SLOT)
    assert function.size_of(0) == models.MEMORY_SIZE
    function.place(0, MEMORY)
    function.enable()
    machine.bus.store(MEMORY + models.MEMORY_SIZE - 8, 8, 0x0123_4567_89AB_CDEF)
    assert machine.bus.load(MEMORY + models.MEMORY_SIZE - 8, 8) == 0x0123_4567_89AB_CDEF


# DMA


def test_shared_memory_is_mapped_by_the_server(served: Serve, plugged: Start) -> None:
    server = served("edu")
    plugged(server)
    assert memory_of_ram(server)


@pytest.mark.parametrize("shared", SHARED_OR_NOT)
def test_edu_copies_memory_there_and_back(served: Serve, plugged: Start, shared: bool) -> None:
    server = served("edu")
    machine = plugged(server, shared=shared)
    driven_edu(machine)
    assert bool(memory_of_ram(server)) == shared
    sent = noise(PAGE)
    machine.bus.write(DATA, sent)
    run_edu_dma(machine.bus, DATA, edu.BUFFER, PAGE, 0)
    run_edu_dma(machine.bus, edu.BUFFER, RESULT, PAGE, edu.DMA_TO_HOST)
    assert machine.bus.read(RESULT, PAGE) == sent


@pytest.mark.parametrize("shared", SHARED_OR_NOT)
def test_a_large_dma_comes_through(served: Serve, plugged: Start, shared: bool) -> None:
    machine = plugged(served("testdev"), shared=shared)
    driven_testdev(machine)
    sent = noise(LARGE)
    machine.bus.write(DATA, sent)
    assert run_testdev_dma(machine.bus, DATA, UNMAPPED, LARGE, testdev.TO_DEVICE) == 0
    assert run_testdev_dma(machine.bus, RESULT, UNMAPPED, LARGE, testdev.TO_CLIENT) == 0
    assert machine.bus.read(RESULT, LARGE) == sent


def test_dma_beyond_guest_memory_fails_at_the_device(served: Serve, plugged: Start) -> None:
    machine = plugged(served("testdev"))
    driven_testdev(machine)
    end = MEMORY_MIB << 20
    for address in (end, end - 8):
        result = run_testdev_dma(machine.bus, address, 0, 16, testdev.TO_DEVICE)
        assert result == errno.EFAULT


def test_dma_needs_bus_mastering(served: Serve, plugged: Start) -> None:
    """QEMU cannot keep a server from memory that it has mapped: the server looks at the bit."""
    machine = plugged(served("testdev"))
    function = driven_testdev(machine)
    function.enable(Command.MEMORY)
    assert run_testdev_dma(machine.bus, DATA, 0, 16, testdev.TO_CLIENT) == errno.EPERM
    function.enable()
    assert run_testdev_dma(machine.bus, DATA, 0, 16, testdev.TO_CLIENT) == 0


@SHORT_COUNT
def test_a_device_reaches_the_memory_of_another(
    served: Serve, machine: Callable[..., Machine]
) -> None:
    """QEMU announces a BAR that it has mapped to all devices, without a descriptor."""
    first, second = served("edu"), served("tests.peers.models:Memory")
    both = machine(vfio_user(first.path, addr="4"), vfio_user(second.path, addr="5"))
    driven_edu(both)
    memory = Function(both.bus, 5)
    memory.place(0, LOW_MEMORY)
    memory.enable()
    both.bus.write(LOW_MEMORY, b"from device to device")
    run_edu_dma(both.bus, LOW_MEMORY, edu.BUFFER, 32, 0)
    run_edu_dma(both.bus, edu.BUFFER, RESULT, 32, edu.DMA_TO_HOST)
    assert both.bus.read(RESULT, 21) == b"from device to device"


# Interrupts


def test_msi_is_a_write_of_its_message(served: Serve, plugged: Start) -> None:
    machine = plugged(served("edu"))
    function = driven_edu(machine)
    function.set_message(MAILBOX, MESSAGE)
    function.control_msi(True)
    for number in range(10):
        machine.bus.store(MAILBOX, 4, 0)
        machine.bus.store(BAR + edu.IRQ_RAISE, 4, 1 << number)
        assert eventually(lambda: machine.bus.load(MAILBOX, 4) == MESSAGE)
    assert machine.bus.load(BAR + edu.IRQ_STATUS, 4) == 0x3FF


def test_the_end_of_a_dma_is_told_by_msi(served: Serve, plugged: Start) -> None:
    machine = plugged(served("edu"))
    function = driven_edu(machine)
    function.set_message(MAILBOX, MESSAGE)
    function.control_msi(True)
    run_edu_dma(machine.bus, DATA, edu.BUFFER, 64, edu.DMA_IRQ)
    assert eventually(lambda: machine.bus.load(MAILBOX, 4) == MESSAGE)
    assert machine.bus.load(BAR + edu.IRQ_STATUS, 4) == edu.DMA_DONE_IRQ


def test_the_pin_is_up_until_the_device_lowers_it(served: Serve, plugged: Start) -> None:
    """QEMU has the server unmask the pin at each access: it is signalled again while it is up."""
    machine = plugged(served("edu"))
    function = driven_edu(machine)
    machine.bus.ask("irq_intercept_in", "ioapic")
    assert not machine.bus.lines_up()
    machine.bus.store(BAR + edu.IRQ_RAISE, 4, 3)
    assert eventually(lambda: bool(machine.bus.lines_up()))
    assert function.read(*pci.STATUS) & Status.INTERRUPT
    machine.bus.store(BAR + edu.IRQ_ACK, 4, 1)
    assert eventually(lambda: bool(machine.bus.lines_up()))  # one of two is left
    machine.bus.store(BAR + edu.IRQ_ACK, 4, 2)
    assert eventually(lambda: not machine.bus.lines_up())
    assert not function.read(*pci.STATUS) & Status.INTERRUPT


def test_the_pin_takes_over_where_msi_is_turned_off(served: Serve, plugged: Start) -> None:
    machine = plugged(served("edu"))
    function = driven_edu(machine)
    machine.bus.ask("irq_intercept_in", "ioapic")
    function.set_message(MAILBOX, MESSAGE)
    function.control_msi(True)
    function.control_msi(False)
    machine.bus.store(BAR + edu.IRQ_RAISE, 4, 1)
    assert eventually(lambda: bool(machine.bus.lines_up()))
    assert machine.bus.load(MAILBOX, 4) == 0


def test_each_msix_vector_has_its_message(served: Serve, plugged: Start) -> None:
    """All 32, each with a descriptor of its own; QEMU keeps the table to itself."""
    machine = plugged(served("testdev"))
    function = driven_testdev(machine)
    function.control_msix(True)
    vectors = range(testdev.VECTORS)
    for vector in vectors:
        arm(machine.bus, vector)
    for vector in vectors:
        machine.bus.store(BAR + testdev.FIRE, 4, vector)
    for vector in vectors:
        assert arrived(machine.bus, vector)


def test_vectors_armed_before_msix_is_on_are_set_up_at_once(served: Serve, plugged: Start) -> None:
    """QEMU sends their descriptors in messages of up to the server's max_msg_fds."""
    machine = plugged(served("testdev"))
    function = driven_testdev(machine)
    for vector in range(testdev.VECTORS):
        arm(machine.bus, vector)
    function.control_msix(True)
    for vector in (0, 15, 16, 31):
        machine.bus.store(BAR + testdev.FIRE, 4, vector)
        assert arrived(machine.bus, vector)


def test_a_vector_never_armed_is_pending(served: Serve, plugged: Start) -> None:
    """Pending bits are read from the server, and delivered when the vector is unmasked."""
    machine = plugged(served("testdev"))
    function = driven_testdev(machine)
    function.control_msix(True)
    machine.bus.store(BAR + testdev.FIRE, 4, 5)
    assert machine.bus.load(TABLE + testdev.PBA_OFFSET, 8) == 1 << 5
    arm(machine.bus, 5)
    assert arrived(machine.bus, 5)
    assert machine.bus.load(TABLE + testdev.PBA_OFFSET, 8) == 0


def test_descriptors_of_msix_are_given_back_when_it_is_off(served: Serve, plugged: Start) -> None:
    server = served("testdev")
    machine = plugged(server)
    function = driven_testdev(machine)
    before = len(open_fds(server.pid))
    for _ in range(3):
        for vector in range(testdev.VECTORS):
            arm(machine.bus, vector)
        function.control_msix(True)
        assert len(open_fds(server.pid)) >= before + testdev.VECTORS - 1  # the pin's is gone
        function.control_msix(False)
        assert len(open_fds(server.pid)) == before


# Reset


def test_a_reset_of_the_machine_resets_the_device(served: Serve, plugged: Start) -> None:
    server = served("edu")
    machine = plugged(server)
    function = driven_edu(machine)
    before = open_fds(server.pid)
    for _ in range(3):
        machine.bus.store(BAR + edu.LIVENESS, 4, 1)
        machine.bus.store(BAR + edu.IRQ_RAISE, 4, 1)
        function.set_message(MAILBOX, MESSAGE)
        function.control_msi(True)
        machine.reset()
        assert function.read(*pci.COMMAND) == 0
        assert function.read(*pci.BASE_ADDRESS_0) == 0
        function = driven_edu(machine)
        assert machine.bus.load(BAR + edu.LIVENESS, 4) == 0
        assert machine.bus.load(BAR + edu.IRQ_STATUS, 4) == 0
    assert len(open_fds(server.pid)) == len(before)
    assert machine.said() == ""
