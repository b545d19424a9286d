# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio migrate save`` and ``load``: whole files or none, on disks and in pipes."""

from __future__ import annotations

import random
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyvfio
from pyvfio.uapi.vfio import DeviceState
from tests.conformance.devices import Dev
from tests.support import ROOT, ServerProcess
from tests.system.migrate.command import (
    COMMAND,
    DONE,
    FAILED,
    digest,
    fill,
    give,
    has,
    process,
    run,
    state,
    states,
    told,
)


def test_a_saved_device_is_stopped_and_loaded_elsewhere(
    source: str, destination: str, file: Path
) -> None:
    done = told("save", source, file)
    assert done["file"] == str(file)
    assert (done["source_state"], done["downtime_ms"]) == ("STOP", None)
    assert state(source) is DeviceState.STOP
    done = told("load", destination, file, "--resume")
    assert done["destination_state"] == "RUNNING"
    assert has(destination)


def test_a_loaded_device_is_stopped_unless_it_shall_run(
    source: str, destination: str, file: Path
) -> None:
    run("save", source, file)
    done = run("load", destination, file)
    assert f"pyvfio migrate resume {destination}" in done.output
    assert state(destination) is DeviceState.STOP
    run("resume", destination)
    assert has(destination)


def test_a_device_may_be_kept_running(source: str, file: Path) -> None:
    done = told("save", source, file, "--keep-running")
    assert done["source_state"] == "RUNNING"
    assert done["downtime_ms"] is not None
    assert has(source)


