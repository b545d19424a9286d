# SPDX-License-Identifier: BSD-3-Clause
"""A device as a PCI function of a guest: realized, driven, reset, saved, unrealized."""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from pyvfio.dirty import DirtyKind
from pyvfio.emulator import Bus, FunctionOptions, GuestFunction, realized
from pyvfio.emulator.realized import STEPS, RealizedFunction
from pyvfio.errors import RegionError, StateError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType, CapabilityID, Command, Register
from pyvfio.uapi.vfio import PCIIRQ
from tests.conformance.devices import MEMORY, PORTS, REGISTERS, TABLE, Dev, Edu
from tests.emulated import ADDRESS, SOON
from tests.small_machine import RAM_SIZE, WINDOW, Guest, SmallMachine
from tests.support import eventually, open_fds

SLOT = 3
BUFFER = 0x40000
"""Where edu has its own memory, as its DMA sees it."""


@pytest.fixture
def machine() -> Iterator[SmallMachine]:
    with SmallMachine() as found:
        yield found
    gc.collect()  # what a test has raised and caught holds its frames, and a device of the kernel


@pytest.fixture
def function(machine: SmallMachine, edu: PCIDevice) -> Iterator[GuestFunction]:
    """The edu device on the bus; its guest has done nothing yet."""
    with GuestFunction(edu) as found:
        found.realize(machine.bus, SLOT)
        yield found


@pytest.fixture
def guest(machine: SmallMachine, function: GuestFunction) -> Guest:
    return Guest(machine, function)


@pytest.fixture
def test_guest(machine: SmallMachine, testdev: PCIDevice) -> Iterator[Guest]:
    """A guest of the test device."""
    with GuestFunction(testdev) as found:
        found.realize(machine.bus, SLOT)
        yield Guest(machine, found)


def copy_by_dma(guest: Guest, bar: int, source: int, destination: int, count: int) -> None:
    """Have the guest's edu driver copy memory by way of the device's."""
    for start, end, command in ((source, BUFFER, 1), (BUFFER, destination, 3)):
        guest.write64(bar + Edu.DMA_SOURCE, start)
        guest.write64(bar + Edu.DMA_DESTINATION, end)
        guest.write64(bar + Edu.DMA_COUNT, count)
        guest.write64(bar + Edu.DMA_COMMAND, command)
        assert eventually(lambda: not guest.read32(bar + Edu.DMA_COMMAND) & 1)


# What the guest finds


@pytest.mark.usefixtures("function")
def test_the_guest_finds_the_device_on_the_bus(machine: SmallMachine) -> None:
    assert machine.bus.config_read(SLOT, 0, 0, 4) == 0x11E8_1234
    assert machine.bus.config_read(SLOT, 1, 0, 4) == 0xFFFF_FFFF
    assert machine.bus.config_read(SLOT + 1, 0, 0, 2) == 0xFFFF


def test_the_function_does_not_answer_before_the_guest_wants_it(guest: Guest) -> None:
    enabled = Command.IO | Command.MEMORY | Command.MASTER
    assert not guest.get(pci.COMMAND) & enabled
    assert guest.get(pci.BASE_ADDRESS_0) == 0


def test_the_guest_sizes_the_bar(guest: Guest) -> None:
    assert guest.size_bars() == {0: (BARType.MEM32, 1 << 20)}


def test_the_guest_reaches_registers_where_it_has_put_them(guest: Guest) -> None:
    bar = guest.place_bars()[0]
    guest.write32(bar + Edu.LIVENESS, 0x1234_5678)
    assert guest.read32(bar + Edu.LIVENESS) == 0xEDCB_A987
    moved = Register(pci.BASE_ADDRESS_0.offset, 4)
    guest.set(moved, bar + (1 << 24))
    assert guest.read32(bar + Edu.LIVENESS) == 0xFFFF_FFFF
    assert guest.read32(bar + (1 << 24) + Edu.LIVENESS) == 0xEDCB_A987


