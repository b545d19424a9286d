# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio demo --emulator``, and the example of a machine, as a user meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

from tests.support import ROOT, ServerProcess
from tests.system.test_command_line import DONE, FAILED, UNAVAILABLE, USAGE, pyvfio


def test_the_firmware_drives_a_served_model_and_says_what_the_guest_saw() -> None:
    done = pyvfio("demo", "--emulator")
    assert done.returncode == DONE, done.stdout + done.stderr
    assert done.stdout.count(" ok\n") == 12
    assert "FAILED" not in done.stdout
    for expected in ("03.0 1234:11e8", "BAR 0, 0x100000 bytes", "00: 34 12 e8 11", "halted"):
        assert expected in done.stdout
    assert done.stdout.endswith("Everything is as it should be.\n")
    assert done.stderr == ""


def test_json_has_a_line_for_each_step_and_one_for_the_end(edu_server: ServerProcess) -> None:
    done = pyvfio("demo", "--emulator", "-o", "json", edu_server.uri)
    *steps, end = map(json.loads, done.stdout.splitlines())
    assert [step["ok"] for step in steps] == [True] * 12
    assert (end["outcome"], end["interrupts"] >= 24) == ("halted", True)
    assert end["config"].startswith("3412e811")


def test_a_model_that_is_wrong_fails(serve: Callable[..., ServerProcess]) -> None:
    server = serve("tests.system.wrong_models:WrongLiveness")
    done = pyvfio("demo", "--emulator", server.uri)
    assert done.returncode == FAILED
    assert "liveness inverts" in done.stdout.splitlines()[-1]


def test_another_device_fails(testdev_server: ServerProcess) -> None:
    done = pyvfio("demo", "--emulator", testdev_server.uri)
    assert done.returncode == FAILED
    assert "1b36:0005" in done.stdout


def test_no_such_socket_is_told() -> None:
    done = pyvfio("demo", "--emulator", "/nowhere/none.sock")
    assert done.returncode == UNAVAILABLE
    assert "no such socket" in done.stderr


def test_one_of_two_places_can_be_chosen() -> None:
    assert pyvfio("demo", "--emulator", "--guest").returncode == USAGE


def test_without_unicorn_the_demo_says_what_to_install(edu_server: ServerProcess) -> None:
    code = f"""if True:
        import sys
        sys.modules["unicorn"] = None
        from pyvfio.cli.main import main
        sys.exit(main(["demo", "--emulator", {edu_server.uri!r}]))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == UNAVAILABLE
    assert "pip install 'pyvfio[unicorn]'" in done.stderr


def test_the_example_puts_a_device_into_a_machine_of_ones_own(edu_server: ServerProcess) -> None:
    done = subprocess.run(
        [sys.executable, "examples/emulated_machine.py", edu_server.uri],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("halted after 7 instructions")
    assert done.stdout.endswith("slot 3 has 1234:11e8\n")
