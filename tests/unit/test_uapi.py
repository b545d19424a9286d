# SPDX-License-Identifier: BSD-3-Clause
"""The numbers and layouts of ``pyvfio.uapi`` are those of the kernel's installed headers.

One C program, compiled against these headers, prints every number that is compared here.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from enum import IntEnum, IntFlag
from itertools import pairwise
from types import ModuleType
from typing import Any, TypeAlias

import pytest

from pyvfio.uapi import ioctl, pci, vfio
from pyvfio.uapi.layout import Layout

NumberEnum: TypeAlias = type[IntEnum] | type[IntFlag]

INCLUDES = "#include <linux/vfio.h>\n#include <linux/pci_regs.h>\n"

NEWER = """
#ifndef VFIO_DEVICE_FLAGS_CDX /* Linux 6.4 */
#define VFIO_DEVICE_FLAGS_CDX (1 << 8)
#endif
#ifndef VFIO_MIGRATION_PRE_COPY /* Linux 6.2 */
#define VFIO_MIGRATION_PRE_COPY (1 << 2)
#define VFIO_DEVICE_STATE_PRE_COPY 6
#define VFIO_DEVICE_STATE_PRE_COPY_P2P 7
#define VFIO_MIG_GET_PRECOPY_INFO _IO(VFIO_TYPE, VFIO_BASE + 21)
struct vfio_precopy_info {
    __u32 argsz;
    __u32 flags;
    __aligned_u64 initial_bytes;
    __aligned_u64 dirty_bytes;
};
#endif
#ifndef VFIO_DEVICE_FEATURE_MIG_DATA_SIZE /* Linux 6.2 */
#define VFIO_DEVICE_FEATURE_MIG_DATA_SIZE 9
struct vfio_device_feature_mig_data_size {
    __aligned_u64 stop_copy_length;
};
#endif
"""
"""What the header of a kernel still in use may lack."""

ENUMS: dict[NumberEnum, str] = {
    vfio.PCIRegion: "VFIO_PCI_{}_REGION_INDEX",
    vfio.PCIIRQ: "VFIO_PCI_{}_IRQ_INDEX",
    vfio.DeviceFlags: "VFIO_DEVICE_FLAGS_{}",
    vfio.RegionFlags: "VFIO_REGION_INFO_FLAG_{}",
    vfio.RegionCapability: "VFIO_REGION_INFO_CAP_{}",
    vfio.IRQFlags: "VFIO_IRQ_INFO_{}",
    vfio.IRQSetFlags: "VFIO_IRQ_SET_{}",
    vfio.DMAMapFlags: "VFIO_DMA_MAP_FLAG_{}",
    vfio.DMAUnmapFlags: "VFIO_DMA_UNMAP_FLAG_{}",
    vfio.FeatureFlags: "VFIO_DEVICE_FEATURE_{}",
    vfio.Feature: "VFIO_DEVICE_FEATURE_{}",
    vfio.MigrationFlags: "VFIO_MIGRATION_{}",
    vfio.DeviceState: "VFIO_DEVICE_STATE_{}",
    ioctl.Ioctl: "VFIO_{}",
    ioctl.DeviceIoctl: "VFIO_DEVICE_{}",
    ioctl.ContainerIoctl: "VFIO_{}",
    ioctl.Extension: "VFIO_{}_IOMMU",
    ioctl.GroupFlags: "VFIO_GROUP_FLAGS_{}",
    ioctl.IOMMUInfoFlags: "VFIO_IOMMU_INFO_{}",
    ioctl.DirtyPagesFlags: "VFIO_IOMMU_DIRTY_PAGES_FLAG_{}",
    ioctl.IOMMUCapability: "VFIO_IOMMU_TYPE1_INFO_CAP_{}",
    pci.Command: "PCI_COMMAND_{}",
    pci.Status: "PCI_STATUS_{}",
    pci.CapabilityID: "PCI_CAP_ID_{}",
    pci.ExtendedCapabilityID: "PCI_EXT_CAP_ID_{}",
    pci.ExpressType: "PCI_EXP_TYPE_{}",
}
"""Each enum, and the C name of its members."""

RENAMED = {
    "VFIO_IRQ_SET_MASK": "VFIO_IRQ_SET_ACTION_MASK",
    "VFIO_IRQ_SET_UNMASK": "VFIO_IRQ_SET_ACTION_UNMASK",
    "VFIO_IRQ_SET_TRIGGER": "VFIO_IRQ_SET_ACTION_TRIGGER",
    "VFIO_TYPE1V2_IOMMU": "VFIO_TYPE1v2_IOMMU",
    "VFIO_UNMAP_ALL_IOMMU": "VFIO_UNMAP_ALL",
    "VFIO_IOMMU_TYPE1_INFO_CAP_DMA_AVAIL": "VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL",
    "PCI_STATUS_MHZ_66": "PCI_STATUS_66MHZ",
}
"""Members that C names otherwise."""

VFIO_NUMBERS = {
    "PCI_NUM_REGIONS": "VFIO_PCI_NUM_REGIONS",
    "PCI_NUM_IRQS": "VFIO_PCI_NUM_IRQS",
    "IRQ_SET_DATA": "VFIO_IRQ_SET_DATA_TYPE_MASK",
    "IRQ_SET_ACTION": "VFIO_IRQ_SET_ACTION_TYPE_MASK",
    "FEATURE_MASK": "VFIO_DEVICE_FEATURE_MASK",
}
IOCTL_NUMBERS = {"API_VERSION": "VFIO_API_VERSION"}
PCI_NUMBERS = {
    "CONFIG_SIZE": "PCI_CFG_SPACE_SIZE",
    "EXTENDED_CONFIG_SIZE": "PCI_CFG_SPACE_EXP_SIZE",
    "HEADER_SIZE": "PCI_STD_HEADER_SIZEOF",
    "HEADER_TYPE_LAYOUT": "PCI_HEADER_TYPE_MASK",
    "HEADER_TYPE_MULTIFUNCTION": "~PCI_HEADER_TYPE_MASK & 0xff",
    "NUM_BARS": "PCI_STD_NUM_BARS",
    "BAR_IO": "PCI_BASE_ADDRESS_SPACE_IO",
    "BAR_MEM_TYPE_MASK": "PCI_BASE_ADDRESS_MEM_TYPE_MASK",
    "BAR_MEM_TYPE_64": "PCI_BASE_ADDRESS_MEM_TYPE_64",
    "BAR_PREFETCH": "PCI_BASE_ADDRESS_MEM_PREFETCH",
    "BAR_IO_MASK": "~PCI_BASE_ADDRESS_IO_MASK",  # C's masks keep the address instead
    "BAR_MEM_MASK": "~PCI_BASE_ADDRESS_MEM_MASK",
    "ROM_ADDRESS_ENABLE": "PCI_ROM_ADDRESS_ENABLE",
    "ROM_ADDRESS_MASK": "PCI_ROM_ADDRESS_MASK",
    "MSI_CONTROL_ENABLE": "PCI_MSI_FLAGS_ENABLE",
    "MSI_CONTROL_MULTIPLE_CAPABLE": "PCI_MSI_FLAGS_QMASK",
    "MSI_CONTROL_MULTIPLE_ENABLE": "PCI_MSI_FLAGS_QSIZE",
    "MSI_CONTROL_64BIT": "PCI_MSI_FLAGS_64BIT",
    "MSI_CONTROL_MASKING": "PCI_MSI_FLAGS_MASKBIT",
    "MSIX_CONTROL_SIZE": "PCI_MSIX_FLAGS_QSIZE",
    "MSIX_CONTROL_MASK_ALL": "PCI_MSIX_FLAGS_MASKALL",
    "MSIX_CONTROL_ENABLE": "PCI_MSIX_FLAGS_ENABLE",
    "MSIX_BIR": "PCI_MSIX_TABLE_BIR",
    "MSIX_SIZE": "PCI_CAP_MSIX_SIZEOF",
    "MSIX_ENTRY_SIZE": "PCI_MSIX_ENTRY_SIZE",
    "MSIX_ENTRY_ADDRESS": "PCI_MSIX_ENTRY_LOWER_ADDR",
    "MSIX_ENTRY_DATA": "PCI_MSIX_ENTRY_DATA",
    "MSIX_ENTRY_CONTROL": "PCI_MSIX_ENTRY_VECTOR_CTRL",
    "MSIX_ENTRY_MASKED": "PCI_MSIX_ENTRY_CTRL_MASKBIT",
    "PM_SIZE": "PCI_PM_SIZEOF",
    "PM_CAPABILITIES_D1": "PCI_PM_CAP_D1",
    "PM_CAPABILITIES_D2": "PCI_PM_CAP_D2",
    "PM_CONTROL_STATE": "PCI_PM_CTRL_STATE_MASK",
    "PM_CONTROL_NO_SOFT_RESET": "PCI_PM_CTRL_NO_SOFT_RESET",
    "AF_CAPABILITIES_TP": "PCI_AF_CAP_TP",
    "AF_CAPABILITIES_FLR": "PCI_AF_CAP_FLR",
    "EXP_FLAGS_VERSION": "PCI_EXP_FLAGS_VERS",
    "EXP_FLAGS_TYPE": "PCI_EXP_FLAGS_TYPE",
    "EXP_LINK_SPEED_2_5GT": "PCI_EXP_LNKSTA_CLS_2_5GB",
    "EXP_LINK_WIDTH_X1": "PCI_EXP_LNKSTA_NLW_X1",
    "EXP_DEVICE_CAPABILITIES_FLR": "PCI_EXP_DEVCAP_FLR",
    "EXP_DEVICE_CONTROL_FLR": "PCI_EXP_DEVCTL_BCR_FLR",
    "EXP_SIZE": "PCI_EXP_SLTSTA2 + 2",
    "EXTENDED_FIRST": "PCI_CFG_SPACE_SIZE",
    "EXTENDED_VERSION_MASK": "PCI_EXT_CAP_VER(0xffffffff)",
    "REBAR_ENTRY_SIZE": "PCI_REBAR_CTRL + 4 - PCI_REBAR_CAP",
    "REBAR_CAPABILITIES_SIZES": "PCI_REBAR_CAP_SIZES & 0x00ffffff",  # headers grow bits beyond
    "REBAR_CONTROL_INDEX": "PCI_REBAR_CTRL_BAR_IDX",
    "REBAR_CONTROL_COUNT": "PCI_REBAR_CTRL_NBAR_MASK",
    "REBAR_CONTROL_SIZE": "PCI_REBAR_CTRL_BAR_SIZE | 0x2000",  # a bit that old headers lack
}
PCI_REGISTERS = {
    "VENDOR_ID": "PCI_VENDOR_ID",
    "DEVICE_ID": "PCI_DEVICE_ID",
    "COMMAND": "PCI_COMMAND",
    "STATUS": "PCI_STATUS",
    "REVISION_ID": "PCI_REVISION_ID",
    "PROG_IF": "PCI_CLASS_PROG",
    "SUBCLASS": "PCI_CLASS_DEVICE",
    "BASE_CLASS": "PCI_CLASS_DEVICE + 1",
    "CACHE_LINE_SIZE": "PCI_CACHE_LINE_SIZE",
    "LATENCY_TIMER": "PCI_LATENCY_TIMER",
    "HEADER_TYPE": "PCI_HEADER_TYPE",
    "BIST": "PCI_BIST",
    "BASE_ADDRESS_0": "PCI_BASE_ADDRESS_0",
    "CARDBUS_CIS": "PCI_CARDBUS_CIS",
    "SUBSYSTEM_VENDOR_ID": "PCI_SUBSYSTEM_VENDOR_ID",
    "SUBSYSTEM_ID": "PCI_SUBSYSTEM_ID",
    "ROM_ADDRESS": "PCI_ROM_ADDRESS",
    "CAPABILITY_LIST": "PCI_CAPABILITY_LIST",
    "INTERRUPT_LINE": "PCI_INTERRUPT_LINE",
    "INTERRUPT_PIN": "PCI_INTERRUPT_PIN",
    "MIN_GNT": "PCI_MIN_GNT",
    "MAX_LAT": "PCI_MAX_LAT",
    "MSI_CONTROL": "PCI_MSI_FLAGS",
    "MSI_ADDRESS_LO": "PCI_MSI_ADDRESS_LO",
    "MSI_ADDRESS_HI": "PCI_MSI_ADDRESS_HI",
    "MSI_DATA_32": "PCI_MSI_DATA_32",
    "MSI_MASK_32": "PCI_MSI_MASK_32",
    "MSI_PENDING_32": "PCI_MSI_PENDING_32",
    "MSI_DATA_64": "PCI_MSI_DATA_64",
    "MSI_MASK_64": "PCI_MSI_MASK_64",
    "MSI_PENDING_64": "PCI_MSI_PENDING_64",
    "MSIX_CONTROL": "PCI_MSIX_FLAGS",
    "MSIX_TABLE": "PCI_MSIX_TABLE",
    "MSIX_PBA": "PCI_MSIX_PBA",
    "PM_CAPABILITIES": "PCI_PM_PMC",
    "PM_CONTROL": "PCI_PM_CTRL",
    "EXP_FLAGS": "PCI_EXP_FLAGS",
    "EXP_DEVICE_CAPABILITIES": "PCI_EXP_DEVCAP",
    "EXP_DEVICE_CONTROL": "PCI_EXP_DEVCTL",
    "EXP_DEVICE_STATUS": "PCI_EXP_DEVSTA",
    "EXP_LINK_CAPABILITIES": "PCI_EXP_LNKCAP",
    "EXP_LINK_CONTROL": "PCI_EXP_LNKCTL",
    "EXP_LINK_STATUS": "PCI_EXP_LNKSTA",
    "EXP_LINK_CAPABILITIES_2": "PCI_EXP_LNKCAP2",
    "EXP_LINK_CONTROL_2": "PCI_EXP_LNKCTL2",
    "EXP_LINK_STATUS_2": "PCI_EXP_LNKSTA2",
    "AF_CAPABILITIES": "PCI_AF_CAP",
    "REBAR_CAPABILITIES": "PCI_REBAR_CAP",
    "REBAR_CONTROL": "PCI_REBAR_CTRL",
}
EXTENDED_HEADER = 0x1482_0001
"""An extended capability's header: the next one at 0x148, version 2, id 1."""
EXTENDED_HEADER_PARTS = {
    "EXTENDED_VERSION_SHIFT": f"PCI_EXT_CAP_VER({EXTENDED_HEADER:#x})",
    "EXTENDED_NEXT_SHIFT": f"PCI_EXT_CAP_NEXT({EXTENDED_HEADER:#x})",
}

