# SPDX-License-Identifier: BSD-3-Clause
"""What has become of a device that was reached again: what is set up as before, what is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyvfio.errors import OpenError, VFIOError
from pyvfio.vectors import DeviceInfo, DeviceIO, RegionInfo


@dataclass(frozen=True, slots=True)
class Reconnection:
    """What :meth:`VFIOBase.reconnect` has done.

    The server keeps a device's registers where it only closed the connection, and has lost them
    where it was started again; the protocol does not tell which.  The owner sets the device up
    anew, or resets it.

    :ivar maps: DMA ranges that are mapped again, at the same addresses.
    :ivar vectors: interrupt vectors that signal their eventfds again.
    :ivar failures: the error of each range that could not be mapped, which is not mapped any more,
        and of each interrupt index that could not be enabled, whose set is closed.
    :ivar signals: interrupts that had been signalled and not waited for; they are dropped.
    :ivar stale_views: regions of which numpy views are alive, which show the memory of the server
        that is gone.
    :ivar unflushed: posted writes were under way when the connection was lost; whether the device
        has seen them is not known.
    """

    maps: int
    vectors: int
    failures: tuple[VFIOError, ...]
    signals: int
    stale_views: tuple[str, ...]
    unflushed: bool


def check_same_device(
    device_io: DeviceIO, before: DeviceInfo, regions: Mapping[int, RegionInfo], uri: str
) -> dict[int, RegionInfo]:
    """The new infos of the regions that are in use.

    :param before: what the device said of itself.
    :param regions: what it said of the regions that are in use.
    :raises OpenError: it is another device now.
    """
    info = device_io.get_info()
    if info != before:
        raise _another(f"{info} instead of {before}", uri)
    found = {index: device_io.get_region_info(index) for index in regions}
    for index, old in regions.items():
        new = found[index]
        if (new.size, new.flags, new.areas) != (old.size, old.flags, old.areas):
            raise _another(f"region {index} has {new.size:#x} bytes, {new.flags!r}", uri)
    return found


def _another(reason: str, uri: str) -> OpenError:
    return OpenError(f"another device answers: {reason}", op="reconnect", uri=uri)
