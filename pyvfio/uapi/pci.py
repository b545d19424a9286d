# SPDX-License-Identifier: BSD-3-Clause
"""PCI configuration space: register offsets, bits, capability ids and their names.

Offsets are those of the PCI Local Bus and PCI Express Base specifications, as in
``linux/pci_regs.h``, with which ``tests/unit/test_uapi.py`` compares them.
"""

from __future__ import annotations

from enum import Enum, IntEnum, IntFlag
from typing import NamedTuple

CONFIG_SIZE = 256
"""Bytes of conventional configuration space."""
EXTENDED_CONFIG_SIZE = 4096
"""Bytes of PCI Express configuration space."""
HEADER_SIZE = 64
"""Bytes of the standard header; capabilities begin behind it."""
NUM_BARS = 6


class Register(NamedTuple):
    """A register of the configuration header: byte offset and width in bytes."""

    offset: int
    width: int


VENDOR_ID = Register(0x00, 2)
DEVICE_ID = Register(0x02, 2)
COMMAND = Register(0x04, 2)
STATUS = Register(0x06, 2)
REVISION_ID = Register(0x08, 1)
PROG_IF = Register(0x09, 1)
SUBCLASS = Register(0x0A, 1)
BASE_CLASS = Register(0x0B, 1)
CACHE_LINE_SIZE = Register(0x0C, 1)
LATENCY_TIMER = Register(0x0D, 1)
HEADER_TYPE = Register(0x0E, 1)
BIST = Register(0x0F, 1)
BASE_ADDRESS_0 = Register(0x10, 4)
CARDBUS_CIS = Register(0x28, 4)
SUBSYSTEM_VENDOR_ID = Register(0x2C, 2)
SUBSYSTEM_ID = Register(0x2E, 2)
ROM_ADDRESS = Register(0x30, 4)
CAPABILITY_LIST = Register(0x34, 1)
INTERRUPT_LINE = Register(0x3C, 1)
INTERRUPT_PIN = Register(0x3D, 1)
MIN_GNT = Register(0x3E, 1)
MAX_LAT = Register(0x3F, 1)


class Command(IntFlag):
    """``PCI_COMMAND_*``."""

    IO = 0x001
    MEMORY = 0x002
    MASTER = 0x004
    SPECIAL = 0x008
    INVALIDATE = 0x010
    VGA_PALETTE = 0x020
    PARITY = 0x040
    WAIT = 0x080
    SERR = 0x100
    FAST_BACK = 0x200
    INTX_DISABLE = 0x400


class Status(IntFlag):
    """``PCI_STATUS_*``."""

    INTERRUPT = 0x0008
    CAP_LIST = 0x0010
    MHZ_66 = 0x0020
    FAST_BACK = 0x0080
    PARITY = 0x0100
    SIG_TARGET_ABORT = 0x0800
    REC_TARGET_ABORT = 0x1000
    REC_MASTER_ABORT = 0x2000
    SIG_SYSTEM_ERROR = 0x4000
    DETECTED_PARITY = 0x8000


class BARType(Enum):
    """The address space that a BAR claims."""

    MEM32 = "32-bit memory"
    MEM64 = "64-bit memory"
    IO = "I/O ports"


HEADER_TYPE_LAYOUT = 0x7F
HEADER_TYPE_MULTIFUNCTION = 0x80
BAR_IO = 0x1
BAR_MEM_TYPE_MASK = 0x6
BAR_MEM_TYPE_64 = 0x4
BAR_PREFETCH = 0x8
BAR_IO_MASK = 0x3
BAR_MEM_MASK = 0xF
ROM_ADDRESS_ENABLE = 0x1
ROM_ADDRESS_MASK = 0xFFFF_F800

ROM_ADDRESS_ENABLE = 0x1
ROM_ADDRESS_MASK = 0xFFFF_F800

_LARGEST_ROM = 16 << 20


def rom_size(length: int) -> int:
    """Bytes of memory that an expansion ROM of ``length`` bytes claims: a power of two.

    :raises ValueError: none, or more than the 16 MiB that one may have (PCI Local Bus
        Specification 3.0, 6.2.5.2).
    """
    if not 0 < length <= _LARGEST_ROM:
        raise ValueError(f"an expansion ROM of {length} bytes; 1 to {_LARGEST_ROM} are possible")
    smallest = ROM_ADDRESS_MASK & -ROM_ADDRESS_MASK
    return max(smallest, 1 << (length - 1).bit_length())


class CapabilityID(IntEnum):
    """``PCI_CAP_ID_*``."""

    PM = 0x01
    AGP = 0x02
    VPD = 0x03
    SLOTID = 0x04
    MSI = 0x05
    CHSWP = 0x06
    PCIX = 0x07
    HT = 0x08
    VNDR = 0x09
    DBG = 0x0A
    CCRC = 0x0B
    SHPC = 0x0C
    SSVID = 0x0D
    AGP3 = 0x0E
    SECDEV = 0x0F
    EXP = 0x10
    MSIX = 0x11
    SATA = 0x12
    AF = 0x13
    EA = 0x14