MEMBERS = {
    ("struct vfio_iommu_type1_dma_map", "source"): "vaddr",
    ("struct vfio_device_feature_dma_logging_control", "reserved"): "__reserved",
}
"""Struct members that C names otherwise."""

CONTINUED = {
    "struct vfio_device_info": "cap_offset",
    "struct vfio_device_feature_dma_logging_control": "ranges",
    "struct vfio_device_feature_dma_logging_report": "bitmap",
    "struct vfio_iommu_type1_dirty_bitmap_get": "bitmap",
}
"""C types that are longer than our layout, and the first member that it has not."""

AFTER_HEADER: dict[str, Layout[Any]] = {
    "struct vfio_region_info_cap_sparse_mmap": vfio.SPARSE_MMAP,
    "struct vfio_region_info_cap_type": vfio.REGION_TYPE,
    "struct vfio_iommu_type1_info_cap_iova_range": ioctl.IOVA_RANGES,
    "struct vfio_iommu_type1_info_dma_avail": ioctl.DMA_AVAIL,
    "struct vfio_iommu_type1_info_cap_migration": ioctl.IOMMU_MIGRATION,
}
"""Layouts that are the rest of a C type, behind its ``struct vfio_info_cap_header``."""

LAYOUTS: tuple[Layout[Any], ...] = (*vfio.LAYOUTS, *ioctl.LAYOUTS)

