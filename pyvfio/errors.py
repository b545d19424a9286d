# SPDX-License-Identifier: BSD-3-Clause
"""The error tree: every error that pyvfio raises on purpose, in one place.

::

    VFIOError                              op, uri, errno, hint
    +- BackendError
    |  +- BackendNotFound(LookupError)     no backend for this URI scheme
    |  +- BackendUnavailable               known, but it cannot work here
    +- OpenError
    |  +- DeviceNotFound(FileNotFoundError)
    |  +- DeviceBusy
    |  +- NotBoundError                    another driver has the device
    |  +- GroupNotViable                   blockers: devices of the group that others drive
    |  +- AccessDenied(PermissionError)
    +- OperationError(OSError)             errno is kept
    |  +- RegionError, ResetError
    |  +- IRQError                         available: vectors that there are instead
    |  +- DMAError                         iova, size
    |  |  +- DMABatchError                 failures: each map or unmap that was refused
    |  +- MigrationError                   state: what the device is left in
    |  +- BindError                        a device of the host did not change its driver
    |  +- RemoteError                      the server replied with an error number
    +- ProtocolError
    |  +- LocalProtocolError               this side asked for something it must not
    |  +- RemoteProtocolError              the peer broke the protocol
    |  +- NegotiationError                 no common version or capabilities
    +- ConnectionLost(ConnectionError)     the peer is gone
    +- DeviceClosed(ValueError)            used after close()
    +- BufferInUse(BufferError)            a view of the memory is alive
    +- StateError(ValueError)              saved state that cannot be loaded here
    +- UnsupportedError(NotImplementedError)
    +- VFIOTimeout(TimeoutError)

Each class is mixed with the built-in exception that says the same, so that ``except TimeoutError``
or ``except OSError`` work as a Python programmer expects.
"""

from __future__ import annotations

import errno as errnos
import os
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, TypeVar


