# SPDX-License-Identifier: BSD-3-Clause
"""Memory that a program shares with a device: shared memory with a descriptor, and numpy views.

The kernel wants the virtual address of DMA memory, a vfio-user server the descriptor behind it;
:class:`SharedMemory` has both.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import secrets
import time
import warnings
import weakref
from enum import Enum
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import posix_ipc

from pyvfio.closing import Closing
from pyvfio.errors import BufferInUse, DeviceClosed, VFIOError
from pyvfio.native.mmio import MappedMemory

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")

_SEGMENTS = "/dev/shm"
_PREFIX = "pyvfio-"
_LEFT_BEHIND = 60.0
"""Seconds after which the name of a segment, which lives for two system calls, was left behind."""

ByteArray: TypeAlias = npt.NDArray[np.uint8]


class MemoryKind(Enum):
    """Where shared memory comes from.

    ``POSIX`` is a posix_ipc segment in /dev/shm, unlinked as soon as it exists.  ``MEMFD`` has no
    name at all and is sealed, so that a peer it is passed to cannot shrink it under our feet.
    """

    POSIX = "posix"
    MEMFD = "memfd"


class View:
    """The numpy view of one mapping, and whether somebody still holds it.

    :param memory: what is viewed.
    :param name: what errors call it.
    """

    def __init__(self, memory: MappedMemory, name: str) -> None:
        self._memory: MappedMemory | None = memory
        self._name = name
        self._array: weakref.ref[ByteArray] | None = None

    @property
    def memory(self) -> MappedMemory:
        """The mapping; raises :class:`DeviceClosed` after :meth:`release`."""
        if self._memory is None:
            raise DeviceClosed("closed", op=self._name)
        return self._memory

    @property
    def array(self) -> ByteArray:
        """All of the mapping as bytes, shape (size,); the memory lives as long as the array."""
        array = self._array() if self._array is not None else None
        if array is None:
            array = np.asarray(self.memory)
            self._array = weakref.ref(array)
        return array

    @property
    def in_use(self) -> bool:
        """Whether an array that was handed out, or a view of it, is alive."""
        return self._array is not None and self._array() is not None

    def check_unused(self) -> None:
        """Raise :class:`BufferInUse` where a view is alive."""
        if self.in_use:
            raise BufferInUse(
                "a numpy view of the memory is still alive",
                op=self._name,
                hint="delete the arrays that were made of it first",
            )

    def release(self) -> None:
        """Let go of the mapping; it goes away with the last view."""
        self._memory = None


class SharedMemory(Closing):
    """Memory with a file descriptor, so that it can be handed to another process.

    :param size: bytes; rounded up to whole pages.
    :param kind: where it comes from.
    :param huge_page_size: bytes of the huge pages to use (2 MiB, 1 GiB); memfd only.
    :raises VFIOError: the system has no such memory left.

    Nothing of it has a name once the constructor is through, so nothing is left behind however the
    process ends.
    """

    def __init__(
        self,
        size: int,
        kind: MemoryKind = MemoryKind.POSIX,
        huge_page_size: int | None = None,
    ) -> None:
        if size <= 0:
            raise ValueError(f"{size} bytes of shared memory")
        if huge_page_size is not None and kind is not MemoryKind.MEMFD:
            raise ValueError("huge pages need MemoryKind.MEMFD")
        page = huge_page_size or PAGE_SIZE
        if page < PAGE_SIZE or page & (page - 1):
            raise ValueError(f"pages of {page} bytes")
        self.size = -(-size // page) * page
        self.kind = kind
        try:
            fd = _create(self.size, kind, huge_page_size)
            try:
                mapped = MappedMemory(fd, 0, self.size)
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            hint = "are huge pages reserved? (vm.nr_hugepages)" if huge_page_size else ""
            raise VFIOError(
                os.strerror(error.errno) if error.errno else str(error),
                op=f"allocate {self.size} bytes of shared memory",
                errno=error.errno,
                hint=hint,
            ) from error
        self.fd = fd
        self._view = View(mapped, "shared memory")

    @property
    def address(self) -> int:
        """Virtual address of the first byte."""
        return self._view.memory.address

    @property
    def array(self) -> ByteArray:
        """The memory as bytes, shape (size,)."""
        return self._view.array

    @property
    def in_use(self) -> bool:
        """Whether a numpy view of the memory is alive."""
        return self._view.in_use

    def check_unused(self) -> None:
        """Raise :class:`BufferInUse` where a numpy view is alive."""
        self._view.check_unused()

    def close(self) -> None:
        """Release the memory.  May be repeated.

        :raises BufferInUse: a numpy view of it is alive; nothing was released.
        """
        self.check_unused()
        self.release()

    def release(self) -> None:
        """Close the descriptor now; the memory itself goes away with its last numpy view."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._view.release()

    def __del__(self) -> None:
        if self.__dict__.get("fd", -1) >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.release()

    def __exit__(self, *_: object) -> None:
        """As :meth:`close`; where a view is alive, the memory lives until it is deleted."""
        in_use = self.in_use
        self.release()
        _warn_in_use(self, in_use)

    def __repr__(self) -> str:
        return f"<SharedMemory {self.kind.value} size={self.size} fd={self.fd}>"


