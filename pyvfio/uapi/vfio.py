# SPDX-License-Identifier: BSD-3-Clause
"""``linux/vfio.h``: the numbers and structs that describe a device, its regions, irqs and DMA.

The kernel's ioctls and the vfio-user messages carry the same structs; a member that only one of
them has is named in the comment beside it.  Sizes and offsets are compared with the installed
header by ``tests/unit/test_uapi.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

from pyvfio.uapi.layout import Layout


class PCIRegion(IntEnum):
    """Region indexes of a PCI device (``VFIO_PCI_*_REGION_INDEX``)."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


PCI_NUM_REGIONS = len(PCIRegion)


class PCIIRQ(IntEnum):
    """Interrupt indexes of a PCI device (``VFIO_PCI_*_IRQ_INDEX``)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


PCI_NUM_IRQS = len(PCIIRQ)


class DeviceFlags(IntFlag):
    """``VFIO_DEVICE_FLAGS_*``."""

    RESET = 1
    PCI = 2
    PLATFORM = 4
    AMBA = 8
    CCW = 16
    AP = 32
    FSL_MC = 64
    CAPS = 128
    CDX = 256


class RegionFlags(IntFlag):
    """``VFIO_REGION_INFO_FLAG_*``."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class RegionCapability(IntEnum):
    """``VFIO_REGION_INFO_CAP_*``."""

    SPARSE_MMAP = 1
    TYPE = 2
    MSIX_MAPPABLE = 3


class IRQFlags(IntFlag):
    """``VFIO_IRQ_INFO_*``."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class IRQSetFlags(IntFlag):
    """``VFIO_IRQ_SET_*``: one kind of data and one action."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    MASK = 8
    UNMASK = 16
    TRIGGER = 32


IRQ_SET_DATA = IRQSetFlags.DATA_NONE | IRQSetFlags.DATA_BOOL | IRQSetFlags.DATA_EVENTFD
IRQ_SET_ACTION = IRQSetFlags.MASK | IRQSetFlags.UNMASK | IRQSetFlags.TRIGGER


class DMAMapFlags(IntFlag):
    """``VFIO_DMA_MAP_FLAG_*``."""

    READ = 1
    WRITE = 2


class DMAUnmapFlags(IntFlag):
    """``VFIO_DMA_UNMAP_FLAG_*``."""

    GET_DIRTY_BITMAP = 1
    ALL = 2


class FeatureFlags(IntFlag):
    """``VFIO_DEVICE_FEATURE_*``: the low 16 bits number the feature."""

    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


FEATURE_MASK = 0xFFFF


class Feature(IntEnum):
    """``VFIO_DEVICE_FEATURE_*``: what DEVICE_FEATURE can be asked for."""

    PCI_VF_TOKEN = 0
    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    LOW_POWER_ENTRY = 3
    LOW_POWER_ENTRY_WITH_WAKEUP = 4
    LOW_POWER_EXIT = 5
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8
    MIG_DATA_SIZE = 9


class MigrationFlags(IntFlag):
    """``VFIO_MIGRATION_*``: which states a device has besides ERROR and RUNNING.

    STOP_COPY, which is always set, stands for STOP, STOP_COPY and RESUMING.
    """

    STOP_COPY = 1
    P2P = 2
    PRE_COPY = 4


class DeviceState(IntEnum):
    """``enum vfio_device_mig_state``."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7


@dataclass(slots=True)
class DeviceInfo:
    """``struct vfio_device_info`` up to what the wire carries; the kernel adds ``cap_offset``."""

    argsz: int
    flags: int
    num_regions: int
    num_irqs: int


@dataclass(slots=True)
class RegionInfo:
    """``struct vfio_region_info``; ``cap_offset`` counts from the start of the struct."""

    argsz: int
    flags: int
    index: int
    cap_offset: int
    size: int
    offset: int


@dataclass(slots=True)
class CapabilityHeader:
    """``struct vfio_info_cap_header``; ``next`` counts from the start of the info struct."""

    id: int
    version: int
    next: int


@dataclass(slots=True)
class SparseMmap:
    """``struct vfio_region_info_cap_sparse_mmap`` after its header; the areas follow."""

    nr_areas: int
    reserved: int


@dataclass(slots=True)
class SparseMmapArea:
    """``struct vfio_region_sparse_mmap_area``, bytes within the region."""

    offset: int
    size: int


@dataclass(slots=True)
class RegionType:
    """``struct vfio_region_info_cap_type`` after its header."""

    type: int
    subtype: int


@dataclass(slots=True)
class IRQInfo:
    """``struct vfio_irq_info``."""

    argsz: int
    flags: int
    index: int
    count: int


@dataclass(slots=True)
class IRQSet:
    """``struct vfio_irq_set``; bools or (kernel only) eventfds follow."""

    argsz: int
    flags: int
    index: int
    start: int
    count: int


@dataclass(slots=True)
class DMAMap:
    """``struct vfio_iommu_type1_dma_map``.

    ``source`` is a virtual address for the kernel and a file offset on the wire.
    """

    argsz: int
    flags: int
    source: int
    iova: int
    size: int


@dataclass(slots=True)
class DMAUnmap:
    """``struct vfio_iommu_type1_dma_unmap``."""

    argsz: int
    flags: int
    iova: int
    size: int


@dataclass(slots=True)
class DeviceFeature:
    """``struct vfio_device_feature``; the feature's own data follows."""

    argsz: int
    flags: int


