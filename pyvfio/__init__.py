# SPDX-License-Identifier: BSD-3-Clause
"""Drive PCI devices through VFIO: the kernel's, or a vfio-user socket's.

::

    with pyvfio.open("vfio-user:/run/edu.sock") as dev:
        print(hex(dev.config.vendor_id))
        dev.bars[0].write32(0x04, 0x12345678)
"""

from __future__ import annotations

from typing import Any

from pyvfio.base import VFIOBase
from pyvfio.container import Container
from pyvfio.dirty import DirtyKind
from pyvfio.dirty_bitmap import DirtyBitmap
from pyvfio.errors import (
    AccessDenied,
    BackendError,
    BackendNotFound,
    BackendUnavailable,
    BindError,
    BufferInUse,
    ConnectionLost,
    DeviceBusy,
    DeviceClosed,
    DeviceNotFound,
    DMABatchError,
    DMAError,
    GroupNotViable,
    IRQError,
    LocalProtocolError,
    MigrationError,
    NegotiationError,
    NotBoundError,
    OpenError,
    OperationError,
    ProtocolError,
    RegionError,
    RemoteError,
    RemoteProtocolError,
    ResetError,
    StateError,
    UnsupportedError,
    VFIOError,
    VFIOTimeout,
)
from pyvfio.irq import IRQ, IRQSet
from pyvfio.memory import DMABuffer, MemoryKind, SharedMemory
from pyvfio.pci.device import PCIDevice
from pyvfio.pci.migrate import migrate, share_memory
from pyvfio.reconnection import Reconnection
from pyvfio.region import Region
from pyvfio.registry import open_backend
from pyvfio.uapi.vfio import DeviceState
from pyvfio.vectors import ContainerIO, DeviceIO

__version__ = "0.1.0"

__all__ = [
    "IRQ",
    "AccessDenied",
    "BackendError",
    "BackendNotFound",
    "BackendUnavailable",
    "BindError",
    "BufferInUse",
    "ConnectionLost",
    "Container",
    "ContainerIO",
    "DMABatchError",
    "DMABuffer",
    "DMAError",
    "DeviceBusy",
    "DeviceClosed",
    "DeviceIO",
    "DeviceNotFound",
    "DeviceState",
    "DirtyBitmap",
    "DirtyKind",
    "GroupNotViable",
    "IRQError",
    "IRQSet",
    "LocalProtocolError",
    "MemoryKind",
    "MigrationError",
    "NegotiationError",
    "NotBoundError",
    "OpenError",
    "OperationError",
    "PCIDevice",
    "ProtocolError",
    "Reconnection",
    "Region",
    "RegionError",
    "RemoteError",
    "RemoteProtocolError",
    "ResetError",
    "SharedMemory",
    "StateError",
    "UnsupportedError",
    "VFIOBase",
    "VFIOError",
    "VFIOTimeout",
    "migrate",
    "open",
    "open_backend",
    "share_memory",
]


def open(uri: str, **options: Any) -> PCIDevice:  # noqa: A001 - pyvfio.open is the API
    """Open a PCI device.

    :param uri: ``vfio:0000:03:00.0`` or ``vfio-user:/path/to/socket``; options may follow as
        ``?timeout=2``.
    :param options: typed options of the backend; an unknown one is an error.
    :raises BackendError: no such scheme, or its backend cannot work here.
    :raises OpenError: the device cannot be opened.
    :raises UnsupportedError: it is no PCI device.
    :raises ValueError: an option is unknown or of the wrong type.
    """
    base = open_backend(uri, options)
    try:
        return PCIDevice(base)
    except BaseException:
        base.close()
        raise
