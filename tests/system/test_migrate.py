# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio migrate`` as a user meets it: moves, files, and what is left where it fails.

The command is a process of its own where that matters: signals, pipes, terminals.
"""

from __future__ import annotations

import io
import json
import os
import pty
import random
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pyvfio
from pyvfio.cli import progress, tables
from pyvfio.cli.main import main
from pyvfio.pci.device import PCIDevice
from pyvfio.uapi.vfio import DeviceState
from tests.conformance.devices import Dev
from tests.support import ROOT, ServerProcess, eventually

DONE, FAILED, USAGE, UNAVAILABLE, TIMEOUT = range(5)
INTERRUPTED = 130
COMMAND = [sys.executable, "-m", "pyvfio", "migrate"]
MEMORY = 2
TOKEN, PLACE = 0x5EED_CAFE, 48 << 20


class Done(NamedTuple):
    """What a run of the command ended with."""

    status: int
    output: str
    errors: str


def run(*arguments: object) -> Done:
    """Run ``pyvfio migrate`` to its end."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            status = main(["migrate", *map(str, arguments)])
        except SystemExit as end:  # argparse's
            status = int(str(end.code))
    return Done(status, output.getvalue(), errors.getvalue())


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The same, in a process of its own."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, timeout=60, check=False, **{"capture_output": True, **options}
    )


def told(*arguments: object) -> dict[str, object]:
    """What ``pyvfio migrate -o json`` says when it succeeds."""
    done = run(*arguments, "-o", "json")
    assert done.status == DONE, done.errors
    assert done.errors == ""
    found: dict[str, object] = json.loads(done.output)
    return found


@pytest.fixture(scope="module")
def servers(socket_folder: Path) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    with (
        ServerProcess("testdev", socket_folder / "from.sock") as one,
        ServerProcess("testdev", socket_folder / "to.sock") as other,
    ):
        yield one, other


def give(dev: PCIDevice) -> None:
    """Registers, memory and a command register that a new device does not have."""
    dev.reset()
    dev.bus_master = True
    dev.bars[0].write32(Dev.SCRATCH, TOKEN)
    dev.bars[MEMORY].write32(PLACE, TOKEN)


def has(uri: str) -> bool:
    """Whether a device that runs has all of it; it has all or nothing."""
    with pyvfio.open(uri) as dev:
        found = (
            dev.bars[0].read32(Dev.SCRATCH) == TOKEN,
            dev.bars[MEMORY].read32(PLACE) == TOKEN,
            dev.bus_master,
        )
    assert len(set(found)) == 1
    return found[0]


@pytest.fixture
def source(servers: tuple[ServerProcess, ServerProcess]) -> str:
    """A device that runs, and has something."""
    with pyvfio.open(servers[0].uri) as dev:
        give(dev)
    return servers[0].uri


@pytest.fixture
def destination(servers: tuple[ServerProcess, ServerProcess]) -> str:
    """A device that runs, and has nothing."""
    with pyvfio.open(servers[1].uri) as dev:
        dev.reset()
        dev.bus_master = False
        dev.bars[MEMORY].write32(PLACE, 0)
    return servers[1].uri


def state(uri: str) -> DeviceState:
    """What a device does."""
    with pyvfio.open(uri) as dev:
        return dev.migration.state


def states(*uris: str) -> tuple[str, ...]:
    return tuple(state(uri).name for uri in uris)


# Moving


def test_a_device_moves_and_runs_on(source: str, destination: str) -> None:
    done = told(source, destination, "--resume")
    assert (done["source_state"], done["destination_state"]) == ("STOP", "RUNNING")
    assert states(source, destination) == ("STOP", "RUNNING")
    assert has(destination)
    assert done["total_bytes"] == done["precopy_bytes"] + done["stopped_bytes"]  # type: ignore[operator]
    assert done["rounds"]
    assert 0 < done["downtime_ms"] < done["ms"]  # type: ignore[operator]


