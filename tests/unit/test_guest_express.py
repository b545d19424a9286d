# SPDX-License-Identifier: BSD-3-Clause
"""The PCI Express capability on each kind of bus, and the extended capabilities."""

from __future__ import annotations

import pytest

from pyvfio.emulator.bus import BusKind
from pyvfio.emulator.capabilities import Capabilities, add_capabilities
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.errors import UnsupportedError
from pyvfio.uapi import pci
from pyvfio.uapi.pci import CapabilityID, ExtendedCapabilityID, Register
from tests.unit.raw_config import RawConfig

AT = 0x40
ENDPOINT, LEGACY, INTEGRATED = 0x0, 0x1, 0x9
LINK = {0x0C: 4, 0x10: 2, 0x12: 2}
LINK_2 = {0x2C: 4, 0x30: 2, 0x32: 2}
EXPRESS_BUSES = [BusKind.ROOT_COMPLEX, BusKind.PORT]
ERR, DSN, VENDOR = ExtendedCapabilityID.ERR, ExtendedCapabilityID.DSN, ExtendedCapabilityID.VNDR
ARI, SRIOV, REBAR, PASID = (
    ExtendedCapabilityID.ARI,
    ExtendedCapabilityID.SRIOV,
    ExtendedCapabilityID.REBAR,
    ExtendedCapabilityID.PASID,
)


@pytest.fixture
def device() -> RawConfig:
    """An endpoint of version 2, all of whose registers hold something."""
    device = RawConfig()
    express(device, ENDPOINT)
    return device


def express(device: RawConfig, kind: int, version: int = 2, *, room: int = 0x3C) -> None:
    """Give a device a PCI Express capability; what follows it is a vendor's."""
    device.memory[AT : AT + 0x3C] = bytes(range(0x81, 0x81 + 0x3C))
    device.put_list((AT, CapabilityID.EXP), (AT + room, CapabilityID.VNDR))
    device.store(pci.EXP_FLAGS, kind << 4 | version, AT)
    device.store(pci.EXP_DEVICE_CAPABILITIES, 0, AT)


def add(device: RawConfig, bus: BusKind, size: int = 4096) -> tuple[EmulatedConfig, Capabilities]:
    """What a guest sees on a bus."""
    config = EmulatedConfig(device.region, size, "guest")
    return config, add_capabilities(config, bus, {})


def kind_of(config: EmulatedConfig) -> int:
    """The type that a guest reads."""
    return config.read(AT + 2, 2) >> 4 & 0xF


def registers(config: EmulatedConfig, at: dict[int, int]) -> list[int]:
    """What a guest reads of some registers of the capability."""
    return [config.read(AT + offset, width) for offset, width in at.items()]


def own(device: RawConfig, at: dict[int, int]) -> list[int]:
    """What the device says in them."""
    return [device.load(Register(offset, width), AT) for offset, width in at.items()]


def extended(config: EmulatedConfig) -> list[tuple[int, int, int]]:
    """(offset, id, version) as a guest finds them, by its reads; the first header is one."""
    found: list[tuple[int, int, int]] = []
    offset = 0x100
    while offset:
        head = config.read(offset, 4)
        found.append((offset, head & 0xFFFF, head >> 16 & 0xF))
        offset = head >> 20
        assert len(found) < 1000
    return found


# The PCI Express capability


@pytest.mark.parametrize(
    ("kind", "bus", "seen"),
    [
        (ENDPOINT, BusKind.CONVENTIONAL, ENDPOINT),
        (LEGACY, BusKind.CONVENTIONAL, LEGACY),
        (INTEGRATED, BusKind.CONVENTIONAL, INTEGRATED),
        (ENDPOINT, BusKind.BRIDGED, None),
        (LEGACY, BusKind.BRIDGED, None),
        (INTEGRATED, BusKind.BRIDGED, None),
        (ENDPOINT, BusKind.ROOT_COMPLEX, INTEGRATED),
        (LEGACY, BusKind.ROOT_COMPLEX, None),
        (INTEGRATED, BusKind.ROOT_COMPLEX, INTEGRATED),
        (ENDPOINT, BusKind.PORT, ENDPOINT),
        (LEGACY, BusKind.PORT, LEGACY),
        (INTEGRATED, BusKind.PORT, ENDPOINT),
    ],
)
def test_a_function_becomes_of_the_type_that_its_bus_takes(
    device: RawConfig, kind: int, bus: BusKind, seen: int | None
) -> None:
    express(device, kind)
    config, found = add(device, bus)
    assert (found.express is None) == (seen is None)
    if seen is not None:
        assert (found.express, kind_of(config)) == (AT, seen)
    else:
        assert config.read(0x34, 1) == AT + 0x3C


