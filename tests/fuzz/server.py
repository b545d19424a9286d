# SPDX-License-Identifier: BSD-3-Clause
"""A live server against a client that sends whatever comes to its mind.

The server is ``pyvfio serve MODEL`` in another process.  Each connection has a seed of its own;
behind it the server must be as it was, and answer another client rightly.
"""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

from pyvfio.wire import messages as m
from pyvfio.wire.header import Command
from pyvfio.wire.version import Capabilities
from tests.fuzz import messages
from tests.fuzz.descriptors import Descriptors
from tests.fuzz.messages import REPLY, encoded, frame
from tests.fuzz.random_client import RandomClient, close_fds, connect
from tests.fuzz.stream import Received, pump
from tests.fuzz.watch import PATIENCE, Finding, Patient, Tally, Vitals
from tests.support import ServerProcess, eventually

_VERSION = messages.frame(
    1, Command.VERSION, encoded(m.Version(0, 1, Capabilities(max_msg_fds=16, twin_socket=True)))
)
_INFO = m.DeviceInfo(3, 9, 5)


def probe(path: Path) -> None:
    """A client of good manners is served, which is only counted where it is not."""
    answers: list[Received] = []
    with closing(connect(path, Tally())) as stream:
        for data in (_VERSION, frame(2, Command.DEVICE_GET_INFO, encoded(m.GetDeviceInfo()))):
            stream.send([data])
        pump(
            lambda: [stream],
            lambda _, got: answers.append(got),
            lambda: len(answers) == 2,
            PATIENCE,
        )
    for answer in answers:
        close_fds(answer.fds)
    if [(answer.number, answer.flags) for answer in answers] != [(1, REPLY), (2, REPLY)]:
        raise Finding("hang", f"a new client is answered with {answers}")
    if m.DeviceInfo.decode(memoryview(answers[1].payload)) != _INFO:
        raise Finding("wrong answer", f"{answers[1]}")


class LiveServer:
    """A server under test, which is started anew after a finding.

    :param folder: where its socket is put.
    """

    def __init__(self, model: str, folder: Path, tally: Tally) -> None:
        self.model = model
        self._path = folder / "server.sock"
        self._tally = tally
        self._stock = Descriptors()
        self._server: ServerProcess | None = None

    def _started(self) -> ServerProcess:
        if self._server is None:
            self._server = ServerProcess(self.model, self._path)
            probe(self._path)  # what the process keeps from its first client is there from now on
            self._patient = Patient(self._server.pid, Path(f"/proc/{self._server.pid}/fd/2"))
        return self._server

    def once(self, seed: int) -> None:
        """One connection; raises :class:`Finding`."""
        rng = random.Random(seed)
        try:
            server = self._started()
            RandomClient(self._path, self.model, self._stock, rng, self._tally).run()
            probe(self._path)
            self._patient.look(lambda: server.process.poll() is None)
        except Finding as finding:
            raise self._ended(finding) from finding

    def _ended(self, finding: Finding) -> Finding:
        """What was found, once it is known whether the process lives; it does not any more then."""
        server, self._server = self._server, None
        assert server is not None
        crashed = eventually(lambda: server.process.poll() is not None, 0.5)
        if not crashed:
            server.kill()
        status, said = server.stop()
        if crashed and finding.kind != "crash":
            return Finding("crash", f"status {status}: {finding}; it said: {said[-2000:]}")
        return finding

    def vitals(self) -> tuple[Vitals, Vitals, Vitals]:
        """Of the server: at the start, once it had settled, and now."""
        pid = self._started().pid
        return self._patient.before, self._patient.settled, Vitals.of(pid)

    def close(self) -> None:
        """Stop the server."""
        if self._server is not None:
            self._server.stop()
        self._stock.close()
