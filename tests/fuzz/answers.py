# SPDX-License-Identifier: BSD-3-Clause
"""What an answer of either end must be."""

from __future__ import annotations

import os
from typing import Any

from pyvfio.wire import messages as m
from pyvfio.wire.commands import COMMANDS
from tests.fuzz.messages import ERROR_REPLY, REPLY, Wire
from tests.fuzz.stream import Received
from tests.fuzz.watch import Finding

MAX_ERRNO = 4095
"""Largest error number of Linux."""


def outcome(wire: Wire, got: Received) -> str:
    """What ``got`` says to ``wire``: an error's name, or none; raises :class:`Finding`."""
    if got.flags == ERROR_REPLY:
        if not 0 < got.error <= MAX_ERRNO or got.payload:
            raise Finding("malformed", f"an error reply: {got}")
        return os.strerror(got.error)
    spec = COMMANDS.get(wire.command)
    if got.flags != REPLY or got.error or spec is None:
        raise Finding("wrong answer", f"{wire} is answered with {got}")
    try:
        asked: Any = spec.request.decode(memoryview(wire.payload))
        asked.check_reply(spec.reply.decode(memoryview(got.payload)))
    except m.PayloadError as error:
        raise Finding("wrong answer", f"{error}: {wire} is answered with {got}") from error
    if len(got.payload) > asked.reply_limit():
        raise Finding("wrong answer", f"{len(got.payload)} bytes, {asked.reply_limit()} at most")
    return "none"
