# SPDX-License-Identifier: BSD-3-Clause
"""Accesses of the guest that the emulator makes on the device, one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pyvfio.errors import DeviceClosed, VFIOError
from pyvfio.native import mmio
from pyvfio.region import Region

log = logging.getLogger(__name__)


def _nothing() -> None:
    """What is done after an access where nobody wants to know of it."""


class TrappedRegion:
    """Makes each access on the device as it is; answers an MMIORegion.

    Where the device does not answer, a read gives all ones and a write is dropped, as on a bus.
    That is logged once, since a guest can have it again and again (QEMU's ``vfio_region_read`` and
    ``vfio_region_write`` log each).

    :param name: how messages call the function.
    :param start: the byte of the device's region that an access to offset 0 is for.
    :param on_access: called after each access.
    """

    def __init__(
        self,
        region: Region,
        name: str,
        *,
        start: int = 0,
        on_access: Callable[[], None] = _nothing,
    ) -> None:
        self._region = region
        self._name = name
        self._start = start
        self._on_access = on_access
        self._failed: set[str] = set()

    def read(self, offset: int, width: int) -> int:
        """A read of 1, 2, 4 or 8 bytes, aligned.

        :raises DeviceClosed: whoever has the device has closed it.
        """
        try:
            value = self._region.read(self._start + offset, width)
        except DeviceClosed:
            raise
        except VFIOError as error:
            self._complain("read", error)
            value = mmio.ALL_ONES[width]
        self._on_access()
        return value

    def write(self, offset: int, width: int, value: int) -> None:
        """A write of 1, 2, 4 or 8 bytes, aligned; raises as :meth:`read` does."""
        try:
            self._region.write(self._start + offset, width, value)
        except DeviceClosed:
            raise
        except VFIOError as error:
            self._complain("write", error)
        self._on_access()

    def _complain(self, verb: str, error: VFIOError) -> None:
        level = logging.DEBUG if verb in self._failed else logging.ERROR
        self._failed.add(verb)
        log.log(level, "%s: a %s of the guest failed: %s", self._name, verb, error)
