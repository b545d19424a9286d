# SPDX-License-Identifier: BSD-3-Clause
"""The registers of a region behind a socket: C asks for them, the channel goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvfio.native.window import Messages
from pyvfio.transport.exchange import Exchange, register_write
from pyvfio.vectors import ShortAccess, register_value
from pyvfio.wire.header import Command
from pyvfio.wire.messages import RegionRead


class SocketRegisters:
    """Those of one region.

    :param exchange: of the socket.
    :param region: its number.
    :param post: posts bytes to an offset of a region the general way.
    """

    def __init__(
        self, exchange: Exchange, region: int, post: Callable[[int, int, bytes], None]
    ) -> None:
        self._exchange = exchange
        self._region = region
        self._post = post

    def in_c(self, writes: bool, posting_is_over: Any = None) -> Messages:
        stream = self._exchange.stream
        return Messages(
            region=self._region,
            reads=stream,
            writes=stream if writes else None,
            posts=None if posting_is_over is None else self._exchange.posts,
            posting_is_over=posting_is_over,
            owner=self,
        )

    def tell_others(self) -> None:
        self._exchange.tell_others()

    def read_on(self, offset: int, width: int) -> int:
        request = RegionRead(offset, self._region, width)
        call = self._exchange.go_on(Command.REGION_READ, request)
        return register_value(call.result().message.data, width)

    def write_on(self, offset: int, width: int, value: int) -> None:
        request = register_write(self._region, offset, width, value)
        if self._exchange.posts.left_by_me:
            if not self._exchange.post_on(Command.REGION_WRITE, request):
                self._post(self._region, offset, bytes(request.data))
            return
        count = self._exchange.go_on(Command.REGION_WRITE, request).result().message.count
        if count != width:
            raise ShortAccess(count)

    def abandon(self, offset: int, width: int, value: int | None) -> None:
        self._exchange.abandon_post()
        if not self._exchange.stream.left_by_me:
            return
        place = int(offset)  # as C has taken it, and the value
        if value is None:
            read = RegionRead(place, self._region, width)
            self._exchange.abandon([(Command.REGION_READ, read)])
        else:
            write = register_write(self._region, place, width, int(value))
            self._exchange.abandon([(Command.REGION_WRITE, write)])
