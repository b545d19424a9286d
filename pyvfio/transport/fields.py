# SPDX-License-Identifier: BSD-3-Clause
"""What a trace says of a message: the fields of its payload, and what its descriptors are.

All of it can be written as JSON, and all of it is short, however long the message is.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from enum import IntFlag
from typing import Any

from pyvfio.uapi import vfio
from pyvfio.uapi.layout import Buffer
from pyvfio.wire import messages
from pyvfio.wire.commands import COMMANDS
from pyvfio.wire.header import HEADER, TYPE_MASK, Header, HeaderFlags
from pyvfio.wire.messages import PayloadError
from pyvfio.wire.version import Capabilities

SHOWN_BYTES = 32
"""Bytes of data that are shown."""
SHOWN_ENTRIES = 8
"""Entries of a list that are shown, such as the writes of a REGION_WRITE_MULTI."""

_FLAGS: dict[type[Any], type[IntFlag]] = {
    messages.DMAMap: vfio.DMAMapFlags,
    messages.DMAUnmap: vfio.DMAUnmapFlags,
    messages.DeviceInfo: vfio.DeviceFlags,
    messages.RegionInfo: vfio.RegionFlags,
    messages.IOSubRegion: messages.IOEventFDFlags,
    messages.IRQInfo: vfio.IRQFlags,
    messages.SetIRQs: vfio.IRQSetFlags,
}
"""Payload -> what the bits of its ``flags`` are called."""

_KINDS = (
    (re.compile(r"anon_inode:\[?([^\]]*)\]?"), "{}"),
    (re.compile(r"/memfd:(.*?)( \(deleted\))?"), "memfd:{}"),
    (re.compile(r"([a-z]+):\[\d+\]"), "{}"),
)
"""How the kernel calls a descriptor that is no file with a path -> how a trace does."""


def decode(header: Header, payload: memoryview) -> dict[str, Any]:
    """The members of a line that say what is in ``payload``.

    ``fields`` where it can be decoded; ``undecoded`` with a ``reason`` where it cannot, and with
    the bytes ``unread`` where the header was refused.
    """
    missing = header.size - HEADER.size - len(payload)
    if missing:
        found = _undecoded(payload, "refused for its header")
        found["undecoded"]["unread"] = max(0, missing)
        return found
    if header.flags & HeaderFlags.ERROR:
        return _undecoded(payload, "what came behind an error") if payload else {}
    spec = COMMANDS.get(header.command)
    kind = header.flags & TYPE_MASK
    if spec is None or kind not in (HeaderFlags.COMMAND, HeaderFlags.REPLY):
        return _undecoded(payload, "no such command" if spec is None else "no such message type")
    form = spec.request if kind == HeaderFlags.COMMAND else spec.reply
    try:
        message = form.decode(payload)
    except PayloadError as error:
        return _undecoded(payload, str(error))
    return {"fields": _fields(message)} if payload else {}


def _undecoded(payload: memoryview, reason: str) -> dict[str, Any]:
    return {"undecoded": {"reason": reason, **_data(payload)}}


def _fields(record: Any) -> dict[str, Any]:
    if isinstance(record, messages.DeviceFeature):
        number, methods = record.flags & vfio.FEATURE_MASK, record.flags & ~vfio.FEATURE_MASK
        return {
            "argsz": record.argsz,
            "feature": number,
            "methods": bits(vfio.FeatureFlags, methods),
            "data": _data(record.data),
        }
    found = {
        field.name: _value(getattr(record, field.name)) for field in dataclasses.fields(record)
    }
    names = _FLAGS.get(type(record))
    if names is not None:
        found["flags"] = bits(names, record.flags)
    if isinstance(record, Capabilities):
        return {name: value for name, value in found.items() if value is not None}
    return found


def _value(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return _data(value)
    if isinstance(value, tuple):
        shown = [_fields(entry) for entry in value[:SHOWN_ENTRIES]]
        more = len(value) - len(shown)
        return [*shown, f"{more} more"] if more else shown
    return _fields(value) if dataclasses.is_dataclass(value) else value


def _data(data: Buffer) -> dict[str, Any]:
    return {"bytes": len(data), "hex": bytes(data[:SHOWN_BYTES]).hex()}


def bits(names: type[IntFlag], value: int) -> str:
    """Flags by name, bits without one in hexadecimal: ``READ|WRITE|0x40``."""
    known = [flag for flag in names if flag and value & flag]
    rest = value & ~sum(known)
    shown = [str(flag.name) for flag in known]
    return "|".join([*shown, hex(rest)] if rest or not shown else shown)


def descriptors(fds: Sequence[int]) -> list[dict[str, Any]]:
    """The number of each descriptor in this process, and what it is."""
    return [{"fd": fd, "is": _kind(fd)} for fd in fds]


def _kind(fd: int) -> str:
    try:
        target = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return "unknown"
    for pattern, form in _KINDS:
        found = pattern.fullmatch(target)
        if found is not None:
            return form.format(found[1])
    return target
