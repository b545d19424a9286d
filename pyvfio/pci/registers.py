# SPDX-License-Identifier: BSD-3-Clause
"""Configuration space by name: the names that ``setpci`` knows, and what registers say to people.

The names, and where they stand, are those that ``setpci --dumpregs`` lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pyvfio.pci import names
from pyvfio.pci.bars import BAR
from pyvfio.pci.capabilities import Capability
from pyvfio.pci.config import ConfigSpace
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi import pci
from pyvfio.uapi.pci import BARType, CapabilityID, Command, ExpressType, Register, Status

WIDTHS = {"b": 1, "w": 2, "l": 4}
"""Letters for bytes of an access to configuration space."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where registers are counted from: the start of configuration space, or a capability.

    :ivar name: upper-case name; empty for a bare address.
    :ivar offset: bytes from the start of configuration space, or of the capability.
    :ivar width: bytes of the register; 0 where the name does not say.
    :ivar headers: the header types that have it; empty for all.
    :ivar capability: id of the capability, if it is in one.
    :ivar extended: whether that is an extended capability.
    """

    name: str = ""
    offset: int = 0
    width: int = 0
    headers: tuple[int, ...] = ()
    capability: int | None = None
    extended: bool = False

    def __str__(self) -> str:
        return self.name or f"{self.offset:x}"


# Offset, width, header types that have it (- for all), name.
_HEADER = """
    00 W -  VENDOR_ID             02 W -  DEVICE_ID          04 W -  COMMAND
    06 W -  STATUS                08 B -  REVISION           09 B -  CLASS_PROG
    0a W -  CLASS_DEVICE          0c B -  CACHE_LINE_SIZE    0d B -  LATENCY_TIMER
    0e B -  HEADER_TYPE           0f B -  BIST               10 L 01 BASE_ADDRESS_0
    14 L 01 BASE_ADDRESS_1        18 L 0  BASE_ADDRESS_2     1c L 0  BASE_ADDRESS_3
    20 L 0  BASE_ADDRESS_4        24 L 0  BASE_ADDRESS_5     28 L 0  CARDBUS_CIS
    2c W 0  SUBSYSTEM_VENDOR_ID   2e W 0  SUBSYSTEM_ID       30 L 0  ROM_ADDRESS
    34 B 01 CAPABILITIES          3c B 01 INTERRUPT_LINE     3d B 01 INTERRUPT_PIN
    3e B 0  MIN_GNT               3f B 0  MAX_LAT

    18 B 1  PRIMARY_BUS           19 B 1  SECONDARY_BUS      1a B 1  SUBORDINATE_BUS
    1b B 1  SEC_LATENCY_TIMER     1c B 1  IO_BASE            1d B 1  IO_LIMIT
    1e W 1  SEC_STATUS            20 W 1  MEMORY_BASE        22 W 1  MEMORY_LIMIT
    24 W 1  PREF_MEMORY_BASE      26 W 1  PREF_MEMORY_LIMIT  28 L 1  PREF_BASE_UPPER32
    2c L 1  PREF_LIMIT_UPPER32    30 W 1  IO_BASE_UPPER16    32 W 1  IO_LIMIT_UPPER16
    38 L 1  BRIDGE_ROM_ADDRESS    3e W 1  BRIDGE_CONTROL

    10 L 2  CB_CARDBUS_BASE       14 W 2  CB_CAPABILITIES    16 W 2  CB_SEC_STATUS
    18 B 2  CB_BUS_NUMBER         19 B 2  CB_CARDBUS_NUMBER  1a B 2  CB_SUBORDINATE_BUS
    1b B 2  CB_CARDBUS_LATENCY    1c L 2  CB_MEMORY_BASE_0   20 L 2  CB_MEMORY_LIMIT_0
    24 L 2  CB_MEMORY_BASE_1      28 L 2  CB_MEMORY_LIMIT_1  2c W 2  CB_IO_BASE_0
    2e W 2  CB_IO_BASE_0_HI       30 W 2  CB_IO_LIMIT_0      32 W 2  CB_IO_LIMIT_0_HI
    34 W 2  CB_IO_BASE_1          36 W 2  CB_IO_BASE_1_HI    38 W 2  CB_IO_LIMIT_1
    3a W 2  CB_IO_LIMIT_1_HI      40 W 2  CB_SUBSYSTEM_VENDOR_ID
    42 W 2  CB_SUBSYSTEM_ID       44 L 2  CB_LEGACY_MODE_BASE
