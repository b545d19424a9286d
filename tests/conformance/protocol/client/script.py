# SPDX-License-Identifier: BSD-3-Clause
"""What several tests of the client do with their raw server."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tests.fault import raw
from tests.fault.raw import Handler, Message, RawServer, answer

READ_WRITE = raw.READABLE | raw.WRITABLE


def says(server: RawServer, command: int, payload: bytes, fds: Sequence[int] = ()) -> None:
    """Have the server answer every command of a kind in one way."""
    server.handlers[command] = lambda message: server.peer.send(answer(message, payload), fds)


def before(server: RawServer, command: int, do: Handler) -> None:
    """Have the server do something before it answers the next command of a kind."""

    def handle(message: Message) -> None:
        del server.handlers[command]
        do(message)
        server.serve(message)

    server.handlers[command] = handle


def about_region(
    server: RawServer, index: int, tell: Callable[[int], tuple[bytes, list[int]]]
) -> None:
    """Answer questions about one region with what ``tell`` makes of their argsz."""

    def handle(message: Message) -> None:
        argsz, _, asked = message.words("III")
        if asked != index:
            server.serve(message)
            return
        payload, fds = tell(argsz)
        server.peer.send(answer(message, payload), fds)

    server.handlers[raw.GET_REGION_INFO] = handle


def text(**capabilities: Any) -> bytes:
    """Version data."""
    return json.dumps({"capabilities": capabilities}).encode() + b"\0"


def sent(server: RawServer, command: int) -> list[Message]:
    """The commands of a kind that the client sent."""
    return [message for message in server.seen if message.command == command]
