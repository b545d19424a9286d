# SPDX-License-Identifier: BSD-3-Clause
"""The sections of the specification, by title, and the mark by which a test cites one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

_Test = TypeVar("_Test", bound=Callable[..., Any])

SECTIONS = (
    "Introduction",
    "VFIO Device Model",
    "Connection Initiation",
    "Device Information",
    "Region Information",
    "Region Capabilities",
    "Sparse Regions",
    "Device-Specific Regions",
    "Region I/O via file descriptors",
    "Interrupts",
    "Device Read and Write",
    "Client memory access",
    "Socket",
    "Authentication",
    "Command Concurrency",
    "Socket Disconnection Behavior",
    "Server Disconnection",
    "Client Disconnection",
    "Security Considerations",
    "Request Retry and Response Timeout",
    "Message sizes",
    "Commands",
    "Header",
    "Unused VFIO ioctl() commands",
    "VFIO groups and containers",
    "Backend Program Conventions",
)
"""The sections that are not about one message."""

REQUEST_AND_REPLY = ("Request", "Reply")
MESSAGES: dict[str, tuple[str, ...]] = {
    "VFIO_USER_VERSION": REQUEST_AND_REPLY,
    "VFIO_USER_DMA_MAP": REQUEST_AND_REPLY,
    "VFIO_USER_DMA_UNMAP": REQUEST_AND_REPLY,
    "VFIO_USER_DEVICE_GET_INFO": REQUEST_AND_REPLY,
    "VFIO_USER_DEVICE_GET_REGION_INFO": (
        *REQUEST_AND_REPLY,
        "VFIO region capabilities",
        "VFIO cap header format",
        "VFIO sparse mmap cap header",
        "VFIO region info cap sparse mmap",
    ),
    "VFIO_USER_DEVICE_GET_REGION_IO_FDS": (
        *REQUEST_AND_REPLY,
        "Sub-Region IO FD info format (ioeventfd)",
        "Sub-Region IO FD info format (ioregionfd)",
    ),
    "VFIO_USER_DEVICE_GET_IRQ_INFO": REQUEST_AND_REPLY,
    "VFIO_USER_DEVICE_SET_IRQS": REQUEST_AND_REPLY,
    "VFIO_USER_REGION_READ": REQUEST_AND_REPLY,
    "VFIO_USER_REGION_WRITE": REQUEST_AND_REPLY,
    "VFIO_USER_DMA_READ": REQUEST_AND_REPLY,
    "VFIO_USER_DMA_WRITE": REQUEST_AND_REPLY,
    "VFIO_USER_DEVICE_RESET": (),
    "VFIO_USER_REGION_WRITE_MULTI": (*REQUEST_AND_REPLY, "Single Device Write Format"),
    "VFIO_USER_DEVICE_FEATURE": (
        *REQUEST_AND_REPLY,
        "Device Features",
        "VFIO_DEVICE_FEATURE_MIGRATION",
        "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE",
        "Direct State Transitions",
        "Complex State Transitions",
        "VFIO_DEVICE_FEATURE_DMA_LOGGING_START / VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP",
        "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT",
    ),
    "VFIO_USER_MIG_DATA_READ": REQUEST_AND_REPLY,
    "VFIO_USER_MIG_DATA_WRITE": REQUEST_AND_REPLY,
}
"""The section of each message, with the titles below it."""

READ_AND_WRITE_OPERATIONS = "Read and Write Operations"
"""The anchor, for want of a title, of what holds for all messages that carry data."""

TITLES = {
    *SECTIONS,
    READ_AND_WRITE_OPERATIONS,
    *MESSAGES,
    *(f"{message} / {title}" for message, titles in MESSAGES.items() for title in titles),
}
"""All that can be cited: ``Section``, ``MESSAGE`` or ``MESSAGE / Title``."""


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