def test_on_a_root_complex_an_endpoint_has_no_link(device: RawConfig) -> None:
    config, _ = add(device, BusKind.ROOT_COMPLEX)
    assert registers(config, LINK | LINK_2) == [0] * 6
    config.write(AT + 0x10, 2, 0xFFFF)
    assert registers(config, {0x10: 2}) == [0]


@pytest.mark.parametrize(
    ("room", "emulated"), [(0x14, LINK), (0x10, {}), (0x30, LINK), (0x34, LINK | LINK_2)]
)
def test_a_short_capability_loses_the_link_that_it_has(
    device: RawConfig, room: int, emulated: dict[int, int]
) -> None:
    express(device, ENDPOINT, room=room)
    config, _ = add(device, BusKind.ROOT_COMPLEX)
    whole = {at for at in range(AT + 4, AT + 0x3C) if config.emulated[at] == 0xFF}
    expected = {AT + at + i for at, width in emulated.items() for i in range(width)}
    assert whole - {AT + room + 1} == expected


def test_below_a_port_an_integrated_endpoint_gets_the_simplest_link(device: RawConfig) -> None:
    express(device, INTEGRATED)
    config, _ = add(device, BusKind.PORT)
    assert registers(config, {0x0C: 4, 0x10: 2}) == [0x11, 0]
    assert registers(config, {0x12: 2, **LINK_2}) == own(device, {0x12: 2, **LINK_2})


@pytest.mark.parametrize(
    ("kind", "bus"),
    [
        (ENDPOINT, BusKind.PORT),
        (LEGACY, BusKind.PORT),
        (INTEGRATED, BusKind.ROOT_COMPLEX),
        (ENDPOINT, BusKind.CONVENTIONAL),
    ],
)
def test_a_function_that_fits_its_bus_is_shown_as_it_is(
    device: RawConfig, kind: int, bus: BusKind
) -> None:
    express(device, kind)
    config, _ = add(device, bus)
    whole = dict.fromkeys(range(2, 0x3C), 1)
    assert registers(config, whole) == own(device, whole)


@pytest.mark.parametrize("bus", [BusKind.CONVENTIONAL, *EXPRESS_BUSES])
@pytest.mark.parametrize(("version", "seen"), [(0, 1), (1, 1), (2, 2)])
def test_version_0_does_not_exist_and_becomes_1(
    device: RawConfig, bus: BusKind, version: int, seen: int
) -> None:
    express(device, ENDPOINT, version)
    config, _ = add(device, bus)
    assert config.read(AT + 2, 1) & 0xF == seen


@pytest.mark.parametrize("bus", list(BusKind))
@pytest.mark.parametrize("kind", [0x4, 0x5, 0x6, 0x7, 0x8, 0xA, 0x2, 0xF])
def test_ports_and_bridges_are_not_shown(device: RawConfig, bus: BusKind, kind: int) -> None:
    express(device, kind)
    with pytest.raises(UnsupportedError, match=f"of type {kind:#x}"):
        add(device, bus)


@pytest.mark.parametrize("bus", list(BusKind))
@pytest.mark.parametrize(("able", "resets"), [(0x1000_0000, True), (0xEFFF_FFFF, False)])
def test_it_tells_of_a_function_level_reset_even_where_it_is_hidden(
    device: RawConfig, bus: BusKind, able: int, resets: bool
) -> None:
    device.store(pci.EXP_DEVICE_CAPABILITIES, able, AT)
    assert add(device, bus)[1].has_flr == resets


@pytest.mark.parametrize("bus", list(BusKind))
def test_a_capability_without_room_is_hidden(device: RawConfig, bus: BusKind) -> None:
    express(device, ENDPOINT, room=4)
    config, found = add(device, bus)
    assert (found.express, found.has_flr, config.read(0x34, 1)) == (None, False, AT + 4)


# The extended list


