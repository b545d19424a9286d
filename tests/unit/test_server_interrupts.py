# SPDX-License-Identifier: BSD-3-Clause
"""The eventfds that a hosted model keeps: how many there may be, and what waits for one."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator

import pytest

from pyvfio.server.deferred import DeferredAnswers
from pyvfio.server.function import PCIFunction
from pyvfio.server.model import DeviceModel, Identity, ModelBAR, ModelMSI, ModelMSIX
from pyvfio.uapi import pci
from pyvfio.uapi.pci import Command
from pyvfio.uapi.vfio import PCIIRQ, IRQSetFlags, PCIRegion
from pyvfio.wire.messages import SetIRQs
from tests.support import open_fds

QUOTA, VECTORS = 6, 70
COUNTS = {PCIIRQ.INTX: 1, PCIIRQ.MSI: 4, PCIIRQ.MSIX: VECTORS, PCIIRQ.ERR: 1, PCIIRQ.REQ: 1}
PENDING = 0x800


class Interrupting(DeviceModel):
    """A device with every kind of interrupt."""

    identity = Identity(0x1234, 1, 0xFF0000)
    interrupt_pin = 1
    msi = ModelMSI(4)
    msix = ModelMSIX(VECTORS, table=(0, 0), pba=(0, PENDING))
    bars = {0: ModelBAR(4096)}  # noqa: RUF012 - of the class, and not changed


@pytest.fixture
def function() -> Iterator[PCIFunction]:
    """One that may send messages."""
    function = PCIFunction(Interrupting())
    enable = (Command.MEMORY | Command.MASTER).to_bytes(2, "little")
    function.regions.write(PCIRegion.CONFIG, pci.COMMAND.offset, enable, DeferredAnswers())
    yield function
    function.detach_client()
    function.close()


def set_eventfds(function: PCIFunction, irq: PCIIRQ, start: int, fds: list[int], count: int) -> int:
    """SET_IRQS; returns the errno, 0 where it is done.  What is not kept is closed."""
    flags = IRQSetFlags.DATA_EVENTFD | IRQSetFlags.TRIGGER
    try:
        function.set_irqs(SetIRQs(flags, irq, start, count), fds, QUOTA)
    except OSError as error:
        return error.errno or -1
    finally:
        for fd in fds:
            os.close(fd)
    return 0


def disable(function: PCIFunction, irq: PCIIRQ) -> None:
    flags = IRQSetFlags.DATA_NONE | IRQSetFlags.TRIGGER
    function.set_irqs(SetIRQs(flags, irq, 0, 0), [], QUOTA)


def test_the_quota_is_of_what_is_kept_however_that_has_changed(function: PCIFunction) -> None:
    rng, before = random.Random(7), len(open_fds())
    kept: set[tuple[PCIIRQ, int]] = set()
    refused = 0
    for _ in range(400):
        irq = rng.choice(list(COUNTS))
        start = rng.randrange(min(COUNTS[irq], 8))
        vectors = {(irq, vector) for vector in range(start, min(COUNTS[irq], start + 3))}
        what = rng.random()
        if what < 0.1:
            disable(function, irq)
            kept = {vector for vector in kept if vector[0] is not irq}
        elif what < 0.3:
            assert set_eventfds(function, irq, start, [], len(vectors)) == 0
            kept -= vectors
        else:
            fds = [os.eventfd(0) for _ in vectors]
            error = set_eventfds(function, irq, start, fds, len(vectors))
            fits = len(kept | vectors) <= QUOTA
            assert error == (0 if fits else errno.EMFILE)
            kept |= vectors if fits else set()
            refused += not fits
        assert len(open_fds()) - before == len(kept)
    assert refused > 20


@pytest.mark.parametrize("vector", [0, 7, 8, 63, 64, VECTORS - 1])
def test_what_was_pending_fires_once_when_it_gets_an_eventfd(
    function: PCIFunction, vector: int
) -> None:
    other = (vector + 1) % VECTORS
    assert set_eventfds(function, PCIIRQ.MSIX, other, [os.eventfd(0)], 1) == 0  # which enables all
    function.send_msix(vector)
    function.send_msix(vector)
    word = PENDING + vector // 32 * 4
    pending = function.regions.read(0, word, 4, DeferredAnswers())
    assert int.from_bytes(pending, "little") == 1 << vector % 32
    fd = os.eventfd(0)
    assert set_eventfds(function, PCIIRQ.MSIX, vector, [os.dup(fd)], 1) == 0
    assert os.eventfd_read(fd) == 1
    assert not any(function.regions.read(0, word, 4, DeferredAnswers()))
    os.close(fd)


def test_a_reset_masks_every_vector_but_those_with_eventfds(function: PCIFunction) -> None:
    assert set_eventfds(function, PCIIRQ.MSIX, 5, [os.eventfd(0)], 1) == 0
    function.reset(DeferredAnswers())
    controls = [
        function.regions.read(0, 16 * vector + pci.MSIX_ENTRY_CONTROL, 4, DeferredAnswers())
        for vector in range(VECTORS)
    ]
    assert [vector for vector, control in enumerate(controls) if not control[0]] == [5]
