# SPDX-License-Identifier: BSD-3-Clause
"""What a process holds, before and after something that must leave nothing."""

from __future__ import annotations

import gc
import threading
from typing import NamedTuple

from tests.fault.raw import RawClient
from tests.support import ServerProcess, open_fds, resident, thread_count

GROWTH = 2 << 20
"""Bytes by which memory may grow: 2 KiB for each cycle of the longest test."""


class Holdings(NamedTuple):
    """What a process holds."""

    fds: int
    threads: int
    memory: int


def own() -> Holdings:
    """Of this process."""
    gc.collect()
    return Holdings(len(open_fds()), threading.active_count(), resident())


def of_server(server: ServerProcess) -> Holdings:
    """Of a server while a client is connected that gave it nothing."""
    with RawClient(server.path) as client:
        client.negotiate()
        return Holdings(len(open_fds(server.pid)), thread_count(server.pid), resident(server.pid))


def check_flat(before: Holdings, after: Holdings, growth: int = GROWTH) -> None:
    """Assert that nothing is held that was not held before, but for some memory."""
    assert after.fds == before.fds
    assert after.threads == before.threads
    assert after.memory - before.memory < growth
