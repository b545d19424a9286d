# SPDX-License-Identifier: BSD-3-Clause
"""What a guest does to its interrupts raises nothing, whatever the device does meanwhile."""

from __future__ import annotations

import errno
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

import pyvfio
from pyvfio.emulator.msix_layout import MSIXLayout
from pyvfio.errors import ConnectionLost, IRQError
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.vfio import PCIIRQ, IRQSetFlags
from tests.emulated import ADDRESS, EmulatedFunction, RecordingHost
from tests.support import ServerProcess, open_fds

ENABLE, MASK_ALL = pci.MSIX_CONTROL_ENABLE, pci.MSIX_CONTROL_MASK_ALL
FIRE, PIN = 0x028, 0x02C
IRQ_RAISE, IRQ_ACK = 0x60, 0x64


class Failing:
    """Stands before SET_IRQS of a device: one call of them fails.

    :ivar number: which call fails, from 0; None: none.
    :ivar calls: how many there have been.
    """

    def __init__(self, dev: PCIDevice, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number: int | None = None
        self.calls = 0
        self._set_irqs = dev.base.set_irqs
        monkeypatch.setattr(dev.base, "set_irqs", self)

    def __call__(
        self,
        index: int,
        action: IRQSetFlags,
        start: int,
        count: int,
        *,
        eventfds: Sequence[int] | None = None,
    ) -> None:
        number, self.calls = self.calls, self.calls + 1
        if number == self.number:
            raise IRQError("refused by the test", errno=errno.EIO)
        self._set_irqs(index, action, start, count, eventfds=eventfds)


def use_msix(guest: EmulatedFunction) -> None:
    """A guest's life with MSI-X."""
    guest.unmask(1)
    guest.control_msix(ENABLE)
    guest.unmask(3)
    guest.mask(1)
    guest.unmask(1)
    guest.control_msix(ENABLE | MASK_ALL)
    guest.control_msix(ENABLE)
    guest.unmask(0)
    state = guest.interrupts.save()
    guest.interrupts.load(state)
    guest.control_msix(0)
    guest.interrupts.on_bar_access()
    guest.interrupts.reroute_pin()
    guest.interrupts.disable_all()
    guest.interrupts.enable_intx()


def use_msi(guest: EmulatedFunction) -> None:
    """A guest's life with MSI, and the pin between."""
    guest.dev.bars[0].write32(IRQ_RAISE, 1)
    guest.events.dispatch(0.01)
    guest.interrupts.on_bar_access()
    guest.dev.bars[0].write32(IRQ_ACK, 1)
    guest.enable_msi(1)
    guest.enable_msi(2)
    guest.disable_msi()
    guest.enable_msi(3)
    guest.interrupts.reset()
    guest.interrupts.enable_intx()


def msix_works(guest: EmulatedFunction) -> None:
    """Enabled anew, a message comes."""
    guest.control_msix(0)
    guest.control_msix(ENABLE)
    guest.unmask(2, data=0x77)
    guest.dev.bars[0].write32(FIRE, 2)
    if guest.host.takes:
        assert guest.routed()
    else:
        assert guest.signalled()
        assert guest.host.messages[-1] == (ADDRESS, 0x77)


def msi_works(guest: EmulatedFunction) -> None:
    """Enabled anew, a message comes."""
    guest.disable_msi()
    guest.enable_msi(0x77)
    guest.dev.bars[0].write32(IRQ_RAISE, 1)
    if guest.host.takes:
        assert guest.routed()
    else:
        assert guest.signalled()
        assert guest.host.messages[-1] == (ADDRESS, 0x77)
    guest.dev.bars[0].write32(IRQ_ACK, 1)


LIVES = {"edu": (use_msi, msi_works), "testdev": (use_msix, msix_works)}


@pytest.fixture(params=[False, True], ids=["ours", "taken"])
def takes(request: pytest.FixtureRequest) -> bool:
    """Whether the emulator takes eventfds."""
    taken: bool = request.param
    return taken


@pytest.fixture
def uris(edu_server: ServerProcess, testdev_server: ServerProcess) -> dict[str, str]:
    """Where the models are, by name."""
    return {"edu": edu_server.uri, "testdev": testdev_server.uri}


def function(dev: PCIDevice, takes: bool, resizable: bool) -> EmulatedFunction:
    """A device whose MSI-X vectors can be added while some are in use, or cannot."""
    layout = MSIXLayout.probe(dev)
    if layout is not None:
        layout = replace(layout, resizable=resizable)
    return EmulatedFunction(dev, RecordingHost(takes), layout=layout)


@pytest.mark.parametrize(
    ("name", "resizable"), [("edu", True), ("testdev", True), ("testdev", False)]
)
def test_each_refusal_in_turn_is_survived(
    name: str,
    resizable: bool,
    takes: bool,
    uris: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live, works = LIVES[name]
    with pyvfio.open(uris[name]) as dev:
        failing = Failing(dev, monkeypatch)
        before = open_fds()
        for number in itertools.count():
            dev.reset()
            failing.number, failing.calls = None, 0
            with function(dev, takes, resizable) as guest:
                guest.set_up()
                failing.number = failing.calls + number
                live(guest)
                reached = failing.calls > failing.number
                failing.number = None
                works(guest)
            assert open_fds() == before
            if not reached:
                break
        assert number > 5


@pytest.fixture
def lost(
    serve: Callable[..., ServerProcess], takes: bool
) -> Iterator[Callable[[str], EmulatedFunction]]:
    """A function whose server is gone, in the midst of its interrupts."""
    opened: list[PCIDevice] = []
    functions: list[EmulatedFunction] = []

    def lose(model: str) -> EmulatedFunction:
        server = serve(model)
        opened.append(pyvfio.open(server.uri))
        guest = EmulatedFunction(opened[-1], RecordingHost(takes))
        functions.append(guest)
        guest.set_up()
        if model == "testdev":
            guest.control_msix(ENABLE)
            guest.unmask(1)
            guest.mask(1)
        else:
            guest.enable_msi()
        server.kill()
        return guest

    yield lose
    for guest in functions:
        guest.close()
    for dev in opened:
        dev.close()


def test_a_guest_whose_device_is_gone_may_go_on_with_msix(
    lost: Callable[[str], EmulatedFunction], caplog: pytest.LogCaptureFixture
) -> None:
    guest = lost("testdev")
    for _ in range(3):
        use_msix(guest)
    guest.control_msix(ENABLE)
    assert guest.interrupts.mode is PCIIRQ.MSIX
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    by_index = [line for line in (r.getMessage() for r in told) if "MSIX" in line]
    assert len(by_index) == 1


def test_a_guest_whose_device_is_gone_may_go_on_with_msi(
    lost: Callable[[str], EmulatedFunction], caplog: pytest.LogCaptureFixture
) -> None:
    guest = lost("edu")
    for _ in range(3):
        guest.disable_msi()
        guest.enable_msi()
        guest.interrupts.on_bar_access()
    assert guest.interrupts.mode is None
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    by_index = [line for line in (r.getMessage() for r in told) if " MSI:" in line]
    assert len(by_index) == 1


def test_a_function_of_a_device_that_is_gone_cannot_be_set_up(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("testdev")
    with pyvfio.open(server.uri) as dev, EmulatedFunction(dev) as guest:
        server.kill()
        before = open_fds()
        guest.config.mark_emulated(0x3D, 1)  # there is a pin, whether the device answers or not
        with pytest.raises(ConnectionLost):
            guest.set_up()
        assert len(open_fds()) <= len(before)


def test_the_vectors_that_there_were_are_had_again_where_more_are_refused(
    testdev: PCIDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(testdev, monkeypatch)
    with function(testdev, takes=False, resizable=False) as guest:
        guest.set_up()
        guest.unmask(1)
        guest.control_msix(ENABLE)
        failing.number = failing.calls + 1  # the index is disabled first
        guest.unmask(4)
        testdev.bars[0].write32(FIRE, 1)
        assert guest.signalled()
        testdev.bars[0].write32(FIRE, 4)
        assert guest.quiet()
        guest.mask(4)
        guest.unmask(4)  # asked for again
        testdev.bars[0].write32(FIRE, 4)
        assert guest.signalled()
        assert [data for _, data in guest.host.messages] == [0x101, 0x104]


def test_vectors_that_were_refused_at_first_are_asked_for_with_the_next_one(
    testdev: PCIDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(testdev, monkeypatch)
    with function(testdev, takes=False, resizable=False) as guest:
        guest.set_up()
        guest.unmask(0)
        guest.unmask(2)
        failing.number = failing.calls + 1  # the pin is disabled first
        guest.control_msix(ENABLE)
        guest.unmask(1)
        for vector in (0, 1):
            testdev.bars[0].write32(FIRE, vector)
            assert guest.signalled()
        assert [data for _, data in guest.host.messages] == [0x100, 0x101]
