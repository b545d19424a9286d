# SPDX-License-Identifier: BSD-3-Clause
"""Prints, as JSON, what sysfs shows of the devices, and what their registers and memory do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pyvfio.models import edu, testdev
from pyvfio.uapi import pci
from tests.peers.guest import EDU, TESTDEV
from tests.peers.guest.registers import enable, folder, registers

WORD = 0x12345678
PORT = 8


def seen(device: Path) -> dict[str, object]:
    """What sysfs shows of any device."""
    lines = (device / "resource").read_text().splitlines()[: pci.NUM_BARS]
    ranges = [[int(word, 16) for word in line.split()] for line in lines]
    config = (device / "config").read_bytes()
    return {
        "bars": {bar: end - start + 1 for bar, (start, end, _) in enumerate(ranges) if end},
        "capabilities": list(capabilities(config)),
        "config": len(config),
    }


def capabilities(config: bytes) -> Iterator[int]:
    """The ids in the list of capabilities."""
    offset = config[pci.CAPABILITY_LIST.offset]
    while offset:
        yield config[offset]
        offset = config[offset + 1]


def edu_registers(device: Path) -> dict[str, object]:
    """What the registers of an edu device say."""
    with registers(device, 0) as words:
        words[edu.LIVENESS // 4] = WORD
        return {"registers": [words[offset // 4] for offset in (edu.ID, edu.LIVENESS)]}


def testdev_registers(device: Path) -> dict[str, object]:
    """What registers, memory (mapped by QEMU, and not) and ports of a test device say."""
    with registers(device, testdev.REGISTERS) as words:
        words[testdev.SCRATCH // 4] = WORD
        offsets = (testdev.ID, testdev.SCRATCH, testdev.WIDTH)
        found = [words[offset // 4] for offset in offsets]
    (_, first_end), (second, _) = testdev.MAPPABLE
    for offset in (second, first_end):
        with registers(device, testdev.MEMORY, offset) as words:
            words[5] = offset | 1
            found.append(words[5] ^ offset)
    with (device / f"resource{testdev.PORTS}").open("r+b", buffering=0) as ports:
        os.pwrite(ports.fileno(), WORD.to_bytes(4, "little"), PORT)
        found.append(int.from_bytes(os.pread(ports.fileno(), 4, PORT), "little"))
    return {"registers": found}


if __name__ == "__main__":
    found = {}
    for ids, ask in ((EDU, edu_registers), (TESTDEV, testdev_registers)):
        device = folder(ids)
        enable(device)
        found[ids] = {**seen(device), **ask(device)}
    sys.stdout.write(json.dumps(found))
