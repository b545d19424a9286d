# SPDX-License-Identifier: BSD-3-Clause
"""What a trace comes to: messages and latencies by command, and what went wrong."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field

from pyvfio.cli.tables import table
from pyvfio.cli.trace_line import Line, printable

_SHOWN_PROCESSES = 8
_PERCENTILES = (50, 90, 99, 100)
_HEADS = ("end", "command", "count", "unanswered", "errors", "bytes")
_TIMES = ("p50 us", "p90 us", "p99 us", "max us")


@dataclass
class _Row:
    """One command, as one kind of end saw it."""

    count: int = 0
    posted: int = 0
    replies: int = 0
    errors: int = 0
    bytes: int = 0
    times: array[float] = field(default_factory=lambda: array("d"))

    def add(self, line: Line) -> None:
        unread = (line.get("undecoded") or {}).get("unread")
        self.bytes += line["size"] - (unread if isinstance(unread, int) else 0)
        self.errors += line.bad
        if line["type"] == "reply":
            self.replies += 1
            if line.get("us") is not None:
                self.times.append(line["us"])
        else:
            self.count += 1
            self.posted += "NO_REPLY" in (line.get("flags") or "")

    def cells(self) -> dict[str, object]:
        times = sorted(self.times)
        unanswered = max(0, self.count - self.posted - self.replies)
        found: dict[str, object] = dict(
            zip(_HEADS[2:], (self.count, unanswered, self.errors, self.bytes), strict=True)
        )
        for name, percent in zip(_TIMES, _PERCENTILES, strict=True):
            found[name] = times[math.ceil(len(times) * percent / 100) - 1] if times else None
        return found


class Summary:
    """Gathers lines; :meth:`as_text` and :meth:`records` tell what they come to."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], _Row] = {}
        self._events: Counter[tuple[str, str]] = Counter()
        self._processes: dict[str, set[int]] = {}
        self._first: Line | None = None
        self._last: Line | None = None
        self.lines = 0
        """Lines of a trace, chosen or not."""
        self.foreign = 0
        """Lines that are none of a trace, or were cut."""

    def add(self, line: Line) -> None:
        """Take a line in."""
        self._first, self._last = self._first or line, line
        role = line["role"]
        self._processes.setdefault(role, set()).add(line["pid"])
        if "event" in line.members:
            self._events[role, line["event"]] += 1
        else:
            self._rows.setdefault((role, line["command"]), _Row()).add(line)

    def records(self) -> list[dict[str, object]]:
        """The rows of the tables, for scripts."""
        messages: list[dict[str, object]] = [
            {"end": role, "command": command, **row.cells()}
            for (role, command), row in sorted(self._rows.items())
        ]
        events: list[dict[str, object]] = [
            {"end": role, "event": event, "count": count}
            for (role, event), count in sorted(self._events.items())
        ]
        return [*messages, *events, {"foreign lines": self.foreign}]

    def as_text(self) -> str:
        """The tables, for people."""
        heads = (*_HEADS, *_TIMES)
        rows = [
            [_cell(record[head]) for head in heads]
            for record in self.records()
            if "command" in record
        ]
        events = [
            [printable(role), printable(event), str(count)]
            for (role, event), count in sorted(self._events.items())
        ]
        text = table("Messages", heads, rows) + table("Events", ("end", "event", "count"), events)
        return text + "".join(f"{note}\n" for note in self._notes())

    def _notes(self) -> list[str]:
        notes = []
        if self._first is not None and self._last is not None:
            seconds = self._last["mono"] - self._first["mono"]
            notes.append(f"{seconds:.6f} s, from {printable(self._first['time'])}")
        for role, pids in sorted(self._processes.items()):
            shown = ", ".join(map(str, sorted(pids)[:_SHOWN_PROCESSES]))
            hidden = len(pids) - _SHOWN_PROCESSES
            more = f" and {hidden} more" if hidden > 0 else ""
            notes.append(f"{printable(role)}: pid {shown}{more}")
        if {"client", "server"} <= self._processes.keys():
            notes.append(
                "Both ends are in this trace, so each message stands there twice. The client's us"
                " are round trips, the server's what it took of them; --role shows one end."
            )
        if self.foreign:
            notes.append(f"{self.foreign} lines are not of a trace, or cut, and were left out.")
        return notes


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else printable(value)
