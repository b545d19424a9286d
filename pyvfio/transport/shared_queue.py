# SPDX-License-Identifier: BSD-3-Clause
"""The outgoing side of a socket on which C code sends as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyvfio.native.serve import Service
from pyvfio.transport.send_queue import SendQueue
from pyvfio.uapi.layout import Buffer
from pyvfio.wire.messages import RegionWrite, RegionWriteMulti


class SharedSendQueue(SendQueue):
    """Takes turns with a service, whose replies wait here where the socket does not take them.

    :param queue: what has been queued so far; it is not to be used any more.
    """

    def __init__(self, queue: SendQueue, service: Service) -> None:
        self.__dict__.update(queue.__dict__)
        self._service = service

    def adopt(self) -> None:
        """Queue what the service could not send."""
        with self._service:
            self._adopt()

    def _adopt(self) -> None:
        rest = self._service.take_rest()
        if rest:
            self.append(rest, is_answer=True)
        self._service.set_queued(bool(self))

    def send(self, buffers: Sequence[Buffer], fds: Sequence[int], is_answer: bool) -> bool:
        with self._service:
            self._adopt()
            try:
                return super().send(buffers, fds, is_answer)
            finally:
                self._service.set_queued(bool(self))

    def collect(
        self, write: RegionWrite, encode: Callable[[RegionWriteMulti], list[Buffer]]
    ) -> bool:
        with self._service:
            self._adopt()
            return super().collect(write, encode)

    def flush(self) -> None:
        with self._service:
            try:
                super().flush()
            finally:
                self._service.set_queued(bool(self))
