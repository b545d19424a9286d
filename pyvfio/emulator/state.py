# SPDX-License-Identifier: BSD-3-Clause
"""The emulated state of a function as bytes, for a snapshot or a migration of the guest.

It is what the emulator holds of a function: the local copy of configuration space, and the MSI-X
table.  The state of the device itself is not in it.

======  =======================================================================
bytes   what (numbers are little-endian)
======  =======================================================================
8       ``pyvfioPF``
4       version of this layout
4       bytes of configuration space that follow
4       bytes of MSI-X state behind them
4       CRC-32 of all that follows
======  =======================================================================

Facts: QEMU's ``vfio_pci_save_config``, ``vfio_pci_load_config``, ``get_pci_config_device``.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import NamedTuple

from pyvfio.emulator.config import EmulatedConfig
from pyvfio.errors import StateError
from pyvfio.uapi.layout import Buffer

_HEAD = Struct("<8s4I")
_MAGIC = b"pyvfioPF"
_VERSION = 1


class FunctionState(NamedTuple):
    """What is saved of a function.

    :ivar config: the local copy of configuration space.
    :ivar interrupts: see :meth:`Interrupts.save`.
    """

    config: bytes
    interrupts: bytes

    def pack(self) -> bytes:
        """As bytes."""
        body = self.config + self.interrupts
        sizes = (len(self.config), len(self.interrupts))
        return _HEAD.pack(_MAGIC, _VERSION, *sizes, zlib.crc32(body)) + body

    @classmethod
    def unpack(cls, data: Buffer, name: str) -> FunctionState:
        """Read what :meth:`pack` gave.

        :param name: the function that it is for, for errors.
        :raises StateError: it is no state of a function, is damaged, or newer than this program.
        """
        if len(data) < _HEAD.size:
            raise _refused(name, f"{len(data)} bytes are too few")
        magic, version, config_size, interrupts_size, checksum = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise _refused(name, "it is no state of a function")
        if version != _VERSION:
            raise _refused(name, f"its layout has version {version}, not {_VERSION}")
        body = bytes(data[_HEAD.size :])
        if len(body) != config_size + interrupts_size:
            raise _refused(name, f"{len(body)} bytes instead of {config_size + interrupts_size}")
        if zlib.crc32(body) != checksum:
            raise _refused(name, "its checksum is wrong")
        return cls(body[:config_size], body[config_size:])


def check_same_function(config: EmulatedConfig, saved: bytes) -> None:
    """Compare what neither a guest nor time can change: ids, BARs, capabilities.

    :raises StateError: it differs, so the state is of another kind of function.
    """
    if len(saved) != config.size:
        reason = f"configuration space has {len(saved)} bytes there, {config.size} here"
        raise _refused(config.name, reason)
    for offset in range(config.size):
        fixed = (config.compared[offset] | config.emulated[offset]) & ~_varying(config, offset)
        there, here = saved[offset] & fixed, config.local[offset] & fixed
        if there != here:
            what = f"byte {offset:#x} of configuration space is {there:#04x}, {here:#04x} here"
            raise _refused(config.name, what)


def load_config(config: EmulatedConfig, saved: bytes) -> None:
    """Take over what a guest has set, which :func:`check_same_function` has looked at."""
    for offset in range(config.size):
        mask = _varying(config, offset)
        config.local[offset] = config.local[offset] & ~mask | saved[offset] & mask


def _varying(config: EmulatedConfig, offset: int) -> int:
    """The bits of a byte that are not the same all the time."""
    return config.writable[offset] | config.write_1_clear[offset] | config.changing[offset]


def _refused(name: str, reason: str) -> StateError:
    return StateError(reason, op="load state", uri=name)
