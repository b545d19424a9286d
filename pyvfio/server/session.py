# SPDX-License-Identifier: BSD-3-Clause
"""One client of a server: negotiation, then its requests, one after the other.

:meth:`Session.run` reads a request and carries it out.  While a model takes its time, or waits for
the client's memory, the channel goes on reading and requests are queued.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from pyvfio.errors import ConnectionLost, DeviceClosed, VFIOError, VFIOTimeout
from pyvfio.server.function import PCIFunction
from pyvfio.server.guest_memory import GuestMemory
from pyvfio.transport.channel import Channel, PeerRequest
from pyvfio.transport.sockets import close_fds
from pyvfio.uapi import chain, vfio
from pyvfio.wire import messages, version
from pyvfio.wire.commands import Role
from pyvfio.wire.connection import RequestInvalid, RequestReceived
from pyvfio.wire.header import Command
from pyvfio.wire.messages import Message
from pyvfio.wire.version import Capabilities, Limits

log = logging.getLogger(__name__)

OWN = Capabilities(
    max_msg_fds=16,
    max_data_xfer_size=version.DEFAULT_MAX_DATA_XFER_SIZE,
    max_dma_maps=version.DEFAULT_MAX_DMA_MAPS,
    pgsizes=version.DEFAULT_PGSIZES,
    twin_socket=True,
    write_multiple=True,
)
"""What this server can do.  QEMU refuses more than 16 descriptors."""

REQUEST_TIMEOUT = 5.0
"""Seconds that VERSION, and the answer to a DMA_READ or DMA_WRITE, may take."""

BACKLOG = 8 << 20
"""Bytes of requests queued for the model before the socket is left unread."""
MAX_BACKLOG = 256 << 20
"""Bytes of requests queued while the model waits for the client's memory; more is abuse."""
QUEUED_REQUEST = 512
"""What a queued request costs beyond its bytes on the wire, about."""


class _Answer(NamedTuple):
    """A reply's payload, with descriptors that stay their owner's."""

    message: Message
    fds: tuple[int, ...] = ()


class _Inbox:
    """The requests that were read and not carried out yet; the session waits for it.

    None stands for the end.
    """

    _WAKE = object()

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._first: deque[PeerRequest | None] = deque()

    def put(self, request: PeerRequest | None) -> None:
        self._queue.put(request)

    def take(self) -> PeerRequest | None:
        """The next request; only after :meth:`ready` was true."""
        return self._first.popleft()

    def ready(self) -> bool:
        """Whether a request is there; notes of being woken are thrown away."""
        while not self._first and not self._queue.empty():
            self._keep(self._queue.get())
        return bool(self._first)

    def sleep(self, seconds: float | None) -> None:
        with contextlib.suppress(queue.Empty):
            self._keep(self._queue.get(timeout=seconds))

    def wake(self) -> None:
        self._queue.put(self._WAKE)

    def _keep(self, item: object) -> None:
        if item is None or isinstance(item, RequestReceived | RequestInvalid):
            self._first.append(item)