def test_every_kind_of_bar_is_where_the_guest_has_put_it(test_guest: Guest) -> None:
    kinds = {number: kind for number, (kind, _) in test_guest.size_bars().items()}
    assert kinds[PORTS] is BARType.IO
    placed = test_guest.place_bars()
    test_guest.write32(placed[REGISTERS] + Dev.SCRATCH, 0xCAFE)
    assert test_guest.read32(placed[REGISTERS] + Dev.SCRATCH) == 0xCAFE
    test_guest.write64(placed[MEMORY], 0x0123_4567_89AB_CDEF)
    assert test_guest.machine.memory.read(placed[MEMORY], 8) == 0x0123_4567_89AB_CDEF
    assert test_guest.function.dev.bars[MEMORY].read64(0) == 0x0123_4567_89AB_CDEF
    test_guest.machine.io.write(placed[PORTS], 4, 0x55AA)
    assert test_guest.machine.io.read(placed[PORTS], 4) == 0x55AA


def test_ids_of_the_options_are_shown(machine: SmallMachine, edu: PCIDevice) -> None:
    options = FunctionOptions(vendor_id=0x1AF4, device_id=0x10F0, class_code=0x010802)
    with GuestFunction(edu, options) as function:
        function.realize(machine.bus, SLOT)
        assert function.config_read(0, 4) == 0x10F0_1AF4
        assert function.config_read(8, 4) >> 8 == 0x010802


def test_what_the_guest_has_made_of_it_can_be_read(guest: Guest) -> None:
    text = guest.function.describe()
    assert text.startswith(guest.function.dev.uri)
    assert "INTX\nBAR 0: 32-bit memory, 0x100000 bytes, not seen\n000: " in text
    guest.place_bars()
    guest.enable_msi()
    text = guest.function.describe()
    assert f"MSI\nBAR 0: 32-bit memory, 0x100000 bytes, at {WINDOW:#x}\n" in text


# What the device does for the guest


def test_dma_goes_to_the_memory_of_the_guest(machine: SmallMachine, guest: Guest) -> None:
    bar = guest.place_bars()[0]
    data = bytes(range(256)) * 4
    machine.memory.write_bytes(0x2000, data)
    copy_by_dma(guest, bar, 0x2000, 0x9000, len(data))
    assert machine.memory.read_bytes(0x9000, len(data)) == data


def test_pages_that_the_device_writes_are_told(machine: SmallMachine, guest: Guest) -> None:
    bar = guest.place_bars()[0]
    machine.topology.log_start()
    machine.topology.log_sync()
    machine.ram.take_dirty()
    copy_by_dma(guest, bar, 0x2000, 0x9000, 64)
    machine.topology.log_sync()
    found = machine.ram.take_dirty()
    assert 0x9000 in found
    if guest.function.dev.dma.dirty.kind is DirtyKind.DEVICE:
        assert found.page_numbers().tolist() == [9]
    machine.topology.log_stop()
    assert guest.function.dev.dma.dirty.kind is None


def test_pages_of_memory_that_is_taken_away_are_told(machine: SmallMachine, guest: Guest) -> None:
    bar = guest.place_bars()[0]
    machine.topology.log_start()
    copy_by_dma(guest, bar, 0x2000, 0x9000, 64)
    machine.memory_root.remove(machine.ram)
    assert 0x9000 in machine.ram.take_dirty()
    machine.topology.log_stop()


def test_memory_that_the_guest_gets_later_is_reached_as_well(
    machine: SmallMachine, guest: Guest
) -> None:
    bar = guest.place_bars()[0]
    machine.memory_root.remove(machine.ram)
    machine.memory_root.add(machine.ram, 0x10_0000)
    machine.memory.write_bytes(0x10_2000, b"pyvfio..")
    copy_by_dma(guest, bar, 0x10_2000, 0x10_3000, 8)
    assert machine.memory.read_bytes(0x10_3000, 8) == b"pyvfio.."


def test_msi_is_the_message_that_the_guest_has_written(machine: SmallMachine, guest: Guest) -> None:
    bar = guest.place_bars()[0]
    guest.enable_msi(0x41)
    guest.write32(bar + Edu.IRQ_RAISE, 1)
    assert guest.interrupted()
    assert machine.host.messages == [(ADDRESS, 0x41)]