def test_only_its_owner_can_read_a_file(source: str, file: Path) -> None:
    run("save", source, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_a_file_is_replaced_when_the_new_one_is_whole(source: str, file: Path) -> None:
    file.write_bytes(b"before")
    link = file.with_name("link")
    link.symlink_to(file)
    run("save", source, link)
    assert link.is_symlink()
    assert file.read_bytes().startswith(b"pyvfioMS")


def test_a_pipe_carries_a_device(source: str, destination: str) -> None:
    save = subprocess.Popen([*COMMAND, "save", source, "-"], cwd=ROOT, stdout=subprocess.PIPE)
    with save:
        assert save.stdout is not None
        load = process("load", destination, "-", "--resume", stdin=save.stdout)
    assert (save.returncode, load.returncode) == (DONE, DONE)
    assert has(destination)


def test_what_is_read_from_a_pipe_is_bounded(saved: bytes, destination: str) -> None:
    size = len(saved)
    done = process("load", destination, "-", "--max-size", size - 1, input=saved)
    assert done.returncode == FAILED
    assert f"more than {size - 1} bytes" in done.stderr.decode()
    done = process("load", destination, "-", "--max-size", size, input=saved)
    assert done.returncode == DONE


@pytest.mark.parametrize("option", ["--precopy", "--no-precopy"])
def test_a_state_that_is_too_large_is_not_kept_and_the_device_goes_on(
    option: str, source: str, destination: str, file: Path
) -> None:
    fill(source, random.Random(6).randbytes(3 << 20))
    before = digest(source)
    size = told("save", source, file, option, "--keep-running")["total_bytes"]
    assert isinstance(size, int)
    file.unlink()
    for where in (("save", source, file), (source, destination, "--resume")):
        done = run(*where, option, "--max-size", size - 1)
        assert done.status == FAILED
        assert f"save on {source}: its state has more than {size - 1} bytes" in done.errors
        assert "hint: max_size, or --max-size, allows more" in done.errors
        assert list(file.parent.iterdir()) == []
        assert states(source, destination) == ("RUNNING", "RUNNING")
        assert digest(source) == before
    assert run(source, destination, "--resume", option, "--max-size", size).status == DONE
    assert has(destination)


def test_a_state_without_an_end_is_given_up(
    serve: Callable[..., ServerProcess], file: Path
) -> None:
    endless = serve("tests.system.migrate.models:Endless")
    done = run("save", endless.uri, file, "--max-size", 5 << 20)
    assert done.status == FAILED
    assert f"more than {5 << 20} bytes" in done.errors
    assert list(file.parent.iterdir()) == []
    assert state(endless.uri) is DeviceState.RUNNING
    assert run("save", endless.uri, file, "--no-precopy", "--max-size", 5 << 20).status == DONE


def test_a_file_on_standard_input_is_read_twice_as_it_is(
    saved: bytes, destination: str, file: Path
) -> None:
    file.write_bytes(saved)
    with file.open("rb") as opened:
        done = process("load", destination, "-", "--resume", "--max-size", 0, stdin=opened)
    assert done.returncode == DONE
    assert has(destination)


@pytest.fixture(scope="module")
def saved(servers: tuple[ServerProcess, ServerProcess]) -> bytes:
    """A file."""
    with pyvfio.open(servers[0].uri) as dev:
        give(dev)
    done = process("save", servers[0].uri, "-", "--keep-running")
    assert done.returncode == DONE
    return done.stdout


def bad_files(whole: bytes) -> Iterator[bytes]:
    """Some of each kind; all boundaries and all bytes are in tests/unit/test_migration_file.py."""
    rng = random.Random(6)
    yield b""
    yield b"no such file\n"
    yield whole + b"\0"
    yield whole[:8] + b"\2" + whole[9:]  # newer
    for _ in range(3):
        yield whole[: rng.randrange(len(whole))]
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        yield bytes(damaged)


def test_a_bad_file_is_refused_before_the_device_is_touched(
    saved: bytes, destination: str, file: Path
) -> None:
    with pyvfio.open(destination) as dev:
        dev.bars[0].write32(Dev.SCRATCH, 0x600D)
    for bad in bad_files(saved):
        file.write_bytes(bad)
        done = run("load", destination, file, "--resume")
        assert done.status == FAILED
        assert f"read saved state on {file}: " in done.errors
    with pyvfio.open(destination) as dev:
        assert dev.migration.state is DeviceState.RUNNING
        assert dev.bars[0].read32(Dev.SCRATCH) == 0x600D


def test_a_file_of_another_device_is_refused(
    saved: bytes, edu_server: ServerProcess, file: Path
) -> None:
    file.write_bytes(saved)
    done = run("load", edu_server.uri, file)
    assert done.status == FAILED
    assert "of another device" in done.errors
    assert state(edu_server.uri) is DeviceState.RUNNING


def test_a_device_that_refuses_is_as_new(
    saved: bytes, serve: Callable[..., ServerProcess], file: Path
) -> None:
    """Of the same ids, but with another layout: the device itself finds that out."""
    other = serve("tests.system.wrong_models:LikeTestDevice")
    file.write_bytes(saved)
    done = run("load", other.uri, file, "--resume")
    assert done.status == FAILED
    assert "EINVAL" in done.errors
    assert state(other.uri) is DeviceState.RUNNING


def test_a_full_disk_leaves_the_device_running(source: str) -> None:
    done = run("save", source, "/dev/full")
    assert done.status == FAILED
    assert "ENOSPC" in done.errors
    assert has(source)


def test_a_file_limit_leaves_the_device_running_and_no_file(source: str, file: Path) -> None:
    """The disk is full half way, as far as the tool can tell."""
    limited = f"ulimit -f 4; exec {' '.join(COMMAND)} save {source} {file}"
    done = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; {limited}"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == FAILED
    assert b"EFBIG" in done.stderr
    assert list(file.parent.iterdir()) == []
    assert has(source)


@pytest.mark.parametrize("where", ["none/device.state", "file/device.state"])
def test_a_folder_that_is_none_is_told(source: str, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("no folder")
    done = run("save", source, tmp_path / where)
    assert done.status == FAILED
    assert f"write on {tmp_path / where}: " in done.errors
    assert has(source)


def test_a_folder_that_cannot_be_written_is_told(source: str) -> None:
    """Nobody can make files there, root included."""
    done = run("save", source, "/proc/self/device.state")
    assert done.status == FAILED
    assert "write on /proc/self/device.state: " in done.errors
    assert has(source)


def test_a_reader_that_goes_away_leaves_the_device_running(source: str) -> None:
    command = f"{' '.join(COMMAND)} save {source} - | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == FAILED
    assert done.stderr.count(b"\n") == 1
    assert b"EPIPE" in done.stderr
    assert has(source)
