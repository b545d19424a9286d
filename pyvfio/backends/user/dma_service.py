# SPDX-License-Identifier: BSD-3-Clause
"""DMA_READ and DMA_WRITE of the server, answered from the device's container.

Runs in the channel's thread, so it is at the server's service whatever the program does; it never
waits for anything.
"""

from __future__ import annotations

import errno
import logging

from pyvfio.container import Container
from pyvfio.errors import DMAError
from pyvfio.transport.channel import Channel, PeerRequest
from pyvfio.transport.sockets import close_fds
from pyvfio.wire import messages
from pyvfio.wire.connection import RequestInvalid, RequestReceived
from pyvfio.wire.header import Command

log = logging.getLogger(__name__)


class DMAService:
    """Answers the server's requests.

    :param max_data: most bytes in one request, as negotiated.
    """

    def __init__(self, max_data: int) -> None:
        self._max_data = max_data
        self.container: Container | None = None

    def __call__(self, channel: Channel, request: PeerRequest) -> None:
        """Answer one request; an impossible one gets an errno."""
        close_fds(request.fds)
        if isinstance(request, RequestInvalid):
            log.warning("%s: %s", channel.name, request.reason)
            channel.refuse(request, request.errno)
            return
        try:
            reply = self._answer(request)
        except DMAError as error:
            log.warning("%s: %s", channel.name, error)
            channel.refuse(request, error.errno or errno.EFAULT)
        else:
            channel.reply(request, reply)

    def _answer(self, request: RequestReceived) -> messages.DMAData | messages.DMAWritten:
        container = self.container
        if container is None:
            raise DMAError("nothing is mapped yet", op=request.command.name, errno=errno.EFAULT)
        message = request.message
        writes = request.command is Command.DMA_WRITE
        count = len(message.data) if writes else message.count
        if count > self._max_data:
            raise DMAError(
                f"{count} bytes, {self._max_data} were negotiated",
                op=request.command.name,
                errno=errno.E2BIG,
            )
        if writes:
            container.device_write(message.address, message.data)
            return messages.DMAWritten(message.address, count)
        return messages.DMAData(message.address, container.device_read(message.address, count))
