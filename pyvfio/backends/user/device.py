# SPDX-License-Identifier: BSD-3-Clause
"""A device behind a vfio-user socket: ``vfio-user:/run/edu.sock``."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable

from pyvfio.backends.user.connect import connect, negotiate, own_capabilities
from pyvfio.backends.user.container_io import UserContainerIO
from pyvfio.backends.user.device_io import UserDeviceIO
from pyvfio.backends.user.dma_service import DMAService
from pyvfio.base import VFIOBase
from pyvfio.container import Container
from pyvfio.errors import VFIOError
from pyvfio.transport.channel import Channel
from pyvfio.vectors import ContainerIO, DeviceIO
from pyvfio.wire.commands import Role
from pyvfio.wire.version import DEFAULT_MAX_DATA_XFER_SIZE, Limits

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 5.0
"""Seconds that a request waits for its reply."""


class UserDevice(VFIOBase):
    """A vfio-user client.

    :param path: the server's UNIX socket.
    :param timeout: seconds that each request waits for its reply.
    :param twin_socket: offer the server a socket of its own for DMA_READ and DMA_WRITE.
    :param posted_writes: do not wait for writes to memory BARs, until a region is mapped.
    :param secure_dma: never pass the server a descriptor of memory; each of its accesses is a
        message, checked against the maps and their permissions.
    :raises OpenError: the socket cannot be reached.
    :raises NegotiationError: there is no common version.
    :raises VFIOTimeout: the server does not answer; it may be busy with another client.
    """

    def __init__(
        self,
        path: str,
        *,
        uri: str = "",
        timeout: float = DEFAULT_TIMEOUT,
        twin_socket: bool = True,
        posted_writes: bool = True,
        secure_dma: bool = False,
    ) -> None:
        super().__init__(uri or f"vfio-user:{path}")
        if not 0 < timeout <= threading.TIMEOUT_MAX:
            raise ValueError(f"open {self.uri}: a timeout of {timeout} s")
        try:
            self._open(path, timeout, twin_socket, posted_writes, secure_dma)
        except BaseException:
            self._undo.close()
            raise

    def _open(
        self, path: str, timeout: float, twin_socket: bool, posted_writes: bool, secure_dma: bool
    ) -> None:
        service = DMAService(DEFAULT_MAX_DATA_XFER_SIZE)

        def channel(
            sock: socket.socket, name: str, on_lost: Callable[[VFIOError], None]
        ) -> Channel:
            made = Channel(
                sock,
                Role.CLIENT,
                name=name,
                max_data=DEFAULT_MAX_DATA_XFER_SIZE,
                timeout=timeout,
                on_request=service,
                on_lost=on_lost,
            )
            self._undo.callback(made.close)
            return made

        main = channel(connect(path, self.uri, timeout), self.uri, self._mark_lost)
        agreement = negotiate(main, own_capabilities(twin_socket))
        if agreement.twin is not None:
            # Without it the server cannot ask for memory any more, but it can be asked.
            channel(agreement.twin, f"{self.uri} (twin socket)", _note_loss)
        self.version, self.limits = agreement.version, agreement.limits
        self._device_io = UserDeviceIO(main, agreement.limits)
        self._undo.callback(self._device_io.close)
        self._container_io = UserContainerIO(main, agreement.limits, secure_dma)
        container = Container(self._container_io, self.uri)
        self._undo.callback(container.close)
        service.container = container
        self._attach(container, posted_writes=posted_writes)

    version: tuple[int, int]
    """(major, minor) of the protocol that was agreed on."""
    limits: Limits
    """What was agreed on for messages to the server."""

    @property
    def device_io(self) -> DeviceIO:
        return self._device_io

    @property
    def container_io(self) -> ContainerIO:
        return self._container_io


def _note_loss(error: VFIOError) -> None:
    log.warning("%s", error)
