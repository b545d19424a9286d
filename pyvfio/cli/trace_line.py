# SPDX-License-Identifier: BSD-3-Clause
"""One line of a trace: read with care, for anybody may have written it, and printed for people."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pyvfio.uapi.vfio import PCIIRQ, PCIRegion

_WHOSE = ("time", "mono", "pid", "role", "channel", "connection", "socket")
_TYPES: dict[str, type | tuple[type, ...]] = {
    "mono": (int, float),
    "pid": int,
    "time": str,
    "role": str,
    "channel": str,
    "connection": int,
    "socket": str,
    "event": str,
    "direction": str,
    "id": int,
    "command": str,
    "type": str,
    "size": int,
    "flags": str,
    "error": str,
    "us": (int, float),
    "fds": list,
    "fields": dict,
    "undecoded": dict,
    "request": dict,
}
"""The members that are used, and what they are; others are passed over."""
_REQUIRED = {"time", "mono", "pid", "role", "channel", "connection", "socket"}
_REQUIRED_OF_MESSAGES = {"direction", "id", "command", "type", "size"}
_LARGEST = 1e15
_DEEPEST = 8
"""How deep the members of a line are nested, at most, that are shown."""

_BAD_EVENTS = {"not sent", "time-out", "late reply", "protocol error"}
_HEXADECIMAL = {"offset", "address", "iova", "size", "cap_offset", "datamatch", "pgsizes"}
"""Fields that hardware people read in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Line:
    """A message, or an event that is none.

    :ivar text: the line as it stands in the file.
    :ivar members: what it says, see :mod:`pyvfio.transport.trace`.
    """

    text: str
    members: dict[str, Any]

    @classmethod
    def parse(cls, data: bytes) -> Line:
        """Read a line.

        :raises ValueError: it is no line of a trace.
        """
        text = data.decode().strip()
        try:
            members = json.loads(text, parse_constant=_no_number)
        except json.JSONDecodeError as error:
            raise ValueError(f"no JSON: {error}") from error
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        if not isinstance(members, dict):
            raise ValueError("no object")
        needed = _REQUIRED if "event" in members else _REQUIRED | _REQUIRED_OF_MESSAGES
        if not needed <= members.keys():
            raise ValueError("members are missing")
        for name, value in members.items():
            if name in _TYPES and not isinstance(value, _TYPES[name]):
                raise ValueError(f"{name} is of the wrong type")
            if isinstance(value, int | float) and not abs(value) < _LARGEST:
                raise ValueError(f"{name} is out of range")
        return cls(text, members)

    def __getitem__(self, name: str) -> Any:
        return self.members[name]

    def get(self, name: str) -> Any:
        """A member that not every line has; None where it is missing."""
        return self.members.get(name)

    @property
    def bad(self) -> bool:
        """Whether something went wrong.  That a client leaves its server is no such thing."""
        event = self.get("event")
        lost = event == "lost" and self["role"] == "client"
        return (
            "error" in self.members or "undecoded" in self.members or event in _BAD_EVENTS or lost
        )

    def row(self, since: float) -> str:
        """The line for people; the time is in seconds after ``since``."""
        arrow = {"sent": "->", "received": "<-"}.get(self.get("direction") or "", "--")
        twin = f"{'twin' if self['socket'] == 'twin' else '':<4}"
        what = self._event() if "event" in self.members else self._message()
        when = f"{'!' if self.bad else ' '}{self['mono'] - since:12.6f}"
        whose = f"{self['pid']:>7} {printable(self['role']):<6} {self['connection']:>3}"
        return f"{when} {whose} {arrow} {twin} {what}".rstrip()

    def _event(self) -> str:
        details = {k: v for k, v in self.members.items() if k not in (*_WHOSE, "event")}
        if self["event"] == "connected":
            details = {"channel": self["channel"], **details}
        return f"{'':>5} {printable(self['event'])}: {_pairs(details, '')}".removesuffix(": ")

    def _message(self) -> str:
        name = printable(self["command"])
        kind = self["type"]
        shown = {"command": name, "reply": f"{name} reply"}.get(kind, f"{name} {printable(kind)}")
        return f"{self['id']:>5} {shown:<30} " + "  ".join(self._details())

    def _details(self) -> list[str]:
        command = self["command"]
        flags = (self.get("flags") or "").split("|")
        parts = [printable(flag) for flag in flags if flag not in ("", "ERROR")]
        if "error" in self.members:
            parts.append(printable(self["error"]))
        if "request" in self.members:
            parts.append(f"to {_pairs(self['request'], command)}")
        if "fields" in self.members:
            parts.append(_pairs(self["fields"], command))
        if "undecoded" in self.members:
            parts.append(f"({_pairs(self['undecoded'], command)})")
        if "fds" in self.members:
            parts.append(f"fds {_kinds(self['fds'])}")
        if "us" in self.members:
            parts.append(f"{self['us']:.1f} us")
        return parts


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def printable(text: object) -> str:
    """A text that cannot play tricks with a terminal: a peer may have chosen it."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def _pairs(fields: dict[str, Any], command: str, depth: int = 0) -> str:
    return " ".join(
        f"{printable(name)}={_value(name, value, command, depth)}" for name, value in fields.items()
    )


def _value(name: str, value: Any, command: str, depth: int) -> str:
    if isinstance(value, dict | list) and depth == _DEEPEST:
        return "..."
    if isinstance(value, dict):
        found = _data(value) if value.keys() == {"bytes", "hex"} else ""
        return found or f"{{{_pairs(value, command, depth + 1)}}}"
    if isinstance(value, list):
        return f"[{', '.join(_value('', entry, command, depth + 1) for entry in value)}]"
    if isinstance(value, int) and not isinstance(value, bool):
        return _number(name, value, command)
    return printable(value)


def _data(data: dict[str, Any]) -> str:
    """Data that were shortened, perhaps; nothing where it is something else."""
    size, digits = data["bytes"], data["hex"]
    if not isinstance(size, int) or not isinstance(digits, str):
        return ""
    if not digits:
        return "none"
    return printable(digits) + (f"... ({size} bytes)" if len(digits) < 2 * size else "")


def _number(name: str, value: int, command: str) -> str:
    kind = PCIIRQ if "IRQ" in command else PCIRegion
    if name in ("region", "index") and value in set(kind):
        return kind(value).name
    return hex(value) if name in _HEXADECIMAL else str(value)


def _kinds(fds: list[Any]) -> str:
    """What the descriptors are, those of one kind that follow each other as a number."""
    kinds = [str(fd.get("is")) if isinstance(fd, dict) else str(fd) for fd in fds]
    runs = [(printable(kind), len(list(run))) for kind, run in groupby(kinds)]
    return ", ".join(kind if count == 1 else f"{count} x {kind}" for kind, count in runs)
