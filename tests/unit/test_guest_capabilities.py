# SPDX-License-Identifier: BSD-3-Clause
"""The conventional capabilities that a guest sees, of devices that are right and of such as lie."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pyvfio.emulator.bus import BusKind
from pyvfio.emulator.capabilities import Capabilities, Maker, add_capabilities
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID, Status
from tests.unit.raw_config import RawConfig

PM, MSI, VENDOR, EXP, MSIX, AF = (
    CapabilityID.PM,
    CapabilityID.MSI,
    CapabilityID.VNDR,
    CapabilityID.EXP,
    CapabilityID.MSIX,
    CapabilityID.AF,
)
SSVID = CapabilityID.SSVID
"""A capability that nothing is known of."""


@pytest.fixture
def device() -> RawConfig:
    """A conventional device without capabilities."""
    return RawConfig(256)


def add(
    device: RawConfig, makers: Mapping[CapabilityID, Maker] | None = None
) -> tuple[EmulatedConfig, Capabilities]:
    """What a guest on a conventional bus sees of a device."""
    config = EmulatedConfig(device.region, 256, "guest")
    return config, add_capabilities(config, BusKind.CONVENTIONAL, makers or {})


def seen(config: EmulatedConfig) -> list[tuple[int, int]]:
    """(offset, id) as a guest finds them: by its reads, without looking out for loops."""
    found: list[tuple[int, int]] = []
    offset = config.read(0x34, 1) if config.read(0x06, 2) & 0x10 else 0
    while offset:
        found.append((offset, config.read(offset, 1)))
        offset = config.read(offset + 1, 1)
        assert len(found) <= 48
    return found


# The list


def test_the_list_is_the_devices_in_its_order(device: RawConfig) -> None:
    capabilities = [(0x80, VENDOR), (0x40, SSVID), (0x60, VENDOR), (0xF0, CapabilityID.HT)]
    device.put_list(*capabilities)
    config, found = add(device)
    assert seen(config) == capabilities
    assert found.offsets == {VENDOR: 0x80, SSVID: 0x40, CapabilityID.HT: 0xF0}


@pytest.mark.parametrize(
    ("hidden", "left"),
    [(0, [1, 2]), (1, [0, 2]), (2, [0, 1])],
    ids=["first", "middle", "last"],
)
def test_a_hidden_capability_is_left_out_of_the_list(
    device: RawConfig, hidden: int, left: list[int]
) -> None:
    capabilities = [(0x40, VENDOR), (0x50, VENDOR), (0x60, VENDOR)]
    capabilities[hidden] = (capabilities[hidden][0], MSI)
    device.put_list(*capabilities)
    config, found = add(device)
    assert seen(config) == [capabilities[index] for index in left]
    assert found.msi is None


def test_with_all_hidden_there_is_no_list(device: RawConfig) -> None:
    device.put_list((0x40, MSI), (0x50, MSIX))
    config, _ = add(device)
    assert (config.read(0x34, 1), config.read(0x06, 2) & Status.CAP_LIST) == (0, 0)


def test_a_device_without_a_list_cannot_get_one_later(device: RawConfig) -> None:
    config, found = add(device)
    device.put_list((0x40, VENDOR))
    assert (seen(config), found) == ([], Capabilities())


def test_the_list_is_emulated_and_the_capabilities_are_the_devices(device: RawConfig) -> None:
    device.put_list((0x40, VENDOR), (0x50, SSVID))
    config, _ = add(device)
    emulated = {at: mask for at, mask in enumerate(config.emulated) if mask}
    assert emulated == {0x06: 0x10, 0x34: 0xFF, 0x41: 0xFF, 0x51: 0xFF}
    device.memory[0x44] = 0x77
    assert config.read(0x44, 1) == 0x77


def test_a_capability_cannot_be_changed_in_the_local_copy(device: RawConfig) -> None:
    device.put_list((0x40, VENDOR), (0x50, SSVID))
    config, _ = add(device)
    for offset in range(0x34, 0x100, 4):
        config.write(offset, 4, 0xFFFF_FFFF)
    assert config.writable[0x40:] == bytes(0xC0)
    assert config.read(0x34, 1) == 0x40


def test_capabilities_must_be_those_of_a_saved_state_but_for_what_a_vendor_keeps(
    device: RawConfig,
) -> None:
    device.put_list((0x50, VENDOR), (0x60, SSVID), (0x40, MSI))
    config, _ = add(device)
    compared = config.compared[0x40:0x100]
    assert compared == bytes(16) + b"\xff" * 3 + bytes(13) + b"\xff" * 0xA0


# Lists that make no sense


@pytest.mark.parametrize("back", [0x40, 0x50, 0x60])
def test_a_loop_ends_where_it_closes(device: RawConfig, back: int) -> None:
    capabilities = [(0x40, VENDOR), (0x50, SSVID), (0x60, VENDOR)]
    device.put_list(*capabilities)
    device.memory[0x61] = back
    config, _ = add(device)
    assert seen(config) == capabilities


@pytest.mark.parametrize("pointer", [0x01, 0x04, 0x34, 0x3C, 0x3F])
def test_a_pointer_into_the_header_ends_the_list(device: RawConfig, pointer: int) -> None:
    device.put_list((0x40, VENDOR))
    device.memory[0x41] = pointer
    config, _ = add(device)
    assert seen(config) == [(0x40, VENDOR)]


def test_a_list_that_begins_in_the_header_is_none(device: RawConfig) -> None:
    device.put_list((0x40, VENDOR))
    device.memory[0x34] = 0x10
    config, _ = add(device)
    assert seen(config) == []


def test_the_low_bits_of_pointers_do_not_reach_the_guest(device: RawConfig) -> None:
    device.put_list((0x40, VENDOR), (0x50, SSVID))
    device.memory[0x34], device.memory[0x41] = 0x43, 0x52
    config, _ = add(device)
    assert seen(config) == [(0x40, VENDOR), (0x50, SSVID)]


def test_a_list_that_leads_to_ones_ends_there(device: RawConfig) -> None:
    device.put_list((0x40, VENDOR), (0x50, 0xFF), (0x60, SSVID))
    config, _ = add(device)
    assert seen(config) == [(0x40, VENDOR)]


def test_a_device_of_ones_has_no_capabilities(device: RawConfig) -> None:
    device.memory[:] = b"\xff" * len(device.memory)
    config, found = add(device)
    assert (seen(config), found) == ([], Capabilities())


def test_there_may_be_48_capabilities_of_four_bytes(device: RawConfig) -> None:
    capabilities = [(offset, VENDOR) for offset in range(0x40, 0x100, 4)]
    device.put_list(*reversed(capabilities))
    config, _ = add(device)
    assert seen(config) == capabilities[::-1]


# Those that set themselves up


def test_a_maker_is_given_place_and_room_and_decides(device: RawConfig) -> None:
    calls: list[tuple[str, int, int]] = []

    def msi(offset: int, size: int) -> bool:
        calls.append(("msi", offset, size))
        return True

    def msix(offset: int, size: int) -> bool:
        calls.append(("msix", offset, size))
        return False

    device.put_list((0x70, MSI), (0x40, MSIX), (0x58, VENDOR), (0xF0, VENDOR))
    config, found = add(device, {MSI: msi, MSIX: msix})
    assert calls == [("msi", 0x70, 0x80), ("msix", 0x40, 0x18)]
    assert seen(config) == [(0x70, MSI), (0x58, VENDOR), (0xF0, VENDOR)]
    assert (found.msi, found.msix) == (0x70, None)


def test_what_a_maker_lets_the_guest_write_stays_writable(device: RawConfig) -> None:
    device.put_list((0x40, MSI))
    config = EmulatedConfig(device.region, 256, "guest")

    def msi(offset: int, size: int) -> bool:
        assert config.writable[offset : offset + size] == bytes(size)
        config.allow(pci.MSI_CONTROL, pci.MSI_CONTROL_ENABLE, offset)
        return True

    add_capabilities(config, BusKind.CONVENTIONAL, {MSI: msi})
    config.write(0x40, 4, 0xFFFF_FFFF)
    assert config.get(pci.MSI_CONTROL, 0x40) == pci.MSI_CONTROL_ENABLE


@pytest.mark.parametrize("kind", [PM, MSI, MSIX, EXP])
def test_of_a_kind_that_is_there_twice_the_first_counts(device: RawConfig, kind: int) -> None:
    device.put_list((0x80, kind), (0x40, VENDOR), (0xC0, kind))
    config, found = add(device, dict.fromkeys((MSI, MSIX), lambda *_: True))
    assert seen(config) == [(0x80, kind), (0x40, VENDOR)]
    assert found.offsets[kind] == 0x80


# Power management and resets


@pytest.mark.parametrize(("control", "resets"), [(0x0008, False), (0x0000, True), (0x0100, True)])
def test_power_management_tells_whether_d3_resets(
    device: RawConfig, control: int, resets: bool
) -> None:
    device.put_list((0x40, PM))
    device.store(pci.PM_CONTROL, control, 0x40)
    config, found = add(device)
    assert (found.pm, found.has_pm_reset) == (0x40, resets)
    assert config.power.offset == 0x40


def test_the_guest_reads_the_devices_power_state_and_writes_both(device: RawConfig) -> None:
    device.put_list((0x40, PM))
    config, _ = add(device)
    config.write(0x44, 2, 0x0103)
    assert (device.load(pci.PM_CONTROL, 0x40), config.power.state) == (0x0103, 3)
    assert config.get(pci.PM_CONTROL, 0x40) == 3
    device.store(pci.PM_CONTROL, 0, 0x40)
    assert (config.read(0x44, 2), config.power.state) == (0, 3)


def test_power_management_without_room_is_hidden(device: RawConfig) -> None:
    device.put_list((0x40, VENDOR), (0xFC, PM))
    config, found = add(device)
    assert seen(config) == [(0x40, VENDOR)]
    assert (found.pm, found.has_pm_reset, config.power.offset) == (None, False, None)


@pytest.mark.parametrize(
    ("able", "resets"), [(0x03, True), (0x02, False), (0x01, False), (0, False)]
)
def test_advanced_features_tell_of_a_function_level_reset(
    device: RawConfig, able: int, resets: bool
) -> None:
    device.put_list((0x40, AF))
    device.store(pci.AF_CAPABILITIES, able, 0x40)
    config, found = add(device)
    assert (seen(config), found.has_flr) == ([(0x40, AF)], resets)


def test_a_device_without_capabilities_has_no_reset_of_its_own(device: RawConfig) -> None:
    device.put_list((0x40, VENDOR))
    _, found = add(device)
    assert (found.has_flr, found.has_pm_reset) == (False, False)
