# SPDX-License-Identifier: BSD-3-Clause
"""The device vector on a VFIO device descriptor of the kernel."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Sequence

from pyvfio.backends.ioctl.hot_reset import dependents, hot_reset
from pyvfio.backends.ioctl.migration_data import MigrationData
from pyvfio.dirty_bitmap import bitmap_size
from pyvfio.errors import IRQError
from pyvfio.native.ioctl import address_of, ioctl
from pyvfio.uapi import vfio
from pyvfio.uapi.ioctl import DeviceIoctl, Ioctl
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import (
    PCI_NUM_IRQS,
    PCI_NUM_REGIONS,
    DeviceFlags,
    DeviceState,
    Feature,
    FeatureFlags,
    IRQFlags,
    IRQSetFlags,
    RegionFlags,
)
from pyvfio.vectors import (
    MAX_REGION_INFO,
    DeviceInfo,
    DeviceIO,
    IRQInfo,
    PrecopyInfo,
    RegionInfo,
)


class KernelDeviceIO(DeviceIO):
    """Each operation is one ioctl, pread or pwrite.

    :param fd: the device, as GROUP_GET_DEVICE_FD gives it; owned from now on.
    :param group_fd: the descriptor of an IOMMU group, if this process has it open.
    """

    def __init__(self, fd: int, group_fd: Callable[[int], int | None]) -> None:
        self.fd = fd
        self._group_fd = group_fd
        self._offsets: dict[int, int] = {}
        self._data = MigrationData()

    def get_info(self) -> DeviceInfo:
        layout = vfio.DEVICE_INFO
        request = bytearray(layout.pack(layout.size, 0, 0, 0))
        ioctl(self.fd, Ioctl.DEVICE_GET_INFO, request)
        info = layout.unpack_from(request)
        return DeviceInfo(DeviceFlags(info.flags), info.num_regions, info.num_irqs)

    def get_region_info(self, index: int) -> RegionInfo:
        try:
            data = self._region_data(index)
        except OSError as error:
            # vfio-pci refuses the regions that a device does not have, such as VGA.
            if error.errno == errno.EINVAL and index < PCI_NUM_REGIONS:
                return RegionInfo(index, RegionFlags(0), 0)
            raise
        info = vfio.REGION_INFO.unpack_from(data)
        self._offsets[index] = info.offset
        return RegionInfo.from_struct(info, data, self.fd)

    def _region_data(self, index: int) -> bytearray:
        """The region's info with its capabilities; asked again where they did not fit."""
        layout = vfio.REGION_INFO
        size = layout.size
        while True:
            data = bytearray(layout.pack(size, 0, index, 0, 0, 0)).ljust(size, b"\0")
            ioctl(self.fd, Ioctl.DEVICE_GET_REGION_INFO, data)
            needed = layout.unpack_from(data).argsz
            if needed <= size or size >= MAX_REGION_INFO:
                return data
            size = min(needed, MAX_REGION_INFO)

    def get_irq_info(self, index: int) -> IRQInfo:
        layout = vfio.IRQ_INFO
        request = bytearray(layout.pack(layout.size, 0, index, 0))
        try:
            ioctl(self.fd, Ioctl.DEVICE_GET_IRQ_INFO, request)
        except OSError as error:
            # vfio-pci refuses the indexes that a device does not have, such as ERR.
            if error.errno == errno.EINVAL and index < PCI_NUM_IRQS:
                return IRQInfo(index, IRQFlags(0), 0)
            raise
        info = layout.unpack_from(request)
        return IRQInfo(index, IRQFlags(info.flags), info.count)

    def set_irqs(
        self,
        index: int,
        action: IRQSetFlags,
        start: int,
        count: int,
        *,
        eventfds: Sequence[int] | None = None,
        bools: Sequence[bool] | None = None,
    ) -> None:
        kind, data = IRQSetFlags.DATA_NONE, b""
        if eventfds is not None:
            kind, data = IRQSetFlags.DATA_EVENTFD, struct.pack(f"={len(eventfds)}i", *eventfds)
        elif bools is not None:
            kind, data = IRQSetFlags.DATA_BOOL, bytes(bools)
        layout = vfio.IRQ_SET
        head = layout.pack(layout.size + len(data), kind | action, index, start, count)
        free = ioctl(self.fd, Ioctl.DEVICE_SET_IRQS, bytearray(head + data))
        if free > 0:  # nothing was enabled: the host has no more vectors left
            raise IRQError(
                f"the host has {free} vectors left",
                available=free,
                op=f"enable {count} vectors of irq {index}",
                errno=errno.ENOSPC,
            )

    def region_read(self, index: int, offset: int, size: int) -> Buffer:
        return os.pread(self.fd, size, self._offset(index) + offset)

    def region_read_into(self, index: int, offset: int, buffer: memoryview) -> int:
        return os.preadv(self.fd, [buffer], self._offset(index) + offset)

    def region_write(self, index: int, offset: int, data: Buffer, *, posted: bool = False) -> int:
        return os.pwrite(self.fd, data, self._offset(index) + offset)

    def flush(self) -> None:
        """Nothing is posted: the kernel has made the access when it returns."""

    def _offset(self, index: int) -> int:
        if index not in self._offsets:
            self.get_region_info(index)
        return self._offsets[index]

    def reset(self) -> None:
        ioctl(self.fd, Ioctl.DEVICE_RESET)
        self._data.close()  # the session, if there was one, is over

    def hot_reset(self) -> None:
        hot_reset(self.fd, self._group_fd)
        self._data.close()  # as with reset()

    def hot_reset_functions(self) -> Sequence[str]:
        return [found.address for found in dependents(self.fd)]

    def feature(self, flags: int, data: Buffer = b"", size: int = 0) -> Buffer:
        layout = vfio.DEVICE_FEATURE
        total = layout.size + max(len(data), size)
        request = bytearray(layout.pack(total, flags) + data).ljust(total, b"\0")
        ioctl(self.fd, DeviceIoctl.FEATURE, request)
        return memoryview(request)[layout.size :]

    def set_migration_state(self, state: DeviceState) -> None:
        layout = vfio.FEATURE_STATE
        flags = Feature.MIG_DEVICE_STATE | FeatureFlags.SET
        reply = layout.unpack_from(self.feature(flags, layout.pack(state, -1)))
        self._data.follow(state, reply.data_fd)

    def migration_read(self, buffer: memoryview) -> int | None:
        return self._data.read(buffer)

    def migration_write(self, data: memoryview) -> int:
        return self._data.write(data)

    def precopy_info(self) -> PrecopyInfo:
        return self._data.precopy_info()

    def logging_start(self, page_size: int, ranges: Sequence[tuple[int, int]]) -> int:
        layout = vfio.LOGGING_CONTROL
        listed = bytearray(b"".join(vfio.LOGGING_RANGE.pack(*found) for found in ranges))
        data = layout.pack(page_size, len(ranges), 0) + _pointer(listed)
        flags = Feature.DMA_LOGGING_START | FeatureFlags.SET
        return layout.unpack_from(self.feature(flags, data)).page_size

    def logging_stop(self) -> None:
        self.feature(Feature.DMA_LOGGING_STOP | FeatureFlags.SET)

    def logging_report(self, iova: int, size: int, page_size: int) -> Buffer:
        bitmap = bytearray(bitmap_size(size, page_size))
        data = vfio.LOGGING_REPORT.pack(iova, size, page_size) + _pointer(bitmap)
        self.feature(Feature.DMA_LOGGING_REPORT | FeatureFlags.GET, data)
        return bitmap

    def close(self) -> None:
        self._data.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _pointer(buffer: bytearray) -> bytes:
    """The member of a struct that points to a buffer."""
    return struct.pack("=Q", address_of(buffer))
