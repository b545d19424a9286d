# SPDX-License-Identifier: BSD-3-Clause
"""The 16 bytes in front of every message (specification, "Header")."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

from pyvfio.uapi.layout import Layout


class Command(IntEnum):
    """Command numbers; 14 (DIRTY_PAGES) is of a dead revision and unused."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class HeaderFlags(IntFlag):
    """Bits 0-3 hold the type: 0 command, 1 reply."""

    COMMAND = 0
    REPLY = 1
    NO_REPLY = 0x10
    ERROR = 0x20


TYPE_MASK = 0xF


@dataclass(slots=True)
class Header:
    """``size`` counts the whole message, the header included."""

    id: int
    command: int
    size: int
    flags: int
    error: int


HEADER = Layout(Header, "H H I I I")


def command_name(command: int) -> str:
    """How errors and traces call a command, known or not."""
    try:
        return Command(command).name
    except ValueError:
        return f"command {command}"