class ExtendedCapabilityID(IntEnum):
    """``PCI_EXT_CAP_ID_*``."""

    ERR = 0x01
    VC = 0x02
    DSN = 0x03
    PWR = 0x04
    RCLD = 0x05
    RCILC = 0x06
    RCEC = 0x07
    MFVC = 0x08
    VC9 = 0x09
    RCRB = 0x0A
    VNDR = 0x0B
    CAC = 0x0C
    ACS = 0x0D
    ARI = 0x0E
    ATS = 0x0F
    SRIOV = 0x10
    MRIOV = 0x11
    MCAST = 0x12
    PRI = 0x13
    AMD_XXX = 0x14
    REBAR = 0x15
    DPA = 0x16
    TPH = 0x17
    LTR = 0x18
    SECPCI = 0x19
    PMUX = 0x1A
    PASID = 0x1B
    DPC = 0x1D
    L1SS = 0x1E
    PTM = 0x1F
    DVSEC = 0x23
    DLF = 0x25
    PL_16GT = 0x26


CAPABILITY_NAMES: dict[int, str] = {
    CapabilityID.PM: "Power Management",
    CapabilityID.AGP: "AGP",
    CapabilityID.VPD: "Vital Product Data",
    CapabilityID.SLOTID: "Slot ID",
    CapabilityID.MSI: "MSI",
    CapabilityID.CHSWP: "CompactPCI hot-swap",
    CapabilityID.PCIX: "PCI-X",
    CapabilityID.HT: "HyperTransport",
    CapabilityID.VNDR: "Vendor Specific",
    CapabilityID.DBG: "Debug port",
    CapabilityID.CCRC: "CompactPCI central resource control",
    CapabilityID.SHPC: "Hot-plug controller",
    CapabilityID.SSVID: "Bridge subsystem ids",
    CapabilityID.AGP3: "AGP3",
    CapabilityID.SECDEV: "Secure device",
    CapabilityID.EXP: "PCI Express",
    CapabilityID.MSIX: "MSI-X",
    CapabilityID.SATA: "SATA",
    CapabilityID.AF: "PCI Advanced Features",
    CapabilityID.EA: "Enhanced Allocation",
}

EXTENDED_CAPABILITY_NAMES: dict[int, str] = {
    ExtendedCapabilityID.ERR: "Advanced Error Reporting",
    ExtendedCapabilityID.VC: "Virtual Channel",
    ExtendedCapabilityID.DSN: "Device Serial Number",
    ExtendedCapabilityID.PWR: "Power Budgeting",
    ExtendedCapabilityID.RCLD: "Root Complex Link Declaration",
    ExtendedCapabilityID.RCILC: "Root Complex Internal Link",
    ExtendedCapabilityID.RCEC: "Root Complex Event Collector",
    ExtendedCapabilityID.MFVC: "Multi-Function Virtual Channel",
    ExtendedCapabilityID.VC9: "Virtual Channel",
    ExtendedCapabilityID.RCRB: "Root Complex Register Block",
    ExtendedCapabilityID.VNDR: "Vendor Specific Information",
    ExtendedCapabilityID.CAC: "Configuration Access Correlation",
    ExtendedCapabilityID.ACS: "Access Control Services",
    ExtendedCapabilityID.ARI: "Alternative Routing-ID",
    ExtendedCapabilityID.ATS: "Address Translation Services",
    ExtendedCapabilityID.SRIOV: "Single Root I/O Virtualization",
    ExtendedCapabilityID.MRIOV: "Multi Root I/O Virtualization",
    ExtendedCapabilityID.MCAST: "Multicast",
    ExtendedCapabilityID.PRI: "Page Request Interface",
    ExtendedCapabilityID.AMD_XXX: "AMD reserved",
    ExtendedCapabilityID.REBAR: "Resizable BAR",
    ExtendedCapabilityID.DPA: "Dynamic Power Allocation",
    ExtendedCapabilityID.TPH: "TPH Requester",
    ExtendedCapabilityID.LTR: "Latency Tolerance Reporting",
    ExtendedCapabilityID.SECPCI: "Secondary PCI Express",
    ExtendedCapabilityID.PMUX: "Protocol Multiplexing",
    ExtendedCapabilityID.PASID: "Process Address Space ID",
    ExtendedCapabilityID.DPC: "Downstream Port Containment",
    ExtendedCapabilityID.L1SS: "L1 PM Substates",
    ExtendedCapabilityID.PTM: "Precision Time Measurement",
    ExtendedCapabilityID.DVSEC: "Designated Vendor-Specific",
    ExtendedCapabilityID.DLF: "Data Link Feature",
    ExtendedCapabilityID.PL_16GT: "Physical Layer 16 GT/s",
}

