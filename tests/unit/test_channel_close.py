# SPDX-License-Identifier: BSD-3-Clause
"""A channel that is closed: what still calls it does no harm."""

from __future__ import annotations

import socket

from pyvfio.transport.channel import Channel
from pyvfio.wire.commands import Role


def test_closed_channel_may_still_be_paused_and_nudged() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(
        ours,
        Role.SERVER,
        name="test",
        max_data=4096,
        timeout=1.0,
        on_request=lambda *_: None,
        on_lost=lambda _: None,
    )
    channel.close()
    channel.pause_reading(True)
    channel.pause_reading(False)
    channel.nudge()
    theirs.close()