def test_the_pin_stays_asserted_until_the_guest_serves_it(
    machine: SmallMachine, guest: Guest
) -> None:
    bar = guest.place_bars()[0]
    guest.write32(bar + Edu.IRQ_RAISE, 1)
    assert guest.interrupted()
    assert machine.host.levels == [(1, True)]
    guest.write32(bar + Edu.IRQ_ACK, 1)
    assert machine.host.levels == [(1, True), (1, False)]


def test_msix_is_programmed_through_the_table_in_the_bar(
    machine: SmallMachine, test_guest: Guest
) -> None:
    placed = test_guest.place_bars()
    at = test_guest.capability(CapabilityID.MSIX)
    where = test_guest.get(pci.MSIX_TABLE, at)
    assert where & pci.MSIX_BIR == TABLE
    test_guest.enable_msix(placed[TABLE] + (where & ~pci.MSIX_BIR), vector=5, data=0x77)
    test_guest.write32(placed[REGISTERS] + Dev.FIRE, 5)
    assert test_guest.interrupted()
    assert machine.host.messages == [(ADDRESS, 0x77)]


# Reset


def test_a_reset_leaves_the_function_as_it_was_at_first(
    machine: SmallMachine, guest: Guest
) -> None:
    function = guest.function
    at_first = [function.config_read(offset, 4) for offset in range(0, pci.CONFIG_SIZE, 4)]
    bar = guest.place_bars()[0]
    guest.enable_msi()
    machine.bus.reset()
    assert guest.read32(bar) == 0xFFFF_FFFF
    assert function.realized.interrupts.mode is PCIIRQ.INTX
    after = [function.config_read(offset, 4) for offset in range(0, pci.CONFIG_SIZE, 4)]
    assert after == at_first


def test_a_reset_reaches_the_device(test_guest: Guest) -> None:
    placed = test_guest.place_bars()
    test_guest.write32(placed[REGISTERS] + Dev.SCRATCH, 0xCAFE)
    test_guest.function.reset()
    placed = test_guest.place_bars()
    assert test_guest.read32(placed[REGISTERS] + Dev.SCRATCH) == 0


def test_the_guests_memory_is_still_reached_after_a_reset(
    machine: SmallMachine, guest: Guest
) -> None:
    guest.function.reset()
    bar = guest.place_bars()[0]
    machine.memory.write_bytes(0x2000, b"again...")
    copy_by_dma(guest, bar, 0x2000, 0x3000, 8)
    assert machine.memory.read_bytes(0x3000, 8) == b"again..."


# Save and load


def test_a_function_goes_on_where_its_state_was_saved(machine: SmallMachine, guest: Guest) -> None:
    bar = guest.place_bars()[0]
    guest.enable_msi(0x42)
    state = guest.function.save()
    guest.function.unrealize()
    guest.function.realize(machine.bus, SLOT)
    assert guest.read32(bar) == 0xFFFF_FFFF
    guest.function.load(state)
    guest.write32(bar + Edu.IRQ_RAISE, 1)
    assert guest.interrupted()
    assert machine.host.messages == [(ADDRESS, 0x42)]


def test_a_saved_msix_table_is_loaded(machine: SmallMachine, test_guest: Guest) -> None:
    placed = test_guest.place_bars()
    test_guest.enable_msix(placed[TABLE], vector=9, data=0x99)
    state = test_guest.function.save()
    test_guest.function.reset()
    test_guest.function.load(state)
    test_guest.write32(placed[REGISTERS] + Dev.FIRE, 9)
    assert test_guest.interrupted()
    assert machine.host.messages == [(ADDRESS, 0x99)]


def corrupted(state: bytes) -> Iterator[bytes]:
    """What must not be taken for a state."""
    yield b""
    yield state[:20]
    yield state[:-1]
    yield state + b"\0"
    yield b"something else" + state
    yield state[:8] + (2).to_bytes(4, "little") + state[12:]
    for at in (24, 40, len(state) - 1):
        yield state[:at] + bytes([state[at] ^ 1]) + state[at + 1 :]


def test_a_state_that_is_damaged_changes_nothing(guest: Guest) -> None:
    guest.place_bars()
    good = guest.function.save()
    for bad in corrupted(good):
        with pytest.raises(StateError):
            guest.function.load(bad)
    assert guest.function.save() == good


