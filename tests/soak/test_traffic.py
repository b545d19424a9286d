# SPDX-License-Identifier: BSD-3-Clause
"""Both sides send at once, as fast as they can, and every byte is compared."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

import pyvfio
from tests.soak import SECONDS
from tests.soak.traffic import Tally, Traffic
from tests.support import ServerProcess


def line(name: str, tally: Tally, seconds: float) -> str:
    return (
        f"  {name:<28} {tally.operations:>9} calls {tally.moved / 2**20:>10.1f} MiB"
        f" {tally.moved / 2**20 / seconds:>8.1f} MiB/s, longest {1e3 * tally.longest:>7.1f} ms"
    )


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("twin", [True, False], ids=["twin socket", "one socket"])
def test_no_deadlock_and_no_wrong_byte_while_both_sides_send(
    serve: Callable[..., ServerProcess], twin: bool, figures: list[str]
) -> None:
    server = serve("tests.soak.model:Traffic")
    with pyvfio.open(server.uri, twin_socket=twin, secure_dma=True) as dev:
        traffic = Traffic(dev)
        start = time.monotonic()
        time.sleep(SECONDS)
        traffic.stop()
        seconds = time.monotonic() - start
        device = traffic.device_tallies()
    figures.append(f"{'twin socket' if twin else 'one socket'}, {seconds:.1f} s")
    for name, tally in traffic.tallies.items():
        figures.append(line(f"client, {name}", tally, seconds))
    for stream, tally in device.items():
        verb = "DMA_READ" if stream % 2 else "DMA_WRITE"
        figures.append(line(f"device, stream {stream} {verb}", tally, seconds))
    assert traffic.ends == []
    for tally in [*traffic.tallies.values(), *device.values()]:
        assert tally.operations
