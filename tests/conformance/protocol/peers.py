# SPDX-License-Identifier: BSD-3-Clause
"""The servers that the suite runs on: those of this package, and others that are given.

``PYVFIO_LIBVFIO_USER`` names a folder with libvfio-user's sample servers ``gpio-pci-idio-16`` and
``server``, or one of them.  (The BAR 1 of ``server`` must be a power of two for it to start; the 3
pages that it has at some commits are not.)
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fault.raw import RawClient
from tests.support import ROOT, START_SECONDS

LIBVFIO_USER = "PYVFIO_LIBVFIO_USER"
"""The environment variable with the folder of libvfio-user's samples."""


@dataclass(frozen=True)
class Peer:
    """A server program.

    :ivar command: what starts it.
    :ivar option: what stands before the path of its socket, as the last argument.
    :ivar traits: what a test can need; those that can be seen from outside are compared with what
        the server says (``test_traits``):

        ``memory``       a region with areas that can be mapped
        ``maskable``     an interrupt index that can be masked
        ``vectors``      an interrupt index of three vectors or more
        ``migration``    DEVICE_FEATURE_MIGRATION is answered
        ``states``       goes through the states of migration, with data and without
        ``stream``       saves and loads in pieces of any size, and checks what it loads
        ``multi``        REGION_WRITE_MULTI is negotiated
        ``stays``        serves the next client when one has left
        ``registers``    registers of the test device, which start DMA and fire interrupts
        ``timer``        the timer of libvfio-user's ``server``, which does the same
    """

    name: str
    command: tuple[str, ...]
    option: str
    traits: frozenset[str]


SOCKET_PATH = "--socket-path="
"""The option for the path of a server's socket, by the specification."""


def _own(model: str, *traits: str) -> Peer:
    command = (sys.executable, "-m", "pyvfio", "serve", model)
    return Peer(model, command, SOCKET_PATH, frozenset(("multi", "stays", *traits)))


def _sample(name: str, *traits: str) -> Peer:
    folder = os.environ.get(LIBVFIO_USER, "")
    return Peer(name, (str(Path(folder) / name),), "", frozenset(("migration", *traits)))


_MOVABLE = ("migration", "states", "stream", "maskable")
OWN = (
    _own("edu", *_MOVABLE),
    _own("testdev", *_MOVABLE, "memory", "vectors", "registers"),
)
SAMPLES = (
    _sample("gpio-pci-idio-16", "stays", "states"),
    _sample("server", "memory", "timer"),
)


def _peers() -> Iterator[Peer]:
    yield from OWN
    folder = os.environ.get(LIBVFIO_USER)
    if folder:
        found = [sample for sample in SAMPLES if os.access(sample.command[0], os.X_OK)]
        if not found:
            raise pytest.UsageError(f"{LIBVFIO_USER}={folder}: no sample server is there")
        yield from found


PEERS = {peer.name: peer for peer in _peers()}
"""The servers to run on, by name."""


class Host:
    """A server program in another process, which runs when a client connects."""

    def __init__(self, peer: Peer, path: Path) -> None:
        self.peer = peer
        self.path = path
        self._errors = path.with_name("errors")
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*peer.command, f"{peer.option}{path}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=ROOT,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def connect(self) -> RawClient:
        """A client that has not said anything yet."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return RawClient(self.path)
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.peer.name} does not serve: {self.said()}") from None
                time.sleep(0.01)

    def said(self) -> str:
        """What the program wrote to stderr so far."""
        return self._errors.read_text(errors="replace")

    def stop(self) -> int:
        """Ask the program to end; returns its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def running(peer: Peer, folder: Path) -> Iterator[Host]:
    """Run a server on a socket of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        host = Host(peer, Path(own) / "sock")
        try:
            yield host
        finally:
            host.stop()
