# SPDX-License-Identifier: BSD-3-Clause
"""One client of a server: negotiation, then its requests, one after the other.

:meth:`Session.run` takes a request and has it carried out.  While a model takes its time, or waits
for the client's memory, the channel goes on reading and requests are queued.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable

from pyvfio.errors import ConnectionLost, DeviceClosed, VFIOError, VFIOTimeout
from pyvfio.server.deferred import DeferredAnswers
from pyvfio.server.direct import DirectService
from pyvfio.server.dma_maps import DMAMaps
from pyvfio.server.failures import FAILURES, errno_of, note
from pyvfio.server.function import PCIFunction
from pyvfio.server.guest_memory import GuestMemory
from pyvfio.server.inbox import Inbox
from pyvfio.server.negotiation import answer_to
from pyvfio.server.quotas import Quotas
from pyvfio.server.requests import Answer, Requests
from pyvfio.transport.channel import Channel, PeerRequest
from pyvfio.transport.sockets import close_fds
from pyvfio.wire import messages, version
from pyvfio.wire.commands import Role
from pyvfio.wire.connection import RequestInvalid, RequestReceived
from pyvfio.wire.header import Command
from pyvfio.wire.version import Limits

log = logging.getLogger(__name__)

REQUEST_TIMEOUT = 5.0
"""Seconds that VERSION, and the answer to a DMA_READ or DMA_WRITE, may take."""

_ONLY_ANSWERS = frozenset(
    {
        Command.REGION_READ,
        Command.DEVICE_GET_INFO,
        Command.DEVICE_GET_REGION_INFO,
        Command.DEVICE_GET_REGION_IO_FDS,
        Command.DEVICE_GET_IRQ_INFO,
        Command.MIG_DATA_READ,
    }
)
"""Commands that are done for their answers: a client that has left has no use for them.  Its writes
are carried out, since a program may write and end."""


class Session:
    """Serves one client until it leaves.

    :param sock: the accepted socket; the session owns it.
    :param name: what the log calls the client.
    """

    def __init__(
        self, sock: socket.socket, function: PCIFunction, quotas: Quotas, name: str
    ) -> None:
        self._function = function
        self._quotas = quotas
        self._inbox = Inbox(quotas)
        self._deferred = DeferredAnswers()
        self._stopping = False
        self._twin: Channel | None = None
        self._channel = self._make_channel(sock, name, self._inbox.put, self._on_lost)

    def _make_channel(
        self,
        sock: socket.socket,
        name: str,
        on_request: Callable[[Channel, PeerRequest], None],
        on_lost: Callable[[VFIOError], None],
        twin: bool = False,
    ) -> Channel:
        return Channel(
            sock,
            Role.SERVER,
            name=name,
            max_data=self._quotas.max_data,
            timeout=REQUEST_TIMEOUT,
            on_request=on_request,
            on_lost=on_lost,
            twin=twin,
        )

    def run(self) -> None:
        """Negotiate, then serve until the client leaves or :meth:`stop` is called."""
        try:
            limits = self._negotiate()
            if limits is not None:
                self._serve(limits)
        except (ConnectionLost, DeviceClosed) as error:
            log.info("%s", error)
        finally:
            self._close()

    def _serve(self, limits: Limits) -> None:
        maps = DMAMaps(self._quotas, self._function, self._function.direct_dma)
        guest = GuestMemory(maps, self._ask, limits.max_data_xfer_size)
        requests = Requests(
            self._function,
            guest=guest,
            deferred=self._deferred,
            quotas=self._quotas,
            max_fds=limits.max_msg_fds,
            name=self._channel.name,
        )
        self._function.attach_client(guest, requests.kicks)
        direct = DirectService.of(self._channel, self._function, self._deferred, self._quotas)
        try:
            self._carry_out_all(requests, direct)
        finally:
            # What others wait for in the client's name ends first, so that nobody waits for them.
            self._deferred.end()
            self._close_twin()
            requests.close()
            self._function.detach_client()

    def stop(self) -> None:
        """Have :meth:`run` return soon; any thread may call this."""
        self._stopping = True
        self._inbox.end()
        self._deferred.stop()
        self._channel.nudge()

    def _close(self) -> None:
        self._close_twin()
        self._channel.close()
        self._inbox.drop(self._channel)

    def _close_twin(self) -> None:
        if self._twin is not None:
            self._twin.close()

    # Called by the thread that reads

    def _refuse_on_twin(self, channel: Channel, request: PeerRequest) -> None:
        close_fds(request.fds)
        channel.refuse(request, errno.EINVAL)

    def _on_lost(self, error: VFIOError) -> None:
        log.info("%s", error)
        self._inbox.end()
        self._deferred.end()

    def _on_twin_lost(self, error: VFIOError) -> None:
        # The client can go on without; DMA that needs the twin socket fails.
        log.info("%s", error)

    # Negotiation

    def _negotiate(self) -> Limits | None:
        """What the client takes; None where there is no agreement."""
        name = self._channel.name
        if not self._channel.wait_for(self._inbox, REQUEST_TIMEOUT):
            log.warning("%s: no VERSION within %s s", name, REQUEST_TIMEOUT)
            return None
        request = self._inbox.take(self._channel)
        if request is None:
            return None
        close_fds(request.fds)
        if not isinstance(request, RequestReceived) or request.command is not Command.VERSION:
            reason = request.reason if isinstance(request, RequestInvalid) else "it is not VERSION"
            log.warning("%s: the first message: %s", name, reason)
            self._channel.refuse(request, errno.EINVAL)
            return None
        if request.message.major != version.MAJOR:
            log.warning("%s: speaks version %d", name, request.message.major)
            self._channel.refuse(request, errno.EINVAL)
            return None
        return self._agree(request, request.message)

    def _agree(self, request: RequestReceived, offered: messages.Version) -> Limits:
        own = self._quotas.capabilities()
        limits = Limits.of(offered.capabilities, own)
        theirs, client_end = offered.capabilities, None
        can_take_one = limits.max_msg_fds > 0 and not request.no_reply
        if theirs is not None and theirs.twin_socket and can_take_one:
            client_end = self._make_twin()
        if client_end is None:
            self._channel.reply(request, answer_to(offered, own, twin=False))
        else:
            with client_end:
                reply = answer_to(offered, own, twin=True)
                self._channel.reply(request, reply, [client_end.fileno()])
        return limits

    def _make_twin(self) -> socket.socket | None:
        """The client's end of a twin socket; None where there is no room for one."""
        name = f"{self._channel.name} (twin socket)"
        try:
            own_end, client_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            log.warning("%s: %s", name, error)
            return None
        try:
            self._twin = self._make_channel(
                own_end, name, self._refuse_on_twin, self._on_twin_lost, twin=True
            )
        except (OSError, RuntimeError) as error:
            log.warning("%s: %s", name, error)
            client_end.close()
            return None
        return client_end

    # Requests

    def _carry_out_all(self, requests: Requests, direct: DirectService | None) -> None:
        while True:
            if direct is not None:
                direct.serve(self._has_other_work)
            if not self._channel.wait_for(self._inbox, None):
                return
            request = self._inbox.take(self._channel)
            if request is None:
                return
            if self._stopping:
                close_fds(request.fds)
                return
            if not self._channel.lost or request.command not in _ONLY_ANSWERS:
                self._handle(requests, request)
            else:
                close_fds(request.fds)

    def _has_other_work(self) -> bool:
        return self._stopping or self._inbox.ready()

    def _handle(self, requests: Requests, request: PeerRequest) -> None:
        answer = self._outcome(requests, request)
        if isinstance(answer, int):
            self._channel.refuse(request, answer)
        elif isinstance(request, RequestReceived):
            self._channel.reply(request, answer.message, answer.fds)

    def _outcome(self, requests: Requests, request: PeerRequest) -> Answer | int:
        """The answer to a request, or an errno; nothing of the request is left when it is sent."""
        fds = list(request.fds)
        try:
            return requests.carry_out(request, fds)
        except FAILURES as error:
            note(log, self._channel.name, error)
            return errno_of(error)
        finally:
            close_fds(fds)

    # DMA by messages, for the model

    def _ask(self, command: Command, message: messages.DMARead | messages.DMAWrite) -> object:
        channel = self._twin or self._channel
        if self._stopping:  # between two messages of a long transfer
            raise DeviceClosed("the server stops", op=command.name, uri=channel.name)
        with self._inbox.asking(self._channel):
            try:
                return channel.call(command, message).message
            except VFIOTimeout:
                log.warning("%s: no answer to %s", channel.name, command.name)
                raise
