# SPDX-License-Identifier: BSD-3-Clause
"""Hosts whose code fails, or who let their guest run at once: nothing is left half way."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from pyvfio.emulator.host import Requester
from pyvfio.emulator.options import FunctionOptions
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID
from pyvfio.uapi.vfio import PCIIRQ, IRQSetFlags
from tests.emulated import ADDRESS, EmulatedFunction, RecordingHost, Route
from tests.support import open_fds
from tests.unit.declared import MEM32, DeclaredIO, declared

INTX, MSI, MSIX = PCIIRQ.INTX, PCIIRQ.MSI, PCIIRQ.MSIX
ENABLE, MASK_ALL = pci.MSIX_CONTROL_ENABLE, pci.MSIX_CONTROL_MASK_ALL
VECTORS = 8
MSI_CONTROL = pci.MSI_CONTROL_64BIT | pci.MSI_CONTROL_MASKING | 3 << 1
CAPABILITIES = {
    0x50: struct.pack("<BH", CapabilityID.MSI, MSI_CONTROL),
    0x70: struct.pack("<BHII", CapabilityID.MSIX, VECTORS - 1, 0, 0x800),
}

Hook = Callable[[], None]


class HostsCodeFails(Exception):
    """What a host's code raises."""


def fail() -> None:
    """A host's code that is wrong."""
    raise HostsCodeFails


def nothing() -> None:
    """A host's code that is right."""


class HookedRoute(Route):
    """Calls the hooks of its host."""

    def __init__(self, host: HookedHost, fd: int, resample: int = -1) -> None:
        super().__init__(host, fd, resample)
        self._hooks = host

    def update(self, address: int, data: int) -> None:
        super().update(address, data)
        self._hooks.run("update")

    def close(self) -> None:
        super().close()
        self._hooks.run("close")


class HookedHost(RecordingHost):
    """Does something of its own each time it is told one kind of thing.

    :ivar hooks: what, by the name of the method; a hook is called once.
    """

    def __init__(self, takes: bool = False) -> None:
        super().__init__(takes)
        self.hooks: dict[str, Hook] = {}

    def run(self, name: str) -> None:
        """Call a hook."""
        self.hooks.pop(name, nothing)()

    def send_msi(self, function: Requester, address: int, data: int) -> None:
        super().send_msi(function, address, data)
        self.run("send_msi")

    def set_pin(self, function: Requester, pin: int, level: bool) -> None:
        super().set_pin(function, pin, level)
        self.run("raise_pin" if level else "lower_pin")

    def route_msi(self, function: Requester, address: int, data: int, eventfd: int) -> Route | None:
        self.run("route_msi")
        return self._route(HookedRoute(self, eventfd), (address, data))

    def route_pin(self, function: Requester, pin: int, eventfd: int, resample: int) -> Route | None:
        self.run("route_pin")
        return self._route(HookedRoute(self, eventfd, resample), (pin, pin))


class Guest(EmulatedFunction):
    """A function with a pin, 8 maskable vectors of MSI, and as many of MSI-X."""

    def __init__(self, takes: bool = False) -> None:
        self.io = DeclaredIO({0: (4096, MEM32, [])}, CAPABILITIES)
        self.hooked = HookedHost(takes)
        super().__init__(declared(self.io), self.hooked, FunctionOptions(intx_mmap_seconds=60))
        self.set_up()

    def on(self, name: str, hook: Hook) -> None:
        """Have the host do something when it is told the next time."""
        self.hooked.hooks[name] = hook

    def fire(self, index: PCIIRQ, vector: int = 0) -> None:
        """The device signals a vector, which comes to us."""
        self.io.fire(index, vector)
        assert self.signalled()

    def fire_and_fail(self, index: PCIIRQ, vector: int = 0) -> None:
        """The same where the host's code fails at it."""
        self.io.fire(index, vector)
        with pytest.raises(HostsCodeFails):
            self.signalled()

    def mask_msi(self, vectors: int) -> None:
        """Write the mask bits of MSI."""
        self.write_config(pci.MSI_MASK_64, CapabilityID.MSI, vectors)

    def enable_msi_vectors(self, order: int) -> None:
        """Enable 2 ** ``order`` vectors of MSI."""
        control = pci.MSI_CONTROL_ENABLE | order << 4
        self.write_config(pci.MSI_ADDRESS_LO, CapabilityID.MSI, ADDRESS)
        self.write_config(pci.MSI_CONTROL, CapabilityID.MSI, control)

    def pending_msi(self) -> int:
        """The pending bits of MSI."""
        return self.read_config(pci.MSI_PENDING_64, CapabilityID.MSI)

    @property
    def signalled_indices(self) -> set[PCIIRQ]:
        """What the device signals."""
        return {index for index, _, _ in self.io.eventfds}


