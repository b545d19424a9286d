# SPDX-License-Identifier: BSD-3-Clause
"""The capabilities that a device has, before a guest's lists are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from pyvfio.emulator.config import EmulatedConfig
from pyvfio.pci import capabilities
from pyvfio.pci.capabilities import Capability
from pyvfio.uapi import pci

_NOTHING = 0xFF
"""The id that is read where nothing answers; it ends the conventional list."""


class Original(NamedTuple):
    """A capability of the device.

    :ivar version: of an extended one; 0 of a conventional one.
    :ivar size: bytes to the next capability in the space, or to its end: what it may have at most.
    """

    id: int
    offset: int
    version: int
    size: int


class _Copy:
    """Bytes of configuration space as they were."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read8(self, offset: int) -> int:
        return self._data[offset]

    def read16(self, offset: int) -> int:
        return int.from_bytes(self._data[offset : offset + 2], "little")

    def read32(self, offset: int) -> int:
        return int.from_bytes(self._data[offset : offset + 4], "little")


def conventional(config: EmulatedConfig) -> list[Original]:
    """The capabilities of the first 256 bytes of the local copy, in the order of the list."""
    copy = _Copy(bytes(config.local[: pci.CONFIG_SIZE]))
    answering = takewhile(lambda found: found.id != _NOTHING, capabilities.conventional(copy))
    return _with_sizes(list(answering), pci.CONFIG_SIZE)


def extended(config: EmulatedConfig) -> list[Original]:
    """The capabilities behind the first 256 bytes of the local copy, in the order of the list."""
    copy = _Copy(bytes(config.local))
    return _with_sizes(list(capabilities.extended(copy)), config.size)


def _with_sizes(found: Sequence[Capability], end: int) -> list[Original]:
    starts = [capability.offset for capability in found]
    return [
        Original(
            capability.id,
            capability.offset,
            capability.version,
            min((start for start in starts if start > capability.offset), default=end)
            - capability.offset,
        )
        for capability in found
    ]
