# SPDX-License-Identifier: BSD-3-Clause
"""``--trace``, ``PYVFIO_TRACE`` and ``pyvfio trace`` against a model in another process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvfio.cli.trace import FOLLOW_SECONDS
from tests.support import ROOT, ServerProcess, eventually
from tests.system.test_command_line import DONE, FAILED, USAGE, pyvfio
from tests.unit.wire_examples import frame


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a trace."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace of a demo, whose model is in a process of its own."""
    path = tmp_path_factory.mktemp("trace") / "demo.jsonl"
    done = pyvfio("--trace", str(path), "demo")
    assert (done.returncode, done.stderr) == (DONE, "")
    return path


# What is written


def test_both_ends_are_in_the_trace(demo: Path) -> None:
    processes = {(line["role"], line["pid"]) for line in lines(demo)}
    assert sorted(role for role, _ in processes) == ["client", "server"]
    assert len({pid for _, pid in processes}) == 2


def test_each_message_that_one_end_sent_the_other_received(demo: Path) -> None:
    def messages(role: str, direction: str) -> list[tuple[Any, ...]]:
        return [
            (line["socket"], line["command"], line["type"], line["id"], line.get("fields"))
            for line in lines(demo)
            if line["role"] == role and line.get("direction") == direction
        ]

    assert len(messages("client", "sent")) > 100
    assert messages("client", "sent") == messages("server", "received")
    assert messages("server", "sent") == messages("client", "received")


def test_ends_of_both_sockets_name_each_other(demo: Path) -> None:
    connected = [line for line in lines(demo) if line.get("event") == "connected"]
    pids = {line["role"]: line["pid"] for line in connected}
    found = {(line["role"], line["socket"]): line["peer"]["pid"] for line in connected}
    assert found[("client", "main")] == pids["server"]
    assert found[("server", "main")] == pids["client"]
    assert found[("client", "twin")] == pids["server"]


def test_descriptors_of_interrupts_and_memory_are_told_apart(demo: Path) -> None:
    kinds = {
        (line["command"], line["role"], fd["is"].split(":")[0])
        for line in lines(demo)
        for fd in line.get("fds", ())
    }
    for role in ("client", "server"):
        assert ("DEVICE_SET_IRQS", role, "eventfd") in kinds
        assert ("VERSION", role, "socket") in kinds
        assert any(command == "DMA_MAP" and end == role for command, end, _ in kinds)


def test_every_reply_has_its_time(demo: Path) -> None:
    replies = [line for line in lines(demo) if line.get("type") == "reply"]
    assert replies
    assert all(line["us"] > 0 for line in replies)


def test_a_server_with_the_variable_shows_what_a_hostile_client_sent(
    tmp_path: Path, socket_folder: Path
) -> None:
    path = tmp_path / "trace"
    environment = {**os.environ, "PYVFIO_TRACE": str(path)}
    with ServerProcess("edu", socket_folder / "traced.sock", environment=environment) as server:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(server.path))
            client.sendall(frame(77, 999, b"\xde\xad\xbe\xef"))
            client.recv(1024)
        assert eventually(lambda: "closed" in path.read_text())
    printed = pyvfio("trace", "--errors", str(path)).stdout.splitlines()
    request, reply, *_ = printed
    assert "<-" in request
    assert "77 command 999" in request
    assert request.endswith("(reason=no such command bytes=4 hex=deadbeef)")
    assert "-> " in reply
    assert "EINVAL" in reply
    assert all(line.startswith("!") for line in (request, reply))


# What cannot be written


@pytest.mark.parametrize("verb", [("demo",), ("serve", "edu", "--socket", "unused.sock")])
def test_a_file_that_cannot_be_written_is_an_error_at_the_start(
    verb: tuple[str, ...], tmp_path: Path
) -> None:
    done = pyvfio("--trace", f"{tmp_path}/none/trace", *verb)
    assert (done.returncode, done.stdout) == (FAILED, "")
    first, second = done.stderr.splitlines()
    expected = f"pyvfio: trace on {tmp_path}/none/trace: No such file or directory [ENOENT]"
    assert first == expected
    assert second.startswith("hint: ")


def test_a_full_disk_is_told_once_by_each_process_and_the_demo_goes_on() -> None:
    done = pyvfio("--trace", "/dev/full", "demo")
    assert done.returncode == DONE
    warning = "pyvfio: WARNING: /dev/full: No space left on device; tracing has stopped"
    assert done.stderr.splitlines() == [warning, warning]


# What is printed


def test_messages_are_printed_with_a_summary(demo: Path) -> None:
    done = pyvfio("trace", str(demo))
    assert (done.returncode, done.stderr) == (DONE, "")
    messages, summary = done.stdout.split("\nMessages\n")
    assert len(messages.splitlines()) == len(lines(demo))
    assert "REGION_READ reply" in messages
    asked = Counter(
        (line["role"], line["command"]) for line in lines(demo) if line.get("type") == "command"
    )
    rows = {tuple(row[:2]): row for row in map(str.split, summary.splitlines()) if len(row) == 10}
    for key, count in asked.items():
        assert rows[key][2] == str(count)
        assert rows[key][4] == "0"
    assert "Both ends are in this trace" in summary


