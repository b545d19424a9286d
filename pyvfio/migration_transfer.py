# SPDX-License-Identifier: BSD-3-Clause
"""Reads a device's state from beginning to end: passes while it runs, then the rest.

Pre-copy ends when another pass would not make the rest much smaller.  That is decided by what came:
only the kernel tells what is left while a device runs (``VFIO_MIG_GET_PRECOPY_INFO``), and
estimates are not to be relied upon.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeAlias

from pyvfio.errors import MigrationError, OperationError, UnsupportedError
from pyvfio.migration import Migration
from pyvfio.migration_stream import READ_SIZE, SaveStream
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import DeviceState, MigrationFlags

SMALL = 1 << 20
"""Bytes of a pass after which the device is stopped: the rest is about as much."""
MAX_ROUNDS = 16
SHRINKS = 0.75
"""How much smaller than the one before a pass must be to be worth another."""
PRECOPY_SECONDS = 30.0
MAX_SIZE = 16 << 30
"""Bytes of a state, where nobody allows more: a stream need not have an end."""

Progress: TypeAlias = "Callable[[Transfer], None]"


class Transfer:
    """How far a device's state was read; it changes as the transfer goes on.

    :ivar rounds: bytes of each pass of pre-copy.
    :ivar stopped_bytes: bytes that were read of the stopped device.
    :ivar stopped: whether the device was told to stop.
    :ivar downtime: seconds in which neither source nor destination ran; None where the device was
        stopped before, or does not run again.
    :ivar source_failure: why the source did not come to rest as it should have when its state had
        been loaded elsewhere already; it does not run.

    :param migration: the source.
    :param precopy: read most of it while it runs; by default where it can be done.
    :param precopy_seconds: pre-copy ends after this time.
    :param piece: bytes to ask for at a time; some devices give their state in one size only.
    :param max_size: bytes that the state may have, pre-copy included.
    :param progress: called after every piece.
    :raises ValueError: a time or size that is none.
    """

    def __init__(
        self,
        migration: Migration,
        *,
        precopy: bool | None = None,
        precopy_seconds: float = PRECOPY_SECONDS,
        piece: int = READ_SIZE,
        max_size: int = MAX_SIZE,
        progress: Progress | None = None,
    ) -> None:
        if not precopy_seconds >= 0 or piece <= 0:
            raise ValueError(f"pre-copy for {precopy_seconds} s in pieces of {piece} bytes")
        if max_size < 0:
            raise ValueError(f"a state of at most {max_size} bytes")
        self.rounds: list[int] = []
        self.stopped_bytes = 0
        self.stopped = False
        self.downtime: float | None = None
        self.source_failure: Exception | None = None
        self._migration = migration
        self._precopy = precopy
        self._precopy_seconds = precopy_seconds
        self._piece = piece
        self._max_size = max_size
        self._progress = progress
        self._stream: SaveStream | None = None
        self._started = self._ended = time.monotonic()
        self._stopped_at: float | None = None
        self._stopped_size: int | None = None

    @property
    def total(self) -> int:
        """Bytes so far."""
        return sum(self.rounds) + self.stopped_bytes

    @property
    def seconds(self) -> float:
        """Time since the beginning, up to the last byte, or the last change of state."""
        return self._ended - self._started

    def remaining(self) -> int | None:
        """Bytes that are left, as the device estimates it; None where it does not.

        Asks the device; a stopped one once, since its size does not change any more, and some say
        the whole until all was read.
        """
        if self._stopped_size is None:
            size = self._estimate()
            if not self.stopped or size is None:
                return size
            self._stopped_size = size
        return max(0, self._stopped_size - self.stopped_bytes)

    def _estimate(self) -> int | None:
        if self._stream is not None and self._stream.in_precopy:
            try:
                info = self._stream.precopy_info()
            except (UnsupportedError, OperationError):
                pass  # the size of all says as much
            else:
                return info.initial_bytes + info.dirty_bytes
        try:
            return self._migration.data_size()
        except (UnsupportedError, OperationError):
            return None

    # The transfer

    def begin(self) -> SaveStream:
        """Begin to save.

        :raises UnsupportedError: the device cannot migrate, or has no pre-copy that was asked for.
        :raises MigrationError: it is in no state to be saved in.
        """
        runs = self._migration.state is not DeviceState.STOP
        precopy = runs and self._wants_precopy()
        self._started = time.monotonic()
        if not precopy:
            self._note_stop(runs)
        self._stream = self._migration.save(precopy)
        return self._stream

    def _wants_precopy(self) -> bool:
        if self._precopy is not None:
            return self._precopy
        return bool(self._migration.flags & MigrationFlags.PRE_COPY)

    def _note_stop(self, runs: bool) -> None:
        self.stopped = True
        self._stopped_at = time.monotonic() if runs else None

    def copy(
        self,
        stream: SaveStream,
        put: Callable[[Buffer], object],
        before_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Read all of a save, and give it away.

        :param put: takes all that it is given, or raises.
        :param before_stop: called when pre-copy is through, if there is any.
        :raises MigrationError: it is larger than it may be.
        """
        if stream.in_precopy:
            self._copy_while_it_runs(stream, put)
            before_stop()
            self._note_stop(True)
            stream.stop()
        while data := stream.read(self._piece):
            self._check_size(len(data))
            put(data)
            self.stopped_bytes += len(data)
            self._tell()

    def _copy_while_it_runs(self, stream: SaveStream, put: Callable[[Buffer], object]) -> None:
        end = self._started + self._precopy_seconds
        while worth_a_pass(self.rounds) and time.monotonic() < end:
            self.rounds.append(0)
            while time.monotonic() < end and (data := stream.read(self._piece)):
                self._check_size(len(data))
                put(data)
                self.rounds[-1] += len(data)
                self._tell()

    def _check_size(self, more: int) -> None:
        if self.total + more > self._max_size:
            raise MigrationError(
                f"its state has more than {self._max_size} bytes",
                op="save",
                uri=self._migration.uri,
                errno=errno.EFBIG,
                hint="max_size, or --max-size, allows more",
            )

    def _tell(self) -> None:
        self._ended = time.monotonic()
        if self._progress is not None:
            self._progress(self)

    def runs_again(self) -> None:
        """The device runs, here or elsewhere."""
        self.ended()
        if self._stopped_at is not None:
            self.downtime = self._ended - self._stopped_at

    def ended(self) -> None:
        """All is done that belongs to it."""
        self._ended = time.monotonic()


def worth_a_pass(rounds: list[int]) -> bool:
    """Whether another pass of pre-copy can make the rest much smaller.

    :param rounds: bytes of the passes so far.
    """
    if not rounds:
        return True
    if rounds[-1] <= SMALL or len(rounds) >= MAX_ROUNDS:
        return False
    return len(rounds) == 1 or rounds[-1] <= SHRINKS * rounds[-2]