PADDED = ("struct vfio_iommu_type1_info",)
"""C types that are padded at their end, behind what the kernel asks for."""

EVERY_LAYOUT = {layout.c_name: layout for layout in LAYOUTS} | AFTER_HEADER


def enum_numbers(enum: NumberEnum) -> dict[str, int]:
    """The members of an enum under their C names."""
    names = {ENUMS[enum].format(member.name): int(member) for member in enum}
    return {RENAMED.get(name, name): value for name, value in names.items()}


def offset_of(c_type: str, member: str) -> str:
    """The C expression for a member's offset."""
    return f"offsetof({c_type}, {MEMBERS.get((c_type, member), member)})"


def c_expressions() -> set[str]:
    """Everything that the C program prints."""
    found = {name for enum in ENUMS for name in enum_numbers(enum)}
    for table in (
        VFIO_NUMBERS,
        IOCTL_NUMBERS,
        PCI_NUMBERS,
        PCI_REGISTERS,
        EXTENDED_HEADER_PARTS,
    ):
        found.update(table.values())
    for c_type, layout in EVERY_LAYOUT.items():
        found.add(f"sizeof({c_type})")
        named = (field for field in layout.fields if field != "padding")
        found.update(offset_of(c_type, field) for field in named)
    found.update(offset_of(c_type, member) for c_type, member in CONTINUED.items())
    return found


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The value of every C expression, as the installed headers define it."""
    cc = shutil.which("cc")
    if cc is None:
        pytest.skip("no C compiler (cc) to read the kernel's headers with")
    preprocess = [cc, "-E", "-x", "c", "-"]
    found = subprocess.run(preprocess, check=False, input=INCLUDES, text=True, capture_output=True)
    if found.returncode:
        pytest.skip("linux/vfio.h and linux/pci_regs.h are not installed (linux-libc-dev)")
    folder = tmp_path_factory.mktemp("uapi")
    lines = "".join(
        f'    printf("%llu {name}\\n", (unsigned long long)({name}));\n'
        for name in sorted(c_expressions())
    )
    (folder / "numbers.c").write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n{INCLUDES}{NEWER}"
        f"int main(void)\n{{\n{lines}    return 0;\n}}\n"
    )
    subprocess.run([cc, "-o", folder / "numbers", folder / "numbers.c"], check=True)
    printed = subprocess.run([folder / "numbers"], check=True, text=True, capture_output=True)
    pairs = (line.split(" ", 1) for line in printed.stdout.splitlines())
    return {name: int(value) for value, name in pairs}


def numbers_of(module: ModuleType) -> set[str]:
    """The names of a module's constants that have a number."""
    values = vars(module).items()
    return {
        name
        for name, value in values
        if name.isupper() and not name.startswith("_") and isinstance(value, int)
    }


