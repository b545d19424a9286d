# SPDX-License-Identifier: BSD-3-Clause
"""A device on the PCI bus of a machine of one's own: ``python examples/emulated_machine.py URI``.

The guest is the few bytes below: it reads the ids of slot 3 by ports and keeps them in memory.
``firmware/edu.s`` beside this file is a whole driver, which ``pyvfio demo --emulator`` runs.
"""

from __future__ import annotations

import sys

import pyvfio
from pyvfio.emulator import GuestFunction
from pyvfio.emulator.machine import Machine

ENTRY, RESULT, SLOT = 0x1000, 0x2000, 3

PROGRAM = bytes.fromhex(
    "ba f8 0c 00 00"  # mov edx, 0xcf8
    "b8 00 18 00 80"  # mov eax, 0x80001800: register 0 of 00:03.0
    "ef"  # out dx, eax
    "ba fc 0c 00 00"  # mov edx, 0xcfc
    "ed"  # in eax, dx
    "a3 00 20 00 00"  # mov [0x2000], eax
    "f4"  # hlt
)


def main(uri: str) -> None:
    """Run the program, and say what it found and how it ended."""
    with pyvfio.open(uri) as dev, Machine() as machine:
        machine.plug(GuestFunction(dev), SLOT)
        machine.load(ENTRY, PROGRAM)
        machine.start(ENTRY, stack=ENTRY)
        print(machine.run(timeout=5))
        ids = int.from_bytes(machine.ram.read_bytes(RESULT, 4), "little")
        print(f"slot {SLOT} has {ids & 0xFFFF:04x}:{ids >> 16:04x}")


if __name__ == "__main__":
    main(sys.argv[1])
