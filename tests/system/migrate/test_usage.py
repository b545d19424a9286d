# SPDX-License-Identifier: BSD-3-Clause
"""What ``pyvfio migrate`` takes for usage, and what it shows on a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import time
from contextlib import redirect_stderr
from pathlib import Path

import pytest

import pyvfio
from pyvfio.cli import progress, tables
from pyvfio.cli.main import main
from tests.system.migrate.command import DONE, MEMORY, USAGE, has, process, run, states


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
        ("a b --max-size=-1", "no number of bytes"),
        ("load a b --max-size=-1", "no number of bytes"),
        ("a b --piece 0", "no number of bytes"),
        ("load a b --piece 1", "--piece is not for it"),
        ("a --resume b c", "migrate SRC: usage"),
        ("save --bogus a b", "unrecognized arguments: --bogus\n"),
        ("a --bogus=1 b", "unrecognized arguments: --bogus=1\n"),
        ("a --resume b -x", "unrecognized arguments: -x\n"),
        ("-o json load --no-such a b", "unrecognized arguments: --no-such\n"),
        ("a --precopy-seconds b", "invalid float value"),
        ("status a -o", "expected one argument"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(arguments: str, says: str) -> None:
    done = run(*arguments.split())
    assert done.status == USAGE
    assert says in done.errors


def test_options_may_stand_among_the_operands(source: str, destination: str, file: Path) -> None:
    """In each place that is natural for somebody."""
    assert run(source, "--no-precopy", destination, "--resume").status == DONE
    assert states(source, destination) == ("STOP", "RUNNING")
    source, destination = destination, source
    assert run("save", "--no-precopy", source, file).status == DONE
    with pyvfio.open(source) as dev:
        dev.reset()
    done = run("-o", "json", "load", "--resume", source, file)
    assert json.loads(done.output)["destination_state"] == "RUNNING"
    assert has(source)
    assert run("save", source, "--keep-running", file, "-o", "json").status == DONE
    assert run("status", "-o", "json", source).output.startswith("{")


def test_a_move_takes_options_between_its_operands(source: str, destination: str) -> None:
    assert run(source, "--resume", destination).status == DONE
    assert states(source, destination) == ("STOP", "RUNNING")
    assert has(destination)


def test_standard_output_may_stand_behind_an_option(source: str, destination: str) -> None:
    saved = process("save", source, "--keep-running", "-")
    assert saved.returncode == DONE
    assert process("load", destination, "--resume", "-", input=saved.stdout).returncode == DONE
    assert has(destination)


def test_operands_behind_a_double_dash_may_look_like_options(source: str, file: Path) -> None:
    with contextlib.chdir(file.parent):
        for path, arguments in {
            "-file": ("save", source, "--keep-running", "--", "-file"),
            "--other": ("save", "--keep-running", "--", source, "--other"),
            "-third": ("--keep-running", "--", "save", source, "-third"),
        }.items():
            assert run(*arguments).status == DONE
            assert Path(path).exists()


def test_other_verbs_take_no_operand_behind_an_option_that_they_do_not_know(source: str) -> None:
    errors = io.StringIO()
    with redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        main(["info", source, "-o", "json", "more"])
    assert ended.value.code == USAGE
    assert "unrecognized arguments: more\n" in errors.getvalue()


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


class Terminal(io.StringIO):
    """A terminal, as far as a bar can tell."""

    def isatty(self) -> bool:
        return True


def test_a_bar_asks_at_once_what_is_left_of_something_else() -> None:
    """The size of what a pass leaves says nothing of the next."""
    sizes = iter((7, 5))
    stream = Terminal()
    with progress.ProgressBar(stream) as bar:
        for what in ("pre-copy 1", "pre-copy 1", "stopped"):
            bar.show(what, 1, lambda: next(sizes))
            time.sleep(1.1 * progress.SHOWN_SECONDS)
    assert re.findall(r"(\d) bytes left", stream.getvalue()) == ["7", "7", "5"]


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
