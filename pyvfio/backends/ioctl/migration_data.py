# SPDX-License-Identifier: BSD-3-Clause
"""The descriptor through which the kernel gives and takes the migration data of a device."""

from __future__ import annotations

import errno
import os

from pyvfio.migration_states import DATA, SAVING
from pyvfio.native.ioctl import ioctl
from pyvfio.uapi import ioctl as uapi
from pyvfio.uapi.ioctl import Ioctl
from pyvfio.uapi.vfio import DeviceState
from pyvfio.vectors import PrecopyInfo

NONE = -1


class MigrationData:
    """``data_fd`` of ``struct vfio_device_feature_mig_state``, owned while a session goes on."""

    def __init__(self) -> None:
        self._fd = NONE
        self._saves = False

    def follow(self, state: DeviceState, fd: int) -> None:
        """The device has changed its state: the session ends, goes on, or begins.

        :param fd: what came with the answer; -1 where no session begins.
        :raises OSError: EBADF, one came for a session that goes on, as QEMU's
            ``vfio_migration_set_state`` has it; it is closed.
        """
        saves = state in SAVING
        if state not in DATA or saves is not self._saves:
            self.close()
        self._saves = saves
        if fd == NONE:
            return
        if self._fd != NONE:
            os.close(fd)
            raise OSError(errno.EBADF, "a second descriptor came for one session")
        self._fd = fd

    def read(self, buffer: memoryview) -> int | None:
        """Bytes read; None where there is nothing now, 0 at the end."""
        try:
            return os.readv(self._session, [buffer])
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.ENOMSG:  # pre-copy data may come later
                raise
            return None

    def write(self, data: memoryview) -> int:
        """Bytes taken."""
        return os.write(self._session, data)

    def precopy_info(self) -> PrecopyInfo:
        """How much there is to read while the device runs."""
        layout = uapi.PRECOPY_INFO
        request = bytearray(layout.pack(layout.size, 0, 0, 0))
        ioctl(self._session, Ioctl.MIG_GET_PRECOPY_INFO, request)
        info = layout.unpack_from(request)
        return PrecopyInfo(info.initial_bytes, info.dirty_bytes)

    @property
    def _session(self) -> int:
        if self._fd == NONE:
            raise OSError(errno.EBADF, "no migration data is transferred")
        return self._fd

    def close(self) -> None:
        """End the session.  May be repeated."""
        if self._fd != NONE:
            os.close(self._fd)
            self._fd = NONE
