# SPDX-License-Identifier: BSD-3-Clause
"""Configuration space of a model: what a client may write, and declarations that cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from pyvfio.server.config_space import ModelConfigSpace
from pyvfio.server.deferred import DeferredAnswers
from pyvfio.server.function import PCIFunction
from pyvfio.server.model import (
    DeviceModel,
    Identity,
    ModelBAR,
    ModelCapability,
    ModelIOEventFD,
    ModelMSI,
    ModelMSIX,
)
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType, CapabilityID, Command, ExtendedCapabilityID
from pyvfio.uapi.vfio import PCIIRQ, IRQSetFlags, PCIRegion
from pyvfio.wire.messages import SetIRQs

ALL_ONES = b"\xff" * 4
BAR0 = 0x10
IDENTITY = Identity(0x1234, 0x5678, 0x020304, 0x05, 0x1AF4, 0x1100)
VENDOR = ModelCapability(CapabilityID.VNDR, b"\x03abc")
MIB = 1 << 20


class Model(DeviceModel):
    """A model that only declares."""

    identity = IDENTITY


def declared(**declarations: Any) -> ModelConfigSpace:
    """The configuration space of a model with these declarations."""
    model: type[DeviceModel] = type("Declared", (Model,), declarations)
    return ModelConfigSpace(model())


def with_bars(bars: Mapping[int, ModelBAR]) -> ModelConfigSpace:
    """The configuration space of a model with these BARs."""
    return declared(bars=bars)


def read(config: ModelConfigSpace, offset: int, size: int = 4) -> int:
    """A little-endian number."""
    return int.from_bytes(config.read(offset, size), "little")


# Identity


def test_the_header_holds_the_identity() -> None:
    config = declared(interrupt_pin=2)
    header = {
        pci.VENDOR_ID: 0x1234,
        pci.DEVICE_ID: 0x5678,
        pci.REVISION_ID: 0x05,
        pci.PROG_IF: 0x04,
        pci.SUBCLASS: 0x03,
        pci.BASE_CLASS: 0x02,
        pci.SUBSYSTEM_VENDOR_ID: 0x1AF4,
        pci.SUBSYSTEM_ID: 0x1100,
        pci.INTERRUPT_PIN: 2,
        pci.HEADER_TYPE: 0,
    }
    assert {register: config.get(register) for register in header} == header


@pytest.mark.parametrize(("express", "size"), [(False, 256), (True, 4096)])
def test_express_decides_the_size(express: bool, size: int) -> None:
    assert declared(express=express).size == size


# BAR registers


@pytest.mark.parametrize(
    ("bar", "sized"),
    [
        (ModelBAR(16), 0xFFFF_FFF0),
        (ModelBAR(4096), 0xFFFF_F000),
        (ModelBAR(MIB), 0xFFF0_0000),
        (ModelBAR(1 << 31), 0x8000_0000),
        (ModelBAR(MIB, prefetchable=True), 0xFFF0_0008),
        (ModelBAR(4, BARType.IO), 0xFFFF_FFFD),
        (ModelBAR(32, BARType.IO), 0xFFFF_FFE1),
        (ModelBAR(256, BARType.IO), 0xFFFF_FF01),
    ],
    ids=str,
)
def test_all_ones_show_the_size_of_a_bar(bar: ModelBAR, sized: int) -> None:
    config = with_bars({0: bar})
    config.write(BAR0, ALL_ONES)
    assert read(config, BAR0) == sized


@pytest.mark.parametrize(
    ("bar", "sized"),
    [
        (ModelBAR(4096, BARType.MEM64), 0xFFFF_FFFF_FFFF_F004),
        (ModelBAR(64 * MIB, BARType.MEM64, prefetchable=True), 0xFFFF_FFFF_FC00_000C),
        (ModelBAR(1 << 32, BARType.MEM64), 0xFFFF_FFFF_0000_0004),
        (ModelBAR(1 << 34, BARType.MEM64), 0xFFFF_FFFC_0000_0004),
        (ModelBAR(1 << 63, BARType.MEM64), 0x8000_0000_0000_0004),
    ],
    ids=str,
)
def test_all_ones_show_the_size_of_a_64_bit_bar(bar: ModelBAR, sized: int) -> None:
    config = with_bars({2: bar})
    for half in (0x18, 0x1C):
        config.write(half, ALL_ONES)
    assert read(config, 0x18, 8) == sized


@pytest.mark.parametrize("number", range(6))
def test_a_bar_is_sized_at_its_own_number(number: int) -> None:
    config = with_bars({number: ModelBAR(4096)})
    config.write(BAR0, ALL_ONES * 6)
    found = [read(config, BAR0 + 4 * bar) for bar in range(6)]
    assert found == [0xFFFF_F000 if bar == number else 0 for bar in range(6)]


def test_a_bar_keeps_an_address() -> None:
    config = with_bars({0: ModelBAR(4096)})
    config.write(BAR0, (0xFEB4_5678).to_bytes(4, "little"))
    assert read(config, BAR0) == 0xFEB4_5000


def test_the_kind_of_a_bar_is_read_only() -> None:
    config = with_bars({0: ModelBAR(MIB, BARType.MEM64, prefetchable=True)})
    config.write(BAR0, bytes(8))
    assert read(config, BAR0, 8) == 0xC


def test_the_halves_of_a_64_bit_bar_are_written_one_by_one() -> None:
    config = with_bars({0: ModelBAR(MIB, BARType.MEM64)})
    config.write(BAR0 + 4, b"\x01\0\0\0")
    config.write(BAR0, b"\0\0\x10\0")
    assert read(config, BAR0, 8) == 0x1_0010_0004


def test_a_byte_of_a_bar_can_be_written() -> None:
    config = with_bars({0: ModelBAR(MIB)})
    config.write(BAR0 + 3, b"\xfe")
    assert read(config, BAR0) == 0xFE00_0000


def test_there_is_no_expansion_rom() -> None:
    config = with_bars({0: ModelBAR(MIB)})
    config.write(pci.ROM_ADDRESS.offset, ALL_ONES)
    assert config.get(pci.ROM_ADDRESS) == 0


@pytest.mark.parametrize(
    ("length", "sized"), [(1, 0xFFFF_F801), (2049, 0xFFFF_F001), (16 * MIB, 0xFF00_0001)]
)
def test_all_ones_show_the_size_of_a_rom(length: int, sized: int) -> None:
    config = declared(rom=bytes(length))
    config.write(pci.ROM_ADDRESS.offset, ALL_ONES)
    assert config.get(pci.ROM_ADDRESS) == sized


def test_a_rom_larger_than_there_may_be_is_refused() -> None:
    with pytest.raises(ValueError, match="expansion ROM"):
        declared(rom=bytes(16 * MIB + 1))


# What a client may write


def test_the_command_register_keeps_the_bits_that_exist() -> None:
    config = declared()
    config.write(pci.COMMAND.offset, b"\xff\xff")
    assert config.command == (
        Command.IO
        | Command.MEMORY
        | Command.MASTER
        | Command.PARITY
        | Command.SERR
        | Command.INTX_DISABLE
    )


@pytest.mark.parametrize(
    "register", [pci.CACHE_LINE_SIZE, pci.LATENCY_TIMER, pci.INTERRUPT_LINE], ids=str
)
def test_registers_for_the_system_keep_what_is_written(register: pci.Register) -> None:
    config = declared()
    config.write(register.offset, b"\xa5")
    assert config.get(register) == 0xA5


def test_everything_else_in_the_header_is_read_only() -> None:
    config = declared(interrupt_pin=1)
    before = bytearray(config.read(0, 64))
    config.write(0, b"\xff" * 64)
    after = bytearray(config.read(0, 64))
    for writable in (slice(4, 6), slice(0xC, 0xE), slice(0x3C, 0x3D)):
        before[writable] = after[writable] = bytes(len(after[writable]))
    assert after == before


def test_the_device_may_change_what_the_client_may_not() -> None:
    config = declared()
    config.change(pci.STATUS, pci.Status.INTERRUPT, True)
    seen = [config.get(pci.STATUS)]
    config.change(pci.STATUS, pci.Status.INTERRUPT, False)
    seen.append(config.get(pci.STATUS))
    assert seen == [pci.Status.INTERRUPT, 0]


def test_a_reset_restores_every_byte() -> None:
    config = declared(
        bars={0: ModelBAR(MIB)}, express=True, msi=ModelMSI(4), capabilities=(VENDOR,)
    )
    before = config.read(0, config.size)
    config.write(0, b"\xff" * config.size)
    config.reset()
    assert config.read(0, config.size) == before


# Capabilities


def chain(config: ModelConfigSpace) -> list[tuple[int, int]]:
    """The conventional list as a client walks it: id and offset."""
    found: list[tuple[int, int]] = []
    at = config.get(pci.CAPABILITY_LIST)
    while at and len(found) < 64:
        found.append((read(config, at, 1), at))
        at = read(config, at + 1, 1)
    return found


def extended_chain(config: ModelConfigSpace) -> list[tuple[int, int, int]]:
    """The extended list as a client walks it: id, version and offset."""
    found: list[tuple[int, int, int]] = []
    at = 0x100
    while at and len(found) < 64 and (head := read(config, at)):
        found.append((head & 0xFFFF, head >> 16 & 0xF, at))
        at = head >> 20
    return found


def test_no_capabilities_are_no_list() -> None:
    config = declared()
    assert (config.get(pci.STATUS), chain(config)) == (0, [])


def test_the_status_bit_tells_of_a_list() -> None:
    assert declared(msi=ModelMSI()).get(pci.STATUS) == pci.Status.CAP_LIST


def test_capabilities_stand_in_their_order() -> None:
    config = declared(
        capabilities=(ModelCapability(CapabilityID.PM, bytes(6)), VENDOR),
        express=True,
        msi=ModelMSI(),
        msix=ModelMSIX(4, (0, 0), (0, 0x800)),
        bars={0: ModelBAR(4096)},
    )
    ids = [CapabilityID(found) for found, _ in chain(config)]
    assert ids == [
        CapabilityID.PM,
        CapabilityID.VNDR,
        CapabilityID.EXP,
        CapabilityID.MSI,
        CapabilityID.MSIX,
    ]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5])
def test_capabilities_are_aligned_and_do_not_touch(size: int) -> None:
    capability = ModelCapability(CapabilityID.VNDR, b"x" * size)
    config = declared(capabilities=(capability, capability))
    assert [at for _, at in chain(config)] == [0x40, 0x40 + -(-(2 + size) // 4) * 4]


def test_the_body_of_a_capability_is_what_was_declared() -> None:
    config = declared(capabilities=(VENDOR,))
    assert config.read(0x40, 6) == b"\x09\x00\x03abc"


def test_offset_of_finds_a_capability() -> None:
    config = declared(capabilities=(VENDOR,), msi=ModelMSI())
    assert (config.offset_of(CapabilityID.MSI), config.offset_of(CapabilityID.PM)) == (0x48, None)


def test_a_capability_keeps_its_writable_bits_only() -> None:
    capability = ModelCapability(CapabilityID.VNDR, b"\x00\x55\x55", b"\x00\x0f")
    config = declared(capabilities=(capability,))
    config.write(0x40, b"\xff" * 5)
    assert config.read(0x40, 5) == b"\x09\x00\x00\x5f\x55"


def test_an_extended_list_stands_in_its_order() -> None:
    config = declared(
        express=True,
        extended_capabilities=(
            ModelCapability(ExtendedCapabilityID.ERR, bytes(0x44), version=2),
            ModelCapability(ExtendedCapabilityID.DSN, bytes(8)),
        ),
    )
    assert extended_chain(config) == [(1, 2, 0x100), (3, 1, 0x148)]


def test_no_extended_capabilities_are_an_empty_header() -> None:
    assert read(declared(express=True), 0x100) == 0


def test_the_whole_of_the_extended_space_can_be_used() -> None:
    body = bytes(4096 - 256 - 4)
    config = declared(
        express=True, extended_capabilities=(ModelCapability(ExtendedCapabilityID.VNDR, body),)
    )
    assert extended_chain(config) == [(0xB, 1, 0x100)]


@pytest.mark.parametrize(("vectors", "order"), [(1, 0), (2, 1), (8, 3), (32, 5)])
def test_msi_says_how_many_messages_it_can_send(vectors: int, order: int) -> None:
    config = declared(msi=ModelMSI(vectors))
    assert config.get(pci.MSI_CONTROL, 0x40) == pci.MSI_CONTROL_64BIT | order << 1


def test_msi_keeps_enable_address_and_data() -> None:
    config = declared(msi=ModelMSI())
    config.write(0x40, b"\xff" * 14)
    assert config.read(0x42, 12) == b"\xf1\x00\xfc" + b"\xff" * 9


def test_msix_says_where_its_table_is() -> None:
    config = declared(bars={1: ModelBAR(65536)}, msix=ModelMSIX(2048, (1, 0x1000), (1, 0xC000)))
    assert (read(config, 0x42, 2), read(config, 0x44), read(config, 0x48)) == (
        2047,
        0x1001,
        0xC001,
    )


def test_msix_keeps_enable_and_function_mask() -> None:
    config = declared(bars={0: ModelBAR(4096)}, msix=ModelMSIX(4, (0, 0), (0, 0x800)))
    config.write(0x40, b"\xff" * 12)
    assert config.read(0x42, 10) == b"\x03\xc0" + bytes(4) + b"\x00\x08\x00\x00"


@pytest.mark.parametrize("resettable", [False, True])
def test_express_offers_a_function_reset_where_the_model_can_be_reset(resettable: bool) -> None:
    config = declared(express=True, resettable=resettable)
    offered = config.get(pci.EXP_DEVICE_CAPABILITIES, 0x40) & pci.EXP_DEVICE_CAPABILITIES_FLR
    assert bool(offered) == resettable


# Declarations that contradict each other or do not fit


def test_all_of_a_bar_smaller_than_a_page_may_be_mapped() -> None:
    with_bars({0: ModelBAR(256, backed=True, mappable=((0, 256),))})


IMPOSSIBLE_BARS: dict[str, Mapping[int, ModelBAR]] = {
    "no such number": {6: ModelBAR(4096)},
    "negative number": {-1: ModelBAR(4096)},
    "64 bits in the last": {5: ModelBAR(4096, BARType.MEM64)},
    "upper half is taken": {0: ModelBAR(4096, BARType.MEM64), 1: ModelBAR(4096)},
    "no size": {0: ModelBAR(0)},
    "negative size": {0: ModelBAR(-4096)},
    "no power of two": {0: ModelBAR(3000)},
    "too small for memory": {0: ModelBAR(8)},
    "too small for ports": {0: ModelBAR(2, BARType.IO)},
    "too large for 32 bits": {0: ModelBAR(1 << 32)},
    "too large for 64 bits": {0: ModelBAR(1 << 64, BARType.MEM64)},
    "ports that can be mapped": {0: ModelBAR(4096, BARType.IO, backed=True, mappable=((0, 4096),))},
    "registers that can be mapped": {0: ModelBAR(4096, mappable=((0, 4096),))},
    "area beyond the end": {0: ModelBAR(MIB, backed=True, mappable=((0, 2 * MIB),))},
    "area behind the end": {0: ModelBAR(MIB, backed=True, mappable=((MIB, 4096),))},
    "area not at a page": {0: ModelBAR(MIB, backed=True, mappable=((16, 4096),))},
    "area of no whole pages": {0: ModelBAR(MIB, backed=True, mappable=((0, 100),))},
    "part of a BAR below a page": {0: ModelBAR(256, backed=True, mappable=((0, 128),))},
    "area of nothing": {0: ModelBAR(MIB, backed=True, mappable=((0, 0),))},
    "areas that overlap": {0: ModelBAR(MIB, backed=True, mappable=((0, 8192), (4096, 8192)))},
}


@pytest.mark.parametrize("bars", IMPOSSIBLE_BARS.values(), ids=IMPOSSIBLE_BARS.keys())
def test_bars_that_cannot_be_are_refused(bars: Mapping[int, ModelBAR]) -> None:
    with pytest.raises(ValueError, match="BAR"):
        with_bars(bars)


MEMORY = {0: ModelBAR(65536)}
IMPOSSIBLE_INTERRUPTS: dict[str, dict[str, Any]] = {
    "no MSI vectors": {"msi": ModelMSI(0)},
    "MSI vectors that are no power of two": {"msi": ModelMSI(3)},
    "too many MSI vectors": {"msi": ModelMSI(64)},
    "MSI twice": {"msi": ModelMSI(), "capabilities": (ModelCapability(5, bytes(12)),)},
    "no MSI-X vectors": {"bars": MEMORY, "msix": ModelMSIX(0, (0, 0), (0, 0x800))},
    "too many MSI-X vectors": {"bars": MEMORY, "msix": ModelMSIX(2049, (0, 0), (0, 0x9000))},
    "MSI-X table in no BAR": {"bars": MEMORY, "msix": ModelMSIX(4, (1, 0), (0, 0))},
    "MSI-X PBA in no BAR": {"bars": MEMORY, "msix": ModelMSIX(4, (0, 0), (3, 0))},
    "MSI-X table behind the end": {"bars": MEMORY, "msix": ModelMSIX(4, (0, 65536), (0, 0))},
    "MSI-X table across the end": {"bars": MEMORY, "msix": ModelMSIX(4, (0, 65504), (0, 0))},
    "MSI-X PBA behind the end": {"bars": MEMORY, "msix": ModelMSIX(4, (0, 0), (0, 65536))},
    "MSI-X table not aligned": {"bars": MEMORY, "msix": ModelMSIX(4, (0, 4), (0, 0x800))},
    "MSI-X PBA not aligned": {"bars": MEMORY, "msix": ModelMSIX(4, (0, 0), (0, 0x801))},
    "MSI-X table over its PBA": {"bars": MEMORY, "msix": ModelMSIX(4, (0, 0), (0, 0x38))},
    "MSI-X table in ports": {
        "bars": {0: ModelBAR(256, BARType.IO)},
        "msix": ModelMSIX(4, (0, 0), (0, 0x80)),
    },
    "MSI-X table that clients would map": {
        "bars": {0: ModelBAR(8192, backed=True, mappable=((0, 4096),))},
        "msix": ModelMSIX(4, (0, 0), (0, 0x1000)),
    },
    "pin that does not exist": {"interrupt_pin": 5},
    "negative pin": {"interrupt_pin": -1},
    "large pin": {"interrupt_pin": 256},
}
IMPOSSIBLE_CAPABILITIES: dict[str, dict[str, Any]] = {
    "unknown": {"capabilities": (ModelCapability(0x7F, b"\x03"),)},
    "too many": {"capabilities": (ModelCapability(9, bytes(40)),) * 6},
    "more writable than there is": {"capabilities": (ModelCapability(9, b"\x03", b"\xff\xff"),)},
    "extended without express": {"extended_capabilities": (ModelCapability(3, bytes(8)),)},
    "too long an extended one": {
        "express": True,
        "extended_capabilities": (ModelCapability(11, bytes(4096 - 256 - 3)),),
    },
    "a version that does not fit": {
        "express": True,
        "extended_capabilities": (ModelCapability(3, bytes(8), version=16),),
    },
}


@pytest.mark.parametrize(
    "declarations", IMPOSSIBLE_INTERRUPTS.values(), ids=IMPOSSIBLE_INTERRUPTS.keys()
)
def test_interrupts_that_cannot_be_are_refused(declarations: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"MSI|pin"):
        declared(**declarations)


@pytest.mark.parametrize(
    "declarations", IMPOSSIBLE_CAPABILITIES.values(), ids=IMPOSSIBLE_CAPABILITIES.keys()
)
def test_capabilities_that_cannot_be_are_refused(declarations: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(?i)capability"):
        declared(**declarations)


@pytest.mark.parametrize(
    "declarations",
    [
        {"migration_version": -1},
        {"migration_version": 1 << 32},
        {"migration_version": 1, "resettable": False},
    ],
)
def test_migration_that_cannot_be_is_refused(declarations: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="migrat"):
        declared(**declarations)


KICK = ModelIOEventFD
REGISTERS: dict[str, Any] = {"bars": {0: ModelBAR(4096), 2: ModelBAR(4096, backed=True)}}
IMPOSSIBLE_IO_EVENTFDS: dict[str, dict[str, Any]] = {
    "in no BAR": {"io_eventfds": (KICK(1, 0),)},
    "in memory without callbacks": {"io_eventfds": (KICK(2, 0),)},
    "behind the end": {"io_eventfds": (KICK(0, 4096),)},
    "before the start": {"io_eventfds": (KICK(0, -4),)},
    "not aligned": {"io_eventfds": (KICK(0, 6, 4),)},
    "of any width, not aligned": {"io_eventfds": (KICK(0, 2),)},
    "of 3 bytes": {"io_eventfds": (KICK(0, 0, 3),)},
    "of 16 bytes": {"io_eventfds": (KICK(0, 0, 16),)},
    "a value of any width": {"io_eventfds": (KICK(0, 0, 0, 1),)},
    "a value that does not fit": {"io_eventfds": (KICK(0, 0, 2, 0x10000),)},
    "a negative value": {"io_eventfds": (KICK(0, 0, 2, -1),)},
    "twice": {"io_eventfds": (KICK(0, 8, 4, 1), KICK(0, 8, 4, 1))},
    "any value and one": {"io_eventfds": (KICK(0, 8, 4), KICK(0, 8, 4, 1))},
    "any width and one": {"io_eventfds": (KICK(0, 8), KICK(0, 8, 4, 1))},
    "in the MSI-X table": {
        "io_eventfds": (KICK(0, 8),),
        "msix": ModelMSIX(4, (0, 0), (0, 0x800)),
    },
}


@pytest.mark.parametrize(
    "declarations", IMPOSSIBLE_IO_EVENTFDS.values(), ids=IMPOSSIBLE_IO_EVENTFDS.keys()
)
def test_ioeventfds_that_cannot_be_are_refused(declarations: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ioeventfd"):
        declared(**REGISTERS, **declarations)


def test_ioeventfds_may_share_a_register_where_value_or_width_differ() -> None:
    declared(**REGISTERS, io_eventfds=(KICK(0, 8, 4, 1), KICK(0, 8, 4, 2), KICK(0, 8, 8)))


@pytest.mark.parametrize(
    "change",
    [
        {"vendor_id": 0x1_0000},
        {"device_id": -1},
        {"class_code": 1 << 24},
        {"revision_id": 0x100},
        {"subsystem_vendor_id": 0x1_0000},
        {"subsystem_id": 0x1_0000},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_identity_that_does_not_fit_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        declared(identity=replace(IDENTITY, **change))


def test_a_function_of_an_impossible_model_leaves_nothing_open() -> None:
    class Impossible(Model):
        """Memory that can be had, and a BAR that cannot."""

        bars: ClassVar[Mapping[int, ModelBAR]] = {
            0: ModelBAR(MIB, backed=True),
            1: ModelBAR(3000),
        }
        capabilities: ClassVar[Sequence[ModelCapability]] = ()

    with pytest.raises(ValueError, match="BAR 1"):
        PCIFunction(Impossible())


# Enable bits follow what SET_IRQS has set up


class Interrupting(Model):
    """A model with both kinds of message-signalled interrupts."""

    bars: ClassVar[Mapping[int, ModelBAR]] = {0: ModelBAR(4096)}
    msi = ModelMSI(4)
    msix = ModelMSIX(4, (0, 0), (0, 0x800))


BITS = {PCIIRQ.MSI: (0x42, 0x0001), PCIIRQ.MSIX: (0x52, 0x8000)}


@pytest.fixture
def function() -> Iterator[PCIFunction]:
    """The model, hosted."""
    hosted = PCIFunction(Interrupting())
    yield hosted
    hosted.detach_client()
    hosted.close()


def enable(function: PCIFunction, irq: PCIIRQ) -> None:
    """What a client does to enable one vector."""
    flags = IRQSetFlags.DATA_EVENTFD | IRQSetFlags.TRIGGER
    function.set_irqs(SetIRQs(flags, irq, 0, 1, b""), [os.eventfd(0)], 1)


def is_enabled(function: PCIFunction, irq: PCIIRQ) -> bool:
    """The enable bit in configuration space."""
    offset, bit = BITS[irq]
    control = function.regions.read(PCIRegion.CONFIG, offset, 2, DeferredAnswers())
    return bool(int.from_bytes(control, "little") & bit)


@pytest.mark.parametrize("irq", BITS)
def test_an_enable_bit_is_set_when_a_vector_is_enabled(function: PCIFunction, irq: PCIIRQ) -> None:
    before = is_enabled(function, irq)
    enable(function, irq)
    assert (before, is_enabled(function, irq)) == (False, True)


@pytest.mark.parametrize("irq", BITS)
def test_an_enable_bit_is_clear_when_the_index_is_disabled(
    function: PCIFunction, irq: PCIIRQ
) -> None:
    enable(function, irq)
    flags = IRQSetFlags.DATA_NONE | IRQSetFlags.TRIGGER
    function.set_irqs(SetIRQs(flags, irq, 0, 0, b""), [], 1)
    assert not is_enabled(function, irq)


@pytest.mark.parametrize("irq", BITS)
def test_an_enable_bit_is_clear_when_the_client_is_gone(function: PCIFunction, irq: PCIIRQ) -> None:
    enable(function, irq)
    function.detach_client()
    assert not is_enabled(function, irq)


@pytest.mark.parametrize("irq", BITS)
def test_an_enable_bit_stays_over_a_reset(function: PCIFunction, irq: PCIIRQ) -> None:
    enable(function, irq)
    function.reset(DeferredAnswers())
    assert is_enabled(function, irq)