class VFIOError(Exception):
    """Base of all errors of this package.

    :param reason: what went wrong, in one phrase.
    :param op: the operation that failed, as the user knows it (``read bar0+0x20``).
    :param uri: the device that it was asked of.
    :param errno: the error number of the kernel or of the server, if there was one.
    :param hint: what to do about it.
    :ivar step: which step of a register program it was, from 0; None for anything else.
    """

    errno: int | None
    step: int | None = None

    def __init__(
        self,
        reason: str,
        *,
        op: str = "",
        uri: str = "",
        errno: int | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.op = op
        self.uri = uri
        self.errno = errno
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # errno is no item of the dictionary where the built-in side of a class is OSError.
        return _restore, (type(self), self.reason, {**self.__dict__, "errno": self.errno})

    def __str__(self) -> str:
        where = " on ".join(part for part in (self.op, self.uri) if part)
        text = f"{where}: {self.reason}" if where else self.reason
        if self.errno is not None:
            text += f" [{errnos.errorcode.get(self.errno, self.errno)}]"
        return f"{text} ({self.hint})" if self.hint else text


def _restore(kind: type[VFIOError], reason: str, state: dict[str, Any]) -> VFIOError:
    """Make an error again in another process (pickle)."""
    error = kind(reason)
    for name, value in state.items():
        setattr(error, name, value)
    return error


class BackendError(VFIOError):
    """A backend could not be had."""


class BackendNotFound(BackendError, LookupError):
    """No backend is registered for the scheme of this URI."""


class BackendUnavailable(BackendError):
    """The backend exists but cannot work here (nobody listens, not this platform ...)."""


class OpenError(VFIOError):
    """The device could not be opened."""


class DeviceNotFound(OpenError, FileNotFoundError):
    """There is no such device or socket."""


class DeviceBusy(OpenError):
    """Somebody else holds the device or the socket."""


class NotBoundError(OpenError):
    """The device is bound to another driver than vfio-pci, or to none."""


class GroupNotViable(OpenError):
    """Other devices of the IOMMU group are in use by drivers of the host.

    :param blockers: (BDF, driver) of each.
    """

    def __init__(
        self,
        reason: str,
        *,
        blockers: Sequence[tuple[str, str]] = (),
        op: str = "",
        uri: str = "",
        errno: int | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(reason, op=op, uri=uri, errno=errno, hint=hint)
        self.blockers = tuple(blockers)


class AccessDenied(OpenError, PermissionError):
    """The device node or socket may not be opened by this user."""


class OperationError(VFIOError, OSError):
    """The kernel or the server refused an operation; ``errno`` says why."""


class RegionError(OperationError):
    """A region access failed, or was outside of the region."""


class IRQError(OperationError):
    """Interrupts could not be enabled, disabled, masked or unmasked.

    :param available: how many vectors could be enabled instead; None where that is not known.
    """

    def __init__(
        self,
        reason: str,
        *,
        available: int | None = None,
        op: str = "",
        uri: str = "",
        errno: int | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(reason, op=op, uri=uri, errno=errno, hint=hint)
        self.available = available


class ResetError(OperationError):
    """The device could not be reset."""


class DMAError(OperationError):
    """A DMA range could not be mapped, unmapped or reached.

    :param iova: first address of the range, as the device sees it.
    :param size: its size in bytes.
    """

    def __init__(
        self,
        reason: str,
        *,
        iova: int | None = None,
        size: int | None = None,
        op: str = "",
        uri: str = "",
        errno: int | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(reason, op=op, uri=uri, errno=errno, hint=hint)
        self.iova = iova
        self.size = size


class DMABatchError(DMAError):
    """Some maps or unmaps of a batch were refused; the others are done.

    ``iova``, ``size`` and ``errno`` are those of the first.

    :param failures: the error of each, in the order in which they were asked for.
    """

    def __init__(
        self,
        reason: str,
        *,
        failures: Sequence[VFIOError] = (),
        iova: int | None = None,
        size: int | None = None,
        op: str = "",
        uri: str = "",
        errno: int | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(reason, iova=iova, size=size, op=op, uri=uri, errno=errno, hint=hint)
        self.failures = tuple(failures)


class MigrationError(OperationError):
    """A device could not be brought into another state of migration, saved or loaded.

    :param state: the state that it was left in (:class:`~pyvfio.uapi.vfio.DeviceState`); None where
        it could not be asked.
    """

    def __init__(
        self,
        reason: str,
        *,
        state: IntEnum | None = None,
        op: str = "",
        uri: str = "",
        errno: int | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(reason, op=op, uri=uri, errno=errno, hint=hint)
        self.state = state


class BindError(OperationError):
    """A device of the host could not be bound to a driver, or unbound from one."""


class RemoteError(OperationError):
    """The vfio-user server answered a command with an error number."""


class ProtocolError(VFIOError):
    """The vfio-user protocol was broken, by one side or the other."""


class LocalProtocolError(ProtocolError):
    """This side asked the codec for something that the protocol does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow."""


class NegotiationError(ProtocolError):
    """Client and server have no common version or capabilities."""


class ConnectionLost(VFIOError, ConnectionError):
    """The peer closed the connection, died, or was cut off."""


class DeviceClosed(VFIOError, ValueError):
    """The object was used after it had been closed."""


class BufferInUse(VFIOError, BufferError):
    """Memory cannot be released because a numpy view of it is still alive."""


class StateError(VFIOError, ValueError):
    """Saved state is damaged, of another kind of device, or newer than this program."""


class UnsupportedError(VFIOError, NotImplementedError):
    """This device or backend has no such operation."""


class VFIOTimeout(VFIOError, TimeoutError):
    """Nothing happened within the time given."""


_Translated = TypeVar("_Translated", bound=OperationError)


def operation_error(
    cause: OSError, kind: type[_Translated], *, op: str, uri: str, hint: str = ""
) -> VFIOError:
    """What to raise when an operation vector failed with ``cause``.

    A vector raises plain :class:`OSError` (kernel) or :class:`RemoteError` (server); the user gets
    ``kind``, which names the operation.  Errors that already say what happened pass unchanged, and
    so does a time-out of the program's own, which a signal handler raised: it has no errno.
    """
    if type(cause) is TimeoutError and cause.errno is None:
        raise cause
    if isinstance(cause, VFIOError) and not isinstance(cause, RemoteError):
        return cause
    number = cause.errno if cause.errno is not None else errnos.EIO
    return kind(os.strerror(number), op=op, uri=uri, errno=number, hint=hint)
