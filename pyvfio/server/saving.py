# SPDX-License-Identifier: BSD-3-Clause
"""One session in which a client reads a device's state (MIG_DATA_READ)."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping

import numpy as np

from pyvfio.memory import ByteArray
from pyvfio.server.contents import Contents
from pyvfio.server.failures import FAILURES
from pyvfio.server.saved_state import Kind, RecordWriter
from pyvfio.server.used_memory import differing


class Saving:
    """Gives the stream piece by piece, as it is read.

    :param contents: the device.
    :param running: it begins in pre-copy, and memory is remembered as it was sent.
    """

    def __init__(self, contents: Contents, running: bool) -> None:
        self._contents = contents
        self._writer = RecordWriter(contents.declared)
        self._sent: dict[int, ByteArray] = {}
        if running:
            sizes = contents.declared.memory
            self._sent = {bar: np.zeros(size, np.uint8) for bar, size in sizes.items()}
        self._buffer = bytearray(self._writer.start())
        self._precopy = contents.precopy()
        self._failure: BaseException | None = None
        self._source: Iterator[bytes] = self._running() if running else iter(())

    def read(self, size: int) -> bytes:
        """The next bytes; fewer where there is nothing more now.

        :raises Exception: what the model fails with, in pre-copy.
        :raises OSError: EIO; it has failed before, see :meth:`check`.
        """
        self.check()
        while len(self._buffer) < size:
            piece = self._next()
            if not piece:
                break
            self._buffer += piece
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _next(self) -> bytes:
        try:
            return next(self._source, b"")
        except FAILURES as error:
            self._failure = error
            raise

    def check(self) -> None:
        """Refuse to go on where the model has failed: pieces are missing that it takes for sent.

        :raises OSError: EIO.
        """
        if self._failure is not None:
            reason = f"the model has failed in pre-copy: {self._failure!r}"
            raise OSError(errno.EIO, reason) from self._failure

    def finish(self, parts: Mapping[Kind, bytes]) -> None:
        """The device has stopped: the rest of its state is the end of the stream.

        :param parts: what the device gave when it had stopped.
        """
        self._source = self._stopped(parts)

    def data_size(self) -> int:
        """Bytes of memory and otherwise that are to be read yet, as far as it is known.

        Without pre-copy, memory that was read counts as well: it is remembered nowhere.
        """
        memory = sum(len(data) for _, _, data in self._changed_memory())
        return memory + len(self._buffer)

    def close(self) -> None:
        """The session is over, whether all was read or not."""
        self._precopy.close()

    def _running(self) -> Iterator[bytes]:
        """Pass after pass; nothing between two, so that a reader comes to an end of each."""
        while True:
            yield from self._memory()
            while piece := next(self._precopy, b""):
                yield self._writer.record(Kind.PRECOPY, piece)
            yield b""

    def _stopped(self, parts: Mapping[Kind, bytes]) -> Iterator[bytes]:
        yield from self._memory()
        for kind in self._contents.declared.parts:
            yield self._writer.record(kind, parts[kind])
        yield self._writer.end()

    def _memory(self) -> Iterator[bytes]:
        for bar, offset, data in self._changed_memory():
            yield self._writer.memory(bar, offset, data.tobytes())
            if bar in self._sent:
                self._sent[bar][offset : offset + len(data)] = data

    def _changed_memory(self) -> Iterator[tuple[int, int, ByteArray]]:
        for bar, (memory, size) in self._contents.memory.items():
            for offset, data in differing(memory, size, self._sent.get(bar)):
                yield bar, offset, data
