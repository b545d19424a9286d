# SPDX-License-Identifier: BSD-3-Clause
"""``linux/vfio.h``: the ioctls, and the structs that only they carry.

Requests are ``_IO(';', 100 + n)``, without size or direction.  Some numbers mean one thing on a
device and another on a container.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

from pyvfio.uapi.layout import Layout

API_VERSION = 0
_BASE = ord(";") << 8 | 100


class Ioctl(IntEnum):
    """``VFIO_*`` request numbers."""

    GET_API_VERSION = _BASE + 0
    CHECK_EXTENSION = _BASE + 1
    SET_IOMMU = _BASE + 2
    GROUP_GET_STATUS = _BASE + 3
    GROUP_SET_CONTAINER = _BASE + 4
    GROUP_UNSET_CONTAINER = _BASE + 5
    GROUP_GET_DEVICE_FD = _BASE + 6
    DEVICE_GET_INFO = _BASE + 7
    DEVICE_GET_REGION_INFO = _BASE + 8
    DEVICE_GET_IRQ_INFO = _BASE + 9
    DEVICE_SET_IRQS = _BASE + 10
    DEVICE_RESET = _BASE + 11
    MIG_GET_PRECOPY_INFO = _BASE + 21


class DeviceIoctl(IntEnum):
    """Requests of a device whose numbers a container uses otherwise."""

    GET_PCI_HOT_RESET_INFO = _BASE + 12
    PCI_HOT_RESET = _BASE + 13
    FEATURE = _BASE + 17


class ContainerIoctl(IntEnum):
    """Requests of a container whose numbers a device uses otherwise."""

    IOMMU_GET_INFO = _BASE + 12
    IOMMU_MAP_DMA = _BASE + 13
    IOMMU_UNMAP_DMA = _BASE + 14
    IOMMU_DIRTY_PAGES = _BASE + 17


class Extension(IntEnum):
    """IOMMU types, and what else CHECK_EXTENSION is asked for."""

    TYPE1 = 1
    TYPE1V2 = 3
    NOIOMMU = 8
    UNMAP_ALL = 9


class GroupFlags(IntFlag):
    """``VFIO_GROUP_FLAGS_*``."""

    VIABLE = 1
    CONTAINER_SET = 2


class IOMMUInfoFlags(IntFlag):
    """``VFIO_IOMMU_INFO_*``."""

    PGSIZES = 1
    CAPS = 2


class DirtyPagesFlags(IntFlag):
    """``VFIO_IOMMU_DIRTY_PAGES_FLAG_*``, one at a time."""

    START = 1
    STOP = 2
    GET_BITMAP = 4


class IOMMUCapability(IntEnum):
    """``VFIO_IOMMU_TYPE1_INFO_*``."""

    IOVA_RANGE = 1
    MIGRATION = 2
    DMA_AVAIL = 3


@dataclass(slots=True)
class GroupStatus:
    """``struct vfio_group_status``."""

    argsz: int
    flags: int


@dataclass(slots=True)
class IOMMUInfo:
    """``struct vfio_iommu_type1_info``."""

    argsz: int
    flags: int
    iova_pgsizes: int
    cap_offset: int


@dataclass(slots=True)
class IOVARanges:
    """``struct vfio_iommu_type1_info_cap_iova_range`` after its header; the ranges follow."""

    nr_iovas: int
    reserved: int


@dataclass(slots=True)
class IOVARange:
    """``struct vfio_iova_range``; both ends included."""

    start: int
    end: int


@dataclass(slots=True)
class DMAAvail:
    """``struct vfio_iommu_type1_info_dma_avail`` after its header."""

    avail: int


@dataclass(slots=True)
class IOMMUMigration:
    """``struct vfio_iommu_type1_info_cap_migration`` after its header; C pads ``flags`` itself."""

    flags: int
    padding: int
    pgsize_bitmap: int
    max_dirty_bitmap_size: int


@dataclass(slots=True)
class HotResetInfo:
    """``struct vfio_pci_hot_reset_info``; the dependent devices follow."""

    argsz: int
    flags: int
    count: int


@dataclass(slots=True)
class DependentDevice:
    """``struct vfio_pci_dependent_device``."""

    group_id: int
    segment: int
    bus: int
    devfn: int

    @property
    def address(self) -> str:
        """The PCI address, as ``0000:03:00.0``."""
        return f"{self.segment:04x}:{self.bus:02x}:{self.devfn >> 3:02x}.{self.devfn & 7}"


@dataclass(slots=True)
class HotReset:
    """``struct vfio_pci_hot_reset``; group descriptors follow."""

    argsz: int
    flags: int
    count: int


@dataclass(slots=True)
class Bitmap:
    """``struct vfio_bitmap``: where the kernel puts ``size`` bytes, a bit for each page."""

    pgsize: int
    size: int
    data: int


@dataclass(slots=True)
class DirtyPages:
    """``struct vfio_iommu_type1_dirty_bitmap``; for GET_BITMAP a range follows."""

    argsz: int
    flags: int


@dataclass(slots=True)
class DirtyRange:
    """``struct vfio_iommu_type1_dirty_bitmap_get`` before its :class:`Bitmap`."""

    iova: int
    size: int


@dataclass(slots=True)
class PrecopyInfo:
    """``struct vfio_precopy_info``, bytes."""

    argsz: int
    flags: int
    initial_bytes: int
    dirty_bytes: int


GROUP_STATUS = Layout(GroupStatus, "I I", "struct vfio_group_status")
IOMMU_INFO = Layout(IOMMUInfo, "I I Q I", "struct vfio_iommu_type1_info")
IOVA_RANGES = Layout(IOVARanges, "I I")
IOVA_RANGE = Layout(IOVARange, "Q Q", "struct vfio_iova_range")
DMA_AVAIL = Layout(DMAAvail, "I")
IOMMU_MIGRATION = Layout(IOMMUMigration, "I I Q Q")
HOT_RESET_INFO = Layout(HotResetInfo, "I I I", "struct vfio_pci_hot_reset_info")
DEPENDENT_DEVICE = Layout(DependentDevice, "I H B B", "struct vfio_pci_dependent_device")
HOT_RESET = Layout(HotReset, "I I I", "struct vfio_pci_hot_reset")
BITMAP = Layout(Bitmap, "Q Q Q", "struct vfio_bitmap")
DIRTY_PAGES = Layout(DirtyPages, "I I", "struct vfio_iommu_type1_dirty_bitmap")
DIRTY_RANGE = Layout(DirtyRange, "Q Q", "struct vfio_iommu_type1_dirty_bitmap_get")
PRECOPY_INFO = Layout(PrecopyInfo, "I I Q Q", "struct vfio_precopy_info")

LAYOUTS = (
    GROUP_STATUS,
    IOMMU_INFO,
    IOVA_RANGE,
    HOT_RESET_INFO,
    DEPENDENT_DEVICE,
    HOT_RESET,
    BITMAP,
    DIRTY_PAGES,
    DIRTY_RANGE,
    PRECOPY_INFO,
)
"""Every layout that has a C type of its own."""
