# SPDX-License-Identifier: BSD-3-Clause
"""The processes at the other end: servers and the bare loops' peers, on the CPU that they get."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import pyvfio
from bench import device
from bench.baseline import POSTED, REPLY, REQUEST, CClient, Ping, Pipe
from bench.build import build
from pyvfio.pci.device import PCIDevice
from tests.support import ServerProcess

LIBVFIO_USER = "PYVFIO_LIBVFIO_USER"
"""Environment variable: the folder of libvfio-user's sample servers."""

_MODEL = "bench.device:BenchDevice"
_START_SECONDS = 10.0
_LISTENING = "00010000"
"""Flags of a listening socket in /proc/net/unix."""


class Kind(Enum):
    """What serves."""

    OURS = "our server"
    C = "the C server"
    LIBVFIO_USER = "libvfio-user's server"


class Place(NamedTuple):
    """Where a register is."""

    region: int
    offset: int


REGISTER = {
    Kind.OURS: Place(device.MEMORY, 0),
    Kind.C: Place(device.MEMORY, 0),
    Kind.LIBVFIO_USER: Place(1, 0x1000),
}
"""A register that is memory, which the server reads and writes by itself."""
CALLBACK = Place(device.REGISTERS, device.SCRATCH)
"""A register of our server that calls the model."""


class Placement(NamedTuple):
    """The CPUs of the client, which measures, and of everything at the other end."""

    client: int
    server: int

    @classmethod
    def of(cls, cpus: int) -> Placement:
        """Both on one CPU, or on two where there are two; CPU 0 has the interrupts."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[-1], usable[-1] if cpus == 1 else usable[0])

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Have processes that are started meanwhile run where the server does."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self.server})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


class Peers:
    """Starts what is asked for, keeps it for the next who asks, and ends it.

    There are two of each server, since each serves one client at a time.  Which of them is "the
    first" is swapped from time to time, so that what distinguishes two processes cancels out.

    :param environment: of our servers; that of this process by default.
    :ivar swapped: the second is first.
    """

    def __init__(
        self, folder: Path, placement: Placement, environment: Mapping[str, str] | None = None
    ) -> None:
        self._environment = environment
        self.swapped = False
        self._folder = folder
        self._placement = placement
        self._undo = ExitStack()
        self._numbers = itertools.count()
        self._paths: dict[tuple[Kind, int], Path] = {}

    def open(self, kind: Kind, which: int = 0, *, secure_dma: bool = False) -> PCIDevice:
        """The first or second server of a kind as pyvfio's device."""
        return pyvfio.open(f"vfio-user:{self._path(kind, which)}", secure_dma=secure_dma)

    def reference(self, kind: Kind, which: int = 1) -> CClient:
        """The C reference client of a server."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self._path(kind, which)))
        return CClient(sock)

    @contextmanager
    def ping(self) -> Iterator[Ping]:
        """Bare round trips."""
        with self._bare("echo", str(REQUEST), str(REPLY)) as sock:
            yield Ping(sock)

    @contextmanager
    def pipe(self, joined: int) -> Iterator[Pipe]:
        """Bare messages one way."""
        with self._bare("sink", str(POSTED)) as sock:
            yield Pipe(sock, joined)

    @contextmanager
    def _bare(self, what: str, *arguments: str) -> Iterator[socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours:
            with theirs:
                process = self._peer(what, theirs, *arguments)
            try:
                yield ours
            finally:
                ours.close()  # which ends it
                process.wait(_START_SECONDS)

    def _peer(self, what: str, sock: socket.socket, *arguments: str) -> subprocess.Popen[bytes]:
        fd = sock.fileno()
        with self._placement.beside():
            return subprocess.Popen([build().peer, what, str(fd), *arguments], pass_fds=[fd])

    def _path(self, kind: Kind, which: int) -> Path:
        key = (kind, which ^ self.swapped)
        path = self._paths.get(key)
        if path is None:
            path = self._folder / f"{next(self._numbers)}.sock"
            _START[kind](self, path)
            if kind is not Kind.LIBVFIO_USER:  # whose sample ends with its client
                self._paths[key] = path
        return path

    def _start_ours(self, path: Path) -> None:
        with self._placement.beside():
            self._undo.enter_context(ServerProcess(_MODEL, path, environment=self._environment))

    def _start_c(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(str(path))
            listening.listen()
            self._undo.callback(_end, self._peer("serve", listening))

    def _start_libvfio_user(self, path: Path) -> None:
        program = Path(os.environ[LIBVFIO_USER]) / "server"
        with self._placement.beside():
            process = subprocess.Popen([program, path], stdout=subprocess.DEVNULL)
        self._undo.callback(_end, process)
        _wait_for_listener(path)

    def close(self) -> None:
        """End all of them."""
        self._undo.close()

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_START: dict[Kind, Callable[[Peers, Path], None]] = {
    Kind.OURS: Peers._start_ours,
    Kind.C: Peers._start_c,
    Kind.LIBVFIO_USER: Peers._start_libvfio_user,
}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(_START_SECONDS)


def _wait_for_listener(path: Path) -> None:
    """Wait until somebody listens; a connection, to see it, would be the only one."""
    deadline = time.monotonic() + _START_SECONDS
    while not _listens(path):
        if time.monotonic() > deadline:
            raise RuntimeError(f"nobody listens at {path}")
        time.sleep(0.01)


def _listens(path: Path) -> bool:
    lines = Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()
    return any(line.endswith(f" {path}") and line.split()[3] == _LISTENING for line in lines)