def test_lines_can_be_chosen_and_given_to_scripts(demo: Path) -> None:
    done = pyvfio(
        *("trace", str(demo), "-o", "json", "--role", "client"),
        *("-c", "dma_map", "-c", "DMA_UNMAP"),
    )
    chosen = [json.loads(line) for line in done.stdout.splitlines()]
    assert chosen == [
        line
        for line in lines(demo)
        if line.get("command") in ("DMA_MAP", "DMA_UNMAP") and line["role"] == "client"
    ]
    assert chosen


def test_one_process_and_one_socket_can_be_chosen(demo: Path) -> None:
    [pid] = {line["pid"] for line in lines(demo) if line["role"] == "server"}
    done = pyvfio("trace", str(demo), "--pid", str(pid), "--socket", "twin")
    printed = done.stdout.split("\nMessages")[0].splitlines()
    assert printed
    assert all(line.split()[1:3] == [str(pid), "server"] for line in printed)
    assert all(" -- twin " in line for line in printed)


def test_channels_can_be_chosen_by_their_names(demo: Path) -> None:
    done = pyvfio("trace", str(demo), "-o", "json", "--channel", "client 1")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [line for line in lines(demo) if line["role"] == "server"]


def test_the_summary_alone_can_be_given_to_scripts(demo: Path) -> None:
    done = pyvfio("trace", "-s", "-o", "json", "--role", "client", str(demo))
    rows = {row.get("command"): row for row in map(json.loads, done.stdout.splitlines())}
    reads = rows["REGION_READ"]
    assert reads["count"] > 10
    assert 0 < reads["p50 us"] <= reads["p90 us"] <= reads["p99 us"] <= reads["max us"]


def test_the_trace_can_come_from_standard_input(demo: Path) -> None:
    with demo.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "pyvfio", "trace", "-", "--summary"],
            stdin=file,
            capture_output=True,
            cwd=ROOT,
            timeout=60,
            check=True,
        )
    assert b"REGION_READ" in done.stdout


def test_lines_of_something_else_are_counted_and_left_out(demo: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    whole = demo.read_bytes().splitlines(keepends=True)
    mixed.write_bytes(b"not a trace\n" + whole[0] + whole[1][:20] + whole[2] + whole[3][:-9])
    done = pyvfio("trace", str(mixed))
    assert done.returncode == DONE
    assert len(done.stdout.split("\nMessages")[0].splitlines()) == 1
    assert "3 lines are not of a trace" in done.stdout


def test_errors_are_red_where_color_is_wanted(demo: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    lost = {**lines(demo)[0], "role": "client", "event": "lost", "reason": "it died"}
    path.write_text(json.dumps(lost) + "\n")
    assert "\x1b" not in pyvfio("trace", str(path)).stdout
    colored = pyvfio("trace", "--color", "always", str(path)).stdout.splitlines()[0]
    assert colored.startswith("\x1b[31m!")
    assert colored.endswith("it died\x1b[0m")


@pytest.fixture
def follower(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """``pyvfio trace --follow`` of an empty file ``growing``."""
    (tmp_path / "growing").touch()
    command = [sys.executable, "-m", "pyvfio", "trace", "--follow", str(tmp_path / "growing")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield process
        process.kill()


def test_following_prints_lines_as_they_come_and_the_summary_at_the_end(
    follower: subprocess.Popen[str], tmp_path: Path, edu_server: ServerProcess
) -> None:
    assert follower.stdout is not None
    path = tmp_path / "growing"
    assert pyvfio("--trace", str(path), "info", edu_server.uri).returncode == DONE
    printed = [follower.stdout.readline() for _ in lines(path)]
    assert "connected" in printed[0]
    assert "closed" in printed[-1]
    late = json.dumps({**lines(path)[0], "event": "time-out"}) + "\n"
    with path.open("a") as file:
        file.write(late[:30])
        file.flush()
        time.sleep(3 * FOLLOW_SECONDS)  # so that the first half is read alone
        file.write(late[30:])
    assert "time-out" in follower.stdout.readline()
    path.write_text(late.replace("time-out", "not sent"))  # begun anew
    assert "not sent" in follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    assert "Messages" in follower.stdout.read()
    assert follower.wait() == DONE


def test_no_such_trace_is_told() -> None:
    done = pyvfio("trace", "/nonexistent/trace")
    assert done.returncode == FAILED
    assert (
        done.stderr == "pyvfio: trace on /nonexistent/trace: No such file or directory [ENOENT]\n"
    )


def test_a_file_that_is_no_trace_is_a_failure() -> None:
    done = pyvfio("trace", __file__)
    assert done.returncode == FAILED
    assert "lines are not of a trace" in done.stdout


def test_a_trace_needs_a_name() -> None:
    done = pyvfio("--trace", "", "list")
    assert (done.returncode, done.stderr) == (USAGE, "pyvfio: --trace needs the name of a file\n")


def test_a_command_that_does_not_exist_is_a_usage_error(demo: Path) -> None:
    done = pyvfio("trace", "-c", "FROBNICATE", str(demo))
    assert done.returncode == USAGE
    assert "REGION_READ" in done.stderr