def test_the_state_of_another_kind_of_function_is_refused(
    machine: SmallMachine, function: GuestFunction
) -> None:
    before = function.save()
    function.unrealize()
    for options in (FunctionOptions(device_id=0x1111), FunctionOptions(subsystem_id=0x1111)):
        with GuestFunction(function.dev, options) as other:
            other.realize(machine.bus, SLOT)
            at_first = other.save()
            with pytest.raises(StateError, match="configuration space"):
                other.load(before)
            assert other.save() == at_first


def test_a_load_that_the_device_fails_leaves_what_the_state_says(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = guest.place_bars()[0]
    guest.enable_msi()
    state = guest.function.save()
    guest.function.reset()

    def refuse(*_: object) -> None:
        raise RegionError("it fails as it is meant to", errno=errno.EIO)

    config = guest.function.realized.config
    with monkeypatch.context() as patch:
        patch.setattr(config, "device_set", refuse)
        with pytest.raises(RegionError, match="as it is meant to"):
            guest.function.load(state)
    assert guest.function.realized.registers.address(0) == bar
    assert guest.function.realized.interrupts.mode is PCIIRQ.MSI


# Life


class Held(NamedTuple):
    """What a realized function may leave behind."""

    fds: int
    maps: int
    seen: int
    watched: int
    command: int


def held(machine: SmallMachine, dev: PCIDevice) -> Held:
    gc.collect()
    return Held(
        len(open_fds()),
        len(dev.dma.mappings),
        len(machine.memory.flat_view),
        len(machine.memory.listeners),
        dev.config.command,
    )


def test_nothing_is_left_of_a_function(machine: SmallMachine, edu: PCIDevice) -> None:
    with GuestFunction(edu) as function:
        function.realize(machine.bus, SLOT)  # what is asked once of a device is kept
    before = held(machine, edu)
    for _ in range(2):
        function.realize(machine.bus, SLOT)
        guest = Guest(machine, function)
        guest.place_bars()
        guest.enable_msi()
        function.unrealize()
        function.unrealize()
        assert held(machine, edu) == before
        assert list(machine.bus) == []
    assert edu.bars[0].read32(Edu.ID) & 0xFF == 0xED


def failing(step: Callable[[RealizedFunction], None], after: bool) -> Callable[..., None]:
    """A step that fails before it has done anything, or when it is through."""

    def fail(parts: RealizedFunction) -> None:
        if after:
            step(parts)
        raise RegionError("it fails as it is meant to", errno=errno.EIO)

    return fail


@pytest.mark.parametrize("after", [False, True], ids=["at its begin", "at its end"])
@pytest.mark.parametrize("position", range(len(STEPS)), ids=[step.__name__ for step in STEPS])
@pytest.mark.parametrize("takes_eventfds", [False, True])
def test_a_step_that_fails_leaves_nothing(
    edu: PCIDevice,
    monkeypatch: pytest.MonkeyPatch,
    *,
    position: int,
    after: bool,
    takes_eventfds: bool,
) -> None:
    with SmallMachine(takes_eventfds=takes_eventfds) as machine, GuestFunction(edu) as function:
        function.realize(machine.bus, SLOT)
        function.unrealize()
        before = held(machine, edu)
        with monkeypatch.context() as patch:
            steps = [*STEPS]
            steps[position] = failing(STEPS[position], after)
            patch.setattr(realized, "STEPS", tuple(steps))
            with pytest.raises(RegionError, match="as it is meant to"):
                function.realize(machine.bus, SLOT)
        assert held(machine, edu) == before
        assert all(not route.open for route in machine.host.routes)
        function.realize(machine.bus, SLOT)
        bar = Guest(machine, function).place_bars()[0]
        assert machine.memory.read(bar, 4) & 0xFF == 0xED


def test_memory_that_cannot_be_mapped_keeps_a_function_off_the_bus(
    machine: SmallMachine, edu: PCIDevice
) -> None:
    in_the_way = edu.dma.alloc(edu.dma.page_size, address_bits=20)
    assert in_the_way.iova < RAM_SIZE
    function = GuestFunction(edu)
    with pytest.raises(OSError, match="overlaps"):
        function.realize(machine.bus, SLOT)
    assert [entry.iova for entry in edu.dma.mappings] == [in_the_way.iova]
    in_the_way.close()
    function.realize(machine.bus, SLOT)
    function.unrealize()


def test_a_device_is_one_function_at_a_time(machine: SmallMachine, function: GuestFunction) -> None:
    with pytest.raises(ValueError, match="as another function"):
        GuestFunction(function.dev).realize(machine.bus, SLOT + 1)
    assert function.config_read(0, 4) == 0x11E8_1234
    assert function.realized.interrupts.mode is PCIIRQ.INTX


def test_functions_on_two_buses_of_a_machine_may_share_their_maps(
    machine: SmallMachine, function: GuestFunction
) -> None:
    other = Bus(
        machine.topology,
        memory=machine.memory_root,
        io=machine.io_root,
        dma=machine.memory,
        host=machine.host,
    )
    listener = function.realized.dma_listener
    assert other.attach(function.dev.dma, "the same container") is listener
    other.detach(listener)
    assert listener.mappings


def test_what_the_guest_has_set_is_not_there_for_the_next(
    machine: SmallMachine, test_guest: Guest
) -> None:
    placed = test_guest.place_bars()
    test_guest.write32(placed[REGISTERS] + Dev.SCRATCH, 0xCAFE)
    test_guest.function.unrealize()
    test_guest.function.realize(machine.bus, SLOT)
    placed = test_guest.place_bars()
    assert test_guest.read32(placed[REGISTERS] + Dev.SCRATCH) == 0


def test_a_pin_that_leads_elsewhere_is_asked_for_again(edu: PCIDevice) -> None:
    with SmallMachine(takes_eventfds=True) as machine, GuestFunction(edu) as function:
        function.realize(machine.bus, SLOT)
        before = len(machine.host.routes)
        function.pin_rerouted()
        assert len(machine.host.routes) == before + 1
        assert not machine.host.routes[before - 1].open


def test_a_function_is_realized_once(machine: SmallMachine, function: GuestFunction) -> None:
    with pytest.raises(ValueError, match="realized already"):
        function.realize(machine.bus, SLOT + 1)


@pytest.mark.parametrize(("slot", "number"), [(SLOT, 0), (32, 0), (-1, 0), (0, 8)])
def test_a_place_that_cannot_be_had_is_told(
    machine: SmallMachine, function: GuestFunction, slot: int, number: int
) -> None:
    other = GuestFunction(function.dev)
    with pytest.raises(ValueError, match=r"there is no function|already"):
        other.realize(machine.bus, slot, number)


def test_a_function_that_is_on_no_bus_says_so(edu: PCIDevice) -> None:
    function = GuestFunction(edu, name="the first")
    for question in (lambda: function.config_read(0, 4), function.reset, function.save):
        with pytest.raises(ValueError, match="the first is not realized"):
            question()


def test_a_slot_has_further_functions_if_the_first_says_so(
    machine: SmallMachine, edu: PCIDevice, testdev: PCIDevice
) -> None:
    with GuestFunction(edu) as first, GuestFunction(testdev) as second:
        first.realize(machine.bus, SLOT)
        with pytest.raises(ValueError, match="multifunction"):
            second.realize(machine.bus, SLOT, 1)
    with (
        GuestFunction(edu, FunctionOptions(multifunction=True)) as first,
        GuestFunction(testdev) as second,
    ):
        first.realize(machine.bus, SLOT)
        second.realize(machine.bus, SLOT, 1)
        assert machine.bus.config_read(SLOT, 0, pci.HEADER_TYPE.offset, 1) & 0x80
        assert machine.bus.config_read(SLOT, 1, 0, 2) == testdev.config.vendor_id
        assert machine.memory.read(WINDOW, 4) == 0xFFFF_FFFF


def test_an_irqfd_takes_the_interrupt_past_the_function(edu: PCIDevice) -> None:
    with SmallMachine(takes_eventfds=True) as machine, GuestFunction(edu) as function:
        function.realize(machine.bus, SLOT)
        guest = Guest(machine, function)
        bar = guest.place_bars()[0]
        guest.enable_msi(0x43)
        guest.write32(bar + Edu.IRQ_RAISE, 1)
        route = machine.host.routes[-1]
        assert eventually(lambda: route.taken() > 0, SOON)
        assert route.messages == [(ADDRESS, 0x43)]
        assert machine.host.messages == []
