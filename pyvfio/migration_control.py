# SPDX-License-Identifier: BSD-3-Clause
"""The state of a device that migrates: asked, changed, and put right where a change fails.

The other side is told where to go and finds the way itself, as QEMU has it: a kernel may know
states that this package does not, and a device never stands half way where its client dies.  The
way is looked up here as well (:mod:`pyvfio.migration_states`), so that what cannot be done is
refused before the device is touched.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from pyvfio.base import VFIOBase
from pyvfio.errors import (
    MigrationError,
    RemoteProtocolError,
    UnsupportedError,
    VFIOError,
    operation_error,
)
from pyvfio.migration_states import path, supported
from pyvfio.uapi import vfio
from pyvfio.uapi.vfio import DeviceState, Feature, MigrationFlags
from pyvfio.vectors import known

_Answer = TypeVar("_Answer")

AT_REST = frozenset((DeviceState.RUNNING, DeviceState.RUNNING_P2P, DeviceState.STOP))
"""States that a device can go back to: no data is transferred in them."""


class StateControl:
    """The state machine of one device.

    :param base: the device.
    """

    def __init__(self, base: VFIOBase) -> None:
        self._base = base

    @property
    def uri(self) -> str:
        """The device, for errors."""
        return self._base.uri

    @property
    def flags(self) -> MigrationFlags:
        """Which states the device has; asked each time.

        :raises UnsupportedError: the device cannot migrate.
        """
        layout = vfio.FEATURE_MIGRATION
        data = self._base.features.get(Feature.MIGRATION, layout.size)
        flags = known(MigrationFlags, layout.unpack_from(data).flags)
        if not flags & MigrationFlags.STOP_COPY:
            raise UnsupportedError("the device has no STOP_COPY", op="migration", uri=self.uri)
        return flags

    @property
    def state(self) -> DeviceState:
        """What the device does now; asked each time.

        :raises UnsupportedError: the device cannot migrate.
        """
        layout = vfio.FEATURE_STATE
        number = layout.unpack_from(
            self._base.features.get(Feature.MIG_DEVICE_STATE, layout.size)
        ).device_state
        try:
            return DeviceState(number)
        except ValueError:
            raise RemoteProtocolError(
                f"the device is in state {number}", op="migration", uri=self.uri
            ) from None

    def change(
        self, state: DeviceState, recover: DeviceState | None = None, *, reset: bool = True
    ) -> None:
        """Bring the device into another state; returns when it is there.

        Where that fails it is put back as QEMU's ``vfio_migration_set_state`` does: into
        ``recover``, and where that fails as well, or is ERROR, by a reset.  An exception of a
        signal handler's is no failure of the device: one that runs by then, as it was to, is left
        running, and only half a load is worth a reset.

        :param recover: where to go back; by default where it comes from, or ERROR if data were
            transferred there.
        :param reset: whether it is reset; else it is left as it is, and what it has is not lost.
        :raises MigrationError: it cannot go there, or failed to; says what it was left in.
        :raises UnsupportedError: the device cannot migrate, or has no such state.
        :raises ConnectionLost: the server is gone, and what it did is not known.
        :raises VFIOTimeout: it did not answer; it may get there yet.
        :raises ValueError: ERROR was asked for.
        """
        if state is DeviceState.ERROR:
            raise ValueError(f"{self.uri}: nobody can bring a device into ERROR")
        op = f"migration to {state.name}"
        before = self.state
        self._check_way(before, state, op)
        if state is before:
            return
        if recover is None:
            recover = before if before in AT_REST else DeviceState.ERROR
        try:
            self._base.device_io.set_migration_state(state)
        except OSError as error:
            failure = operation_error(error, MigrationError, op=op, uri=self.uri)
            if isinstance(failure, MigrationError):
                failure.state, what = self._recover(recover, reset)
                failure.reason += f"; {what}"
            raise failure from error
        except VFIOError:
            raise
        except BaseException:  # a signal handler's: it may be there by now
            runs = state is DeviceState.RUNNING and self.known_state() is state
            if not runs:
                self._recover(recover, reset and before is DeviceState.RESUMING)
            raise

    def _check_way(self, before: DeviceState, state: DeviceState, op: str) -> None:
        flags = self.flags
        if state not in supported(flags):
            raise UnsupportedError("the device has no such state", op=op, uri=self.uri)
        if before is DeviceState.ERROR:
            reason, hint = "the device has failed", "only a reset brings it back to RUNNING"
        elif path(before, state, flags) is None:
            reason, hint = f"there is no way from {before.name}", "go to RUNNING first"
        else:
            return
        raise MigrationError(
            reason, state=before, op=op, uri=self.uri, errno=errno.EINVAL, hint=hint
        )

    def _recover(self, wanted: DeviceState, reset: bool) -> tuple[DeviceState | None, str]:
        """Put the device right after a failure; returns its state, and what was done."""
        try:
            if wanted is not DeviceState.ERROR:
                if self.state is wanted:
                    return wanted, f"the device is in {wanted.name}"
                self._base.device_io.set_migration_state(wanted)
                return wanted, f"the device was put back to {wanted.name}"
        except (VFIOError, OSError):
            pass  # what follows says what becomes of it
        if reset:
            return self.reset()
        state = self.known_state()
        return state, f"the device is in {_name(state)}"

    def reset(self) -> tuple[DeviceState | None, str]:
        """Reset the device, which is what leaves ERROR; returns its state, and what was done."""
        try:
            self._base.reset()
        except VFIOError as error:
            return self.known_state(), f"the device could not be reset ({error.reason})"
        state = self.known_state()
        return state, f"the device was reset, and is in {_name(state)}"

    def known_state(self) -> DeviceState | None:
        """The state; None where it cannot be asked."""
        try:
            return self.state
        except VFIOError:
            return None

    def transfer(self, op: str, question: Callable[[], _Answer]) -> _Answer:
        """Ask for data, or give some.

        :raises MigrationError: the device refused; says what it is in.
        :raises ConnectionLost: it is gone.
        """
        self._base.check_open(op)
        try:
            return question()
        except OSError as error:
            failure = operation_error(error, MigrationError, op=op, uri=self.uri)
            if isinstance(failure, MigrationError):
                failure.state = self.known_state()
            raise failure from error


def _name(state: DeviceState | None) -> str:
    return "a state that is not known" if state is None else state.name