class Session:
    """Serves one client until it leaves.

    :param sock: the accepted socket; the session owns it.
    :param name: what the log calls the client.
    """

    def __init__(self, sock: socket.socket, function: PCIFunction, name: str) -> None:
        self._function = function
        self._requests = _Inbox()
        self._twin: Channel | None = None
        self._flow = threading.Lock()
        self._backlog = 0
        self._asking = 0
        self._limits = Limits()
        self._guest: GuestMemory
        self._channel = self._make_channel(sock, name, self._queue_request, self._on_lost)

    def _make_channel(
        self,
        sock: socket.socket,
        name: str,
        on_request: Callable[[Channel, PeerRequest], None],
        on_lost: Callable[[VFIOError], None],
    ) -> Channel:
        return Channel(
            sock,
            Role.SERVER,
            name=name,
            max_data=version.DEFAULT_MAX_DATA_XFER_SIZE,
            timeout=REQUEST_TIMEOUT,
            on_request=on_request,
            on_lost=on_lost,
        )

    def run(self) -> None:
        """Negotiate, then serve until the client leaves or :meth:`stop` is called."""
        try:
            if self._negotiate():
                self._guest = GuestMemory(self._ask_client, self._limits.max_data_xfer_size)
                self._function.attach_client(self._guest)
                try:
                    self._serve()
                finally:
                    self._function.detach_client()
        except (ConnectionLost, DeviceClosed) as error:
            log.info("%s", error)
        finally:
            self._close()

    def stop(self) -> None:
        """Have :meth:`run` return soon; any thread may call this."""
        self._requests.put(None)
        self._channel.nudge()

    def _close(self) -> None:
        if self._twin is not None:
            self._twin.close()
        self._channel.close()
        while self._requests.ready():
            request = self._requests.take()
            if request is not None:
                close_fds(request.fds)

    # Called by the thread that reads

    def _queue_request(self, channel: Channel, request: PeerRequest) -> None:
        self._requests.put(request)
        with self._flow:
            self._backlog += request.size + QUEUED_REQUEST
            if self._backlog > MAX_BACKLOG:
                raise ConnectionResetError("the client sends more than can be queued")
            # The answer that the model waits for may stand behind all this: then read on.
            if self._backlog > BACKLOG and not self._asking:
                channel.pause_reading(True)

    def _refuse_on_twin(self, channel: Channel, request: PeerRequest) -> None:
        close_fds(request.fds)
        channel.refuse(request, errno.EINVAL)

    def _on_lost(self, error: VFIOError) -> None:
        log.info("%s", error)
        self._requests.put(None)

    def _on_twin_lost(self, error: VFIOError) -> None:
        # The client can go on without; DMA that needs the twin socket fails.
        log.info("%s", error)

    # Negotiation

    def _negotiate(self) -> bool:
        if not self._channel.wait_for(self._requests, REQUEST_TIMEOUT):
            log.warning("%s: no VERSION within %s s", self._channel.name, REQUEST_TIMEOUT)
            return False
        request = self._requests.take()
        if request is None:
            return False
        close_fds(request.fds)
        if not isinstance(request, RequestReceived) or request.command is not Command.VERSION:
            log.warning("%s: the first message is not VERSION", self._channel.name)
            self._channel.refuse(request, errno.EINVAL)
            return False
        offered: messages.Version = request.message
        if offered.major != version.MAJOR:
            log.warning("%s: speaks version %d", self._channel.name, offered.major)
            self._channel.refuse(request, errno.EINVAL)
            return False
        self._agree(request, offered)
        return True

    def _agree(self, request: RequestReceived, offered: messages.Version) -> None:
        theirs = offered.capabilities or Capabilities()
        self._limits = Limits.of(theirs, OWN)
        client_end = None
        if theirs.twin_socket and self._limits.max_msg_fds > 0:
            client_end = self._make_twin()
        reply = messages.Version(
            version.MAJOR,
            min(offered.minor, version.MINOR),
            _agreed(offered.capabilities, client_end is not None),
        )
        if client_end is None:
            self._channel.reply(request, reply)
            return
        with client_end:
            self._channel.reply(request, reply, [client_end.fileno()])

    def _make_twin(self) -> socket.socket | None:
        """The client's end of a twin socket; None where there is no room for one."""
        name = f"{self._channel.name} (twin socket)"
        try:
            own_end, client_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            log.warning("%s: %s", name, error)
            return None
        try:
            self._twin = self._make_channel(own_end, name, self._refuse_on_twin, self._on_twin_lost)
        except (OSError, RuntimeError) as error:
            log.warning("%s: %s", name, error)
            client_end.close()
            return None
        return client_end

    # Requests

    def _serve(self) -> None:
        while self._channel.wait_for(self._requests, None):
            request = self._requests.take()
            if request is None:
                return
            with self._flow:
                self._backlog -= request.size + QUEUED_REQUEST
                if self._backlog < BACKLOG // 2:
                    self._channel.pause_reading(False)
            self._handle(request)

    def _handle(self, request: PeerRequest) -> None:
        fds = list(request.fds)
        try:
            if isinstance(request, RequestInvalid):
                raise OSError(request.errno, request.reason)
            handler = _HANDLERS.get(request.command)
            if handler is None:
                raise OSError(errno.ENOTSUP, f"{request.command.name} is not served")
            answer = handler(self, request.message, fds)
        except OSError as error:
            log.info("%s: %s", self._channel.name, error)
            self._channel.refuse(request, error.errno or errno.EIO)
        except Exception:
            # A model may fail in any way; its client is told, the server and the model live on.
            log.exception("%s: the model failed", self._channel.name)
            self._channel.refuse(request, errno.EIO)
        else:
            if isinstance(request, RequestReceived):
                self._channel.reply(request, answer.message, answer.fds)
        finally:
            close_fds(fds)

    def _version(self, message: Any, fds: list[int]) -> _Answer:
        raise OSError(errno.EINVAL, "VERSION is the first message, once")

    def _dma_map(self, message: messages.DMAMap, fds: list[int]) -> _Answer:
        self._guest.map(message, fds[0] if fds else None)
        return _Answer(messages.Empty())

    def _dma_unmap(self, message: messages.DMAUnmap, fds: list[int]) -> _Answer:
        self._guest.unmap(message)
        return _Answer(message)

    def _get_info(self, message: messages.GetDeviceInfo, fds: list[int]) -> _Answer:
        info = self._function.info()
        return _Answer(messages.DeviceInfo(info.flags, info.num_regions, info.num_irqs))

    def _get_region_info(self, message: messages.GetRegionInfo, fds: list[int]) -> _Answer:
        info = self._function.region_info(message.index)
        sparse = info.areas and (info.areas[0].offset, info.areas[0].size) != (0, info.size)
        start = vfio.REGION_INFO.size
        found = b""
        if sparse:
            areas = [vfio.SparseMmapArea(area.offset, area.size) for area in info.areas]
            found = chain.build(start, [chain.sparse_capability(areas)])
        # Capabilities, and the descriptor with them, only where the client has room for them; the
        # reply's argsz tells of more. The flag comes with them: QEMU refuses it without an offset.
        fits = start + len(found) <= message.argsz
        here = bool(found) and fits
        reply = messages.RegionInfo(
            argsz=start + len(found),
            flags=info.flags | vfio.RegionFlags.CAPS if here else info.flags,
            index=info.index,
            cap_offset=start if here else 0,
            size=info.size,
            offset=info.fd_offset,
            chain=found if fits else b"",
        )
        return _Answer(reply, (info.fd,) if info.fd is not None and fits else ())

    def _get_irq_info(self, message: messages.GetIRQInfo, fds: list[int]) -> _Answer:
        flags, count = self._function.irq_info(message.index)
        return _Answer(messages.IRQInfo(flags, message.index, count))

    def _set_irqs(self, message: messages.SetIRQs, fds: list[int]) -> _Answer:
        self._function.set_irqs(message, fds)
        return _Answer(messages.Empty())

    def _region_read(self, message: messages.RegionRead, fds: list[int]) -> _Answer:
        if message.count > version.DEFAULT_MAX_DATA_XFER_SIZE:
            raise OSError(errno.EINVAL, f"a read of {message.count} bytes")
        data = self._function.read(message.region, message.offset, message.count)
        return _Answer(messages.RegionData(message.offset, message.region, data))

    def _region_write(self, message: messages.RegionWrite, fds: list[int]) -> _Answer:
        self._function.write(message.region, message.offset, message.data)
        return _Answer(messages.RegionWritten(message.offset, message.region, message.count))

    def _region_write_multi(self, message: messages.RegionWriteMulti, fds: list[int]) -> _Answer:
        for write in message.writes:
            self._function.write(write.region, write.offset, write.data)
        return _Answer(messages.RegionWriteMultiDone(len(message.writes)))

    def _reset(self, message: messages.Empty, fds: list[int]) -> _Answer:
        if not self._function.model.resettable:
            raise OSError(errno.EINVAL, "the device has no reset")
        self._function.reset()
        return _Answer(messages.Empty())

    # DMA by messages, for the model

    def _ask_client(
        self, command: Command, message: messages.DMARead | messages.DMAWrite
    ) -> object:
        channel = self._twin or self._channel
        with self._flow:
            self._asking += 1
            self._channel.pause_reading(False)
        try:
            return channel.call(command, message).message
        except VFIOTimeout:
            log.warning("%s: no answer to %s", channel.name, command.name)
            raise
        finally:
            with self._flow:
                self._asking -= 1


