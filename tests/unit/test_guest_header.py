# SPDX-License-Identifier: BSD-3-Clause
"""The header that a guest sees of a device."""

from __future__ import annotations

import pytest

from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.header import set_up_header
from pyvfio.emulator.options import FunctionOptions
from pyvfio.errors import UnsupportedError
from pyvfio.uapi import pci
from tests.unit.raw_config import RawConfig

IDS = {
    "vendor_id": (pci.VENDOR_ID, 0x1AF4),
    "device_id": (pci.DEVICE_ID, 0x1041),
    "subsystem_vendor_id": (pci.SUBSYSTEM_VENDOR_ID, 0x8086),
    "subsystem_id": (pci.SUBSYSTEM_ID, 0xFFFF),
}
ADDRESSES = [*range(0x10, 0x28, 4), 0x30]


@pytest.fixture
def device() -> RawConfig:
    """A device with a header full of something."""
    device = RawConfig()
    device.memory[:64] = bytes(range(1, 65))
    device.store(pci.HEADER_TYPE, 0)
    return device


def guest(device: RawConfig, **options: int | bool) -> EmulatedConfig:
    """What a guest sees of a device."""
    config = EmulatedConfig(device.region, 256, "guest")
    set_up_header(config, FunctionOptions(**options))  # type: ignore[arg-type]
    return config


def test_a_guest_sees_no_address_of_the_device(device: RawConfig) -> None:
    config = guest(device)
    assert [config.read(offset, 4) for offset in ADDRESSES] == [0] * 7
    assert [config.emulated[offset : offset + 4] for offset in ADDRESSES] == [b"\xff" * 4] * 7
    config.write(0x10, 4, 0xFFFF_FFFF)
    assert config.read(0x10, 4) == 0


def test_everything_else_is_the_devices(device: RawConfig) -> None:
    config = guest(device)
    emulated = {at for at, mask in enumerate(config.emulated) if mask}
    assert emulated == {0x0E, *range(0x10, 0x28), *range(0x30, 0x34)}
    assert config.read(0x00, 4) == 0x04030201
    assert config.get(pci.INTERRUPT_PIN) == config.read(0x3D, 1) == 0x3E


@pytest.mark.parametrize("name", IDS)
def test_an_id_can_be_another_one(device: RawConfig, name: str) -> None:
    register, value = IDS[name]
    expected = {other: device.load(IDS[other][0]) for other in IDS} | {name: value}
    config = guest(device, **{name: value})
    assert {other: config.read(IDS[other][0].offset, 2) for other in IDS} == expected
    config.write(register.offset, 2, 0)
    assert config.read(register.offset, 2) == value


def test_the_class_can_be_another_one_while_the_revision_stays(device: RawConfig) -> None:
    config = guest(device, class_code=0x030201)
    assert config.read(0x08, 4) == 0x03020109
    config.write(0x08, 4, 0)
    assert config.read(0x08, 4) == 0x03020100


@pytest.mark.parametrize("multifunction", [False, True])
@pytest.mark.parametrize("own", [0x00, 0x80])
def test_the_multifunction_bit_is_the_boards(
    device: RawConfig, own: int, multifunction: bool
) -> None:
    device.store(pci.HEADER_TYPE, own)
    config = guest(device, multifunction=multifunction)
    assert config.read(0x0E, 1) == (0x80 if multifunction else 0)


@pytest.mark.parametrize("layout", [0x01, 0x02, 0x81, 0xFF])
def test_a_bridge_is_not_shown(device: RawConfig, layout: int) -> None:
    device.store(pci.HEADER_TYPE, layout)
    with pytest.raises(UnsupportedError, match=f"of type {layout & 0x7F:#x}"):
        guest(device)