def test_without_resume_both_are_stopped_and_either_can_go_on(
    source: str, destination: str
) -> None:
    done = run(source, destination)
    assert (done.status, done.errors) == (DONE, "")
    assert f"pyvfio migrate resume {destination}" in done.output
    assert f"pyvfio migrate resume {source}" in done.output
    assert states(source, destination) == ("STOP", "STOP")
    assert run("resume", destination).output == f"{destination} runs\n"
    assert has(destination)


def test_a_device_may_go_on_where_it_was(source: str, destination: str) -> None:
    assert told(source, destination)["downtime_ms"] is None
    assert told("resume", source) == {"device": source, "state": "RUNNING"}
    assert has(source)


def test_paths_stand_for_uris(source: str, destination: str) -> None:
    paths = (uri.removeprefix("vfio-user:") for uri in (source, destination))
    done = told(*paths, "--resume", "--no-precopy")
    assert (done["source"], done["destination"]) == (source, destination)
    assert done["rounds"] == []


def test_what_a_killed_tool_has_left_is_taken_up(source: str, destination: str) -> None:
    """Stopped, and a load that did not come to its end: as after a kill in the midst."""
    with pyvfio.open(source) as dev:
        dev.migration.stop()
    with pyvfio.open(destination) as dev:
        dev.migration.load()
    assert states(source, destination) == ("STOP", "ERROR")
    told(source, destination, "--resume")
    assert states(source, destination) == ("STOP", "RUNNING")
    assert has(destination)


def test_a_device_that_has_moved_is_not_moved_again(source: str, destination: str) -> None:
    told(source, destination, "--resume")
    done = run(source, destination, "--resume")
    assert done.status == FAILED
    assert "may have the device already" in done.errors
    assert f"pyvfio migrate resume {source}" in done.errors
    assert has(destination)


def test_another_kind_of_device_is_refused(source: str, edu_server: ServerProcess) -> None:
    done = run(source, edu_server.uri, "--resume")
    assert done.status == FAILED
    assert "of another device: vendor 0x1b36, not 0x1234" in done.errors
    assert states(source, edu_server.uri) == ("RUNNING", "RUNNING")
    assert has(source)


def test_a_device_that_cannot_migrate_says_so(
    source: str, serve: Callable[..., ServerProcess]
) -> None:
    other = serve("tests.fault.models:Small")
    done = run(source, other.uri)
    assert done.status == FAILED
    assert f"migrate on {other.uri}: the device cannot migrate" in done.errors


def test_who_is_not_there_costs_the_other_nothing(source: str, tmp_path: Path) -> None:
    assert run(source, tmp_path / "none.sock").status == UNAVAILABLE
    assert has(source)


def test_a_busy_server_is_a_time_out(source: str, destination: str) -> None:
    with pyvfio.open(destination):
        done = run(source, f"{destination}?timeout=0.3")
    assert done.status == TIMEOUT
    assert has(source)


# Whose it is


def test_the_status_says_what_a_device_does(source: str) -> None:
    assert "is in RUNNING" in run("status", source).output
    assert told("status", source)["can"] == ["STOP_COPY", "PRE_COPY"]


def test_a_device_that_runs_is_not_run_again(source: str) -> None:
    assert run("resume", source).output == f"{source} ran already\n"


def test_a_device_with_half_a_state_cannot_be_run(destination: str) -> None:
    with pyvfio.open(destination) as dev:
        dev.migration.load()
    done = run("resume", destination)
    assert done.status == FAILED
    assert "hint: " in done.errors
    assert "unfinished load" in run("status", destination).output
    assert state(destination) is DeviceState.ERROR


def test_looking_at_a_stopped_device_changes_nothing(source: str) -> None:
    """Opening it as a PCI device would set bits of its command register."""
    with pyvfio.open(source) as dev:
        dev.config.command = 0
        dev.migration.stop()
    run("status", source)
    run("resume", source)
    with pyvfio.open_backend(source, {}) as base:
        assert base.region(7).read16(4) == 0


# Files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "device.state"


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


# Signals