# Numbers


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.__name__)
def test_enum_has_the_kernels_numbers(enum: NumberEnum, kernel: dict[str, int]) -> None:
    numbers = enum_numbers(enum)
    assert numbers == {name: kernel[name] for name in numbers}


@pytest.mark.parametrize(
    ("module", "table"),
    [(vfio, VFIO_NUMBERS), (ioctl, IOCTL_NUMBERS), (pci, PCI_NUMBERS)],
    ids=["vfio", "ioctl", "pci"],
)
def test_constants_have_the_kernels_numbers(
    module: ModuleType, table: dict[str, str], kernel: dict[str, int]
) -> None:
    numbers = {name: getattr(module, name) for name in table}
    assert numbers == {name: kernel[c_name] for name, c_name in table.items()}


def test_registers_stand_at_the_kernels_offsets(kernel: dict[str, int]) -> None:
    offsets = {name: getattr(pci, name).offset for name in PCI_REGISTERS}
    assert offsets == {name: kernel[c_name] for name, c_name in PCI_REGISTERS.items()}


def test_extended_capability_header_is_taken_apart_as_the_kernel_does(
    kernel: dict[str, int],
) -> None:
    version = EXTENDED_HEADER >> pci.EXTENDED_VERSION_SHIFT & pci.EXTENDED_VERSION_MASK
    following = EXTENDED_HEADER >> pci.EXTENDED_NEXT_SHIFT
    parts = EXTENDED_HEADER_PARTS
    assert version == kernel[parts["EXTENDED_VERSION_SHIFT"]]
    assert following == kernel[parts["EXTENDED_NEXT_SHIFT"]]


