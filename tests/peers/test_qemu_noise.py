# SPDX-License-Identifier: BSD-3-Clause
"""A guest that writes anything anywhere in a device, by QEMU's vfio-user client.

Seen with QEMU 11.1.3 (Debian), 10^5 accesses, and with 10.1.0 (Ubuntu).
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pyvfio.uapi import pci
from tests.peers.drive import BAR, SLOT, TABLE, driven_edu, driven_testdev
from tests.peers.function import Function
from tests.peers.machine import Machine
from tests.support import ServerProcess

ACCESSES = 3000
REGISTERS = 0x100
PAGE = 4096


def anywhere(chance: random.Random, size: int, widths: tuple[int, ...]) -> tuple[int, int]:
    """An aligned offset and a width."""
    width = chance.choice(widths)
    return chance.randrange(0, size, width), width


def access(chance: random.Random, machine: Machine, function: Function) -> None:
    """One access of any kind, to configuration space, registers or the MSI-X table."""
    if chance.random() < 0.5:
        offset, width = anywhere(chance, pci.CONFIG_SIZE, (1, 2, 4))
        if chance.random() < 0.5:
            function.read(offset, width)
        else:
            function.write(offset, width, chance.getrandbits(8 * width))
        return
    page, size = chance.choice([(BAR, REGISTERS), (BAR, PAGE), (TABLE, PAGE)])
    offset, width = anywhere(chance, size, (1, 2, 4, 8))
    if chance.random() < 0.5:
        machine.bus.load(page + offset, width)
    else:
        machine.bus.store(page + offset, width, chance.getrandbits(8 * width))


@pytest.mark.parametrize(
    ("model", "drive"), [("edu", driven_edu), ("testdev", driven_testdev)], ids=["edu", "testdev"]
)
def test_whatever_a_guest_writes_the_device_stays(
    served: Callable[..., ServerProcess],
    plugged: Callable[..., Machine],
    model: str,
    drive: Callable[[Machine], Function],
) -> None:
    """QEMU has nothing to complain of, and the server tells of impossible DMA at most."""
    chance = random.Random(model)
    server = served(model)
    machine = plugged(server)
    function = drive(machine)
    ids, identification = Function(machine.bus, SLOT).ids, machine.bus.load(BAR, 4)
    for number in range(ACCESSES):
        access(chance, machine, function)
        if number % 100 == 0:
            drive(machine)
    machine.reset()
    drive(machine)
    assert (function.ids, machine.bus.load(BAR, 4)) == (ids, identification)
    assert machine.quit() == 0
    assert machine.said() == ""
    status, said = server.stop()
    assert status == 0
    assert [line for line in said.splitlines() if "DMA of" not in line] == []
