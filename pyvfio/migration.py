# SPDX-License-Identifier: BSD-3-Clause
"""Migration of a device: its state is saved, and loaded into another.

The protocol is the kernel's second (``VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE``), which vfio-user has
taken over.
"""

from __future__ import annotations

import errno
import threading

from pyvfio.base import VFIOBase
from pyvfio.errors import MigrationError, UnsupportedError
from pyvfio.migration_control import StateControl
from pyvfio.migration_stream import LoadStream, MigrationStream, SaveStream
from pyvfio.uapi import vfio
from pyvfio.uapi.vfio import DeviceState, Feature, MigrationFlags


class Migration:
    """Saving, loading, stopping and running a device.

    ::

        with source.migration.save(precopy=True) as f:
            while (data := f.read(1 << 20)) is not None:  # None: nothing more for now
                send(data)
            f.stop()
            while data := f.read(1 << 20):
                send(data)

        with destination.migration.load() as f:
            for data in received:
                f.write(data)
        destination.migration.run()

    Memory of the device is not part of it, nor is what the kernel or client holds: interrupts and
    DMA maps.

    :param base: the device.
    """

    def __init__(self, base: VFIOBase) -> None:
        self._base = base
        self._control = StateControl(base)
        self._lock = threading.Lock()
        self._stream: MigrationStream | None = None

    @property
    def uri(self) -> str:
        """The device, for errors."""
        return self._base.uri

    @property
    def flags(self) -> MigrationFlags:
        """Which states the device has; asked each time.

        :raises UnsupportedError: the device cannot migrate.
        """
        return self._control.flags

    @property
    def supported(self) -> bool:
        """Whether the device can migrate."""
        try:
            return bool(self.flags)
        except UnsupportedError:
            return False

    @property
    def state(self) -> DeviceState:
        """What the device does now; asked each time.

        :raises UnsupportedError: the device cannot migrate.
        """
        return self._control.state

    def set_state(
        self, state: DeviceState, recover: DeviceState | None = None, *, reset: bool = True
    ) -> None:
        """Bring the device into another state, by whatever way; returns when it is there.

        Where that fails it is put back into ``recover``, and where that fails as well, or is
        ERROR, it is reset.  ERROR is left by a reset only.

        :param recover: by default the state that it comes from, or ERROR if data were transferred.
        :param reset: False leaves it as it is instead, and what it has is not lost.
        :raises MigrationError: it cannot go there, or failed to; ``state`` is what it was left in.
        :raises UnsupportedError: the device cannot migrate, or has no such state.
        :raises ConnectionLost: the server is gone, and what it did is not known.
        :raises VFIOTimeout: it did not answer; it may get there yet.
        :raises ValueError: ERROR was asked for, or it is no state.
        """
        recovering = None if recover is None else DeviceState(recover)
        self._control.change(DeviceState(state), recovering, reset=reset)

    def run(self) -> None:
        """Have the device run; raises as :meth:`set_state` does."""
        self.set_state(DeviceState.RUNNING)

    def stop(self) -> None:
        """Have the device do nothing; raises as :meth:`set_state` does."""
        self.set_state(DeviceState.STOP)

    def data_size(self) -> int:
        """Bytes that a save without pre-copy is estimated to have.

        :raises UnsupportedError: the device does not tell; most vfio-user servers do not.
        """
        layout = vfio.FEATURE_DATA_SIZE
        data = self._base.features.get(Feature.MIG_DATA_SIZE, layout.size)
        return layout.unpack_from(data).stop_copy_length

    def save(self, precopy: bool = False) -> SaveStream:
        """The device's state as a file to read; see :class:`SaveStream` for how it ends.

        :param precopy: let the device run while most of its state is read, until
            :meth:`SaveStream.stop`; else it is stopped at once.
        :raises MigrationError: it cannot be saved in its state, or another save or load goes on.
        :raises UnsupportedError: the device cannot migrate, or has no pre-copy.
        """
        with self._lock:
            self._check_no_stream("save")
            self._stream = stream = SaveStream(self._control, self._base.device_io, precopy)
            return stream

    def load(self) -> LoadStream:
        """A file to write a saved state to; see :class:`LoadStream` for how it ends.

        :raises MigrationError: it cannot be loaded in its state, or another save or load goes on.
        :raises UnsupportedError: the device cannot migrate.
        """
        with self._lock:
            self._check_no_stream("load")
            self._stream = stream = LoadStream(self._control, self._base.device_io)
            return stream

    def _check_no_stream(self, op: str) -> None:
        if self._stream is not None and not self._stream.closed:
            raise MigrationError(
                "another save or load goes on",
                op=op,
                uri=self._base.uri,
                errno=errno.EBUSY,
                hint="close it, or abort() it",
            )