@pytest.mark.parametrize("module", [vfio, ioctl, pci], ids=["vfio", "ioctl", "pci"])
def test_every_enum_is_compared(module: ModuleType) -> None:
    defined = {
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, IntEnum | IntFlag)
        and value.__module__ == module.__name__
    }
    assert defined == {enum for enum in ENUMS if enum.__module__ == module.__name__}


@pytest.mark.parametrize(
    ("module", "compared"),
    [
        (vfio, {*VFIO_NUMBERS}),
        (ioctl, {*IOCTL_NUMBERS}),
        (pci, {*PCI_NUMBERS, *EXTENDED_HEADER_PARTS}),
    ],
    ids=["vfio", "ioctl", "pci"],
)
def test_every_constant_is_compared(module: ModuleType, compared: set[str]) -> None:
    assert numbers_of(module) == compared


def test_every_register_is_compared() -> None:
    found = {name for name, value in vars(pci).items() if isinstance(value, pci.Register)}
    assert found == set(PCI_REGISTERS)


def test_registers_of_the_header_do_not_overlap() -> None:
    names = list(PCI_REGISTERS)
    header = [getattr(pci, name) for name in names[: names.index("MAX_LAT") + 1]]
    places = sorted((register.offset, register.offset + register.width) for register in header)
    assert [(before, after) for before, after in pairwise(places) if before[1] > after[0]] == []


