# SPDX-License-Identifier: BSD-3-Clause
"""Guest firmware drives the device through ``GuestFunction``, in a machine around Unicorn."""

from __future__ import annotations

from pyvfio.emulator import GuestFunction, edu_firmware
from pyvfio.emulator.edu_firmware import Report
from pyvfio.emulator.machine import Machine, Outcome
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci

SLOT = 3
SECONDS = 60.0
"""A machine that is emulated on an emulated machine is slow."""

DIFFERENCES = {
    "interrupt line: the kernel shows what the firmware of the host has chosen": {
        pci.INTERRUPT_LINE.offset
    },
}
"""Bytes of configuration space that a guest sees otherwise on one backend than on another."""

VIEW = {
    0x00: "34 12 e8 11 07 00 10 00 10 00 ff 00 00 00 00 00",
    0x10: "00 00 00 c0 00 00 00 00 00 00 00 00 00 00 00 00",
    0x20: "00 00 00 00 00 00 00 00 00 00 00 00 f4 1a 00 11",
    0x30: "00 00 00 00 40 00 00 00 00 00 00 00 00 01 00 00",
    0x40: "05 00 81 00 00 00 e0 fe 00 00 00 00 51 00 00 00",
}
"""What the guest sees once it has programmed it; the rest is zero."""


def run(machine: Machine) -> Report:
    """Run the firmware to its end."""
    result, report = edu_firmware.run(machine, SECONDS)
    assert result.outcome is Outcome.HALTED, f"{result}\n{report.steps}"
    return report


def run_on(edu: PCIDevice) -> Report:
    """Run the firmware in a machine of its own."""
    with Machine() as machine:
        machine.plug(GuestFunction(edu), SLOT)
        return run(machine)


def test_the_firmware_finds_programs_and_drives_the_device(edu: PCIDevice) -> None:
    report = run_on(edu)
    assert [step for step in report.steps if not step.ok] == []
    assert [str(found) for found in report.functions] == ["00.0 8086:29c0", "03.0 1234:11e8"]
    assert [str(bar) for bar in report.bars] == ["BAR 0, 0x100000 bytes, at 0xc0000000"]
    words = report.words
    assert (words.id, words.liveness) == (0x010000ED, 0xEDCBA987)
    assert (words.polled, words.signalled, words.different) == (3628800, 479001600, 0)
    assert (words.messages, words.pins) == (23, 1)
    assert words.causes == 0x001 | 0x010 | 0x040 | 0x100
    assert (words.moved, words.left) == (0xC010_0000, 0xFFFF_FFFF)


def test_the_guest_sees_the_same_configuration_space_on_every_backend(edu: PCIDevice) -> None:
    report = run_on(edu)
    named = set().union(*DIFFERENCES.values())
    wanted = bytearray(pci.CONFIG_SIZE)
    for offset, line in VIEW.items():
        wanted[offset : offset + 16] = bytes.fromhex(line)
    differ = {at for at in range(pci.CONFIG_SIZE) if report.config[at] != wanted[at]}
    assert differ <= named
    assert report.window_config == report.config


def test_the_device_goes_from_one_machine_to_the_next_and_back_to_the_program(
    edu: PCIDevice,
) -> None:
    assert run_on(edu).ok
    assert edu.dma.mappings == ()
    assert run_on(edu).ok
    assert edu.bars[0].read32(0) == 0x010000ED


def test_the_firmware_runs_again_after_a_reset_of_the_machine(edu: PCIDevice) -> None:
    with Machine() as machine:
        machine.plug(GuestFunction(edu), SLOT)
        assert run(machine).ok
        machine.reset()
        assert run(machine).ok