@dataclass(slots=True)
class FeatureMigration:
    """``struct vfio_device_feature_migration``; see :class:`MigrationFlags`."""

    flags: int


@dataclass(slots=True)
class FeatureState:
    """``struct vfio_device_feature_mig_state``; ``data_fd`` means nothing on the wire."""

    device_state: int
    data_fd: int


@dataclass(slots=True)
class FeatureDataSize:
    """``struct vfio_device_feature_mig_data_size``, bytes."""

    stop_copy_length: int


@dataclass(slots=True)
class LoggingControl:
    """``struct vfio_device_feature_dma_logging_control`` up to the ranges.

    They follow on the wire; the kernel is given their address.  None at all stands for everything.
    """

    page_size: int
    num_ranges: int
    reserved: int


@dataclass(slots=True)
class LoggingRange:
    """``struct vfio_device_feature_dma_logging_range``, bytes."""

    iova: int
    length: int


@dataclass(slots=True)
class LoggingReport:
    """``struct vfio_device_feature_dma_logging_report`` up to the bitmap.

    It follows in the reply on the wire; the kernel is given its address.
    """

    iova: int
    length: int
    page_size: int


DEVICE_INFO = Layout(DeviceInfo, "I I I I", "struct vfio_device_info")
REGION_INFO = Layout(RegionInfo, "I I I I Q Q", "struct vfio_region_info")
CAPABILITY_HEADER = Layout(CapabilityHeader, "H H I", "struct vfio_info_cap_header")
SPARSE_MMAP = Layout(SparseMmap, "I I")
SPARSE_MMAP_AREA = Layout(SparseMmapArea, "Q Q", "struct vfio_region_sparse_mmap_area")
REGION_TYPE = Layout(RegionType, "I I")
IRQ_INFO = Layout(IRQInfo, "I I I I", "struct vfio_irq_info")
IRQ_SET = Layout(IRQSet, "I I I I I", "struct vfio_irq_set")
DMA_MAP = Layout(DMAMap, "I I Q Q Q", "struct vfio_iommu_type1_dma_map")
DMA_UNMAP = Layout(DMAUnmap, "I I Q Q", "struct vfio_iommu_type1_dma_unmap")
DEVICE_FEATURE = Layout(DeviceFeature, "I I", "struct vfio_device_feature")
FEATURE_MIGRATION = Layout(FeatureMigration, "Q", "struct vfio_device_feature_migration")
FEATURE_STATE = Layout(FeatureState, "I i", "struct vfio_device_feature_mig_state")
FEATURE_DATA_SIZE = Layout(FeatureDataSize, "Q", "struct vfio_device_feature_mig_data_size")
LOGGING_CONTROL = Layout(LoggingControl, "Q I I", "struct vfio_device_feature_dma_logging_control")
LOGGING_RANGE = Layout(LoggingRange, "Q Q", "struct vfio_device_feature_dma_logging_range")
LOGGING_REPORT = Layout(LoggingReport, "Q Q Q", "struct vfio_device_feature_dma_logging_report")

LAYOUTS = (
    DEVICE_INFO,
    REGION_INFO,
    CAPABILITY_HEADER,
    SPARSE_MMAP_AREA,
    IRQ_INFO,
    IRQ_SET,
    DMA_MAP,
    DMA_UNMAP,
    DEVICE_FEATURE,
    FEATURE_MIGRATION,
    FEATURE_STATE,
    FEATURE_DATA_SIZE,
    LOGGING_CONTROL,
    LOGGING_RANGE,
    LOGGING_REPORT,
)
"""Every layout that has a C type of its own."""