@pytest.fixture
def guest() -> Iterator[Guest]:
    """Its host takes no eventfds."""
    with Guest() as function:
        yield function


@pytest.fixture
def taker() -> Iterator[Guest]:
    """Its host takes eventfds."""
    with Guest(takes=True) as function:
        yield function


# The pin


def test_a_host_that_fails_to_raise_the_pin_leaves_an_interrupt_to_be_served(guest: Guest) -> None:
    guest.on("raise_pin", fail)
    guest.fire_and_fail(INTX)
    assert guest.mmaps == [False]
    assert guest.events.timeout is not None
    guest.interrupts.on_bar_access()
    assert guest.host.levels == [(1, True), (1, False)]
    guest.fire(INTX)
    assert guest.host.level


def test_a_guest_that_serves_the_interrupt_at_once_has_its_bars_back_later(guest: Guest) -> None:
    guest.on("raise_pin", guest.interrupts.on_bar_access)
    guest.fire(INTX)
    assert guest.host.levels == [(1, True), (1, False)]
    assert guest.mmaps == [False]
    assert guest.events.timeout is not None
    guest.fire(INTX)
    assert guest.host.level


@pytest.mark.parametrize(
    ("change", "mode"),
    [
        (lambda guest: guest.enable_msi(), MSI),
        (lambda guest: guest.control_msix(ENABLE), MSIX),
        (lambda guest: guest.interrupts.disable_all(), None),
        (lambda guest: guest.interrupts.reset(), None),
        (lambda guest: guest.interrupts.enable_intx(), INTX),
    ],
)
def test_a_guest_that_leaves_the_pin_at_once_has_its_bars_back(
    guest: Guest, change: Callable[[Guest], None], mode: PCIIRQ | None
) -> None:
    guest.on("raise_pin", lambda: change(guest))
    guest.fire(INTX)
    assert guest.interrupts.mode is mode
    assert guest.mmaps == [False, True]
    assert guest.events.timeout is None
    assert not guest.host.level


def test_a_host_that_fails_to_lower_the_pin_gets_the_next_interrupt(guest: Guest) -> None:
    guest.fire(INTX)
    guest.on("lower_pin", fail)
    with pytest.raises(HostsCodeFails):
        guest.interrupts.on_bar_access()
    assert guest.io.calls[-1] == (INTX, IRQSetFlags.UNMASK, 0, 1, False)
    guest.fire(INTX)
    assert guest.host.levels == [(1, True), (1, False), (1, True)]


def test_a_guest_that_leaves_the_pin_when_it_is_lowered_is_not_unmasked_after(guest: Guest) -> None:
    guest.fire(INTX)
    guest.on("lower_pin", guest.interrupts.disable_all)
    guest.interrupts.on_bar_access()
    assert guest.io.calls[-1] == (INTX, IRQSetFlags.TRIGGER, 0, 0, False)
    assert guest.mmaps == [False, True]


def test_a_guest_that_leaves_the_pin_while_it_is_rerouted_is_not_offered_it(guest: Guest) -> None:
    guest.fire(INTX)
    guest.on("lower_pin", guest.interrupts.disable_all)
    guest.on("route_pin", fail)
    guest.interrupts.reroute_pin()
    assert guest.interrupts.mode is None


def test_a_host_that_fails_to_lower_a_pin_that_is_left_has_the_next_mode(guest: Guest) -> None:
    guest.fire(INTX)
    guest.on("lower_pin", fail)
    with pytest.raises(HostsCodeFails):
        guest.enable_msi()
    assert guest.interrupts.mode is MSI
    assert guest.signalled_indices == {MSI}
    assert guest.mmaps == [False, True]


