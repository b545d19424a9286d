# SPDX-License-Identifier: BSD-3-Clause
"""The migration data of a device as files: one to read, which saves it, one to write, which loads.

Both are raw streams of :mod:`io`: opaque bytes whose order matters, and their division does not.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from pyvfio.errors import DeviceClosed, MigrationError, VFIOError
from pyvfio.migration_control import StateControl
from pyvfio.uapi.vfio import DeviceState
from pyvfio.vectors import DeviceIO, PrecopyInfo

_Answer = TypeVar("_Answer")

READ_SIZE = 1 << 20
"""Bytes that are asked for at a time where nobody says how many."""


class MigrationStream(io.RawIOBase):
    """What saving and loading have in common.

    A read or write that fails, is not answered in time or is left by an exception of a signal
    handler's ends the transfer: whether it moved a piece is not known, and another would leave one
    out or double it.  All that can be done then is to abort.

    :param control: the device's state.
    :param device_io: what carries the data.
    """

    def __init__(self, control: StateControl, device_io: DeviceIO) -> None:
        super().__init__()
        self._control = control
        self._io = device_io
        self._transferred = 0
        self._broken = False

    def tell(self) -> int:
        """Bytes that were transferred."""
        return self._transferred

    def abort(self) -> None:
        """Give up: the device is put right, and the stream closed.  Nothing where it is closed."""
        raise NotImplementedError

    def release(self) -> None:
        """Close the stream without a word to the device, which is left as it is."""
        self._end()

    def close(self) -> None:
        """End the transfer, see the class.  May be repeated."""
        raise NotImplementedError

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._leave()
            return
        try:
            self.abort()
        except VFIOError as failure:
            error.add_note(str(failure))

    def _leave(self) -> None:
        """The ``with`` statement ends well."""
        self.close()

    def __del__(self) -> None:
        """A stream that was forgotten says nothing to the device: a collector runs anywhere."""

    def _end(self) -> None:
        super().close()

    def _move(self, op: str, question: Callable[[], _Answer]) -> _Answer:
        """Read or write once; the stream is broken until that has been answered."""
        self._check_whole(op)
        self._broken = True
        answer = self._control.transfer(op, question)
        self._broken = False
        return answer

    def _check_whole(self, op: str) -> None:
        if self._broken:
            state = self._control.known_state()
            raise self._failed("an earlier read or write has failed", state, op, errno.EIO)

    def _failed(self, reason: str, state: DeviceState | None, op: str, number: int) -> Exception:
        return MigrationError(reason, state=state, op=op, uri=self._control.uri, errno=number)


class SaveStream(MigrationStream):
    """A device's state, to be read.

    :meth:`read` and :meth:`readinto` give None in pre-copy when there is nothing now, and ``b""``
    or 0 at the end of the stream, which comes after :meth:`stop` only.

    Left after the end, the stream leaves the device in STOP: who has it loaded elsewhere decides
    what becomes of it.  Left by an error or before the end, the device goes on as before (RUNNING,
    or STOP where it was stopped), and what was read is worth nothing.

    :param precopy: begin to save while the device runs.
    """

    def __init__(self, control: StateControl, device_io: DeviceIO, precopy: bool) -> None:
        super().__init__(control, device_io)
        before = control.state
        self._back = DeviceState.RUNNING
        if before is DeviceState.STOP and not precopy:
            self._back = DeviceState.STOP
        control.change(DeviceState.PRE_COPY if precopy else DeviceState.STOP_COPY)
        self._precopy = precopy
        self._complete = False

    @property
    def in_precopy(self) -> bool:
        """Whether the device runs yet."""
        return self._precopy

    @property
    def complete(self) -> bool:
        """Whether the end of the stream was read."""
        return self._complete

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def precopy_info(self) -> PrecopyInfo:
        """What there is to read in pre-copy, estimated by the device.

        :raises UnsupportedError: it does not tell; vfio-user has no such message.
        :raises MigrationError: it refused, as it does when it does not run any more.
        """
        return self._control.transfer("pre-copy info", self._io.precopy_info)

    def readinto(self, buffer: Any) -> int | None:
        """The next bytes of the stream.

        :returns: how many; None in pre-copy where there are none now; 0 at the end.
        :raises MigrationError: the device failed, or a read has before.
        :raises VFIOTimeout: it did not answer; the save is to be aborted.
        :raises ConnectionLost: it is gone, and the save with it.
        """
        self._checkClosed()
        view = memoryview(buffer).cast("B")
        if self._complete or not view:
            return 0
        op = "read migration data"
        got = self._move(op, lambda: self._io.migration_read(view))
        if got:
            self._transferred += got
            return got
        if self._precopy:
            return None
        if got is None:
            state = self._control.known_state()
            raise self._failed("no data now, and the device is stopped", state, op, errno.ENOMSG)
        # A short read need not be the end with every server: one that gives nothing is.
        self._complete = True
        return 0

    def readall(self) -> bytes | None:  # type: ignore[override]
        """All that there is now in pre-copy, or up to the end; None where there is nothing now."""
        data, chunk = bytearray(), bytearray(READ_SIZE)
        while got := self.readinto(chunk):
            data += memoryview(chunk)[:got]
        return bytes(data) if data or got == 0 else None

    def stop(self) -> None:
        """End pre-copy: the device is stopped, and the rest can be read.  May be repeated.

        :raises MigrationError: it failed; the save is given up, and the device goes on if it can.
        """
        self._checkClosed()
        if self._precopy:
            try:
                self._control.change(DeviceState.STOP_COPY, recover=self._back)
            except MigrationError:  # and it has been put right
                self._end()
                raise
            self._precopy = False

    def finish(self) -> None:
        """Have the device stopped after the end of the stream, which is closed.

        Unlike :meth:`close`, a device that fails at it is left as it is: it must not go on by
        itself where another has been given its state.  An exception of a signal handler's leaves
        the stream open, for :meth:`abort`.

        :raises MigrationError: it failed, or the end was not read; says what it was left in.
        """
        self._checkClosed()
        if not self._complete:
            raise self._failed("the end was not read", None, "end of a save", errno.EINVAL)
        try:
            self._control.change(DeviceState.STOP, recover=DeviceState.ERROR, reset=False)
        except VFIOError:
            self._end()
            raise
        self._end()

    def abort(self) -> None:
        """Give up: the device goes on as before.  Nothing where the stream is closed.

        One that does not go on is left in STOP if it can be, and never reset: it is whole.

        :raises MigrationError: it does not; says what it was left in.
        """
        if not self.closed:
            try:
                self._control.change(self._back, recover=DeviceState.STOP, reset=False)
            except DeviceClosed:
                pass  # and nothing is left to be put right
            finally:
                self._end()

    def close(self) -> None:
        """Have the device stopped after the end of the stream, or going on as before it."""
        if not self._complete:
            self.abort()
        elif not self.closed:
            try:
                self._control.change(DeviceState.STOP, recover=self._back)
            finally:
                self._end()

    def _leave(self) -> None:
        if self._complete or self.closed:
            self.close()
            return
        self.abort()
        reason = f"the save was left before its end; the device is back in {self._back.name}"
        raise self._failed(reason, self._back, "save", errno.ECANCELED)


class LoadStream(MigrationStream):
    """The state of another device, to be written.

    Closing it has the device check what it was given: it is in STOP then, and can run.  Where that
    fails, or the ``with`` statement is left by an error, the device is reset: what it was given is
    lost, and it is as new.
    """

    def __init__(self, control: StateControl, device_io: DeviceIO) -> None:
        super().__init__(control, device_io)
        self._finished = False
        control.change(DeviceState.RESUMING)

    def writable(self) -> bool:
        """Whether it can be written: yes."""
        return True

    def write(self, data: Any) -> int:
        """Give the device the next bytes, all of them.

        :returns: how many.
        :raises MigrationError: it refused, or a write has failed before; it is to be aborted.
        :raises VFIOTimeout: it did not answer; the load is to be aborted.
        :raises ConnectionLost: it is gone.
        """
        self._checkClosed()
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            write = partial(self._io.migration_write, view[done:])
            taken = self._move("write migration data", write)
            done += taken
            self._transferred += taken
        return done

    def abort(self) -> None:
        """Give up: the device is reset.  Nothing where the stream is closed.

        :raises MigrationError: it is not as new; says what it was left in.
        """
        if self.closed:
            return
        self._end()
        state, what = self._control.reset()
        if state is not DeviceState.RUNNING:
            raise self._failed(what, state, "abort of a load", errno.EIO)

    def finish(self) -> None:
        """Have the device check what it was given: it is in STOP then.

        Unlike :meth:`close`, one that refuses is left as it is until :meth:`abort` resets it, for
        who puts another device right first.  One that does not can be reset by it still, until the
        stream is closed.

        :raises MigrationError: the device refused what it was given, or a write has failed.
        """
        self._checkClosed()
        self._check_whole("end of a load")
        self._control.change(DeviceState.STOP, recover=DeviceState.ERROR, reset=False)
        self._finished = True

    def close(self) -> None:
        """End the load: the device checks it, and is in STOP then.  May be repeated.

        :raises MigrationError: the device refused what it was given, or a write has failed, and it
            was reset.
        """
        if self._finished:
            self._end()
        if self._broken and not self.closed:
            self.abort()
            reason = "a write has failed, and the device was reset"
            raise self._failed(reason, DeviceState.RUNNING, "end of a load", errno.EIO)
        if not self.closed:
            try:
                self._control.change(DeviceState.STOP, recover=DeviceState.ERROR)
            finally:
                self._end()
