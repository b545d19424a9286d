# SPDX-License-Identifier: BSD-3-Clause
"""Register writes that are made by signalling an eventfd, without a message."""

from __future__ import annotations

from collections.abc import Callable

from pyvfio import eventfd
from pyvfio.errors import DeviceClosed
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
        self._retired = False

    def fileno(self) -> int:
        """The eventfd, which several registers may share; it stays the device's.

        :raises DeviceClosed: the device is closed, or was reached again meanwhile.
        """
        self._check_open("kick")
        if self._retired:
            raise DeviceClosed(
                "of a connection that is gone", op="kick", hint="take it from io_eventfds again"
            )
        return self._fd

    def retire(self) -> None:
        """Its descriptor is about to be closed; called by the region."""
        self._retired = True

    def kick(self) -> None:
        """Have the device see the write.

        Kicks are not ordered with writes by messages; a posted write before it may come later,
        unless ``flush()`` stands between.  Kicks that the device has not looked at may be seen as
        one.

        :raises DeviceClosed: as :meth:`fileno`.
        """
        eventfd.signal(self.fileno())

    def __repr__(self) -> str:
        match = "" if self.datamatch is None else f" datamatch={self.datamatch:#x}"
        return f"<IOEventFD +{self.offset:#x} size={self.size}{match}>"
