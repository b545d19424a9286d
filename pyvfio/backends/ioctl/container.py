# SPDX-License-Identifier: BSD-3-Clause
"""A VFIO container of the kernel with a type1 IOMMU behind it: the container vector."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pyvfio.dirty_bitmap import bitmap_size
from pyvfio.errors import (
    AccessDenied,
    BackendUnavailable,
    DMAError,
    OpenError,
    UnsupportedError,
)
from pyvfio.memory import PAGE_SIZE
from pyvfio.native.ioctl import address_of, ioctl
from pyvfio.uapi import chain, vfio
from pyvfio.uapi import ioctl as uapi
from pyvfio.uapi.ioctl import (
    ContainerIoctl,
    DirtyPagesFlags,
    Extension,
    Ioctl,
    IOMMUCapability,
    IOMMUInfoFlags,
)
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import DMAMapFlags, DMAUnmapFlags
from pyvfio.vectors import BatchFailure, ContainerIO, DMASource

NODE = "/dev/vfio/vfio"
DEFAULT_MAX_MAPS = 65535
"""Maps that a container takes where it does not say (``dma_entry_limit`` of the module)."""
MAX_INFO = 64 * 1024

_HALF = 1 << 63


class KernelContainer(ContainerIO):
    """``/dev/vfio/vfio``: a group is put into it, then it gets an IOMMU.

    :param uri: the device, for errors.
    :param noiommu: use the mode without an IOMMU, in which no memory can be mapped.
    :raises BackendUnavailable: the kernel has no VFIO.
    :raises AccessDenied: this user may not use it.
    """

    def __init__(self, uri: str, noiommu: bool = False) -> None:
        self._uri = uri
        self._noiommu = noiommu
        self._iommu = _IOMMU()
        self.fd = open_node(NODE, uri)
        try:
            version = ioctl(self.fd, Ioctl.GET_API_VERSION)
            if version != uapi.API_VERSION:
                raise BackendUnavailable(f"VFIO API version {version}", op="open", uri=uri)
        except BaseException:
            self.close()
            raise

    def set_iommu(self) -> None:
        """Choose the IOMMU's type, best first, and ask what it can map; after the first group.

        :raises BackendUnavailable: no type works; says what to do.
        """
        kind = self._choose_type()
        try:
            ioctl(self.fd, Ioctl.SET_IOMMU, kind)
        except OSError as error:
            hint = ""
            if error.errno == errno.EPERM:
                hint = (
                    "the platform cannot remap interrupts; if you accept that risk, load"
                    " vfio_iommu_type1 with allow_unsafe_interrupts=1"
                )
            raise BackendUnavailable(
                "the IOMMU cannot be used",
                op="open",
                uri=self._uri,
                errno=error.errno,
                hint=hint,
            ) from error
        if not self._noiommu:
            self._iommu = _IOMMU.of(self.fd)

    def _choose_type(self) -> Extension:
        wanted = (Extension.NOIOMMU,) if self._noiommu else (Extension.TYPE1V2, Extension.TYPE1)
        for kind in wanted:
            if ioctl(self.fd, Ioctl.CHECK_EXTENSION, kind) > 0:
                return kind
        hint = (
            "load vfio with enable_unsafe_noiommu_mode=1, then bind the device"
            if self._noiommu
            else "modprobe vfio_iommu_type1, and switch the IOMMU on (firmware, intel_iommu=on)"
        )
        raise BackendUnavailable(
            "the kernel offers no IOMMU of that kind", op="open", uri=self._uri, hint=hint
        )

    # The vector

    @property
    def iova_ranges(self) -> Sequence[tuple[int, int]]:
        return self._iommu.ranges

    @property
    def page_sizes(self) -> int:
        return self._iommu.page_sizes

    @property
    def max_maps(self) -> int:
        return self._iommu.max_maps

    @property
    def dirty_page_sizes(self) -> int:
        return self._iommu.dirty_page_sizes

    def dirty_start(self) -> None:
        self._dirty_pages(DirtyPagesFlags.START)

    def dirty_stop(self) -> None:
        self._dirty_pages(DirtyPagesFlags.STOP)

    def dirty_report(self, iova: int, size: int, page_size: int) -> Buffer:
        bitmap = self._bitmap(size, page_size)
        data = uapi.DIRTY_RANGE.pack(iova, size) + _described(bitmap, page_size)
        self._dirty_pages(DirtyPagesFlags.GET_BITMAP, data)
        return bitmap

    def _dirty_pages(self, flag: DirtyPagesFlags, data: bytes = b"") -> None:
        layout = uapi.DIRTY_PAGES
        request = bytearray(layout.pack(layout.size + len(data), flag) + data)
        ioctl(self.fd, ContainerIoctl.IOMMU_DIRTY_PAGES, request)

    def _bitmap(self, size: int, page_size: int) -> bytearray:
        """Room for the bitmap of a range; raises :class:`OSError` where the kernel takes less."""
        needed = bitmap_size(size, page_size)
        if needed > self._iommu.max_dirty_bitmap_size:
            reason = f"{self._iommu.max_dirty_bitmap_size} bytes of a bitmap at most"
            raise OSError(errno.E2BIG, reason)
        return bytearray(needed)

    def dma_map(
        self, iova: int, size: int, memory: DMASource, offset: int, flags: DMAMapFlags
    ) -> None:
        self._check_iommu()
        layout = vfio.DMA_MAP
        address = memory.address + offset
        request = bytearray(layout.pack(layout.size, flags, address, iova, size))
        try:
            self._map(request, iova, size)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise _memlock_error(iova, size, self._uri) from error
            raise

    def _map(self, request: bytearray, iova: int, size: int) -> None:
        try:
            ioctl(self.fd, ContainerIoctl.IOMMU_MAP_DMA, request)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # An old map is in the way (the VGA ROM space of some platforms): replace it.
            self._unmap(DMAUnmapFlags(0), iova, size)
            ioctl(self.fd, ContainerIoctl.IOMMU_MAP_DMA, request)

    def dma_unmap(self, iova: int, size: int) -> None:
        _check_all(self._unmap(DMAUnmapFlags(0), iova, size), size)

    def dma_unmap_dirty(self, iova: int, size: int, page_size: int) -> Buffer:
        bitmap = self._bitmap(size, page_size)
        described = _described(bitmap, page_size)
        _check_all(self._unmap(DMAUnmapFlags.GET_DIRTY_BITMAP, iova, size, described), size)
        return bitmap

    def begin(self) -> None:
        """Nothing to do: each map is through when its ioctl returns."""

    def commit(self) -> Sequence[BatchFailure]:
        return ()

    def dma_unmap_all(self) -> None:
        if ioctl(self.fd, Ioctl.CHECK_EXTENSION, Extension.UNMAP_ALL) > 0:
            self._unmap(DMAUnmapFlags.ALL, 0, 0)
        else:
            # 2^64 bytes do not fit into the size.
            for half in (0, _HALF):
                self._unmap(DMAUnmapFlags(0), half, _HALF)

    def _unmap(self, flags: DMAUnmapFlags, iova: int, size: int, data: bytes = b"") -> int:
        self._check_iommu()
        layout = vfio.DMA_UNMAP
        request = bytearray(layout.pack(layout.size + len(data), flags, iova, size) + data)
        ioctl(self.fd, ContainerIoctl.IOMMU_UNMAP_DMA, request)
        return layout.unpack_from(request).size

    def _check_iommu(self) -> None:
        if self._noiommu:
            raise UnsupportedError(
                "without an IOMMU no memory can be mapped for the device",
                op="dma map",
                uri=self._uri,
            )

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _IOMMU:
    """What an IOMMU can map; without one every address is "possible", and refused when used."""

    def __init__(
        self, page_sizes: int = PAGE_SIZE, capabilities: Iterable[chain.InfoCapability] = ()
    ) -> None:
        self.page_sizes = page_sizes
        self.ranges = [(0, (1 << 64) - 1)]
        self.max_maps = DEFAULT_MAX_MAPS
        self.dirty_page_sizes = 0
        self.max_dirty_bitmap_size = 0
        for capability in capabilities:
            if capability.id == IOMMUCapability.IOVA_RANGE:
                self.ranges = list(_ranges(capability.data))
            elif capability.id == IOMMUCapability.DMA_AVAIL:
                self.max_maps = uapi.DMA_AVAIL.unpack_from(capability.data).avail
            elif capability.id == IOMMUCapability.MIGRATION:
                found = uapi.IOMMU_MIGRATION.unpack_from(capability.data)
                self.dirty_page_sizes = found.pgsize_bitmap
                self.max_dirty_bitmap_size = found.max_dirty_bitmap_size

    @classmethod
    def of(cls, fd: int) -> _IOMMU:
        """What IOMMU_GET_INFO says; asked again where its capabilities did not fit."""
        layout = uapi.IOMMU_INFO
        size = layout.size
        while True:
            request = bytearray(layout.pack(size, 0, 0, 0)).ljust(size, b"\0")
            ioctl(fd, ContainerIoctl.IOMMU_GET_INFO, request)
            info = layout.unpack_from(request)
            if info.argsz <= size or size >= MAX_INFO:
                break
            size = min(info.argsz, MAX_INFO)
        first = info.cap_offset if info.flags & IOMMUInfoFlags.CAPS else 0
        page_sizes = info.iova_pgsizes if info.flags & IOMMUInfoFlags.PGSIZES else PAGE_SIZE
        return cls(page_sizes, chain.walk(request, layout.size, first))


def _ranges(data: bytes) -> Iterator[tuple[int, int]]:
    head, entry = uapi.IOVA_RANGES, uapi.IOVA_RANGE
    for position in range(head.unpack_from(data).nr_iovas):
        found = entry.unpack_from(data, head.size + position * entry.size)
        yield found.start, found.end


def _check_all(unmapped: int, size: int) -> None:
    if unmapped != size:
        raise OSError(errno.ENOENT, f"{unmapped} of {size} bytes were mapped")


def _described(bitmap: bytearray, page_size: int) -> bytes:
    """The struct that tells the kernel where to put a bitmap."""
    return uapi.BITMAP.pack(page_size, len(bitmap), address_of(bitmap))


def open_node(path: str, uri: str) -> int:
    """Open a node below /dev/vfio; an error says who may and what to do."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise BackendUnavailable(
            f"there is no {path}",
            op="open",
            uri=uri,
            errno=error.errno,
            hint="modprobe vfio-pci, and bind the device to it (pyvfio bind)",
        ) from error
    except PermissionError as error:
        raise AccessDenied(
            f"{path} may not be opened by uid {os.getuid()}",
            op="open",
            uri=uri,
            errno=error.errno,
            hint="give the node to this user: pyvfio bind --owner",
        ) from error
    except OSError as error:
        number = error.errno or errno.EIO
        raise OpenError(
            f"{path}: {os.strerror(number)}", op="open", uri=uri, errno=number
        ) from error


def _memlock_error(iova: int, size: int, uri: str) -> DMAError:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes"
    return DMAError(
        f"memory cannot be pinned: RLIMIT_MEMLOCK is {limit}, {_locked()} bytes are locked",
        iova=iova,
        size=size,
        op=f"dma map of {size} bytes at iova {iova:#x}",
        uri=uri,
        errno=errno.ENOMEM,
        hint="raise it (ulimit -l, LimitMEMLOCK=), or run with CAP_IPC_LOCK",
    )


def _locked() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmLck:"):
            return int(line.split()[1]) * 1024
    return 0
