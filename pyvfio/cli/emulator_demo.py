# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio demo --emulator``: guest firmware drives the device in a machine with a PCI bus."""

from __future__ import annotations

import json
from typing import Any

import pyvfio
from pyvfio.emulator import GuestFunction, edu_firmware
from pyvfio.emulator.edu_firmware import Report
from pyvfio.emulator.machine import Machine, Outcome, Result
from pyvfio.pci.dump import hex_lines

SLOT = 3
SECONDS = 20.0
"""How long the firmware may take."""


def drive(uri: str, output: str) -> int:
    """Run the firmware against the device; 1 where it saw something else than it should."""
    with pyvfio.open(uri) as dev, Machine() as machine:
        machine.plug(GuestFunction(dev), SLOT)
        if output == "text":
            print(f"machine.plug(GuestFunction(pyvfio.open({uri!r})), slot={SLOT})")
            print(f"edu_firmware.run(machine, timeout={SECONDS:g})\n", flush=True)
        result, report = edu_firmware.run(machine, SECONDS)
    if output == "json":
        for record in _records(result, report):
            print(json.dumps(record))
    else:
        print(_text(result, report))
    return 0 if result.outcome is Outcome.HALTED and report.ok else 1


def _records(result: Result, report: Report) -> list[dict[str, Any]]:
    steps = [step._asdict() for step in report.steps]
    return [
        *steps,
        {
            "outcome": result.outcome.value,
            "reason": result.reason,
            "instructions": result.instructions,
            "interrupts": result.interrupts,
            "registers": dict(result.registers),
            "config": report.config.hex(),
        },
    ]


def _text(result: Result, report: Report) -> str:
    lines = ["What the guest saw"]
    for step in report.steps:
        lines.append(f"  {step.name:<26} {step.value:<60} {'ok' if step.ok else 'FAILED'}")
    lines += ["", "Its configuration space, up to the last byte that is not zero"]
    lines += [f"  {line}" for line in hex_lines(report.config.rstrip(b"\0"))]
    ended = f"{result.reason} after {result.instructions} instructions and {result.interrupts}"
    lines += ["", f"The guest: {ended} interrupts"]
    if result.outcome is not Outcome.HALTED:
        lines.append(f"  {result.registers_text}")
    failed = [step.name for step in report.steps if not step.ok]
    verdict = f"FAILED: {', '.join(failed)}" if failed else "Everything is as it should be."
    return "\n".join([*lines, "", verdict])
