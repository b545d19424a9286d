# SPDX-License-Identifier: BSD-3-Clause
"""Files of saved devices: written as a whole or not at all, read twice.

A file gets its name when all of it is on the disk.  It is read to its end and checked before
anybody uses it, and then read again; what cannot be read twice is kept in a temporary file in
between.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pyvfio.errors import OperationError, StateError, operation_error
from pyvfio.migration_file import DeviceIDs, StateReader
from pyvfio.pci.saved_config import SavedConfig
from pyvfio.uapi.layout import Buffer

STANDARD = "-"
"""Stands for standard input or output."""


@contextmanager
def told_of(op: str, path: str) -> Iterator[None]:
    """Have failures of files say what was done to which."""
    try:
        yield
    except OSError as error:
        raise operation_error(error, OperationError, op=op, uri=path) from error


# Writing


class NewFile:
    """A file that has its name when :meth:`keep` has returned.

    :param path: its name; what is no regular file, and ``-``, is written to as it is.
    :raises OperationError: it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._name = self._temporary = ""
        with told_of("write", path):
            self._fd = self._open()

    def _open(self) -> int:
        if self._path == STANDARD:
            return os.dup(sys.stdout.fileno())
        self._name = os.path.realpath(self._path)
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(self._name).st_mode):
                return os.open(self._name, os.O_WRONLY)
        temporary = f"{self._name}.{secrets.token_hex(4)}.part"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._temporary = temporary
        return fd

    def write(self, data: Buffer) -> None:
        """Write all of it; raises :class:`OperationError`."""
        view = memoryview(data)
        with told_of("write", self._path):
            while view:
                view = view[os.write(self._fd, view) :]

    def keep(self) -> None:
        """Give the file its name; it is on the disk then.  Raises :class:`OperationError`."""
        if not self._temporary:
            return
        with told_of("write", self._path):
            os.fsync(self._fd)
            os.rename(self._temporary, self._name)
            self._temporary = self._name  # to be removed, until that is on the disk as well
            folder = os.open(os.path.dirname(self._name), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self._temporary = ""

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left of it where it was not kept."""
        os.close(self._fd)
        if self._temporary:
            with told_of("remove", self._temporary), suppress(FileNotFoundError):
                os.unlink(self._temporary)


# Reading


class CheckedFile:
    """A file that was found to be whole.

    :ivar ids: what device it is of.
    :ivar config: its configuration registers.
    :ivar state_size: bytes of its state.
    """

    def __init__(self, file: BinaryIO, start: int, reader: StateReader, name: str) -> None:
        self.ids: DeviceIDs = reader.ids
        self.config = SavedConfig.unpack(reader.config, name)
        self.state_size = reader.state_size
        self._file = file
        self._start = start
        self._digest = reader.digest
        self._name = name

    def pieces(self) -> Iterator[bytes]:
        """The device's state, read again.

        :raises StateError: the file has changed since it was checked.
        :raises OperationError: it cannot be read any more.
        """
        with told_of("read", self._name):
            self._file.seek(self._start)
        reader = StateReader(_reading(self._file, self._name), self._name)
        yield from reader.pieces()
        if reader.digest != self._digest:
            raise StateError("it has changed meanwhile", op="read saved state", uri=self._name)


@contextmanager
def checked(path: str, max_size: int) -> Iterator[CheckedFile]:
    """Read all of a file and check it.

    :param max_size: bytes that are kept of what cannot be read twice.
    :raises StateError: it is not whole, or no file of a device.
    :raises OperationError: it cannot be read.
    """
    with ExitStack() as files:
        with told_of("read", path):
            file = sys.stdin.buffer if path == STANDARD else files.enter_context(open(path, "rb"))
            twice = file.seekable()
            start = file.tell() if twice else 0
        read = _reading(file, path)
        if not twice:
            with told_of("keep", path):
                file = files.enter_context(tempfile.TemporaryFile())
            read = _keeping(read, file, path, max_size)
        reader = StateReader(read, path)
        for _ in reader.pieces():
            pass
        yield CheckedFile(file, start, reader, path)


def _reading(file: BinaryIO, name: str) -> Callable[[int], bytes]:
    def read(size: int) -> bytes:
        with told_of("read", name):
            return file.read(size)

    return read


def _keeping(
    read: Callable[[int], bytes], kept: BinaryIO, name: str, max_size: int
) -> Callable[[int], bytes]:
    def read_and_keep(size: int) -> bytes:
        data = read(size)
        if kept.tell() + len(data) > max_size:
            raise StateError(
                f"it has more than {max_size} bytes",
                op="read saved state",
                uri=name,
                hint="--max-size allows more; a regular file may have any size",
            )
        with told_of("keep", f"{name} in {Path(tempfile.gettempdir())}"):
            kept.write(data)
        return data

    return read_and_keep
