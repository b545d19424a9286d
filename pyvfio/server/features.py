# SPDX-License-Identifier: BSD-3-Clause
"""DEVICE_FEATURE: what a client probes, gets and sets (specification, "VFIO_USER_DEVICE_FEATURE").

MIG_DATA_SIZE is the kernel's, and not in the specification yet.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeAlias

from pyvfio.server.dirty_log import DirtyLog
from pyvfio.server.migration import Migration
from pyvfio.server.quotas import Quotas
from pyvfio.uapi import vfio
from pyvfio.uapi.layout import Layout, Record
from pyvfio.uapi.vfio import Feature, FeatureFlags
from pyvfio.wire.messages import DeviceFeature

_Method: TypeAlias = "Callable[[Features, DeviceFeature], bytes]"

_METHODS = FeatureFlags.GET | FeatureFlags.SET
_ALL_FLAGS = int(_METHODS | FeatureFlags.PROBE)


class Features:
    """The features of one client's device; without migration there are none.

    :param log: which pages the device has written.
    """

    def __init__(self, migration: Migration | None, log: DirtyLog, quotas: Quotas) -> None:
        self._migration = migration
        self._log = log
        self._quotas = quotas

    def carry_out(self, request: DeviceFeature) -> DeviceFeature:
        """Probe, get or set.

        :returns: the reply.
        :raises OSError: ENOTSUP for a feature or method that is not there, EINVAL for flags that
            contradict each other and for data of a wrong size.
        :raises Exception: what the model fails with on its way to another state.
        """
        flags = request.flags & ~vfio.FEATURE_MASK
        methods = FeatureFlags(flags & _METHODS)
        _check_flags(flags, methods)
        known = self._known(request.flags & vfio.FEATURE_MASK)
        if methods & ~_supported(known):
            raise OSError(errno.ENOTSUP, f"{methods!r} of feature flags {request.flags:#x}")
        if flags & FeatureFlags.PROBE:
            _check_room(request, len(request.data))
            return request
        data = known[methods](self, request)
        size = vfio.DEVICE_FEATURE.size + len(data)
        argsz = size if methods == FeatureFlags.GET else request.argsz
        return DeviceFeature(argsz, request.flags, data)

    def _known(self, number: int) -> dict[FeatureFlags, _Method]:
        """What can be done with a feature."""
        known = _KNOWN.get(number)
        if self._migration is None or known is None:
            raise OSError(errno.ENOTSUP, f"there is no feature {number}")
        return known

    # Migration

    @property
    def _state_machine(self) -> Migration:
        assert self._migration is not None
        return self._migration

    def _get_flags(self, request: DeviceFeature) -> bytes:
        _check_room(request, vfio.FEATURE_MIGRATION.size)
        return vfio.FEATURE_MIGRATION.pack(self._state_machine.flags)

    def _get_state(self, request: DeviceFeature) -> bytes:
        _check_room(request, vfio.FEATURE_STATE.size)
        return vfio.FEATURE_STATE.pack(self._state_machine.state, 0)

    def _set_state(self, request: DeviceFeature) -> bytes:
        wanted = _only(vfio.FEATURE_STATE, request)
        self._state_machine.set_state(wanted.device_state, self._quotas.max_state)
        return bytes(request.data)

    def _get_data_size(self, request: DeviceFeature) -> bytes:
        _check_room(request, vfio.FEATURE_DATA_SIZE.size)
        return vfio.FEATURE_DATA_SIZE.pack(self._state_machine.data_size())

    # Logging

    def _start_logging(self, request: DeviceFeature) -> bytes:
        control = _first(vfio.LOGGING_CONTROL, request)
        ranges, size = bytes(request.data[vfio.LOGGING_CONTROL.size :]), vfio.LOGGING_RANGE.size
        if len(ranges) != control.num_ranges * size:
            raise _invalid(f"{len(ranges)} bytes for {control.num_ranges} ranges")
        _check_room(request, len(request.data))
        found = list(vfio.LOGGING_RANGE.struct.iter_unpack(ranges))
        page_size = self._log.start(control.page_size, [(iova, length) for iova, length in found])
        return vfio.LOGGING_CONTROL.pack(page_size, control.num_ranges, control.reserved) + ranges

    def _stop_logging(self, request: DeviceFeature) -> bytes:
        if request.data:
            raise _invalid(f"{len(request.data)} bytes to stop the logging")
        self._log.stop()
        return b""

    def _report(self, request: DeviceFeature) -> bytes:
        asked = _first(vfio.LOGGING_REPORT, request)
        size = self._log.check_report(asked.iova, asked.length, asked.page_size)
        if size > self._quotas.max_data:
            raise _invalid(f"a bitmap of {size} bytes, at most {self._quotas.max_data}")
        _check_room(request, vfio.LOGGING_REPORT.size + size)
        bitmap = self._log.report(asked.iova, asked.length, asked.page_size)
        return vfio.LOGGING_REPORT.pack(asked.iova, asked.length, asked.page_size) + bitmap


_GET, _SET = FeatureFlags.GET, FeatureFlags.SET
_KNOWN: dict[int, dict[FeatureFlags, _Method]] = {
    Feature.MIGRATION: {_GET: Features._get_flags},
    Feature.MIG_DEVICE_STATE: {_GET: Features._get_state, _SET: Features._set_state},
    Feature.DMA_LOGGING_START: {_SET: Features._start_logging},
    Feature.DMA_LOGGING_STOP: {_SET: Features._stop_logging},
    Feature.DMA_LOGGING_REPORT: {_GET: Features._report},
    Feature.MIG_DATA_SIZE: {_GET: Features._get_data_size},
}


def _supported(known: dict[FeatureFlags, _Method]) -> FeatureFlags:
    found = FeatureFlags(0)
    for method in known:
        found |= method
    return found


def _check_flags(flags: int, methods: FeatureFlags) -> None:
    if not flags or flags & ~_ALL_FLAGS:
        raise _invalid(f"feature flags {flags:#x}")
    if methods == _METHODS and not flags & FeatureFlags.PROBE:
        raise _invalid("GET and SET at once")


def _check_room(request: DeviceFeature, size: int) -> None:
    """Refuse what the client has no room to be answered, before it is done."""
    needed = vfio.DEVICE_FEATURE.size + size
    if request.argsz < needed:
        raise _invalid(f"argsz {request.argsz}, the reply has {needed}")


def _first(layout: Layout[Record], request: DeviceFeature) -> Record:
    """The struct at the start of the data."""
    if len(request.data) < layout.size:
        raise _invalid(f"{len(request.data)} bytes of data, {layout.size} are needed")
    return layout.unpack_from(request.data)


def _only(layout: Layout[Record], request: DeviceFeature) -> Record:
    """The struct that the data is; the reply is as large."""
    if len(request.data) > layout.size:
        raise _invalid(f"{len(request.data)} bytes of data, {layout.size} are needed")
    _check_room(request, layout.size)
    return _first(layout, request)


def _invalid(reason: str) -> OSError:
    return OSError(errno.EINVAL, reason)
