# SPDX-License-Identifier: BSD-3-Clause
"""What is measured, in the order of the table."""

from __future__ import annotations

from bench.peers import Kind
from bench.rows.checks import checks
from bench.rows.client import batches, client
from bench.rows.growth import growth
from bench.rows.local import local
from bench.rows.row import Row, Target
from bench.rows.server import libvfio_user, server


def rows() -> list[Row]:
    """All of the table, in its order; those of libvfio-user where it is given."""
    return [*checks(), *client(), *server(), *local(), *growth(), *libvfio_user()]


def curve() -> list[Row]:
    """Posted writes over the size of a batch: ours in one call, the C client's in one send."""
    return [
        Row(
            f"batch-{size}-{kind.name.lower()}",
            "curve",
            f"posted 4-byte writes, {size} in a call, on {kind.value}",
            f"C client, {size} messages in a send",
            batches(kind, size),
            Target(),
            least=2048,
            segments=1,
        )
        for kind in (Kind.C, Kind.OURS)
        for size in (1, 4, 16, 64, 256, 1024)
    ]
