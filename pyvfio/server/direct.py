# SPDX-License-Identifier: BSD-3-Clause
"""The usual requests of a client, carried out where they are read: no queue, no thread between.

Accesses of memory never leave C (``native/serve.c``); for registers it calls the model's callbacks.
Everything else, and everything that is refused, goes the general way: :meth:`DirectService.serve`
returns and leaves what was read to the channel.  The general way can do all that is done here, and
does it where that is switched off (:mod:`.native_paths`) and where messages are traced.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from struct import Struct

from pyvfio.native.status import Status
from pyvfio.server import native_paths
from pyvfio.server.deferred import DeferredAnswers
from pyvfio.server.failures import FAILURES, errno_of, note
from pyvfio.server.function import PCIFunction
from pyvfio.server.quotas import Quotas
from pyvfio.transport.channel import Channel
from pyvfio.transport.serving import Serving
from pyvfio.wire.header import HEADER

log = logging.getLogger(__name__)

# Plain integers: an IntEnum costs more to compare.
_OTHER, _PAUSE, _LATE = int(Status.OTHER), int(Status.PAUSE), int(Status.LATE)
_UNSENT, _FAILED = int(Status.UNSENT), int(Status.FAILED)
_READ, _WRITE, _POSTED = int(Status.READ), int(Status.WRITE), int(Status.POSTED)

_WRITES = {
    width: Struct(f"<{HEADER.size}xQI4x{code}")
    for width, code in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))
}
"""Bytes of data -> a posted REGION_WRITE: offset, region, value."""


class DirectService:
    """Serves one client directly, as long as there is nothing else to do.

    :param serving: the client's channel.
    :param name: what the log calls the client.
    """

    def __init__(
        self, serving: Serving, name: str, function: PCIFunction, deferred: DeferredAnswers
    ) -> None:
        self._serving = serving
        self._service = serving.service
        self._name = name
        self._function = function
        self._regions = function.regions
        self._deferred = deferred
        # What a register access is to be answered with.
        self._answer: tuple[int, int] | None = None

    @classmethod
    def of(
        cls, channel: Channel, function: PCIFunction, deferred: DeferredAnswers, quotas: Quotas
    ) -> DirectService | None:
        """For one client; None where everything goes the general way."""
        if not native_paths.are_on():
            return None
        serving = channel.serve_directly(list(function.regions.areas()), quotas.max_data)
        return None if serving is None else cls(serving, channel.name, function, deferred)

    def serve(self, has_other_work: Callable[[], bool]) -> None:
        """Serve until the general way has to go on.

        :param has_other_work: whether it has.
        :raises ConnectionLost: the client is gone.
        """
        self._service.allow_writes(self._function.runs)
        status = _PAUSE
        while status != _OTHER and self._serving.take_turn():
            try:
                status = self._serve_with_turn(has_other_work)
            finally:
                self._serving.leave_turn()
            if status == _READ:
                self._answer = self._read()
            elif status == _WRITE:
                self._answer = self._write()
            elif status == _POSTED:
                self._write_posted()
        self._send_answer()

    def _serve_with_turn(self, has_other_work: Callable[[], bool]) -> int:
        """Serve; READ, WRITE or POSTED tell of what is handed over, OTHER of everything else."""
        while True:
            self._service.hurry(False)
            if has_other_work() or not self._serving.can_go_on():
                return _OTHER
            answer, self._answer = self._answer, None
            if answer is None:
                status = self._service.serve()
            else:
                status = self._service.answer_and_serve(*answer)
            if status == _LATE:
                self._serving.wait()
            elif status != _PAUSE:
                return self._after_sending(status)

    def _send_answer(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            self._after_sending(self._service.answer(*answer))

    def _after_sending(self, status: int) -> int:
        if status == _FAILED:
            self._serving.fail()
        if status == _UNSENT:
            self._serving.queue_rest()
        return status if status in (_READ, _WRITE, _POSTED) else _OTHER

    def _read(self) -> tuple[int, int]:
        region, offset, width, _ = self._service.access()
        try:
            return 0, self._regions.read_register(region, offset, width, self._deferred)
        except FAILURES as error:
            return self._failed(error), 0

    def _write(self) -> tuple[int, int]:
        try:
            self._regions.write_register(*self._service.access(), self._deferred)
        except FAILURES as error:
            return self._failed(error), 0
        return 0, 0

    def _write_posted(self) -> None:
        messages, width = self._service.posted()
        for offset, region, value in _WRITES[width].iter_unpack(messages):
            if self._deferred.stopped:
                return
            try:
                self._regions.write_register(region, offset, width, value, self._deferred)
            except FAILURES as error:
                self._failed(error)

    def _failed(self, error: BaseException) -> int:
        note(log, self._name, error)
        return errno_of(error)
