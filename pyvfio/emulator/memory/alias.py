# SPDX-License-Identifier: BSD-3-Clause
"""A window onto another region, QEMU's alias."""

from __future__ import annotations

from pyvfio.emulator.memory.region import MAX_SIZE, MemoryRegion


class AliasRegion(MemoryRegion):
    """Shows a part of another region, which need not be seen elsewhere.

    :param target: the region that is shown; where it is itself does not matter.
    :param offset: the first byte of it that is shown.
    :param size: bytes that are shown.
    """

    def __init__(self, name: str, target: MemoryRegion, offset: int, size: int) -> None:
        super().__init__(name, size)
        if not 0 <= offset < MAX_SIZE:
            raise ValueError(f"alias {name} of offset {offset:#x}")
        self.target = target
        self.target_offset = offset
        target._aliases.add(self)

    @property
    def kind(self) -> str:
        return "alias"

    def add(self, region: MemoryRegion, offset: int, priority: int = 0) -> None:
        """An alias shows what its target holds; :raises ValueError: always."""
        raise ValueError(f"alias {self.name} holds no regions of its own")

    def _below(self) -> tuple[MemoryRegion, ...]:
        return (self.target,)