@pytest.mark.parametrize(
    ("enum", "names"),
    [
        (pci.CapabilityID, pci.CAPABILITY_NAMES),
        (pci.ExtendedCapabilityID, pci.EXTENDED_CAPABILITY_NAMES),
    ],
    ids=["conventional", "extended"],
)
def test_every_capability_id_has_a_name(enum: type[IntEnum], names: dict[int, str]) -> None:
    assert set(names) == set(enum)


@pytest.mark.parametrize(
    ("length", "size"),
    [(1, 2048), (2048, 2048), (2049, 4096), (1 << 20, 1 << 20), (16 << 20, 16 << 20)],
)
def test_an_expansion_rom_claims_a_power_of_two_of_at_least_2_kib(length: int, size: int) -> None:
    assert pci.rom_size(length) == size


@pytest.mark.parametrize("length", [0, -1, (16 << 20) + 1, 2 << 30])
def test_no_expansion_rom_is_empty_or_larger_than_16_mib(length: int) -> None:
    with pytest.raises(ValueError, match="expansion ROM"):
        pci.rom_size(length)


# Structs


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.c_name)
def test_members_stand_at_the_kernels_offsets(layout: Layout[Any], kernel: dict[str, int]) -> None:
    c_offsets = {field: kernel[offset_of(layout.c_name, field)] for field in layout.fields}
    assert layout.offsets == c_offsets


@pytest.mark.parametrize(
    "layout",
    [layout for layout in LAYOUTS if layout.c_name not in (*CONTINUED, *PADDED)],
    ids=lambda layout: layout.c_name,
)
def test_struct_has_the_kernels_size(layout: Layout[Any], kernel: dict[str, int]) -> None:
    assert layout.size == kernel[f"sizeof({layout.c_name})"]


@pytest.mark.parametrize(("c_type", "member"), CONTINUED.items())
def test_struct_ends_where_the_kernel_adds_a_member(
    c_type: str, member: str, kernel: dict[str, int]
) -> None:
    assert EVERY_LAYOUT[c_type].size == kernel[offset_of(c_type, member)]


@pytest.mark.parametrize("c_type", AFTER_HEADER)
def test_capability_data_continues_its_header_as_in_the_kernel(
    c_type: str, kernel: dict[str, int]
) -> None:
    layout, header = AFTER_HEADER[c_type], vfio.CAPABILITY_HEADER.size
    named = [field for field in layout.fields if field != "padding"]
    c_offsets = {field: kernel[offset_of(c_type, field)] - header for field in named}
    assert {field: layout.offsets[field] for field in named} == c_offsets
    assert layout.size == kernel[f"sizeof({c_type})"] - header


# Layout itself


def test_layout_reads_back_what_it_packed_anywhere_in_a_buffer() -> None:
    data = b"front" + vfio.IRQ_INFO.pack(16, 9, 2, 32) + b"back"
    assert vfio.IRQ_INFO.unpack_from(data, 5) == vfio.IRQInfo(16, 9, 2, 32)


@pytest.mark.parametrize("value", [-1, 1 << 32], ids=["negative", "too-large"])
def test_layout_refuses_a_member_that_does_not_fit(value: int) -> None:
    with pytest.raises(struct.error):
        vfio.IRQ_INFO.pack(16, 0, 0, value)


def test_layout_refuses_to_read_a_struct_that_is_cut_short() -> None:
    with pytest.raises(struct.error):
        vfio.IRQ_INFO.unpack_from(bytes(15))
