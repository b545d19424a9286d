# SPDX-License-Identifier: BSD-3-Clause
"""Walk the capability lists of configuration space; bounded, since the device is not trusted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pyvfio.uapi import pci

log = logging.getLogger(__name__)


class Readable(Protocol):
    """Configuration space, of a device or of a copy; numbers are little-endian."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    def read8(self, offset: int) -> int:
        """8 bits."""

    def read16(self, offset: int) -> int:
        """16 bits."""

    def read32(self, offset: int) -> int:
        """32 bits."""


@dataclass(frozen=True, slots=True)
class Capability:
    """One capability.

    :ivar id: ``PCI_CAP_ID_*`` or ``PCI_EXT_CAP_ID_*``.
    :ivar offset: bytes from the start of configuration space.
    :ivar version: of an extended capability; 0 of a conventional one.
    :ivar extended: whether it is in the extended space.
    """

    id: int
    offset: int
    version: int = 0
    extended: bool = False

    @property
    def name(self) -> str:
        """What the specification calls it."""
        names = pci.EXTENDED_CAPABILITY_NAMES if self.extended else pci.CAPABILITY_NAMES
        return names.get(self.id, f"unknown capability {self.id:#04x}")

    def __str__(self) -> str:
        version = f" v{self.version}" if self.extended else ""
        return f"[{self.offset:#05x}] {self.name}{version}"


def conventional(config: Readable) -> Iterator[Capability]:
    """The capabilities of the first 256 bytes, in the order of the list."""
    if not config.read16(pci.STATUS.offset) & pci.Status.CAP_LIST:
        return
    seen: set[int] = set()
    offset = config.read8(pci.CAPABILITY_LIST.offset) & ~3
    while offset:
        if offset < pci.HEADER_SIZE or offset in seen:
            log.warning("capability list leads to %#x, which ends it", offset)
            return
        seen.add(offset)
        head = config.read16(offset)
        yield Capability(head & 0xFF, offset)
        offset = (head >> 8) & ~3


def extended(config: Readable) -> Iterator[Capability]:
    """The capabilities behind the first 256 bytes; none on a conventional PCI device."""
    seen: set[int] = set()
    offset = pci.EXTENDED_FIRST
    while offset:
        if offset < pci.EXTENDED_FIRST or offset in seen or offset + 4 > config.size:
            if seen:
                log.warning("extended capability list leads to %#x, which ends it", offset)
            return
        seen.add(offset)
        head = config.read32(offset)
        if head in (0, 0xFFFF_FFFF):
            return
        version = (head >> pci.EXTENDED_VERSION_SHIFT) & pci.EXTENDED_VERSION_MASK
        yield Capability(head & 0xFFFF, offset, version, extended=True)
        offset = (head >> pci.EXTENDED_NEXT_SHIFT) & ~3
