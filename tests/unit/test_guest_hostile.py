# SPDX-License-Identifier: BSD-3-Clause
"""Devices made of random bytes: what a guest sees of them makes sense, or they are refused."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from pyvfio.emulator.bus import BusKind
from pyvfio.emulator.capabilities import add_capabilities
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.config_dump import describe
from pyvfio.errors import UnsupportedError
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID, ExtendedCapabilityID, Register, Status
from tests.unit.raw_config import RawConfig

KINDS = [CapabilityID.PM, CapabilityID.MSI, CapabilityID.VNDR, CapabilityID.MSIX, CapabilityID.AF]
EXTENDED = [
    ExtendedCapabilityID.ERR,
    ExtendedCapabilityID.ARI,
    ExtendedCapabilityID.SRIOV,
    ExtendedCapabilityID.REBAR,
    ExtendedCapabilityID.DSN,
    0,
]
SIZES = (256, 257, 300, 1024, 4096)


def hostile(seed: int) -> RawConfig:
    """A device of random bytes, most of whose pointers lead to further capabilities."""
    rng = random.Random(seed)
    device = RawConfig(rng.choice(SIZES))
    device.memory[: device.region.size] = rng.randbytes(device.region.size)
    device.store(pci.STATUS, Status.CAP_LIST)
    device.memory[0x34] = rng.randrange(0x100)
    for offset in range(0x40, 0x100, 4):
        device.memory[offset] = rng.choice([*KINDS, CapabilityID.EXP, rng.randrange(0x100)])
        device.memory[offset + 1] = rng.randrange(0x100)
        if device.memory[offset] == CapabilityID.EXP and rng.random() < 0.9:
            device.memory[offset + 2] &= 0x0F
    for offset in range(0x100, device.region.size - 3, 4):
        if rng.random() < 0.5:
            following = rng.randrange(0x100, device.region.size)
            header = rng.choice(EXTENDED) | rng.randrange(16) << 16 | following << 20
            device.store(Register(offset, 4), header)
    return device


def conventional(config: EmulatedConfig) -> Iterator[tuple[int, int]]:
    """(offset, id) as a guest finds them that looks out for nothing."""
    offset = config.read(0x34, 1) if config.read(0x06, 2) & Status.CAP_LIST else 0
    while offset:
        yield offset, config.read(offset, 1)
        offset = config.read(offset + 1, 1)


def extended(config: EmulatedConfig) -> Iterator[tuple[int, int]]:
    """(offset, id) of the extended list in the same way, without its head's."""
    offset = config.read(0x100, 4) >> 20 if config.size >= 0x104 else 0
    while offset:
        head = config.read(offset, 4)
        yield offset, head & 0xFFFF
        offset = head >> 20


@pytest.mark.parametrize("bus", list(BusKind))
def test_whatever_a_device_says_its_lists_end_and_what_is_hidden_is_not_in_them(
    bus: BusKind,
) -> None:
    lengths: list[int] = []
    refused = 0
    for seed in range(400):
        config = EmulatedConfig(hostile(seed).region, 4096, f"seed {seed}")
        try:
            found = add_capabilities(config, bus, {})
        except UnsupportedError:
            refused += 1
            continue
        offsets = _check_conventional(config)
        assert set(found.offsets.values()) <= set(offsets)
        if bus.express:
            _check_extended(config)
        lengths.append(len(offsets))
    assert max(lengths) > 5
    assert len(lengths) > 100
    assert refused


def _check_conventional(config: EmulatedConfig) -> list[int]:
    offsets = []
    for offset, number in conventional(config):
        assert 0x40 <= offset <= 0xFC, config.name
        assert offset not in offsets, config.name
        assert number not in (CapabilityID.MSI, CapabilityID.MSIX, 0xFF), config.name
        offsets.append(offset)
    return offsets


def _check_extended(config: EmulatedConfig) -> None:
    seen = set()
    for offset, number in extended(config):
        assert 0x100 < offset <= config.size - 4, config.name
        assert offset not in seen, config.name
        hidden = (0, ExtendedCapabilityID.ARI, ExtendedCapabilityID.SRIOV)
        assert number not in hidden, config.name
        seen.add(offset)


@pytest.mark.parametrize("seed", range(50))
def test_a_guest_cannot_change_what_is_emulated_of_the_lists(seed: int) -> None:
    config = EmulatedConfig(hostile(seed).region, 4096, f"seed {seed}")
    try:
        add_capabilities(config, BusKind.PORT, {})
    except UnsupportedError:
        return
    before = describe(config)
    for offset in range(0x34, config.size, 4):
        config.write(offset, 4, seed * 0x9E37_79B1 & 0xFFFF_FFFF)
    assert describe(config) == before


# The description


def test_the_description_tells_emulated_bytes_from_the_devices() -> None:
    device = RawConfig(300)
    device.put_list((0x40, CapabilityID.VNDR), (0x50, CapabilityID.MSI))
    config = EmulatedConfig(device.region, 4096, "guest")
    assert describe(config) == ""
    add_capabilities(config, BusKind.PORT, {})
    config.emulate(Register(0x128, 4), 0xDDCCBBAA, 0xFFFF_FFFF)
    none = "-- " * 15 + "--"
    assert describe(config).split("\n") == [
        "000: " + none[: 6 * 3] + "~~" + none[6 * 3 + 2 :],
        "030: " + none[: 4 * 3] + "40" + none[4 * 3 + 2 :],
        "040: -- 00 " + none[2 * 3 :],
        "050: -- 00 " + none[2 * 3 :],
        "100: 00 00 00 00 " + none[4 * 3 :],
        "120: " + none[: 8 * 3] + "aa bb cc dd",
    ]