def _agreed(offered: Capabilities | None, twin: bool) -> Capabilities | None:
    """Our capabilities, as far as the client offered the same keys."""
    if offered is None:
        return None

    def where_offered(key: str) -> Any:
        return getattr(OWN, key) if getattr(offered, key) is not None else None

    return Capabilities(
        max_msg_fds=where_offered("max_msg_fds"),
        max_data_xfer_size=where_offered("max_data_xfer_size"),
        max_dma_maps=where_offered("max_dma_maps"),
        pgsizes=where_offered("pgsizes"),
        twin_socket=twin if offered.twin_socket is not None else None,
        twin_fd_index=0 if twin else None,
        write_multiple=True if offered.write_multiple else None,
    )


_HANDLERS: dict[Command, Callable[[Session, Any, list[int]], _Answer]] = {
    Command.VERSION: Session._version,
    Command.DMA_MAP: Session._dma_map,
    Command.DMA_UNMAP: Session._dma_unmap,
    Command.DEVICE_GET_INFO: Session._get_info,
    Command.DEVICE_GET_REGION_INFO: Session._get_region_info,
    Command.DEVICE_GET_IRQ_INFO: Session._get_irq_info,
    Command.DEVICE_SET_IRQS: Session._set_irqs,
    Command.REGION_READ: Session._region_read,
    Command.REGION_WRITE: Session._region_write,
    Command.REGION_WRITE_MULTI: Session._region_write_multi,
    Command.DEVICE_RESET: Session._reset,
}
