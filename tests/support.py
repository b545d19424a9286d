# SPDX-License-Identifier: BSD-3-Clause
"""What the tests share: servers in other processes, and a look at what a process holds."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parent.parent
START_SECONDS = 30.0
PROGRAM_SECONDS = 60.0


class ServerProcess:
    """``pyvfio serve MODEL`` in another process, ready when the constructor returns."""

    def __init__(
        self,
        model: str,
        path: Path,
        *options: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.uri = f"vfio-user:{path}"
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyvfio", "serve", model, "--socket", str(path), *options],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env=environment,
        )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        line = self.process.stdout.readline() if ready else b""
        if not line.startswith(b"serving"):
            self.kill()
            raise RuntimeError(f"the server of {model} did not start: {self.stop()[1]}")

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """End the process as the kernel would, without a word."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> tuple[int, str]:
        """Ask the process to end; returns its exit status and what it wrote to stderr."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(START_SECONDS)
        if not self._errors.closed:
            assert self.process.stdout is not None
            self.process.stdout.close()
            self._errors.seek(0)
            self._said = self._errors.read().decode()
            self._errors.close()
        return self.process.returncode, self._said

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def run_program(program: str, *arguments: str) -> str:
    """Run Python code in a process whose signals and limits are its own; returns what it says.

    It must say nothing on stderr, warnings included, but for Python's own of forks with threads.
    """
    warnings = ("-W", "error", "-W", "ignore:.*multi-threaded:DeprecationWarning")
    done = subprocess.run(
        [sys.executable, *warnings, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr  # noqa: PT018
    return done.stdout


@contextmanager
def stopped(server: ServerProcess) -> Iterator[None]:
    """The server does not run for a while."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def open_fds(pid: int | str = "self") -> dict[int, str]:
    """The descriptors of a process, and what each is."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def thread_names() -> set[str]:
    """The threads of this process."""
    return {f"{thread.name} {thread.ident}" for thread in threading.enumerate()}


def thread_count(pid: int) -> int:
    """How many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def resident(pid: int | str = "self") -> int:
    """Resident memory of a process in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def shared_segments(pid: int | None = None) -> set[str]:
    """What pyvfio has left in /dev/shm: that of one process, or of all."""
    start = "pyvfio" if pid is None else f"pyvfio-{pid}-"
    return {name for name in os.listdir("/dev/shm") if name.startswith(start)}


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether ``condition`` becomes true within a time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def in_threads(jobs: Iterable[Callable[[], object]]) -> list[threading.Thread]:
    """Start each job in a thread of its own."""
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    return threads
