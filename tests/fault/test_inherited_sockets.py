# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio serve --fd``: a socket that the program is started with (specification, "Backend Program
Conventions")."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fault.raw import CONFIG, RawClient
from tests.support import ROOT

SECONDS = 30


@contextmanager
def serving(fd: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server of the edu model on a descriptor that it inherits."""
    command = [sys.executable, "-m", "pyvfio", "serve", "edu", "--fd", str(fd)]
    with subprocess.Popen(command, cwd=ROOT, pass_fds=[fd], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"serving edu (1234:11e8) on fd %d\n" % fd
            yield process
        finally:
            process.terminate()


def test_a_socket_that_listens_takes_one_client_after_the_other(socket_folder: Path) -> None:
    path = socket_folder / "inherited.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        with serving(listener.fileno()) as process:
            for _ in range(2):
                with RawClient(path) as client:
                    client.negotiate()
                    assert client.read(CONFIG, 0, 4) == b"\x34\x12\xe8\x11"
    assert process.wait(SECONDS) == 0
    assert path.exists()  # it belongs to who made it
    path.unlink()


def test_a_socket_that_is_connected_is_the_only_client(socket_folder: Path) -> None:
    path = socket_folder / "connected.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        client = RawClient(path)
        sock, _ = listener.accept()
    path.unlink()
    with client, sock, serving(sock.fileno()) as process:
        sock.close()
        client.negotiate()
        assert client.read(CONFIG, 0, 4) == b"\x34\x12\xe8\x11"
        client.close()
        assert process.wait(SECONDS) == 0


def test_an_inherited_socket_is_not_passed_on() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, serving(theirs.fileno()) as process:
        flags = Path(f"/proc/{process.pid}/fdinfo/{theirs.fileno()}").read_text()
        (octal,) = [line.split()[1] for line in flags.splitlines() if line.startswith("flags:")]
        assert int(octal, 8) & os.O_CLOEXEC


def refused(fd: int) -> tuple[int, str]:
    """Exit status and complaint of a server that is given a descriptor."""
    command = [sys.executable, "-m", "pyvfio", "serve", "edu", "--fd", str(fd)]
    done = subprocess.run(
        command, cwd=ROOT, pass_fds=[fd], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def test_a_descriptor_that_is_no_socket_is_refused() -> None:
    with open(os.devnull, "rb") as file:
        number = file.fileno()
        assert refused(number) == (3, f"pyvfio: listen on fd {number}: no socket [ENOTSOCK]\n")


def test_a_socket_of_another_kind_is_refused() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        number = sock.fileno()
        assert refused(number) == (3, f"pyvfio: listen on fd {number}: no UNIX stream socket\n")


def test_a_socket_that_is_inherited_has_its_permissions_already() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "pyvfio", "serve", "edu", "--fd", str(theirs.fileno())]
        done = subprocess.run(
            [*command, "--mode", "666"],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "--mode and --group are for a socket file" in done.stderr


@pytest.mark.parametrize("options", [[], ["--socket", "/tmp/x", "--fd", "3"]], ids=["none", "both"])
def test_a_server_has_one_socket(options: list[str]) -> None:
    command = [sys.executable, "-m", "pyvfio", "serve", "edu", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--fd" in done.stderr
