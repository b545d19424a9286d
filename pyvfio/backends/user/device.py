# SPDX-License-Identifier: BSD-3-Clause
"""A device behind a vfio-user socket: ``vfio-user:/run/edu.sock``."""

from __future__ import annotations

import threading

from pyvfio.backends.user.dma_service import DMAService
from pyvfio.backends.user.link import Link, LinkOptions, reach
from pyvfio.base import VFIOBase
from pyvfio.container import Container
from pyvfio.errors import VFIOError
from pyvfio.vectors import ContainerIO, DeviceIO, Vectors
from pyvfio.wire.version import DEFAULT_MAX_DATA_XFER_SIZE, Limits

DEFAULT_TIMEOUT = 5.0
"""Seconds that a request waits for its reply."""


class UserDevice(VFIOBase):
    """A vfio-user client.

    :param path: the server's UNIX socket.
    :param timeout: seconds that each request waits for its reply.
    :param twin_socket: offer the server a socket of its own for DMA_READ and DMA_WRITE.
    :param posted_writes: do not wait for writes to memory BARs, until a region is mapped.
    :param secure_dma: never pass the server a descriptor of memory; each of its accesses is a
        message, checked against the maps and their permissions.  (Eventfds of interrupts are
        passed: they give no access to anything.)
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
        self._options = LinkOptions(path, self.uri, timeout, twin_socket, secure_dma)
        self._service = DMAService(DEFAULT_MAX_DATA_XFER_SIZE)
        self._link: Link | None = None
        self._undo.callback(self._hang_up)
        try:
            self._use(self._make_link())
            container = Container(self.container_io, self.uri)
            self._undo.callback(container.close)
            self._service.container = container
            self._attach(container, posted_writes=posted_writes)
        except BaseException:
            self._undo.close()
            raise

    def _make_link(self) -> Link:
        return Link(self._options, self._service, self._on_lost)

    def _on_lost(self, link: Link, error: VFIOError) -> None:
        if link is self._link:
            self._mark_lost(error)

    def _reach_again(self, seconds: float) -> Vectors:
        # A server may take one client at a time; it may not know of a loss that we noticed.
        self._current.give_up()
        return reach(self._make_link, seconds)

    def _use(self, vectors: Vectors) -> None:
        assert isinstance(vectors, Link)
        before, self._link = self._link, vectors
        if before is not None:
            before.close()
        if vectors.loss is not None:  # it went before it was ours
            self._mark_lost(vectors.loss)

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.close()

    @property
    def _current(self) -> Link:
        assert self._link is not None, "the constructor has made one"
        return self._link

    @property
    def version(self) -> tuple[int, int]:
        """(major, minor) of the protocol that was agreed on."""
        return self._current.version

    @property
    def limits(self) -> Limits:
        """What was agreed on for messages to the server."""
        return self._current.limits

    @property
    def device_io(self) -> DeviceIO:
        return self._current.device_io

    @property
    def container_io(self) -> ContainerIO:
        return self._current.container_io