@pytest.mark.parametrize("bus", EXPRESS_BUSES)
def test_the_extended_list_is_the_devices_in_its_order(device: RawConfig, bus: BusKind) -> None:
    device.put_extended((0x100, ERR), (0x300, DSN), (0x200, VENDOR))
    config, _ = add(device, bus)
    assert extended(config) == [(0x100, ERR, 1), (0x300, DSN, 1), (0x200, VENDOR, 1)]


@pytest.mark.parametrize("hidden", [0x0000, SRIOV, ARI])
@pytest.mark.parametrize("place", [0x300, 0x200])
def test_what_cannot_work_in_a_guest_is_left_out(
    device: RawConfig, hidden: int, place: int
) -> None:
    order = [(0x100, ERR), (0x300, DSN), (0x200, VENDOR)]
    device.put_extended(*[(at, hidden if at == place else number) for at, number in order])
    config, _ = add(device, BusKind.PORT)
    assert extended(config) == [(at, number, 1) for at, number in order if at != place]


@pytest.mark.parametrize("hidden", [0x0000, SRIOV, ARI])
def test_in_place_of_a_hidden_first_one_a_capability_0_leads_on(
    device: RawConfig, hidden: int
) -> None:
    device.put_extended((0x100, hidden), (0x300, DSN), (0x200, VENDOR))
    config, _ = add(device, BusKind.PORT)
    assert extended(config) == [(0x100, 0, 0), (0x300, DSN, 1), (0x200, VENDOR, 1)]


def test_with_all_hidden_the_list_is_empty(device: RawConfig) -> None:
    device.put_extended((0x100, SRIOV), (0x200, ARI))
    config, _ = add(device, BusKind.PORT)
    assert config.read(0x100, 4) == 0


def test_pasid_is_shown_where_the_device_shows_it(device: RawConfig) -> None:
    device.put_extended((0x100, ERR), (0x200, PASID))
    config, _ = add(device, BusKind.PORT)
    assert extended(config)[-1] == (0x200, PASID, 1)


def test_the_first_header_and_the_pointers_are_emulated(device: RawConfig) -> None:
    device.put_extended((0x100, ERR), (0x300, DSN))
    config, _ = add(device, BusKind.PORT)
    emulated = {at: mask for at, mask in enumerate(config.emulated) if mask and at >= 0x100}
    assert emulated == {**dict.fromkeys(range(0x100, 0x104), 0xFF), 0x302: 0xF0, 0x303: 0xFF}
    for offset in range(0x100, 0x1000, 4):
        config.write(offset, 4, 0xFFFF_FFFF)
    assert config.writable[0x100:] == bytes(0xF00)
    assert config.read(0x100, 4) == 0x3001_0001


def test_extended_capabilities_must_be_those_of_a_saved_state(device: RawConfig) -> None:
    device.put_extended((0x100, ERR), (0x200, SRIOV), (0x300, DSN))
    config, _ = add(device, BusKind.PORT)
    assert config.compared[0x100:] == b"\xff" * 0x100 + bytes(0x100) + b"\xff" * 0xD00


@pytest.mark.parametrize("head", [0, 0xFFFF_FFFF])
def test_a_device_without_an_extended_list_cannot_get_one_later(
    device: RawConfig, head: int
) -> None:
    device.store(Register(0, 4), head, 0x100)
    config, _ = add(device, BusKind.PORT)
    device.put_extended((0x100, SRIOV))
    assert config.read(0x100, 4) == 0


@pytest.mark.parametrize("back", [0x100, 0x200, 0x300])
def test_an_extended_loop_ends_where_it_closes(device: RawConfig, back: int) -> None:
    device.put_extended((0x100, ERR), (0x200, DSN), (0x300, VENDOR))
    device.store(Register(0, 4), back << 20 | 1 << 16 | VENDOR, 0x300)
    config, _ = add(device, BusKind.PORT)
    assert [at for at, _, _ in extended(config)] == [0x100, 0x200, 0x300]


@pytest.mark.parametrize("pointer", [0x004, 0x0FC, 0x001])
def test_an_extended_pointer_below_the_space_ends_the_list(device: RawConfig, pointer: int) -> None:
    device.put_extended((0x100, ERR))
    device.store(Register(0, 4), pointer << 20 | 1 << 16 | ERR, 0x100)
    config, _ = add(device, BusKind.PORT)
    assert extended(config) == [(0x100, ERR, 1)]