CLASS_NAMES = {
    0x00: "Unclassified device",
    0x01: "Mass storage controller",
    0x02: "Network controller",
    0x03: "Display controller",
    0x04: "Multimedia controller",
    0x05: "Memory controller",
    0x06: "Bridge",
    0x07: "Communication controller",
    0x08: "Generic system peripheral",
    0x09: "Input device controller",
    0x0A: "Docking station",
    0x0B: "Processor",
    0x0C: "Serial bus controller",
    0x0D: "Wireless controller",
    0x0E: "Intelligent controller",
    0x0F: "Satellite communications controller",
    0x10: "Encryption controller",
    0x11: "Signal processing controller",
    0x12: "Processing accelerators",
    0x13: "Non-Essential Instrumentation",
    0x40: "Coprocessor",
    0xFF: "Unassigned class",
}
"""Base classes; the subclass has a name only where a ``pci.ids`` file is at hand."""


# MSI capability (offsets from its start).
MSI_CONTROL = Register(0x02, 2)
MSI_ADDRESS_LO = Register(0x04, 4)
MSI_ADDRESS_HI = Register(0x08, 4)
MSI_DATA_32 = Register(0x08, 2)
MSI_MASK_32 = Register(0x0C, 4)
MSI_PENDING_32 = Register(0x10, 4)
MSI_DATA_64 = Register(0x0C, 2)
MSI_MASK_64 = Register(0x10, 4)
MSI_PENDING_64 = Register(0x14, 4)
MSI_CONTROL_ENABLE = 0x0001
MSI_CONTROL_MULTIPLE_CAPABLE = 0x000E
MSI_CONTROL_MULTIPLE_ENABLE = 0x0070
MSI_CONTROL_64BIT = 0x0080
MSI_CONTROL_MASKING = 0x0100

# MSI-X capability (offsets from its start) and table.
MSIX_CONTROL = Register(0x02, 2)
MSIX_TABLE = Register(0x04, 4)
MSIX_PBA = Register(0x08, 4)
MSIX_CONTROL_SIZE = 0x07FF
MSIX_CONTROL_MASK_ALL = 0x4000
MSIX_CONTROL_ENABLE = 0x8000
MSIX_BIR = 0x7
MSIX_SIZE = 12
MSIX_ENTRY_SIZE = 16
MSIX_ENTRY_ADDRESS = 0
MSIX_ENTRY_DATA = 8
MSIX_ENTRY_CONTROL = 12
MSIX_ENTRY_MASKED = 0x1

# Power management capability.
PM_CAPABILITIES = Register(0x02, 2)
PM_CONTROL = Register(0x04, 2)
PM_SIZE = 8
PM_CAPABILITIES_D1 = 0x0200
PM_CAPABILITIES_D2 = 0x0400
PM_CONTROL_STATE = 0x0003
PM_CONTROL_NO_SOFT_RESET = 0x0008

# Advanced Features capability.
AF_CAPABILITIES = Register(0x03, 1)
AF_CAPABILITIES_TP = 0x01
AF_CAPABILITIES_FLR = 0x02


# PCI Express capability.
class ExpressType(IntEnum):
    """``PCI_EXP_TYPE_*``."""

    ENDPOINT = 0x0
    LEG_END = 0x1
    ROOT_PORT = 0x4
    UPSTREAM = 0x5
    DOWNSTREAM = 0x6
    PCI_BRIDGE = 0x7
    PCIE_BRIDGE = 0x8
    RC_END = 0x9
    RC_EC = 0xA


EXP_FLAGS = Register(0x02, 2)
EXP_FLAGS_VERSION = 0x000F
EXP_FLAGS_TYPE = 0x00F0
EXP_DEVICE_CAPABILITIES = Register(0x04, 4)
EXP_DEVICE_CONTROL = Register(0x08, 2)
EXP_DEVICE_STATUS = Register(0x0A, 2)
EXP_LINK_CAPABILITIES = Register(0x0C, 4)
EXP_LINK_CONTROL = Register(0x10, 2)
EXP_LINK_STATUS = Register(0x12, 2)
EXP_LINK_CAPABILITIES_2 = Register(0x2C, 4)
EXP_LINK_CONTROL_2 = Register(0x30, 2)
EXP_LINK_STATUS_2 = Register(0x32, 2)
EXP_LINK_SPEED_2_5GT = 0x1
EXP_LINK_WIDTH_X1 = 0x10
EXP_DEVICE_CAPABILITIES_FLR = 0x1000_0000
EXP_DEVICE_CONTROL_FLR = 0x8000
EXP_SIZE = 0x3C

# Extended capability header.
EXTENDED_FIRST = 0x100
EXTENDED_NEXT_SHIFT = 20
EXTENDED_VERSION_SHIFT = 16
EXTENDED_VERSION_MASK = 0xF

# Resizable BAR extended capability; eight bytes a BAR from its capability register on.
REBAR_CAPABILITIES = Register(0x04, 4)
REBAR_CONTROL = Register(0x08, 4)
REBAR_ENTRY_SIZE = 8
REBAR_CAPABILITIES_SIZES = 0x00FF_FFF0
REBAR_CONTROL_INDEX = 0x0007
REBAR_CONTROL_COUNT = 0x00E0
REBAR_CONTROL_SIZE = 0x3F00
