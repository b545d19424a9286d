# SPDX-License-Identifier: BSD-3-Clause
"""Regions that answer accesses, and how an access is split that they do not take as it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from pyvfio.emulator.memory.region import MemoryRegion
from pyvfio.uapi.layout import Buffer

WIDTHS = (1, 2, 4, 8)


def all_ones(width: int) -> int:
    """What a read of ``width`` bytes gives where nothing answers."""
    return (1 << 8 * width) - 1


def accesses(offset: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, width) of the aligned accesses of at most 8 bytes that a range is split into.

    QEMU's ``memory_access_size`` where a region implements no unaligned access: the widest that
    the alignment and the rest allow.
    """
    end = offset + size
    while offset < end:
        width = min(8, offset & -offset or 8)
        while width > end - offset:
            width >>= 1
        yield offset, width
        offset += width


def check_access(width: int, value: int = 0) -> None:
    """Raise ValueError where there is no such access."""
    if width not in WIDTHS:
        raise ValueError(f"an access of {width} bytes; 1, 2, 4 and 8 exist")
    if not 0 <= value <= all_ones(width):
        raise ValueError(f"{value:#x} does not fit into {8 * width} bits")


class TerminalRegion(MemoryRegion, ABC):
    """A region that answers accesses, at offsets in bytes from its start."""

    is_ram = False
    """Whether it is memory: DMA of devices can reach it, and a read-only view drops writes."""

    def read(self, offset: int, width: int) -> int:
        """A read of 1, 2, 4 or 8 bytes, little-endian; one access where it is aligned.

        :raises ValueError: no such width.
        """
        check_access(width)
        if offset % width == 0:
            return self._load(offset, width)
        return int.from_bytes(self.read_bytes(offset, width), "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """A write of 1, 2, 4 or 8 bytes, little-endian; one access where it is aligned.

        :raises ValueError: no such width, or the value does not fit.
        """
        check_access(width, value)
        if offset % width == 0:
            self._store(offset, width, value)
        else:
            self.write_bytes(offset, value.to_bytes(width, "little"))

    def read_bytes(self, offset: int, size: int) -> bytes:
        """Any number of bytes, split into accesses as :func:`accesses` says."""
        return b"".join(
            self._load(at, width).to_bytes(width, "little") for at, width in accesses(offset, size)
        )

    def write_bytes(self, offset: int, data: Buffer) -> None:
        """Any number of bytes, split into accesses as :func:`accesses` says."""
        view = memoryview(data).cast("B")
        for at, width in accesses(offset, len(view)):
            part = view[at - offset : at - offset + width]
            self._store(at, width, int.from_bytes(part, "little"))

    @abstractmethod
    def _load(self, offset: int, width: int) -> int:
        """One aligned read."""

    @abstractmethod
    def _store(self, offset: int, width: int, value: int) -> None:
        """One aligned write of a value that fits."""
