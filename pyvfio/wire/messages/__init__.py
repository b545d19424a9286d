# SPDX-License-Identifier: BSD-3-Clause
"""The payload of every message, one class each, for requests and for replies.

``encode()`` gives the payload as a list of buffers, so that bulk data is never copied to be sent;
``decode()`` takes a payload and checks every size in it.  A request also knows what it may be
answered with: ``reply_limit()`` bounds the reply's payload before anything is allocated for it, and
``check_reply()`` compares what a reply must echo.

``argsz`` is the largest reply payload that a client takes, and in a reply the payload needed
(specification, "Message sizes").
"""

from __future__ import annotations

from pyvfio.wire.messages.device import (
    DeviceInfo,
    GetDeviceInfo,
    GetIRQInfo,
    IRQInfo,
    SetIRQs,
    Version,
)
from pyvfio.wire.messages.dma import (
    DMAData,
    DMAMap,
    DMARead,
    DMAUnmap,
    DMAWrite,
    DMAWritten,
)
from pyvfio.wire.messages.feature import (
    DeviceFeature,
    MigData,
    MigDataRead,
    MigDataWrite,
)
from pyvfio.wire.messages.payload import (
    Empty,
    Message,
    PayloadError,
    Request,
    payload_size,
)
from pyvfio.wire.messages.region import (
    GetRegionInfo,
    GetRegionIOFDs,
    IOEventFDFlags,
    IOFDType,
    IOSubRegion,
    RegionData,
    RegionInfo,
    RegionIOFDs,
    RegionRead,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiDone,
    RegionWritten,
)

__all__ = [
    "DMAData",
    "DMAMap",
    "DMARead",
    "DMAUnmap",
    "DMAWrite",
    "DMAWritten",
    "DeviceFeature",
    "DeviceInfo",
    "Empty",
    "GetDeviceInfo",
    "GetIRQInfo",
    "GetRegionIOFDs",
    "GetRegionInfo",
    "IOEventFDFlags",
    "IOFDType",
    "IOSubRegion",
    "IRQInfo",
    "Message",
    "MigData",
    "MigDataRead",
    "MigDataWrite",
    "PayloadError",
    "RegionData",
    "RegionIOFDs",
    "RegionInfo",
    "RegionRead",
    "RegionWrite",
    "RegionWriteMulti",
    "RegionWriteMultiDone",
    "RegionWritten",
    "Request",
    "SetIRQs",
    "Version",
    "payload_size",
]
