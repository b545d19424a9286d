# SPDX-License-Identifier: BSD-3-Clause
"""The runner on the host: each way a guest can end is told apart, and none outlives its runner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest import packages
from tests.guest.errors import GuestHung, GuestLost, GuestUnavailable
from tests.guest.fetch import fetch
from tests.guest.runner import run, status
from tests.support import ROOT, eventually

BOOT_SECONDS = 100.0
"""Limit for a command that takes no time itself."""

EDU = "1234:11e8"

PROBE = f"""
import fcntl, json, os, struct, sys
from tests.guest import inside
edu = inside.find({EDU!r})
groups = {{address: inside.group(address) for address in edu}}
inside.bind(edu[0])
container = os.open("/dev/vfio/vfio", os.O_RDWR)
group = os.open(f"/dev/vfio/{{groups[edu[0]]}}", os.O_RDWR)
group_status = bytearray(struct.pack("<II", 8, 0))
fcntl.ioctl(group, 0x3B67, group_status)
print(json.dumps({{
    "drivers": [inside.driver(address) for address in edu],
    "groups": groups,
    "version": fcntl.ioctl(container, 0x3B64),
    "viable": struct.unpack("<II", group_status)[1] & 1,
}}))
sys.exit(200)
"""


@pytest.fixture(scope="module")
def available() -> None:
    """The guest can be booted here."""
    try:
        packages.qemu()
        fetch()
    except GuestUnavailable as error:
        pytest.skip(str(error))


def children() -> str:
    """The processes that this one has started, which may be servers of other tests."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def qemu_of(runner: int) -> str | None:
    """The child of a process, once it is QEMU."""
    found = Path(f"/proc/{runner}/task/{runner}/children").read_text().split()
    return next((pid for pid in found if state(pid)[0].startswith("qemu")), None)


def state(pid: str) -> tuple[str, str]:
    """The name and the state of a process; one that is gone counts as a zombie."""
    try:
        name, rest = Path(f"/proc/{pid}/stat").read_text().split("(", 1)[1].rsplit(")", 1)
    except (FileNotFoundError, ProcessLookupError):
        return "", "Z"
    return name, rest.split()[0]


@pytest.mark.usefixtures("available")
def test_the_status_of_a_command_that_drives_vfio_is_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    result = run([sys.executable, "-c", PROBE], timeout=BOOT_SECONDS, output=tmp_path)
    assert result.returncode == 200, result.console
    found = json.loads(result.console)
    alone, first, second, bridged = found["groups"].values()
    assert first == second
    assert len({alone, first, bridged}) == 3
    assert found["drivers"] == ["vfio-pci", None, None, None]
    assert (found["version"], found["viable"]) == (0, 1)
    assert "Linux version 6.1" in (tmp_path / "dmesg.txt").read_text()


@pytest.mark.usefixtures("available")
def test_a_guest_that_panics_is_lost(tmp_path: Path) -> None:
    crash = "echo before; echo c >/proc/sysrq-trigger"
    others = children()
    with pytest.raises(GuestLost, match="Kernel panic") as caught:
        run(["sh", "-c", crash], timeout=BOOT_SECONDS, output=tmp_path)
    assert caught.value.console == "before\n"
    assert children() == others


@pytest.mark.usefixtures("available")
def test_a_guest_at_its_time_limit_is_stopped(tmp_path: Path) -> None:
    others = children()
    with pytest.raises(GuestHung, match="stopped after 4 s"):
        run(["sleep", "1000"], timeout=4, output=tmp_path)
    assert children() == others


@pytest.mark.usefixtures("available")
def test_a_guest_dies_with_its_runner(tmp_path: Path) -> None:
    guest = [sys.executable, "-m", "tests.guest", "run", "--keep", str(tmp_path)]
    command = [*guest, "--", "sleep", "30"]
    with subprocess.Popen(command, cwd=ROOT) as runner:
        assert eventually(lambda: qemu_of(runner.pid) is not None, 30)
        qemu = qemu_of(runner.pid)
        runner.kill()
    assert qemu is not None
    assert eventually(lambda: state(qemu)[1] == "Z")


@pytest.mark.parametrize("returncode", [0, 1, 3, -9, 63, 0x7B * 2 + 1])
def test_an_end_that_is_not_the_guests_own_is_a_loss(tmp_path: Path, returncode: int) -> None:
    (tmp_path / "exitcode").write_text("0\n")
    with pytest.raises(GuestLost):
        status(returncode, tmp_path)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (5, 5), (89, 89), (90, 200)])
def test_a_status_too_large_for_qemu_is_in_a_file(
    tmp_path: Path, value: int, expected: int
) -> None:
    (tmp_path / "exitcode").write_text("200\n")
    assert status((0x20 + value) << 1 | 1, tmp_path) == expected
