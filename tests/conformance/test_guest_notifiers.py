# SPDX-License-Identifier: BSD-3-Clause
"""What the test device has to say beside its interrupts reaches the emulator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvfio.emulator.events import Events
from pyvfio.emulator.notifiers import Notifiers
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import PCIIRQ, IRQSetFlags
from tests.emulated import SOON, RecordingHost
from tests.support import open_fds


class Function:
    """Who asks the host."""

    name = "guest's"


@pytest.fixture
def events() -> Iterator[Events]:
    with Events() as found:
        yield found


def tell(dev: PCIDevice, index: PCIIRQ) -> None:
    """The device's kernel or server signals an index."""
    dev.base.set_irqs(index, IRQSetFlags.TRIGGER, 0, 1)


@pytest.mark.parametrize(
    ("index", "told"),
    [(PCIIRQ.ERR, "error of guest's"), (PCIIRQ.REQ, "release of guest's")],
)
def test_the_host_is_told(testdev: PCIDevice, events: Events, index: PCIIRQ, told: str) -> None:
    host = RecordingHost()
    with Notifiers(testdev.base, host, events, Function()) as notifiers:
        notifiers.set_up()
        tell(testdev, index)
        assert events.dispatch(SOON) == 1
        assert host.told == [told]


def test_nothing_is_told_after_the_end(testdev: PCIDevice, events: Events) -> None:
    host, before = RecordingHost(), open_fds()
    notifiers = Notifiers(testdev.base, host, events, Function())
    notifiers.set_up()
    notifiers.close()
    notifiers.close()
    tell(testdev, PCIIRQ.ERR)
    assert events.dispatch(0.03) == 0
    assert (host.told, open_fds()) == ([], before)
