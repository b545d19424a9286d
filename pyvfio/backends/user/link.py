# SPDX-License-Identifier: BSD-3-Clause
"""One connection to a vfio-user server: its sockets, what was agreed on, and the two vectors."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from pyvfio.backends.user.connect import connect, negotiate, open_error, own_capabilities
from pyvfio.backends.user.container_io import UserContainerIO
from pyvfio.backends.user.device_io import UserDeviceIO
from pyvfio.backends.user.dma_service import DMAService
from pyvfio.closing import Closing
from pyvfio.errors import BackendUnavailable, ConnectionLost, DeviceNotFound, VFIOError
from pyvfio.transport.channel import LEFT_TO_PARENT, Channel
from pyvfio.wire.commands import Role
from pyvfio.wire.version import DEFAULT_MAX_DATA_XFER_SIZE

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.02
"""Between two tries to reach a server that is not there yet."""


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How a server is reached; see :class:`~pyvfio.backends.user.device.UserDevice`."""

    path: str
    uri: str
    timeout: float
    twin_socket: bool
    secure_dma: bool


class Link(Closing):
    """A connection that is negotiated.

    :param service: answers the server's own requests.
    :param on_lost: called with the link and the reason when the server is gone; it may be called
        before the constructor has returned.
    :raises OpenError: the socket cannot be reached.
    :raises NegotiationError: there is no common version.
    :raises VFIOTimeout: the server does not answer; it may be busy with another client.

    :ivar version: (major, minor) of the protocol that was agreed on.
    :ivar limits: what was agreed on for messages to the server.
    :ivar loss: why the server is gone, if it is.
    """

    def __init__(
        self,
        options: LinkOptions,
        service: DMAService,
        on_lost: Callable[[Link, VFIOError], None],
    ) -> None:
        self._options = options
        self._service = service
        self._on_lost = on_lost
        self._undo = ExitStack()
        self._sockets = self._undo.enter_context(ExitStack())
        self._twin: Channel | None = None
        self.loss: VFIOError | None = None
        try:
            self._open()
        except BaseException as error:
            self._undo.close()
            if isinstance(error, OSError | RuntimeError) and not isinstance(error, VFIOError):
                raise open_error(error, options.uri, options.timeout) from error
            raise

    def _open(self) -> None:
        options = self._options
        sock = connect(options.path, options.timeout)
        self._main = main = self._channel(sock, options.uri, self._lose)
        self.version, self.limits, twin = negotiate(main, own_capabilities(options.twin_socket))
        if twin is not None:
            # Without it the server cannot ask for memory any more, but it can be asked.
            name = f"{options.uri} (twin socket)"
            self._twin = self._channel(twin, name, self._lose_twin, twin=True)
        self.device_io = UserDeviceIO(main, self.limits)
        self._undo.callback(self.device_io.close)
        self.container_io = UserContainerIO(main, self.limits, options.secure_dma)

    def _channel(
        self,
        sock: socket.socket,
        name: str,
        on_lost: Callable[[VFIOError], None],
        twin: bool = False,
    ) -> Channel:
        made = Channel(
            sock,
            Role.CLIENT,
            name=name,
            max_data=DEFAULT_MAX_DATA_XFER_SIZE,
            timeout=self._options.timeout,
            on_request=self._service,
            on_lost=on_lost,
            twin=twin,
        )
        self._sockets.callback(made.close)
        return made

    def _lose(self, error: VFIOError) -> None:
        self.loss = error
        if self._twin is not None and error.reason != LEFT_TO_PARENT:
            self._twin.give_up_peer(error.reason)
        self._on_lost(self, error)

    def _lose_twin(self, error: VFIOError) -> None:
        if not self._main.lost and error.reason != LEFT_TO_PARENT:
            log.warning("%s", error)

    def give_up(self) -> None:
        """Hang up and take the server for gone: its next client may be this one.

        The regions keep their descriptors, which they use until there are others.
        """
        self._main.give_up_peer("given up, to be reached again")
        self._sockets.close()

    def close(self) -> None:
        """Hang up and close the descriptors of the regions.  May be repeated."""
        self._undo.close()


def reach(make: Callable[[], Link], seconds: float) -> Link:
    """A link to a server that may have to start first; raises as :class:`Link` does.

    :param seconds: how long to try while there is no socket, nobody listens, or who listens hangs
        up: a server that ends may take a client last.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return make()
        except (DeviceNotFound, BackendUnavailable, ConnectionLost):
            if time.monotonic() >= deadline:
                raise
            time.sleep(RETRY_SECONDS)
