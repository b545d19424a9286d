# SPDX-License-Identifier: BSD-3-Clause
"""The server as a program."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.protocol.device import in_step
from tests.conformance.protocol.peers import SOCKET_PATH, Host, running
from tests.conformance.protocol.specification import spec


@spec("Backend Program Conventions")
def test_the_program_takes_the_path_of_its_socket_as_an_option(
    peer: Host, socket_folder: Path
) -> None:
    program = replace(peer.peer, option=SOCKET_PATH)
    with running(program, socket_folder) as own, own.connect() as client:
        client.negotiate()
        assert in_step(client)


@spec("Backend Program Conventions")
def test_the_program_stays_in_the_foreground(peer: Host) -> None:
    with peer.connect() as client:
        client.negotiate()
        assert peer.process.poll() is None


@spec("Backend Program Conventions")
@pytest.mark.parametrize("connected", [False, True])
def test_the_program_ends_on_sigterm(peer: Host, socket_folder: Path, connected: bool) -> None:
    with running(peer.peer, socket_folder) as own, own.connect() as client:
        client.negotiate()
        if not connected:
            client.close()
        assert own.stop() in (0, -signal.SIGTERM)
