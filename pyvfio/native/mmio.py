# SPDX-License-Identifier: BSD-3-Clause
"""Loads and stores of device memory through C: each touches memory once, with its own width.

Python's own ways (``mmap`` slices, ctypes, ``struct.pack_into``) go through ``memcpy`` or read
before they write; a clear-on-read register or a doorbell notices.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

from pyvfio.native._native import ffi, lib
from pyvfio.uapi.layout import Buffer

_failure = lib.pyvfio_guard()
if _failure:
    raise OSError(-_failure, os.strerror(-_failure), "SIGBUS handler")

READ: dict[int, Callable[[int], int]] = {
    1: lib.pyvfio_read8,
    2: lib.pyvfio_read16,
    4: lib.pyvfio_read32,
    8: lib.pyvfio_read64,
}
"""Width in bytes -> load from an address.  All ones may mean a fault: ask :func:`faulted`."""

WRITE: dict[int, Callable[[int, int], int]] = {
    1: lib.pyvfio_write8,
    2: lib.pyvfio_write16,
    4: lib.pyvfio_write32,
    8: lib.pyvfio_write64,
}
"""Width in bytes -> store (address, value); not 0 is a fault."""

_MUCH = 1 << 15
"""Bytes above which a copy costs more than what is done about it."""

_from_buffer = ffi.from_buffer
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
"""(None, size) -> bytes that nobody else has yet; who made them may fill them (Python's C API)."""
_new_bytes.restype = ctypes.py_object
_new_bytes.argtypes = ctypes.c_char_p, ctypes.c_ssize_t

ALL_ONES = {width: (1 << 8 * width) - 1 for width in READ}

read_barrier = lib.pyvfio_read_barrier
write_barrier = lib.pyvfio_write_barrier
full_barrier = lib.pyvfio_full_barrier


def faulted() -> bool:
    """Whether this thread's last load that gave all ones had no memory behind it."""
    return bool(lib.pyvfio_faulted())


def copy_out(address: int, size: int) -> bytearray | None:
    """Copy ``size`` bytes from ``address``; None where some of them cannot be reached."""
    data = bytearray(size)
    return data if copy_into(data, address) else None


def copy_bytes(address: int, size: int) -> bytes | None:
    """The same as bytes; of what is much, without a second copy."""
    if size < _MUCH:
        some = copy_out(address, size)
        return None if some is None else bytes(some)
    data: bytes = _new_bytes(None, size)
    return None if lib.pyvfio_copy_out(_from_buffer(data), address, size) else data


def copy_into(target: bytearray | memoryview, address: int) -> bool:
    """Fill ``target`` from ``address``; False where some of it cannot be reached."""
    return not lib.pyvfio_copy_out(_from_buffer(target), address, len(target))


def copy_in(address: int, data: Buffer) -> bool:
    """Copy ``data`` to ``address``; False where some of it cannot be reached."""
    return not lib.pyvfio_copy_in(address, _from_buffer(data), len(data))


class MappedMemory:
    """``size`` bytes of a file, mapped shared; unmapped when the last reference to it goes.

    :param fd: file to map; it need not stay open.
    :param offset: first byte, a multiple of the page size.
    :raises OSError: the kernel refused.
    """

    def __init__(
        self, fd: int, offset: int, size: int, *, readable: bool = True, writable: bool = True
    ) -> None:
        pointer = lib.pyvfio_map(fd, offset, size, readable, writable)
        if pointer == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        self._pointer = pointer
        self.size = size
        self.writable = writable
        self.address = int(ffi.cast("uintptr_t", pointer))

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """numpy's view of the memory; an array made of it keeps this object alive."""
        return {
            "version": 3,
            "shape": (self.size,),
            "typestr": "|u1",
            "data": (self.address, not self.writable),
        }

    def __del__(self) -> None:
        pointer = self.__dict__.pop("_pointer", None)
        if pointer is not None:
            lib.pyvfio_unmap(pointer, self.size)