def test_a_list_that_leads_beyond_a_short_space_ends(device: RawConfig) -> None:
    device = RawConfig(0x202)
    device.put_extended((0x100, ERR), (0x200, DSN))
    config, _ = add(device, BusKind.PORT)
    assert extended(config) == [(0x100, ERR, 1)]


@pytest.mark.parametrize("size", [0x100, 0x101, 0x103])
def test_a_space_without_a_first_header_has_no_extended_list(size: int) -> None:
    device = RawConfig(size)
    express(device, ENDPOINT)
    config, found = add(device, BusKind.PORT)
    assert (found.express, config.read(0x100, 4)) == (AT, 0xFFFF_FFFF)


@pytest.mark.parametrize("bus", [BusKind.CONVENTIONAL, BusKind.BRIDGED])
def test_on_a_conventional_bus_the_extended_space_stays_as_it_is(
    device: RawConfig, bus: BusKind
) -> None:
    device.put_extended((0x100, SRIOV))
    config, _ = add(device, bus)
    assert bytes(config.emulated[0x100:]) == bytes(0xF00)


# Resizable BARs


def rebar(device: RawConfig, *controls: int, room: int = 0x100) -> None:
    """Give a device resizable BARs with these control registers, able to have any size."""
    device.put_extended((0x100, ERR), (0x200, REBAR), (0x200 + room, DSN))
    for index, control in enumerate(controls):
        device.store(pci.REBAR_CAPABILITIES, 0xFFFF_FFF0, 0x200 + 8 * index)
        device.store(pci.REBAR_CONTROL, control, 0x200 + 8 * index)


def control_of(bar: int, count: int, size: int) -> int:
    """A control register: its BAR, how many there are, the present size, bits that mean more."""
    return bar | count << 5 | size << 8 | 0xFFFF_0018 & ~(size << 8)


def test_of_a_resizable_bar_the_present_size_is_all_that_it_can_have(device: RawConfig) -> None:
    rebar(device, control_of(0, 2, 8), control_of(4, 2, 0))
    config, _ = add(device, BusKind.PORT)
    assert (0x200, REBAR, 1) in extended(config)
    assert [config.read(at, 4) for at in (0x204, 0x208)] == [1 << 12, 0 | 2 << 5 | 8 << 8]
    assert [config.read(at, 4) for at in (0x20C, 0x210)] == [1 << 4, 4 | 2 << 5]
    for at in range(0x204, 0x214, 4):
        config.write(at, 4, 0xFFFF_FFFF)
    assert [config.read(at, 4) for at in (0x204, 0x20C)] == [1 << 12, 1 << 4]
    assert config.read(0x210, 4) == 4 | 2 << 5


@pytest.mark.parametrize(("size", "shown"), [(19, True), (20, False), (27, False), (63, False)])
def test_a_size_beyond_512_gib_cannot_be_said_and_hides_the_capability(
    device: RawConfig, size: int, shown: bool
) -> None:
    rebar(device, control_of(0, 2, 5), control_of(2, 2, size))
    config, _ = add(device, BusKind.PORT)
    assert ((0x200, REBAR, 1) in extended(config)) == shown
    if not shown:
        assert bytes(config.emulated[0x204:0x214]) == bytes(16)


@pytest.mark.parametrize(
    ("count", "room", "shown"),
    [(1, 12, True), (1, 8, False), (2, 20, True), (2, 16, False), (7, 60, True), (7, 56, False)],
)
def test_more_bars_than_the_capability_has_room_for_hide_it(
    device: RawConfig, count: int, room: int, shown: bool
) -> None:
    rebar(device, *[control_of(0, count, 3)] * count, room=room)
    device.put_extended((0x100, ERR), (0x200, REBAR), (0x200 + room, DSN))
    config, _ = add(device, BusKind.PORT)
    assert ((0x200, REBAR, 1) in extended(config)) == shown
    assert extended(config)[-1] == (0x200 + room, DSN, 1)


def test_a_capability_of_no_bars_is_hidden(device: RawConfig) -> None:
    rebar(device, control_of(0, 0, 3))
    config, _ = add(device, BusKind.PORT)
    assert (0x200, REBAR, 1) not in extended(config)