def _create(size: int, kind: MemoryKind, huge_page_size: int | None) -> int:
    if kind is MemoryKind.MEMFD:
        return _create_memfd(size, huge_page_size)
    _remove_leftovers()
    name = f"/{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    try:
        # Sized only after the name is gone, so that the name exists for two system calls.
        segment = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, size=0, mode=0o600)
        segment.unlink()
    except posix_ipc.Error as error:
        raise VFIOError(
            f"/dev/shm: {error}",
            op=f"allocate {size} bytes of shared memory",
            hint="MemoryKind.MEMFD does without it",
        ) from error
    fd: int = segment.fd
    os.set_inheritable(fd, False)
    return _sized(fd, size)


@functools.cache
def _remove_leftovers() -> None:
    """Take away, once in a process, what others left that were killed between the two calls.

    Nothing holds memory there: no name lives long enough to get any.
    """
    with contextlib.suppress(OSError):  # no /dev/shm: creating tells it better
        for entry in os.scandir(_SEGMENTS):
            if entry.name.startswith(_PREFIX):
                with contextlib.suppress(OSError):  # somebody else's, or gone just now
                    status = entry.stat(follow_symlinks=False)
                    if not status.st_size and time.time() - status.st_mtime > _LEFT_BEHIND:
                        os.unlink(entry.path)


def _create_memfd(size: int, huge_page_size: int | None) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if huge_page_size is not None:
        shift = huge_page_size.bit_length() - 1
        flags |= os.MFD_HUGETLB | (shift << os.MFD_HUGE_SHIFT)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fd = _sized(os.memfd_create("pyvfio", flags), size)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(fd)
        raise
    return fd


def _sized(fd: int, size: int) -> int:
    try:
        os.ftruncate(fd, size)
    except OverflowError as error:
        os.close(fd)
        raise OSError(errno.ENOMEM, f"{size} bytes") from error
    except OSError:
        os.close(fd)
        raise
    return fd


def _warn_in_use(memory: object, in_use: bool) -> None:
    if in_use:
        warnings.warn(
            f"{memory!r} was left while a numpy view of it is alive; the memory lives on with it",
            ResourceWarning,
            stacklevel=3,
        )


class BufferOwner(Protocol):
    """What a buffer needs of the container that made it."""

    def retire(self, buffer: DMABuffer) -> None:
        """Take the buffer away from the device, and release it."""

    def forget(self, buffer: DMABuffer) -> None:
        """A buffer was released."""


class DMABuffer(Closing):
    """Memory that the program and the device share; made by :meth:`Container.alloc`.

    :ivar iova: where the device finds it.
    :ivar size: bytes, whole pages.
    """

    def __init__(self, container: BufferOwner, memory: SharedMemory, iova: int) -> None:
        self._container = container
        self._memory = memory
        self.iova = iova
        self.size = memory.size
        self._open = True

    @property
    def array(self) -> ByteArray:
        """The buffer as bytes, shape (size,).  View it as what it holds: ``array.view("<u4")``."""
        self._check_open()
        return self._memory.array

    @property
    def address(self) -> int:
        """Virtual address of the first byte in this process."""
        self._check_open()
        return self._memory.address

    def close(self) -> None:
        """Unmap the buffer from the device and release it.  May be repeated.

        :raises BufferInUse: a numpy view is alive; the buffer stays as it was.
        :raises DMAError: the device's IOMMU or server refused; the buffer stays as it was.
        """
        if not self._open:
            return
        self._memory.check_unused()
        self._container.retire(self)

    def withdraw(self, withdrawn: bool = True) -> None:
        """Closed, but not released as long as its unmap may fail; called by the container."""
        self._open = not withdrawn

    def release(self) -> None:
        """Let go of memory that is not mapped any more; called by the container."""
        self._open = False
        self._container.forget(self)
        self._memory.release()

    def check_unused(self) -> None:
        """Raise :class:`BufferInUse` where a numpy view of the buffer is alive."""
        self._memory.check_unused()

    def consists_of(self, memory: object) -> bool:
        """Whether ``memory`` is what was mapped for the buffer."""
        return memory is self._memory

    @property
    def open(self) -> bool:
        """Whether :meth:`close` has not been called."""
        return self._open

    @property
    def in_use(self) -> bool:
        """Whether a numpy view of the buffer is alive."""
        return self._memory.in_use

    def _check_open(self) -> None:
        if not self._open:
            raise DeviceClosed("closed", op=f"dma buffer at iova {self.iova:#x}")

    def __exit__(self, *_: object) -> None:
        """As :meth:`close`; where a view is alive, the memory lives until it is deleted."""
        if self._open:
            in_use = self.in_use
            self._container.retire(self)
            _warn_in_use(self, in_use)

    def __repr__(self) -> str:
        return f"<DMABuffer iova={self.iova:#x} size={self.size}>"
