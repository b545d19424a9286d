# SPDX-License-Identifier: BSD-3-Clause
"""Serve a model to one client after the other."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading

from pyvfio.closing import Closing
from pyvfio.errors import DeviceClosed
from pyvfio.server.credentials import Allowed, Credentials
from pyvfio.server.function import PCIFunction
from pyvfio.server.listener import Listener
from pyvfio.server.model import DeviceModel
from pyvfio.server.quotas import Quotas
from pyvfio.server.session import Session

log = logging.getLogger(__name__)

ACCEPT_AGAIN = 1000
"""Milliseconds after which a client is tried again that could not be accepted."""


class Server(Closing):
    """Hosts a device model on a socket.

    One client is served at a time; a second one connects and is answered when the first has left.
    The device keeps its state over that.

    :param model: the model; closed with the server.
    :param listener: where its clients come from, closed with the server; a path stands for
        :meth:`Listener.at`.
    :param quotas: what one client may take.
    :param allow: who may be a client, of those that come; everybody by default.
    :raises OpenError: nobody can listen at the path.
    """

    def __init__(
        self,
        model: DeviceModel,
        listener: Listener | str,
        *,
        quotas: Quotas | None = None,
        allow: Allowed | None = None,
    ) -> None:
        self._quotas = quotas or Quotas()
        self._allow = allow
        self._listener = Listener.at(listener) if isinstance(listener, str) else listener
        try:
            self._function = PCIFunction(model)
            self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            self._listener.close()
            raise
        # Taken by stop(), which a signal handler may call while this thread holds it.
        self._lock = threading.RLock()
        self._stopping = False
        self._closed = False
        self._closing = False
        self._serving = threading.Lock()
        self._thread: int | None = None
        self._session: Session | None = None

    def serve_forever(self) -> None:
        """Serve clients until :meth:`stop`, or until no more can come.

        :raises DeviceClosed: after :meth:`close`.
        """
        with self._serving:
            if self._closed:
                raise DeviceClosed("the server is closed", op="serve", uri=self._listener.name)
            self._thread = threading.get_ident()
            try:
                self._serve_all()
            finally:
                self._thread = None
                if self._closing:
                    self._close()

    def _serve_all(self) -> None:
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(self._stop_fd, select.POLLIN)
        stopped = select.poll()
        stopped.register(self._stop_fd, select.POLLIN)
        clients = 0
        while not self._stopping and not self._listener.over:
            poller.poll()
            if self._stopping:
                return
            try:
                sock = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                # Out of descriptors or memory: the client waits in the queue until there are some.
                log.warning("%s: cannot accept a client: %s", self._listener.name, error)
                stopped.poll(ACCEPT_AGAIN)
                continue
            clients += 1
            name = f"{self._listener.name} client {clients}"
            if self._is_admitted(sock, name):
                self._serve(sock, name)
            else:
                sock.close()

    def _is_admitted(self, sock: socket.socket, name: str) -> bool:
        try:
            client = Credentials.of(sock)
        except OSError as error:
            log.warning("%s: refused: %s", name, error)
            return False
        admitted = self._allow is None or self._allow.admits(client)
        log.log(
            logging.INFO if admitted else logging.WARNING,
            "%s: %s: %s",
            name,
            "connected" if admitted else "refused",
            client,
        )
        return admitted

    def _serve(self, sock: socket.socket, name: str) -> None:
        try:
            session = Session(sock, self._function, self._quotas, name)
        except (OSError, RuntimeError) as error:
            log.warning("%s: cannot be served: %s", name, error)
            return
        with self._lock:
            self._session = session
            if self._stopping:
                session.stop()
        try:
            session.run()
        except Exception:
            # Whatever a client or a model brings about, the next client is served.
            log.exception("%s: the session failed", name)
        finally:
            with self._lock:
                self._session = None
        log.info("%s: left", name)

    def stop(self) -> None:
        """Have :meth:`serve_forever` return soon; any thread may call this."""
        with self._lock:
            self._stopping = True
            if not self._closed:
                os.eventfd_write(self._stop_fd, 1)
            if self._session is not None:
                self._session.stop()

    def close(self) -> None:
        """Remove the socket file and close the model.  May be repeated.

        Ends :meth:`serve_forever` first, and waits for it where another thread is in it; where this
        thread is (a signal handler's call), it is done when that returns.
        """
        self._closing = True
        self.stop()
        if self._thread != threading.get_ident():
            with self._serving:
                self._close()

    def _close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._listener.close()
        os.close(self._stop_fd)
        self._function.close()
