# SPDX-License-Identifier: BSD-3-Clause
"""What the table of servers says of each is what the server says of itself."""

from __future__ import annotations

import pytest

from tests.conformance.protocol.device import MASKABLE, Device
from tests.conformance.protocol.peers import Host
from tests.conformance.protocol.specification import spec
from tests.fault import raw

FEATURE_GET_MIGRATION = (16).to_bytes(4, "little") + (0x10001).to_bytes(4, "little")


def traits(device: Device) -> set[str]:
    """The traits that can be seen from outside."""
    migration = device.client.ask(raw.DEVICE_FEATURE, FEATURE_GET_MIGRATION).error == 0
    seen = {
        "memory": bool(device.memories),
        "maskable": any(irq.flags & MASKABLE for irq in device.irqs),
        "vectors": any(irq.count > 2 for irq in device.irqs),
        "migration": migration,
    }
    return {name for name, found in seen.items() if found}


@spec("Device Information", "Region Information", "Interrupts")
def test_a_server_has_what_it_is_tested_for(peer: Host, device: Device) -> None:
    unseen = {"multi", "stays", "registers", "timer", "states", "stream"}
    assert traits(device) == peer.peer.traits - unseen


@pytest.mark.parametrize("offered", [b"true", b"false"])
@spec("VFIO_USER_VERSION / Reply")
def test_write_multiple_is_negotiated_where_both_sides_have_it(peer: Host, offered: bytes) -> None:
    with peer.connect() as client:
        text = b'{"capabilities":{"write_multiple":' + offered + b"}}\0"
        agreed = b'"write_multiple":true' in client.negotiate(text).payload
    assert agreed == (offered == b"true" and "multi" in peer.peer.traits)
