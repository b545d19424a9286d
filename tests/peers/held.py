# SPDX-License-Identifier: BSD-3-Clause
"""What a server holds for its client, as the kernel lists it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import ServerProcess, eventually, open_fds, thread_count


@dataclass(frozen=True)
class Held:
    """What a server holds: descriptors, threads, and shared memory that is mapped."""

    fds: dict[int, str]
    threads: int
    maps: Sequence[str]

    @classmethod
    def by(cls, server: ServerProcess) -> Held:
        """What it holds now."""
        return cls(open_fds(server.pid), thread_count(server.pid), shared_maps(server.pid))

    def assert_again(self, server: ServerProcess) -> None:
        """Fail unless the server soon holds just this."""
        eventually(lambda: Held.by(server) == self)
        assert Held.by(server) == self


def shared_maps(pid: int) -> list[str]:
    """The names of the memory files that a process has mapped, one for each map."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sorted(line.split("/memfd:")[1] for line in lines if "/memfd:" in line)


def memory_of_ram(server: ServerProcess) -> list[str]:
    """The maps of guest memory that a server has."""
    return [name for name in shared_maps(server.pid) if name.startswith("memory-backend")]
