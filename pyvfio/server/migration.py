# SPDX-License-Identifier: BSD-3-Clause
"""The migration states of a hosted model, and what is done on the way from one to another.

Specification, "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE".  The table of arcs is
:mod:`pyvfio.migration_states`; a way of several arcs is gone through here.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import ClassVar

from pyvfio.migration_states import path
from pyvfio.server.contents import Contents
from pyvfio.server.failures import FAILURES
from pyvfio.server.run_control import RunControl
from pyvfio.server.saved_state import StateReader
from pyvfio.server.saving import Saving
from pyvfio.server.used_memory import used_bytes
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import DeviceState, MigrationFlags

log = logging.getLogger(__name__)

_S = DeviceState


class Migration:
    """Moves a device through its states, for one client after the other.

    A client that leaves ends its session with the data: in PRE_COPY the device runs on; in
    STOP_COPY it is left in STOP, for the next client to save again or to run; in RESUMING it is
    left in ERROR, since it has none of the two states whole.  In STOP and ERROR it stays: it might
    run elsewhere already.

    :ivar flags: what DEVICE_FEATURE_MIGRATION says.
    :ivar state: where the device is.
    """

    def __init__(self, contents: Contents, control: RunControl) -> None:
        self.flags = MigrationFlags.STOP_COPY
        if contents.has_precopy:
            self.flags |= MigrationFlags.PRE_COPY
        self.state = _S.RUNNING
        self._contents = contents
        self._control = control
        self._max_model = 0
        self._saving: Saving | None = None
        self._loading: StateReader | None = None

    def set_state(self, number: int, max_model: int) -> None:
        """Go to a state, whichever way; the device is there when this returns.

        :param max_model: bytes of the model's own that a stream may have.
        :raises OSError: EINVAL; there is no such state, or no way.
        :raises Exception: an arc failed; :attr:`state` is the last one that was reached, or ERROR.
        """
        if number not in list(DeviceState):
            raise OSError(errno.EINVAL, f"there is no state {number}")
        wanted = DeviceState(number)
        way = path(self.state, wanted, self.flags)
        if way is None:
            raise OSError(errno.EINVAL, f"no way from {self.state.name} to {wanted.name}")
        self._max_model = max_model
        for following in way:
            self._ARCS[self.state, following](self)
            self.state = following

    def was_reset(self) -> None:
        """The device was reset, and runs."""
        self._end_session()
        self.state = _S.RUNNING

    def client_lost(self) -> None:
        """Its session with the data is over."""
        left = {_S.PRE_COPY: _S.RUNNING, _S.STOP_COPY: _S.STOP, _S.RESUMING: _S.ERROR}
        self._end_session()
        self.state = left.get(self.state, self.state)

    # Data

    def read(self, size: int) -> bytes:
        """MIG_DATA_READ: the next bytes, fewer where there is nothing more now.

        :raises OSError: EINVAL; it is not being saved.
        """
        if self._saving is None:
            raise OSError(errno.EINVAL, f"there is nothing to read in {self.state.name}")
        return self._saving.read(size)

    def write(self, data: Buffer) -> None:
        """MIG_DATA_WRITE: the next bytes.

        :raises OSError: EINVAL; it is not being loaded, or these are not the bytes of a device like
            this one, and the load cannot succeed any more.
        """
        if self._loading is None:
            raise OSError(errno.EINVAL, f"there is nothing to write in {self.state.name}")
        try:
            self._loading.feed(data)
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from error

    def data_size(self) -> int:
        """Bytes that are left to read, about, if the device is stopped now.

        What the model itself will save is not known before it has stopped.
        """
        if self._saving is not None:
            return self._saving.data_size()
        return sum(used_bytes(*memory) for memory in self._contents.memory.values())

    def _end_session(self) -> None:
        if self._saving is not None:
            self._saving.close()
        self._saving = self._loading = None

    # Arcs

    def _stop(self) -> None:
        self._attempt(self._control.stop, undo=self._control.start)

    def _run(self) -> None:
        self._attempt(self._control.start, undo=self._control.stop)

    def _attempt(self, action: Callable[[], None], undo: Callable[[], None]) -> None:
        """Do something, or leave the device as it was; in ERROR where that fails as well."""
        try:
            action()
        except FAILURES:
            try:
                undo()
            except FAILURES:
                log.exception("the device could not be left in %s", self.state.name)
                self._fail()
            raise

    def _fail(self) -> None:
        self._control.halt()
        self._end_session()
        self.state = _S.ERROR

    def _begin_precopy(self) -> None:
        self._saving = Saving(self._contents, running=True)

    def _begin_save(self) -> None:
        parts = self._contents.save()
        self._saving = Saving(self._contents, running=False)
        self._saving.finish(parts)

    def _stop_and_save(self) -> None:
        assert self._saving is not None
        self._saving.check()
        self._attempt(self._finish_save, undo=self._control.start)

    def _finish_save(self) -> None:
        assert self._saving is not None
        self._control.stop()
        self._saving.finish(self._contents.save())

    def _begin_load(self) -> None:
        self._loading = StateReader(self._contents.declared, self._max_model)

    def _load(self) -> None:
        assert self._loading is not None
        try:
            self._contents.load(self._loading)
        except FAILURES:
            self._fail()
            raise
        # What a thread of the model's waits with is of the state that was replaced.
        self._control.gate.drop_waiting()
        self._end_session()

    _ARCS: ClassVar[dict[tuple[DeviceState, DeviceState], Callable[[Migration], None]]] = {
        (_S.RUNNING, _S.STOP): _stop,
        (_S.STOP, _S.RUNNING): _run,
        (_S.STOP, _S.STOP_COPY): _begin_save,
        (_S.STOP_COPY, _S.STOP): _end_session,
        (_S.STOP, _S.RESUMING): _begin_load,
        (_S.RESUMING, _S.STOP): _load,
        (_S.RUNNING, _S.PRE_COPY): _begin_precopy,
        (_S.PRE_COPY, _S.RUNNING): _end_session,
        (_S.PRE_COPY, _S.STOP_COPY): _stop_and_save,
    }