def test_a_guest_that_enables_another_mode_while_one_is_enabled_has_the_outer_one(
    guest: Guest,
) -> None:
    guest.fire(INTX)
    guest.unmask(1)
    guest.on("lower_pin", guest.enable_msi)
    guest.control_msix(ENABLE)
    assert guest.interrupts.mode is MSIX
    assert guest.signalled_indices == {MSIX}


def test_a_host_that_fails_to_let_go_of_the_pin_leaves_it_to_us(taker: Guest) -> None:
    taker.hooked.takes = False
    taker.on("close", fail)
    with pytest.raises(HostsCodeFails):
        taker.interrupts.reroute_pin()
    taker.fire(INTX)
    assert taker.host.level


def test_a_host_that_fails_to_take_the_pin_leaves_it_to_us(taker: Guest) -> None:
    taker.on("route_pin", fail)
    with pytest.raises(HostsCodeFails):
        taker.interrupts.reroute_pin()
    taker.fire(INTX)
    assert taker.host.level


# MSI


def test_every_pending_message_is_sent_though_one_fails(guest: Guest) -> None:
    guest.mask_msi(0b1111)
    guest.enable_msi_vectors(2)
    for vector in (0, 2, 3):
        guest.fire(MSI, vector)
    guest.on("send_msi", fail)
    with pytest.raises(HostsCodeFails):
        guest.mask_msi(0)
    assert [data for _, data in guest.host.messages] == [0, 2, 3]
    assert guest.pending_msi() == 0


def test_a_guest_that_masks_at_a_message_has_the_others_pending(guest: Guest) -> None:
    guest.mask_msi(0b1111)
    guest.enable_msi_vectors(2)
    for vector in (0, 2):
        guest.fire(MSI, vector)
    guest.on("send_msi", lambda: guest.mask_msi(0b1111))
    guest.mask_msi(0)
    assert [data for _, data in guest.host.messages] == [0]
    assert guest.pending_msi() == 0b100


def test_a_guest_that_disables_msi_at_a_message_gets_no_other(guest: Guest) -> None:
    guest.mask_msi(0b1111)
    guest.enable_msi_vectors(2)
    for vector in (0, 2):
        guest.fire(MSI, vector)
    guest.on("send_msi", guest.disable_msi)
    guest.mask_msi(0)
    assert [data for _, data in guest.host.messages] == [0]


def test_msi_is_enabled_though_a_message_that_was_pending_fails(guest: Guest) -> None:
    guest.mask_msi(1)
    guest.enable_msi_vectors(0)
    guest.fire(MSI)
    guest.disable_msi()
    guest.mask_msi(0)
    guest.on("send_msi", fail)
    with pytest.raises(HostsCodeFails):
        guest.enable_msi_vectors(0)
    assert guest.interrupts.mode is MSI
    guest.fire(MSI)
    assert len(guest.host.messages) == 2


def test_every_route_hears_of_another_message_and_mask_though_one_fails(taker: Guest) -> None:
    taker.enable_msi_vectors(1)
    taker.on("update", fail)
    with pytest.raises(HostsCodeFails):
        taker.mask_msi(0b10)
    assert [len(route.messages) for route in taker.host.routes[-2:]] == [2, 2]
    taker.fire(MSI, 1)
    assert taker.pending_msi() == 0b10


def test_msi_that_the_host_fails_to_take_is_not_enabled_and_can_be_again(taker: Guest) -> None:
    before = len(open_fds())
    taker.on("route_msi", fail)
    with pytest.raises(HostsCodeFails):
        taker.enable_msi_vectors(2)
    assert taker.interrupts.mode is None
    assert taker.io.eventfds == {}
    taker.disable_msi()
    assert taker.interrupts.mode is INTX
    assert len(open_fds()) == before
    taker.enable_msi_vectors(2)
    assert taker.interrupts.mode is MSI


@pytest.mark.parametrize(
    ("leave", "mode"),
    [
        (lambda guest: guest.disable_msi(), INTX),
        (lambda guest: guest.interrupts.enable_intx(), INTX),
        (lambda guest: guest.control_msix(ENABLE), MSIX),
        (lambda guest: guest.interrupts.load(guest.interrupts.save()), MSI),
        (lambda guest: guest.interrupts.reset(), None),
    ],
)
def test_a_route_that_cannot_be_ended_does_not_stop_what_comes_next(
    taker: Guest, leave: Callable[[Guest], None], mode: PCIIRQ | None
) -> None:
    taker.enable_msi_vectors(2)
    taker.unmask(0)
    taker.on("close", fail)
    with pytest.raises(HostsCodeFails):
        leave(taker)
    assert taker.interrupts.mode is mode
    assert taker.signalled_indices == ({mode} if mode is not None else set())


