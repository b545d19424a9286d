# SPDX-License-Identifier: BSD-3-Clause
"""Listen on a UNIX socket and serve a model to one client after the other."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import stat
import threading

from pyvfio.closing import Closing
from pyvfio.errors import AccessDenied, DeviceBusy, OpenError
from pyvfio.server.credentials import Allowed, Credentials
from pyvfio.server.function import PCIFunction
from pyvfio.server.model import DeviceModel
from pyvfio.server.quotas import Quotas
from pyvfio.server.session import Session

log = logging.getLogger(__name__)

CLIENTS_WAITING = 16
"""Clients that may wait in the socket's queue while another is served."""


ACCEPT_AGAIN = 1000
"""Milliseconds after which a client is tried again that could not be accepted."""


class Server(Closing):
    """Hosts a device model on a socket.

    One client is served at a time; a second one connects and is answered when the first has left.
    The device keeps its state over that.

    :param model: the model; closed with the server.
    :param path: where to listen.  A socket file that nobody listens on is replaced.
    :param mode: permission bits of the socket file.
    :param group: id of the group that the socket file belongs to; by default the process's own.
    :param quotas: what one client may take.
    :param allow: who may be a client, of those that the socket file lets in; everybody by default.
    :raises AccessDenied: the socket file cannot be made there, or not be given to the group.
    :raises DeviceBusy: a server listens there already.
    :raises OpenError: the path is something else, or the socket cannot be made.
    """

    def __init__(
        self,
        model: DeviceModel,
        path: str,
        mode: int = 0o600,
        *,
        group: int | None = None,
        quotas: Quotas | None = None,
        allow: Allowed | None = None,
    ) -> None:
        self.path = path
        self._quotas = quotas or Quotas()
        self._allow = allow
        self._listener = _listen(path, mode, group)
        try:
            status = os.stat(path)
            self._file = (status.st_dev, status.st_ino)
            self._function = PCIFunction(model)
            self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except BaseException:
            self._listener.close()
            os.unlink(path)
            raise
        # Taken by stop(), which a signal handler may call while this thread holds it.
        self._lock = threading.RLock()
        self._stopping = False
        self._closed = False
        self._session: Session | None = None

    def serve_forever(self) -> None:
        """Serve clients until :meth:`stop`."""
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(self._stop_fd, select.POLLIN)
        stopped = select.poll()
        stopped.register(self._stop_fd, select.POLLIN)
        clients = 0
        while not self._stopping:
            poller.poll()
            if self._stopping:
                return
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                # Out of descriptors or memory: the client waits in the queue until there are some.
                log.warning("%s: cannot accept a client: %s", self.path, error)
                stopped.poll(ACCEPT_AGAIN)
                continue
            clients += 1
            name = f"{self.path} client {clients}"
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
        """Remove the socket file and close the model.  May be repeated."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._listener.close()
        self._unlink()
        os.close(self._stop_fd)
        self._function.close()

    def _unlink(self) -> None:
        """Remove the socket file, unless another server has put its own there."""
        try:
            status = os.stat(self.path)
            if (status.st_dev, status.st_ino) == self._file:
                os.unlink(self.path)
        except FileNotFoundError:
            pass


def _listen(path: str, mode: int, group: int | None) -> socket.socket:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = False
    try:
        sock.bind(path)
        bound = True
        # Before listen(), so that nobody else could have connected.
        if group is not None:
            os.chown(path, -1, group)
        os.chmod(path, mode)
        sock.listen(CLIENTS_WAITING)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if bound:
            os.unlink(path)
        if isinstance(error, PermissionError):
            raise AccessDenied(
                "permission denied", op="listen", uri=path, errno=error.errno
            ) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OpenError(reason, op="listen", uri=path, errno=error.errno or errno.EINVAL) from error
    return sock


def _remove_stale(path: str) -> None:
    try:
        status = os.lstat(path)
    except OSError:
        return  # nothing there, or bind() says what is wrong
    if not stat.S_ISSOCK(status.st_mode):
        raise OpenError("the file exists and is no socket", op="listen", uri=path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            # BlockingIOError: somebody listens whose queue is full.
            if not isinstance(error, BlockingIOError):
                raise OpenError(
                    os.strerror(error.errno or errno.EINVAL),
                    op="listen",
                    uri=path,
                    errno=error.errno,
                ) from error
    raise DeviceBusy(
        "a server listens there already", op="listen", uri=path, errno=errno.EADDRINUSE
    )