@contextmanager
def slow_save(server: ServerProcess) -> Iterator[subprocess.Popen[bytes]]:
    """A save that has begun, and goes on for longer than a test takes."""
    with pyvfio.open(server.uri) as dev:
        dev.reset()
        memory = dev.bars[MEMORY].view(0, 1 << 20)
        memory[:] = 7
        del memory
    # A pipe that nobody reads is soon full.
    reader, writer = os.pipe()
    with subprocess.Popen(
        [*COMMAND, "save", f"{server.uri}?timeout=60", "-"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
    ) as save:
        os.close(writer)
        try:
            assert os.read(reader, 1)
            yield save
        finally:
            os.close(reader)
            save.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_tool_that_is_told_to_end_has_the_source_go_on(
    number: signal.Signals, servers: tuple[ServerProcess, ServerProcess]
) -> None:
    with slow_save(servers[0]) as save:
        time.sleep(0.05)
        save.send_signal(number)
        assert save.wait(20) == INTERRUPTED
    assert state(servers[0].uri) is DeviceState.RUNNING


def test_a_killed_tool_leaves_no_file_under_the_name(source: str, file: Path) -> None:
    with subprocess.Popen([*COMMAND, "save", source, str(file)], cwd=ROOT) as save:
        assert eventually(lambda: bool(list(file.parent.glob("*.part"))) or save.poll() is not None)
        save.kill()
    assert not file.exists() or file.read_bytes().startswith(b"pyvfioMS")


# Usage


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "required: OPERAND"),
        ("a.sock", "migrate SRC: usage"),
        ("a b c", "migrate SRC: usage"),
        ("save a", "migrate save: usage"),
        ("load a b c", "migrate load: usage"),
        ("resume", "migrate resume: usage"),
        ("a b --keep-running", "--keep-running is not for it"),
        ("save a b --resume", "--resume is not for it"),
        ("load a b --precopy", "--precopy is not for it"),
        ("status a --max-size 1", "--max-size is not for it"),
        ("a b --no-precopy --precopy-seconds 1", "--precopy-seconds and --no-precopy"),
        ("save a - -o json", "cannot both"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(arguments: str, says: str) -> None:
    done = run(*arguments.split())
    assert done.status == USAGE
    assert says in done.errors


def test_a_time_that_is_none_is_a_usage_error(source: str, destination: str) -> None:
    assert run(source, destination, "--precopy-seconds=-1").status == USAGE
    assert has(source)


def test_a_device_cannot_move_to_itself(source: str) -> None:
    done = run(source, source)
    assert done.status == USAGE
    assert "to itself" in done.errors
    assert has(source)


def test_the_help_says_what_becomes_of_both() -> None:
    text = " ".join(run("--help").output.split())
    assert "A move leaves the source stopped" in text
    assert "pyvfio migrate [options] save URI FILE" in text


# Progress


def test_a_terminal_sees_progress(source: str, destination: str) -> None:
    with pyvfio.open(source) as dev:
        memory = dev.bars[MEMORY].view(0, 1 << 20)
        memory[:] = 7
        del memory
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        done = process(
            source,
            destination,
            "--resume",
            stderr=theirs,
            stdout=subprocess.PIPE,
            capture_output=False,
        )
        os.close(theirs)
        shown = terminal.read(4096).decode()
    assert re.search(r"pre-copy 1 +\d.* left", shown)
    assert shown.endswith("\r\x1b[K")
    assert b"\x1b" not in done.stdout


def test_a_bar_shows_how_much_how_fast_and_what_is_left() -> None:
    assert progress.line("stopped", 3 << 20, 2048, 1 << 20) == (
        "stopped         3.0 MiB     2.0 KiB/s  [##################......]  1.0 MiB left"
    )
    assert progress.line("stopped", 1, 1, None) == "stopped         1 bytes     1 bytes/s"
    assert progress.line("load", 0, 0, 0).count("#") == 0


def test_a_bar_is_quiet_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with progress.ProgressBar(stream) as bar:
        bar.show("load", 1, lambda: pytest.fail("nobody looks"))
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 50, "5120.0 TiB")],
)
def test_sizes_are_rounded_for_people(count: int, text: str) -> None:
    assert tables.rounded(count) == text
