# SPDX-License-Identifier: BSD-3-Clause
"""A device model of which a guest sees much that the device does not have so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pyvfio.server.model import (
    DeviceModel,
    Identity,
    ModelBAR,
    ModelCapability,
    ModelMSI,
    ModelMSIX,
)
from pyvfio.uapi.pci import BARType, CapabilityID, ExtendedCapabilityID

MIB = 1 << 20


def filled(id_: int, size: int, version: int = 1) -> ModelCapability:
    """An extended capability of ``size`` bytes in all, every bit of whose body can be written."""
    body = bytes(at & 0xFF for at in range(size - 4))
    return ModelCapability(id_, body, b"\xff" * len(body), version)


class ConfigDevice(DeviceModel):
    """An endpoint with a capability of each kind that is changed for a guest.

    It cannot be reset: no write of a guest brings it back to where it began.
    """

    identity = Identity(0x1234, 0x5678, 0x020304, 0x05, 0x1AF4, 0x1100)
    bars: ClassVar[Mapping[int, ModelBAR]] = {
        0: ModelBAR(64 * MIB, BARType.MEM64, prefetchable=True),
        2: ModelBAR(32, BARType.IO),
        3: ModelBAR(4096),
        4: ModelBAR(16),
    }
    interrupt_pin = 2
    msi = ModelMSI(4)
    msix = ModelMSIX(10, table=(3, 0), pba=(3, 0x800))
    express = True
    resettable = False
    capabilities = (
        # D1 but not D2; state, PME enable and PME status can be written
        ModelCapability(CapabilityID.PM, b"\x03\x02\x08\x00\x00\x00", b"\0\0\x03\x81\0\0"),
        ModelCapability(CapabilityID.VNDR, b"\x08TEST\x00", b"\0\xff\xff\xff\xff\xff"),
        ModelCapability(CapabilityID.AF, b"\x06\x03\x00\x00", b"\0\0\0\xff"),
    )
    extended_capabilities = (
        filled(ExtendedCapabilityID.SRIOV, 0x40),
        filled(ExtendedCapabilityID.ERR, 0x48, 2),
        # one BAR, number 0, of 2^6 MiB now, that could have any size
        ModelCapability(
            ExtendedCapabilityID.REBAR, b"\xf0\xff\xff\xff\x20\x06\x00\x00", b"\0\0\0\0\0\x3f\0\0"
        ),
        filled(ExtendedCapabilityID.ARI, 8),
        filled(ExtendedCapabilityID.DSN, 12),
        filled(ExtendedCapabilityID.VNDR, 12),
    )
