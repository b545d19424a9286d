# SPDX-License-Identifier: BSD-3-Clause
"""A live client against a server that answers whatever comes to its mind.

The client is :mod:`tests.fuzz.subject` in another process.  Each connection has a seed of its own;
behind it the client must be as it was.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.fuzz.descriptors import Descriptors
from tests.fuzz.device import Device
from tests.fuzz.random_server import RandomServer
from tests.fuzz.stream import Received, Stream, pump
from tests.fuzz.watch import Finding, Patient, Tally, Vitals
from tests.support import ROOT

EPISODE = 90.0
"""Seconds that a connection may take, most of which a silent server can make the client wait."""


class _Episode:
    """One device for one client, which may lose it and reach it again.

    :ivar server: who serves the latest connection, once there is one.
    """

    def __init__(
        self,
        listener: socket.socket,
        stock: Descriptors,
        rng: random.Random,
        tally: Tally,
        calm: bool,
    ) -> None:
        self.server: RandomServer | None = None
        self._listener = listener
        self._device = Device(rng, stock)
        self._stock = stock
        self._rng = rng
        self._tally = tally
        self._calm = calm

    def accept(self) -> None:
        """Take a client that waits; the one before has been left."""
        with suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            self._leave()
            self._tally.connections += 1
            self.server = RandomServer(sock, self._device, self._stock, self._rng, self._tally)
            self.server.honest = self._calm

    def streams(self) -> list[Stream]:
        """The sockets of the latest connection."""
        return self.server.streams() if self.server else []

    def take(self, stream: Stream, got: Received) -> None:
        """A message of the client."""
        assert self.server is not None
        self.server.take(stream, got)

    def _leave(self) -> None:
        if self.server is not None:
            self.server.close()

    def close(self) -> None:
        """Hang up, also on who was not served."""
        self._leave()
        if self._device.twin is not None:
            self._device.twin.close()
        with suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()


class LiveClient:
    """A client under test, which is started anew after a finding.

    :param folder: where the socket is put that it connects to.
    :param subject: the module that is the client.
    """

    def __init__(self, folder: Path, tally: Tally, subject: str = "tests.fuzz.subject") -> None:
        self._subject = subject
        self._tally = tally
        self._path = folder / "client.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen(1)
        self._listener.setblocking(False)
        self._stock = Descriptors()
        self._child: subprocess.Popen[bytes] | None = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _stop()
            self._child = subprocess.Popen(
                [sys.executable, "-m", self._subject, str(self._path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=ROOT,
            )
            assert self._child.stdout is not None
            os.set_blocking(self._child.stdout.fileno(), False)
            self._report = b""
            self._connect(self._child, 0, calm=True)
            self._patient = Patient(self._child.pid, Path(f"/proc/{self._child.pid}/fd/2"))
        return self._child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            pipe.close()
        self._errors.close()

    def once(self, seed: int) -> None:
        """One connection; raises :class:`Finding`."""
        try:
            child = self._started()
            self._connect(child, seed)
            self._patient.look(lambda: child.poll() is None)
        except Finding:
            self._stop()
            raise

    def _connect(self, child: subprocess.Popen[bytes], seed: int, *, calm: bool = False) -> None:
        rng = random.Random(seed)
        assert child.stdin is not None
        child.stdin.write(f"{seed}\n".encode())
        child.stdin.flush()
        if rng.random() < 0.02:
            self._stock.truncate(rng)
        episode = _Episode(self._listener, self._stock, rng, self._tally, calm)
        try:
            self._serve(child, episode)
        finally:
            episode.close()

    def _serve(self, child: subprocess.Popen[bytes], episode: _Episode) -> None:
        assert child.stdout is not None

        def ended() -> bool:
            episode.accept()
            return self._reported(child)

        wake = (child.stdout.fileno(), self._listener.fileno())
        if not pump(episode.streams, episode.take, ended, EPISODE, wake=wake):
            raise Finding("hang", f"a connection takes {EPISODE} s; {self._said(child)}")
        server = episode.server
        report = json.loads(self._report)
        self._report = b""
        self._tally.errors.update(report["errors"])
        self._tally.errors[report["state"]] += 1
        if report["failure"]:
            raise Finding("exception", report["failure"])
        right = (
            "in step",
            "lost",
            "not opened",
            *(["no answer"] if server and server.deaf else []),
        )
        if report["state"] not in right:
            raise Finding("out of step", report["state"])
        if report["state"] == "in step" and server and server.unanswered():
            raise Finding("hang", f"requests of the server unanswered: {server.unanswered()}")

    def _reported(self, child: subprocess.Popen[bytes]) -> bool:
        """Whether the client is through; takes what it has said of it so far."""
        assert child.stdout is not None
        self._report += child.stdout.read() or b""
        if child.poll() is not None:
            raise Finding("crash", f"status {child.returncode}; it said {self._said(child)}")
        return self._report.endswith(b"\n")

    def _said(self, child: subprocess.Popen[bytes]) -> str:
        """What is in the client's stderr, with where each of its threads is."""
        if child.poll() is None:
            child.send_signal(signal.SIGUSR1)
            time.sleep(0.5)
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-4000:]

    def vitals(self) -> tuple[Vitals, Vitals, Vitals]:
        """Of the client: at the start, once it had settled, and now."""
        pid = self._started().pid
        return self._patient.before, self._patient.settled, Vitals.of(pid)

    def close(self) -> None:
        """Stop the client."""
        self._stop()
        self._stock.close()
        self._listener.close()
        self._path.unlink()
