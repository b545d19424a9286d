# SPDX-License-Identifier: BSD-3-Clause
"""``VFIO_DEVICE_FEATURE``: what a device can do besides what every device can."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from pyvfio.errors import OperationError, RemoteProtocolError, UnsupportedError, operation_error
from pyvfio.uapi.layout import Buffer
from pyvfio.uapi.vfio import FEATURE_MASK, Feature, FeatureFlags
from pyvfio.vectors import DeviceIO

_Answer = TypeVar("_Answer")

UNSUPPORTED = (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS)
"""How a kernel or server refuses a feature that the device does not have; ENOTSUP is EOPNOTSUPP."""

MAX_DATA = 1 << 20
"""Bytes of a feature's data that are sent or taken."""


class Features:
    """The features of a device.

    :param device_io: gives the vector, which changes where the device is reached again.
    :param check: raises where the device is closed; called with the operation.
    :param uri: the device, for errors.
    """

    def __init__(
        self, device_io: Callable[[], DeviceIO], check: Callable[[str], None], uri: str
    ) -> None:
        self._device_io = device_io
        self._check = check
        self._uri = uri

    def probe(self, feature: int, methods: int = 0) -> bool:
        """Whether the device has a feature, and all of these methods (GET, SET) of it.

        :raises OperationError: the device refused to tell.
        """
        if methods & ~(FeatureFlags.GET | FeatureFlags.SET):
            raise ValueError(f"methods of a feature are GET and SET, not {methods:#x}")
        flags = _number(feature) | methods | FeatureFlags.PROBE
        try:
            self._ask(f"probe {_name(feature)}", flags, b"", 0, unsupported=(errno.EINVAL,))
        except UnsupportedError:
            return False
        return True

    def get(self, feature: int, size: int, data: Buffer = b"") -> bytes:
        """The data of a feature.

        :param size: bytes that are wanted, exactly.
        :param data: what is asked for, where the feature has such data.
        :raises UnsupportedError: the device has no such feature, or it cannot be got.
        :raises OperationError: it refused.
        :raises RemoteProtocolError: it gave less.
        """
        op = f"get {_name(feature)}"
        # Old kernels and some servers say EINVAL of what they do not know; a question without
        # data has nothing else that could be wrong with it.
        unsupported = () if data else (errno.EINVAL,)
        got = self._ask(op, _number(feature) | FeatureFlags.GET, data, size, unsupported)
        if len(got) < size:
            raise RemoteProtocolError(f"{len(got)} bytes of {size}", op=op, uri=self._uri)
        return bytes(got[:size])

    def set(self, feature: int, data: Buffer = b"") -> bytes:
        """Set the data of a feature; returns them as the device has changed them.

        :raises UnsupportedError: the device has no such feature, or it cannot be set.
        :raises OperationError: it refused.
        """
        flags = _number(feature) | FeatureFlags.SET
        return bytes(self._ask(f"set {_name(feature)}", flags, data, len(data), ()))

    def _ask(
        self, op: str, flags: int, data: Buffer, size: int, unsupported: tuple[int, ...]
    ) -> Buffer:
        self._check(op)
        if not 0 <= max(size, len(data)) <= MAX_DATA:
            raise ValueError(f"{op}: {max(size, len(data))} bytes, {MAX_DATA} at most")
        return asked(
            lambda: self._device_io().feature(flags, data, size), op, self._uri, unsupported
        )


def asked(
    question: Callable[[], _Answer], op: str, uri: str, unsupported: tuple[int, ...] = ()
) -> _Answer:
    """Ask a vector about a feature; a refusal that says so is :class:`UnsupportedError`.

    :param unsupported: what else says that the device does not have it.
    """
    try:
        return question()
    except OSError as error:
        failure = operation_error(error, OperationError, op=op, uri=uri)
        if isinstance(failure, OperationError) and error.errno in (*UNSUPPORTED, *unsupported):
            raise UnsupportedError(
                "the device has no such feature", op=op, uri=uri, errno=error.errno
            ) from error
        raise failure from error


def _number(feature: int) -> int:
    if not 0 <= feature <= FEATURE_MASK:
        raise ValueError(f"a feature with number {feature}")
    return feature


def _name(feature: int) -> str:
    try:
        return f"feature {Feature(feature).name}"
    except ValueError:
        return f"feature {feature}"
