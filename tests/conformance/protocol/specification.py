# SPDX-License-Identifier: BSD-3-Clause
"""The sections of the specification, by title, and the mark by which a test cites one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

_Test = TypeVar("_Test", bound=Callable[..., Any])

SECTIONS: dict[str, tuple[str, ...]] = {
    "Introduction": (),
    "VFIO Device Model": (
        "Connection Initiation",
        "Device Information",
        "Region Information",
        "Region Capabilities",
        "Sparse Regions",
        "Device-Specific Regions",
    ),
    "Region I/O via file descriptors": ("Interrupts", "Device Read and Write"),
    "Client memory access": (),
    "Socket": (),
    "Authentication": (),
    "Command Concurrency": (),
    "Socket Disconnection Behavior": ("Server Disconnection", "Client Disconnection"),
    "Security Considerations": (),
    "Request Retry and Response Timeout": (),
    "Message sizes": (),
    "Commands": (),
    "Header": (),
    "VFIO_USER_VERSION": ("Request", "Reply"),
    "VFIO_USER_DMA_MAP": ("Request", "Reply"),
    "VFIO_USER_DMA_UNMAP": ("Request", "Reply"),
    "VFIO_USER_DEVICE_GET_INFO": ("Request", "Reply"),
    "VFIO_USER_DEVICE_GET_REGION_INFO": (
        "Request",
        "Reply",
        "VFIO region capabilities",
        "VFIO cap header format",
        "VFIO sparse mmap cap header",
        "VFIO region info cap sparse mmap",
    ),
    "VFIO_USER_DEVICE_GET_REGION_IO_FDS": (
        "Request",
        "Reply",
        "Sub-Region IO FD info format (ioeventfd)",
        "Sub-Region IO FD info format (ioregionfd)",
    ),
    "VFIO_USER_DEVICE_GET_IRQ_INFO": ("Request", "Reply"),
    "VFIO_USER_DEVICE_SET_IRQS": ("Request", "Reply"),
    "VFIO_USER_REGION_READ": ("Request", "Reply"),
    "VFIO_USER_REGION_WRITE": ("Request", "Reply"),
    "VFIO_USER_DMA_READ": ("Request", "Reply"),
    "VFIO_USER_DMA_WRITE": ("Request", "Reply"),
    "VFIO_USER_DEVICE_RESET": (),
    "VFIO_USER_REGION_WRITE_MULTI": ("Request", "Single Device Write Format", "Reply"),
    "VFIO_USER_DEVICE_FEATURE": (
        "Request",
        "Reply",
        "Device Features",
        "VFIO_DEVICE_FEATURE_MIGRATION",
        "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE",
        "Direct State Transitions",
        "Complex State Transitions",
        "VFIO_DEVICE_FEATURE_DMA_LOGGING_START / VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP",
        "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT",
    ),
    "VFIO_USER_MIG_DATA_READ": ("Request", "Reply"),
    "VFIO_USER_MIG_DATA_WRITE": ("Request", "Reply"),
    "Unused VFIO ioctl() commands": ("VFIO groups and containers",),
    "Backend Program Conventions": (),
}
"""Each section and the titles below it; ``Section / Title`` cites one of those.

What stands between DEVICE_SET_IRQS and REGION_READ, on all four messages that carry data, has the
anchor "Read and Write Operations" and no title of its own.
"""

READ_AND_WRITE_OPERATIONS = "Read and Write Operations"

TITLES = frozenset(SECTIONS) | {
    f"{section} / {title}" for section, titles in SECTIONS.items() for title in titles
}
"""All that can be cited, beside :data:`READ_AND_WRITE_OPERATIONS`."""


def spec(*titles: str) -> Callable[[_Test], _Test]:
    """Cite the sections of the specification that a test holds a peer to."""

    def mark(test: _Test) -> _Test:
        marked: _Test = pytest.mark.spec(*titles)(test)
        return marked

    return mark


def needs(*traits: str) -> Callable[[_Test], _Test]:
    """Run a test on peers that have these traits only (:mod:`~.peers`)."""

    def mark(test: _Test) -> _Test:
        marked: _Test = pytest.mark.needs(*traits)(test)
        return marked

    return mark
