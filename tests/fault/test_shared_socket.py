# SPDX-License-Identifier: BSD-3-Clause
"""Several threads and C on one socket: who may use it when, and who is woken."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvfio
from pyvfio.errors import DeviceClosed
from pyvfio.transport.exchange import PATIENCE
from tests.fault import raw
from tests.fault.raw import RawServer
from tests.support import in_threads

SOON = 5.0


@pytest.fixture
def server(socket_folder: Path) -> Iterator[RawServer]:
    with RawServer(socket_folder / "raw.sock") as server:
        yield server


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("time_before", range(10))
def test_close_wakes_all_who_wait_for_the_socket(server: RawServer, time_before: int) -> None:
    """The caller who reads, and the channel's own thread, which has waited before it came."""

    def read() -> None:
        with pytest.raises(DeviceClosed):
            device.bars[0].read32(0)

    device = pyvfio.open(server.uri, posted_writes=False)
    device.bars[0].read32(0)
    time.sleep(PATIENCE + time_before * 1e-4)
    asked = threading.Event()
    server.handlers[raw.REGION_READ] = lambda _: asked.set()
    (reader,) = in_threads([read])
    assert asked.wait(SOON)
    closing = threading.Thread(target=device.close, daemon=True)
    closing.start()
    closing.join(SOON)
    assert not closing.is_alive()
    reader.join()
