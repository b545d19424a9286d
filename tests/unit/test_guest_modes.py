# SPDX-License-Identifier: BSD-3-Clause
"""Pin, MSI and MSI-X of one function: one of them at a time, as the guest's bits come and go."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID
from pyvfio.uapi.vfio import PCIIRQ
from tests.emulated import EmulatedFunction
from tests.support import open_fds
from tests.unit.declared import MEM32, DeclaredIO, declared

INTX, MSI, MSIX = PCIIRQ.INTX, PCIIRQ.MSI, PCIIRQ.MSIX
Step = Callable[[EmulatedFunction], None]

CAPABILITIES = {
    0x50: struct.pack("<BH", CapabilityID.MSI, pci.MSI_CONTROL_64BIT),
    0x70: struct.pack("<BHII", CapabilityID.MSIX, 7, 0, 0x800),
}


def msi(function: EmulatedFunction) -> None:
    function.enable_msi()


def no_msi(function: EmulatedFunction) -> None:
    function.disable_msi()


def msix(function: EmulatedFunction) -> None:
    function.control_msix(pci.MSIX_CONTROL_ENABLE)


def mask_msix(function: EmulatedFunction) -> None:
    function.control_msix(pci.MSIX_CONTROL_ENABLE | pci.MSIX_CONTROL_MASK_ALL)


def no_msix(function: EmulatedFunction) -> None:
    function.control_msix(0)


def none(function: EmulatedFunction) -> None:
    function.interrupts.disable_all()


def pin(function: EmulatedFunction) -> None:
    function.interrupts.enable_intx()


def reset(function: EmulatedFunction) -> None:
    function.interrupts.reset()


def load(function: EmulatedFunction) -> None:
    function.interrupts.load(function.interrupts.save())


@pytest.mark.parametrize(
    ("steps", "mode"),
    [
        ([], INTX),
        ([msi], MSI),
        ([msi, msi], MSI),
        ([msi, no_msi], INTX),
        ([no_msi], INTX),
        ([msix], MSIX),
        ([msix, mask_msix], MSIX),
        ([mask_msix], MSIX),
        ([mask_msix, no_msix], INTX),
        ([msix, no_msix, no_msix], INTX),
        ([msi, msix], MSIX),  # what no guest should do: the last one counts
        ([msi, msix, no_msi], MSIX),
        ([msi, msix, no_msix], INTX),
        ([msix, msi], MSI),
        ([msix, msi, no_msix], MSI),
        ([msix, msi, no_msi], INTX),
        ([none], None),
        ([msi, none], None),
        ([msi, none, no_msi], INTX),
        ([msix, none, no_msix], INTX),
        ([msi, none, msi], None),  # the bit has not changed
        ([none, none, pin], INTX),
        ([pin, pin], INTX),
        ([msix, pin], INTX),
        ([msix, reset], None),
        ([msix, reset, pin], INTX),
        ([msix, reset, msix], MSIX),
        ([load], INTX),
        ([msi, load], MSI),
        ([msix, load], MSIX),
        ([msix, msi, load], MSI),  # as QEMU: MSI is looked at first
        ([msix, none, load], MSIX),
    ],
    ids=lambda value: " ".join(step.__name__ for step in value) if isinstance(value, list) else "",
)
def test_one_mode_at_a_time(steps: list[Step], mode: PCIIRQ | None) -> None:
    io = DeclaredIO({0: (4096, MEM32, [])}, CAPABILITIES)
    before = open_fds()
    with EmulatedFunction(declared(io)) as function:
        function.set_up()
        function.unmask(1)
        for step in steps:
            step(function)
        assert function.interrupts.mode is mode
        assert {index for index, _, _ in io.eventfds} == ({mode} if mode is not None else set())
        function.interrupts.disable_all()
        assert io.eventfds == {}
    assert open_fds() == before
