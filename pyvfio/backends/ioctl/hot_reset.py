# SPDX-License-Identifier: BSD-3-Clause
"""Hot reset: the kernel resets a bus or slot, if the caller owns every device there."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from pyvfio.errors import ResetError
from pyvfio.native.ioctl import ioctl
from pyvfio.uapi.ioctl import DEPENDENT_DEVICE, HOT_RESET, HOT_RESET_INFO, DeviceIoctl
from pyvfio.uapi.ioctl import DependentDevice as Dependent

MAX_DEVICES = 8192
"""Devices below one bus: 256 buses of 32 slots."""


def dependents(fd: int) -> list[Dependent]:
    """The devices that a hot reset of the device behind ``fd`` resets, itself included.

    :raises OSError: ENODEV where the device is in no slot or bus that can be reset.
    """
    layout, entry, room = HOT_RESET_INFO, DEPENDENT_DEVICE, 1
    while True:
        size = layout.size + room * entry.size
        request = bytearray(layout.pack(size, 0, 0)).ljust(size, b"\0")
        try:
            ioctl(fd, DeviceIoctl.GET_PCI_HOT_RESET_INFO, request)
        except OSError as error:
            count = layout.unpack_from(request).count
            if error.errno != errno.ENOSPC or not room < count <= MAX_DEVICES:
                raise
            room = count
            continue
        count = layout.unpack_from(request).count
        places = range(layout.size, layout.size + count * entry.size, entry.size)
        return [entry.unpack_from(request, place) for place in places]


def hot_reset(fd: int, group_fd: Callable[[int], int | None]) -> None:
    """Reset the bus or slot of the device behind ``fd``.

    :param group_fd: the descriptor of a group that this process has open.
    :raises ResetError: a device that would be reset is in a group that is not open here.
    :raises OSError: the kernel refused.
    """
    groups: list[int] = []
    foreign: list[str] = []
    for number in sorted({found.group_id for found in dependents(fd)}):
        descriptor = group_fd(number)
        if descriptor is None:
            foreign.append(str(number))
        else:
            groups.append(descriptor)
    if foreign:
        raise ResetError(
            f"devices of IOMMU group {', '.join(foreign)} would be reset as well",
            op="hot reset",
            errno=errno.EPERM,
            hint="open a device of each of these groups first",
        )
    size = HOT_RESET.size + 4 * len(groups)
    request = HOT_RESET.pack(size, 0, len(groups)) + struct.pack(f"={len(groups)}i", *groups)
    ioctl(fd, DeviceIoctl.PCI_HOT_RESET, bytearray(request))
