# SPDX-License-Identifier: BSD-3-Clause
"""Register writes that are made by signalling an eventfd, without a message."""

from __future__ import annotations

from collections.abc import Callable

from pyvfio import eventfd
from pyvfio.vectors import IOEventFDInfo


class IOEventFD:
    """A register of a region that can be kicked (KVM's ioeventfd).

    :ivar offset: where it is in the region.
    :ivar size: width in bytes of the write that a kick stands for; 0 is any.
    :ivar datamatch: the value that is written; None where the device does not look at it.
    """

    def __init__(self, info: IOEventFDInfo, check_open: Callable[[str], None]) -> None:
        self.offset = info.offset
        self.size = info.size
        self.datamatch = info.datamatch
        self._fd = info.fd
        self._check_open = check_open

    def fileno(self) -> int:
        """The eventfd, which several registers may share; it stays the device's."""
        self._check_open("kick")
        return self._fd

    def kick(self) -> None:
        """Have the device see the write.

        Kicks are not ordered with writes by messages; a posted write before it may come later,
        unless ``flush()`` stands between.  Kicks that the device has not looked at may be seen as
        one.

        :raises DeviceClosed: the device is closed.
        """
        eventfd.signal(self.fileno())

    def __repr__(self) -> str:
        match = "" if self.datamatch is None else f" datamatch={self.datamatch:#x}"
        return f"<IOEventFD +{self.offset:#x} size={self.size}{match}>"
