# SPDX-License-Identifier: BSD-3-Clause
"""Who may connect to a server, and who may reach its socket file."""

from __future__ import annotations

import errno
import os
import pwd
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvfio.errors import AccessDenied
from pyvfio.server.credentials import Allowed, Credentials
from pyvfio.server.server import Server
from tests.fault.clients import serves
from tests.fault.models import Small
from tests.fault.raw import RawClient
from tests.support import ROOT, ServerProcess

UID, GID = os.getuid(), os.getgid()
ME = Credentials(1, 1000, 100, frozenset({100, 4, 27}))


@pytest.mark.parametrize(
    ("allowed", "admitted"),
    [
        (Allowed(), False),
        (Allowed(uids={1000}), True),
        (Allowed(uids={0, 1001}), False),
        (Allowed(gids={100}), True),
        (Allowed(gids={27}), True),
        (Allowed(gids={1000}), False),
        (Allowed(uids={0}, gids={4}), True),
        (Allowed(uids={1000}, gids={5}), True),
    ],
    ids=str,
)
def test_one_match_admits(allowed: Allowed, admitted: bool) -> None:
    assert allowed.admits(ME) is admitted


def test_credentials_are_those_of_the_process_at_the_other_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = Credentials.of(ours)
    assert (found.pid, found.uid, found.gid) == (os.getpid(), UID, GID)
    assert found.groups == frozenset(os.getgroups())


@pytest.mark.parametrize(
    "options",
    [
        ["--allow-uid", str(UID)],
        ["--allow-gid", str(GID)],
        ["--allow-uid", str(UID + 1), "--allow-uid", str(UID)],
        ["--allow-uid", str(UID + 1), "--allow-gid", str(GID)],
    ],
    ids=" ".join,
)
def test_who_is_allowed_is_served(serve: Callable[..., ServerProcess], options: list[str]) -> None:
    assert serves(serve("edu", *options))


def test_who_is_not_allowed_is_hung_up_on_and_logged(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve("edu", "--allow-uid", str(UID + 1), "--allow-gid", str(GID + 1))
    for _ in range(2):
        with RawClient(server.path) as client:
            assert client.ended()
    _, said = server.stop()
    assert said.count(f"refused: pid {os.getpid()}, uid {UID}, gid {GID}") == 2


def test_a_name_may_be_given_for_a_user(serve: Callable[..., ServerProcess]) -> None:
    assert serves(serve("edu", "--allow-uid", pwd.getpwuid(UID).pw_name))


@pytest.mark.parametrize("name", ["nosuchname", str((1 << 32) - 1), "-1"])
@pytest.mark.parametrize("option", ["--allow-uid", "--group"])
def test_a_name_that_does_not_exist_is_a_mistake_of_usage(
    tmp_path: Path, option: str, name: str
) -> None:
    arguments = ["serve", "edu", "--socket", str(tmp_path / "s"), f"{option}={name}"]
    done = subprocess.run(
        [sys.executable, "-m", "pyvfio", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert f"there is no '{name}'" in done.stderr


def test_the_socket_file_gets_mode_and_group(serve: Callable[..., ServerProcess]) -> None:
    server = serve("edu", "--mode", "0620", "--group", str(GID))
    status = server.path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o620, GID)


def test_a_group_that_cannot_be_given_is_an_error_and_leaves_no_file(
    socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "what others than root get")

    path = socket_folder / "group.sock"
    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(AccessDenied):
        Server(Small(), str(path), group=GID)
    assert not path.exists()
