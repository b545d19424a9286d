# SPDX-License-Identifier: BSD-3-Clause
"""How a live target is watched: it answers in time, lives, says nothing bad and keeps nothing."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.support import eventually, open_fds, thread_count

PATIENCE = 20.0
"""Seconds in which whatever is waited for must come, however busy the machine."""

GROWTH = 64 << 20
"""Bytes by which memory may grow in all, once a process has seen some connections."""

REST = 15
"""Looks in a row, 20 ms apart, that must find the same for a process to be at rest."""

WARM_UP = 50
"""Connections after which memory should have found its level."""


class Finding(Exception):
    """Something came of the input that must not."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class Vitals(NamedTuple):
    """What a process holds."""

    fds: int
    threads: int
    memory: int

    @classmethod
    def of(cls, pid: int) -> Vitals:
        """Of a process as it is now."""
        return cls(len(open_fds(pid)), thread_count(pid), _anonymous(pid))

    def __str__(self) -> str:
        return f"{self.fds} fds, {self.threads} threads, {self.memory / (1 << 20):.1f} MiB"


def _anonymous(pid: int) -> int:
    """Bytes of memory that a process has to itself; what it shares with others comes and goes."""
    [size] = re.findall(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return 1024 * int(size)


@dataclass
class Tally:
    """Figures of a run.

    :ivar sent: messages written to the target.
    :ivar received: messages that came back.
    :ivar served: requests of the target among those that came back.
    :ivar errors: what the target said, by kind.
    :ivar findings: kind of each input that did what it must not.
    """

    sent: int = 0
    received: int = 0
    served: int = 0
    connections: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)


def _at_rest(pid: int) -> Vitals:
    """Of a process that is done with what it was asked last: for some time nothing has changed."""
    history = [Vitals.of(pid)]
    while len(history) < REST or any(seen[:2] != history[-1][:2] for seen in history[-REST:]):
        time.sleep(0.02)
        history.append(Vitals.of(pid))
    return history[-1]


class Patient:
    """A process under test, looked at between two inputs."""

    def __init__(self, pid: int, errors: Path) -> None:
        self._pid = pid
        self._errors = errors
        self._read = 0
        self.before = self.settled = _at_rest(pid)
        self._looks = 0

    def look(self, alive: Callable[[], bool]) -> None:
        """Raise :class:`Finding` where the process is not as it was."""
        if not alive():
            raise Finding("crash", f"the process ended; it said: {self._news()}")
        news = self._news()
        if "Traceback" in news or "internal error" in news:
            raise Finding("exception", news)
        held = self.before[:2]
        if not eventually(lambda: Vitals.of(self._pid)[:2] == held, PATIENCE):
            raise Finding("leak", f"{Vitals.of(self._pid)}, before {self.before}")
        self._looks += 1
        if self._looks == WARM_UP:
            self.settled = Vitals.of(self._pid)
        grown = _anonymous(self._pid) - self.settled.memory
        if self._looks > WARM_UP and grown > GROWTH:
            raise Finding("leak", f"{grown} bytes more than after {WARM_UP} connections")

    def _news(self) -> str:
        """What the process has written to stderr since the last look."""
        with self._errors.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        self._read += len(text)
        return text.decode(errors="replace")