"""

# Id, name without CAP_ or ECAP_.
_CAPABILITIES = """
    01 PM     02 AGP    03 VPD    04 SLOTID   05 MSI    06 CHSWP   07 PCIX   08 HT    09 VNDR
    0a DBG    0b CCRC   0c HOTPLUG 0d SSVID   0e AGP3   0f SECURE  10 EXP    11 MSIX  12 SATA
    13 AF     14 EA
"""
_EXTENDED = """
    01 AER    02 VC     03 DSN    04 PB       05 RCLINK 06 RCILINK 07 RCEC   08 MFVC  09 VC2
    0a RBCB   0b VNDR   0d ACS    0e ARI      0f ATS    10 SRIOV   11 MRIOV  12 MCAST 13 PRI
    15 REBAR  16 DPA    17 TPH    18 LTR      19 SECPCI 1a PMUX    1b PASID  1c LNR   1d DPC
    1e L1PM   1f PTM    20 M_PCIE 21 FRS      22 RTR    23 DVSEC   24 VF_REBAR        25 DLNK
    26 16GT   27 LMR    28 HIER_ID            29 NPEM   2a 32GT    30 IDE    31 64GT
"""


def _rows(text: str, columns: int) -> Iterator[tuple[str, ...]]:
    words = iter(text.split())
    return zip(*[words] * columns, strict=True)


def _places() -> Iterator[Place]:
    for offset, width, types, name in _rows(_HEADER, 4):
        headers = tuple(map(int, types.strip("-")))
        yield Place(name, int(offset, 16), WIDTHS[width.lower()], headers)
    for number, name in _rows(_CAPABILITIES, 2):
        yield Place(f"CAP_{name}", capability=int(number, 16))
    for number, name in _rows(_EXTENDED, 2):
        yield Place(f"ECAP_{name}", capability=int(number, 16), extended=True)


PLACES: Mapping[str, Place] = {place.name: place for place in _places()}
"""Everything that has a name, in the order of ``setpci --dumpregs``."""


# The decoded view

Shown: TypeAlias = bool | int | str

PM_CAPABILITIES, PM_CONTROL = pci.PM_CAPABILITIES, pci.PM_CONTROL

_PORT_TYPES: Mapping[int, str] = {
    ExpressType.ENDPOINT: "endpoint",
    ExpressType.LEG_END: "legacy endpoint",
    ExpressType.ROOT_PORT: "root port",
    ExpressType.UPSTREAM: "upstream port",
    ExpressType.DOWNSTREAM: "downstream port",
    ExpressType.PCI_BRIDGE: "PCIe to PCI bridge",
    ExpressType.PCIE_BRIDGE: "PCI to PCIe bridge",
    ExpressType.RC_END: "root complex integrated endpoint",
    ExpressType.RC_EC: "root complex event collector",
}
_WITHOUT_LINK = (ExpressType.RC_END, ExpressType.RC_EC)
_SPEEDS = {1: "2.5GT/s", 2: "5GT/s", 3: "8GT/s", 4: "16GT/s", 5: "32GT/s", 6: "64GT/s"}
_ASPM = {0: "none", 1: "L0s", 2: "L1", 3: "L0s L1"}
_WAKES = ("D0", "D1", "D2", "D3hot", "D3cold")


@dataclass(frozen=True, slots=True)
class Field:
    """Some bits of a register of a capability.

    :ivar mask: its bits.
    :ivar show: from their number to what is told; a flag by default.
    """

    name: str
    register: Register
    mask: int = 1
    show: Callable[[int], Shown] = bool

    def read_from(self, word: int) -> Shown:
        """What the register's contents say."""
        return self.show((word & self.mask) // (self.mask & -self.mask))


def _named(known: Mapping[int, str]) -> Callable[[int], Shown]:
    return lambda number: known.get(number, f"unknown {number:#x}")


def _payload(order: int) -> int:
    return 128 << order


def _wakes(bits: int) -> str:
    return " ".join(state for at, state in enumerate(_WAKES) if bits >> at & 1) or "none"


def _place_in_bar(value: int) -> str:
    return f"bar{value & pci.MSIX_BIR}+{value & ~pci.MSIX_BIR:#x}"


_ALL = 0xFFFF_FFFF

_PM = (
    Field("version", PM_CAPABILITIES, 0x0007, int),
    Field("d1", PM_CAPABILITIES, 0x0200),
    Field("d2", PM_CAPABILITIES, 0x0400),
    Field("wakes_from", PM_CAPABILITIES, 0xF800, _wakes),
    Field("state", PM_CONTROL, pci.PM_CONTROL_STATE, "D{}".format),
    Field("no_soft_reset", PM_CONTROL, pci.PM_CONTROL_NO_SOFT_RESET),
    Field("pme_enable", PM_CONTROL, 0x0100),
    Field("pme_status", PM_CONTROL, 0x8000),
)
_MSIX = (
    Field("enable", pci.MSIX_CONTROL, pci.MSIX_CONTROL_ENABLE),
    Field("masked", pci.MSIX_CONTROL, pci.MSIX_CONTROL_MASK_ALL),
    Field("vectors", pci.MSIX_CONTROL, pci.MSIX_CONTROL_SIZE, lambda last: last + 1),
    Field("table", pci.MSIX_TABLE, _ALL, _place_in_bar),
    Field("pending", pci.MSIX_PBA, _ALL, _place_in_bar),
)
_MSI = (
    Field("enable", pci.MSI_CONTROL, pci.MSI_CONTROL_ENABLE),
    Field("vectors", pci.MSI_CONTROL, pci.MSI_CONTROL_MULTIPLE_CAPABLE, lambda order: 1 << order),
    Field(
        "vectors_in_use", pci.MSI_CONTROL, pci.MSI_CONTROL_MULTIPLE_ENABLE, lambda order: 1 << order
    ),
    Field("64bit", pci.MSI_CONTROL, pci.MSI_CONTROL_64BIT),
    Field("maskable", pci.MSI_CONTROL, pci.MSI_CONTROL_MASKING),
    Field("address", pci.MSI_ADDRESS_LO, _ALL, hex),
)
_EXP = (
    Field("version", pci.EXP_FLAGS, pci.EXP_FLAGS_VERSION, int),
    Field("type", pci.EXP_FLAGS, pci.EXP_FLAGS_TYPE, _named(_PORT_TYPES)),
    Field("max_payload_supported", pci.EXP_DEVICE_CAPABILITIES, 0x0000_0007, _payload),
    Field("extended_tags", pci.EXP_DEVICE_CAPABILITIES, 0x0000_0020),
    Field("flr", pci.EXP_DEVICE_CAPABILITIES, pci.EXP_DEVICE_CAPABILITIES_FLR),
    Field("report_correctable", pci.EXP_DEVICE_CONTROL, 0x0001),
    Field("report_nonfatal", pci.EXP_DEVICE_CONTROL, 0x0002),
    Field("report_fatal", pci.EXP_DEVICE_CONTROL, 0x0004),
    Field("report_unsupported", pci.EXP_DEVICE_CONTROL, 0x0008),
    Field("relaxed_ordering", pci.EXP_DEVICE_CONTROL, 0x0010),
    Field("no_snoop", pci.EXP_DEVICE_CONTROL, 0x0800),
    Field("max_payload", pci.EXP_DEVICE_CONTROL, 0x00E0, _payload),
    Field("max_read_request", pci.EXP_DEVICE_CONTROL, 0x7000, _payload),
    Field("correctable_error", pci.EXP_DEVICE_STATUS, 0x0001),
    Field("nonfatal_error", pci.EXP_DEVICE_STATUS, 0x0002),
    Field("fatal_error", pci.EXP_DEVICE_STATUS, 0x0004),
    Field("unsupported_request", pci.EXP_DEVICE_STATUS, 0x0008),
    Field("transactions_pending", pci.EXP_DEVICE_STATUS, 0x0020),
)
_EXP_LINK = (
    Field("max_speed", pci.EXP_LINK_CAPABILITIES, 0x0000_000F, _named(_SPEEDS)),
    Field("max_width", pci.EXP_LINK_CAPABILITIES, 0x0000_03F0, "x{}".format),
    Field("aspm_supported", pci.EXP_LINK_CAPABILITIES, 0x0000_0C00, _named(_ASPM)),
    Field("aspm", pci.EXP_LINK_CONTROL, 0x0003, _named(_ASPM)),
    Field("speed", pci.EXP_LINK_STATUS, 0x000F, _named(_SPEEDS)),
    Field("width", pci.EXP_LINK_STATUS, 0x03F0, "x{}".format),
)

_FIXED: Mapping[int, Sequence[Field]] = {CapabilityID.PM: _PM, CapabilityID.MSIX: _MSIX}


def _layout(config: ConfigSpace, capability: Capability) -> Sequence[Field]:
    """The fields of a capability; none of one that is not decoded."""
    if capability.extended:
        return ()
    if capability.id == CapabilityID.MSI:
        return (*_MSI, *_msi_rest(config.get(pci.MSI_CONTROL, capability.offset)))
    if capability.id == CapabilityID.EXP:
        kind = (config.get(pci.EXP_FLAGS, capability.offset) & pci.EXP_FLAGS_TYPE) >> 4
        return _EXP if kind in _WITHOUT_LINK else (*_EXP, *_EXP_LINK)
    return _FIXED.get(capability.id, ())


def _msi_rest(control: int) -> Iterator[Field]:
    """What stands behind the low address: where, depends on what the function can."""
    at = 0x08
    if control & pci.MSI_CONTROL_64BIT:
        yield Field("address_high", Register(at, 4), _ALL, hex)
        at += 4
    yield Field("data", Register(at, 2), 0xFFFF, hex)
    if control & pci.MSI_CONTROL_MASKING:
        yield Field("mask", Register(at + 4, 4), _ALL, hex)
        yield Field("pending", Register(at + 8, 4), _ALL, hex)


def decode_capability(config: ConfigSpace, capability: Capability) -> dict[str, Shown]:
    """The fields of PM, MSI, MSI-X and PCI Express by name; nothing of the others.

    What a broken device has beyond the end of configuration space is left out.
    """
    words: dict[Register, int] = {}
    fields: dict[str, Shown] = {}
    if capability.offset + 4 > config.size:
        return fields
    for field in _layout(config, capability):
        register = field.register
        if capability.offset + register.offset + register.width > config.size:
            continue
        if register not in words:
            words[register] = config.get(register, capability.offset)
        fields[field.name] = field.read_from(words[register])
    return fields


def decode_ids(config: ConfigSpace) -> dict[str, Any]:
    """The ids of the header with their names, as plain data."""
    vendor, device = config.vendor_id, config.device_id
    return {
        "vendor": vendor,
        "vendor_name": names.vendor_name(vendor),
        "device": device,
        "device_name": names.device_name(vendor, device),
        "subsystem_vendor": config.subsystem_vendor_id,
        "subsystem": config.subsystem_id,
        "class": config.class_code,
        "class_name": names.class_name(config.class_code),
        "revision": config.revision_id,
    }


def decode_header(config: ConfigSpace) -> dict[str, Any]:
    """The header as plain data: ids with their names, command and status bits by name."""
    return {
        **decode_ids(config),
        "command": _flags(config.get(pci.COMMAND), Command),
        "status": _flags(config.get(pci.STATUS), Status),
        "header_type": config.header_type & 0x7F,
        "multi_function": bool(config.header_type & 0x80),
        "cache_line_bytes": 4 * config.get(pci.CACHE_LINE_SIZE),
        "latency_timer": config.get(pci.LATENCY_TIMER),
        "interrupt_pin": config.interrupt_pin,
        "interrupt_line": config.interrupt_line,
    }


def _flags(value: int, kind: type[Command] | type[Status]) -> dict[str, Any]:
    names_set = [str(flag.name).lower() for flag in kind if value & flag]
    return {"value": value, "bits": names_set}


def _bar_address(config: ConfigSpace, bar: BAR) -> int:
    register = pci.BASE_ADDRESS_0.offset + 4 * bar.info.index
    low = config.read32(register)
    if bar.type is BARType.IO:
        return low & ~pci.BAR_IO_MASK
    high = config.read32(register + 4) if bar.type is BARType.MEM64 else 0
    return high << 32 | low & ~pci.BAR_MEM_MASK


def decode(dev: PCIDevice) -> dict[str, Any]:
    """All that is decoded of a device's configuration space, as plain data."""
    config = dev.config
    return {
        "uri": dev.uri,
        **decode_header(config),
        "bars": [
            {
                "number": number,
                "address": _bar_address(config, bar),
                "size": bar.size,
                "type": bar.type.value,
                "prefetchable": bar.prefetchable,
            }
            for number, bar in dev.bars.items()
        ],
        "capabilities": [
            {
                "offset": capability.offset,
                "id": capability.id,
                "name": capability.name,
                "version": capability.version,
                "extended": capability.extended,
                "fields": decode_capability(config, capability),
            }
            for capability in config.capabilities()
        ],
    }
