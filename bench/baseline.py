# SPDX-License-Identifier: BSD-3-Clause
"""The C baselines as Python calls them: one call runs a whole loop, without the GIL.

What takes ``count`` returns the seconds of so many operations.
"""

from __future__ import annotations

import os
import socket
from functools import cache
from typing import Any

from cffi import FFI

from bench.build import build

REQUEST, REPLY = 32, 36
"""Bytes on the wire of a 4-byte REGION_READ and of its reply."""
POSTED = 36
"""Bytes on the wire of a posted 4-byte REGION_WRITE."""
NANO = 1e-9

_ffi = FFI()
_ffi.cdef(
    """
    int64_t bench_ping(int, uint32_t, uint32_t, uint32_t, uint64_t *);
    int64_t bench_pipe(int, uint32_t, uint32_t, uint32_t);
    int64_t bench_memcpy(uintptr_t, uintptr_t, uint64_t, uint32_t);
    int64_t bench_open(int);
    int64_t bench_read32(int, uint32_t, uint64_t, uint32_t, uint64_t *);
    int64_t bench_write32(int, uint32_t, uint64_t, uint32_t);
    int64_t bench_posted32(int, uint32_t, uint64_t, uint32_t, uint32_t);
    int64_t bench_in_flight32(int, uint32_t, uint64_t, uint32_t);
    int64_t bench_read_bulk(int, uint32_t, uint64_t, uint64_t, uint32_t, char *, uint32_t);
    int64_t bench_map_and_unmap(int, int, uint64_t, uint64_t, uint32_t);
    """
)


@cache
def _library() -> Any:
    return _ffi.dlopen(str(build().library))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(-result, f"C baseline: {os.strerror(-result)}")
    return result


def _seconds(result: int) -> float:
    return _checked(result) * NANO


def _samples(count: int) -> Any:
    return _ffi.new("uint64_t[]", count)


def memcpy(to: int, source: int, size: int, count: int) -> float:
    """``size`` bytes from one address to another."""
    return _seconds(_library().bench_memcpy(to, source, size, count))


class Ping:
    """Round trips of 32 and 36 bytes with an echo process at the other end of ``sock``."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def run(self, count: int) -> float:
        """So many."""
        return _seconds(self._ping(count, _ffi.NULL))

    def samples(self, count: int) -> list[float]:
        """The seconds of each."""
        samples = _samples(count)
        _checked(self._ping(count, samples))
        return [taken * NANO for taken in samples]

    def _ping(self, count: int, samples: Any) -> int:
        fd = self._sock.fileno()
        return int(_library().bench_ping(fd, REQUEST, REPLY, count, samples))


class Pipe:
    """Messages of 36 bytes, one way, to a process that receives one by one.

    :param joined: messages in one send.
    """

    def __init__(self, sock: socket.socket, joined: int) -> None:
        self._sock = sock
        self._joined = joined

    def run(self, count: int) -> float:
        """So many, until the last has arrived."""
        return _seconds(_library().bench_pipe(self._sock.fileno(), POSTED, self._joined, count))


class CClient:
    """The C reference client on a connected socket, which it owns.

    :ivar max_data: bytes of data that the server takes or gives in one message, as negotiated.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.max_data = _checked(_library().bench_open(sock.fileno()))

    def read32(self, region: int, offset: int, count: int) -> float:
        """4-byte reads."""
        return _seconds(
            _library().bench_read32(self._sock.fileno(), region, offset, count, _ffi.NULL)
        )

    def read32_samples(self, region: int, offset: int, count: int) -> list[float]:
        """The seconds of each 4-byte read."""
        samples = _samples(count)
        fd = self._sock.fileno()
        _checked(_library().bench_read32(fd, region, offset, count, samples))
        return [taken * NANO for taken in samples]

    def write32(self, region: int, offset: int, count: int) -> float:
        """4-byte writes, each waited for."""
        return _seconds(_library().bench_write32(self._sock.fileno(), region, offset, count))

    def posted32(self, region: int, offset: int, joined: int, count: int) -> float:
        """Posted 4-byte writes, ``joined`` messages in a send, and a read behind all of them."""
        fd = self._sock.fileno()
        return _seconds(_library().bench_posted32(fd, region, offset, joined, count))

    def in_flight32(self, region: int, offset: int, count: int) -> float:
        """4-byte writes, 64 of them under way."""
        return _seconds(_library().bench_in_flight32(self._sock.fileno(), region, offset, count))

    def read_bulk(self, region: int, offset: int, target: bytearray, count: int) -> float:
        """Reads of ``len(target)`` bytes, in the chunks that were negotiated."""
        data = _ffi.from_buffer(target)
        fd, size = self._sock.fileno(), len(target)
        result = _library().bench_read_bulk(fd, region, offset, size, self.max_data, data, count)
        return _seconds(result)

    def map_and_unmap(self, memory: int, page: int, iova: int, count: int) -> float:
        """``count`` pages of a file are mapped, each waited for, and then unmapped."""
        fd = self._sock.fileno()
        return _seconds(_library().bench_map_and_unmap(fd, memory, page, iova, count))

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def __enter__(self) -> CClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