# MSI-X


def test_a_vector_that_the_host_fails_to_take_comes_to_us(taker: Guest) -> None:
    taker.control_msix(ENABLE)
    taker.on("route_msi", fail)
    with pytest.raises(HostsCodeFails):
        taker.unmask(3)
    taker.fire(MSIX, 3)
    assert taker.host.messages == [(ADDRESS, 0x103)]


def test_msix_that_the_host_fails_to_take_is_not_enabled_and_can_be_again(taker: Guest) -> None:
    before = len(open_fds())
    taker.unmask(1)
    taker.unmask(2)
    taker.on("route_msi", fail)
    with pytest.raises(HostsCodeFails):
        taker.control_msix(ENABLE)
    assert taker.interrupts.mode is None
    assert taker.io.eventfds == {}
    taker.control_msix(0)
    assert taker.interrupts.mode is INTX
    assert len(open_fds()) == before
    taker.control_msix(ENABLE)
    assert taker.interrupts.mode is MSIX


def test_every_vector_is_unmasked_though_the_host_fails_at_one(taker: Guest) -> None:
    taker.control_msix(ENABLE)
    taker.unmask(1)
    taker.unmask(2)
    taker.control_msix(ENABLE | MASK_ALL)
    taker.on("update", fail)
    with pytest.raises(HostsCodeFails):
        taker.control_msix(ENABLE)
    for vector, route in zip((1, 2), taker.host.routes[1:], strict=True):
        taker.io.fire(MSIX, vector)
        assert route.taken() == 1


def test_every_pending_vector_is_sent_though_the_host_fails_at_one(guest: Guest) -> None:
    guest.control_msix(ENABLE)
    for vector in (1, 4, 6):
        guest.unmask(vector)
    guest.control_msix(ENABLE | MASK_ALL)
    for vector in (1, 4, 6):
        guest.fire(MSIX, vector)
    guest.on("send_msi", fail)
    with pytest.raises(HostsCodeFails):
        guest.control_msix(ENABLE)
    assert [data for _, data in guest.host.messages] == [0x101, 0x104, 0x106]
    guest.control_msix(ENABLE | MASK_ALL)
    guest.fire(MSIX, 4)
    assert guest.pending_bits() == 1 << 4


def test_a_guest_that_masks_all_at_a_message_has_the_others_pending(guest: Guest) -> None:
    guest.control_msix(ENABLE)
    guest.unmask(1)
    guest.unmask(4)
    guest.control_msix(ENABLE | MASK_ALL)
    guest.fire(MSIX, 1)
    guest.fire(MSIX, 4)
    guest.on("send_msi", lambda: guest.control_msix(ENABLE | MASK_ALL))
    guest.control_msix(ENABLE)
    assert guest.host.messages == [(ADDRESS, 0x101)]
    assert guest.pending_bits() == 1 << 4


def test_msix_is_enabled_though_a_message_that_was_pending_fails(guest: Guest) -> None:
    guest.unmask(0)
    state = bytearray(guest.interrupts.save())
    state[16 * VECTORS] = 1  # pending bit 0
    guest.interrupts.load(bytes(state))
    guest.on("send_msi", fail)
    with pytest.raises(HostsCodeFails):
        guest.control_msix(ENABLE)
    assert guest.interrupts.mode is MSIX
    guest.fire(MSIX)
    assert len(guest.host.messages) == 2


def test_a_host_that_fails_when_msix_is_reset_leaves_it_reset(taker: Guest) -> None:
    taker.control_msix(ENABLE)
    taker.unmask(1)
    taker.on("close", fail)
    with pytest.raises(HostsCodeFails):
        taker.interrupts.reset()
    assert taker.read_config(pci.MSIX_CONTROL, CapabilityID.MSIX) == VECTORS - 1
    assert taker.memory.read(taker.entry(1) + pci.MSIX_ENTRY_CONTROL, 4) == pci.MSIX_ENTRY_MASKED
    assert taker.io.eventfds == {}
