# SPDX-License-Identifier: BSD-3-Clause
"""The ``pyvfio`` command as a user meets it: output, exit status, errors on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT, ServerProcess

DONE, FAILED, USAGE, UNAVAILABLE, TIMEOUT = range(5)


def pyvfio(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pyvfio", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


def test_demo_drives_a_served_model_and_succeeds() -> None:
    done = pyvfio("demo")
    assert done.returncode == DONE, done.stdout + done.stderr
    assert done.stdout.count(" ok ") == 10
    assert "FAILED" not in done.stdout
    assert done.stderr == ""


def test_demo_prints_ids_regions_interrupts_and_capabilities(edu_server: ServerProcess) -> None:
    printed = pyvfio("demo", edu_server.uri).stdout
    for expected in ("1234:11e8", "BAR0", "CONFIG", "INTX", "MSI", "Capabilities"):
        assert expected in printed


@pytest.mark.parametrize(
    ("model", "step"),
    [
        ("WrongIdentification", "identification"),
        ("WrongLiveness", "liveness inverts"),
        ("WrongFactorial", "factorial, polled"),
        ("OneWrongByte", "DMA 4 KiB there and back"),
        ("TwoInterruptsForOne", "MSI counted"),
        ("IgnoresReset", "reset"),
        ("DeafPin", "INTx"),
    ],
)
def test_demo_fails_on_a_model_that_is_wrong(
    serve: Callable[..., ServerProcess], model: str, step: str
) -> None:
    server = serve(f"tests.system.wrong_models:{model}")
    done = pyvfio("demo", server.uri)
    assert done.returncode == FAILED
    failures = done.stdout.splitlines()[-1].removeprefix("FAILED: ")
    assert step in failures


def test_info_prints_tables(testdev_server: ServerProcess) -> None:
    done = pyvfio("info", testdev_server.uri)
    assert done.returncode == DONE
    assert "64 MiB" in done.stdout
    assert "0x0+1 MiB, 0x2000000+1 MiB" in done.stdout


def test_info_as_json_says_the_same_to_scripts(testdev_server: ServerProcess) -> None:
    found = json.loads(pyvfio("info", "-o", "json", testdev_server.uri).stdout)
    assert found["ids"]["vendor"] == 0x1B36
    assert [region["name"] for region in found["regions"]] == [
        "BAR0",
        "BAR1",
        "BAR2",
        "BAR4",
        "CONFIG",
    ]
    (memory,) = (region for region in found["regions"] if region["name"] == "BAR2")
    assert memory["type"] == "64-bit memory"
    assert memory["mappable"] == [[0, 1 << 20], [32 << 20, 1 << 20]]
    assert {irq["name"]: irq["vectors"] for irq in found["irqs"]}["MSIX"] == 32


def test_a_path_stands_for_a_vfio_user_uri(edu_server: ServerProcess) -> None:
    assert edu_server.uri in pyvfio("info", str(edu_server.path)).stdout


def test_no_such_socket_tells_operation_uri_reason_and_hint(tmp_path: Path) -> None:
    done = pyvfio("info", f"vfio-user:{tmp_path}/none.sock")
    assert done.returncode == UNAVAILABLE
    first, second = done.stderr.splitlines()
    assert first == f"pyvfio: open on vfio-user:{tmp_path}/none.sock: no such socket [ENOENT]"
    assert second.startswith("hint: ")


def test_unknown_scheme_lists_the_known_ones() -> None:
    done = pyvfio("info", "pci:0000:00:04.0")
    assert done.returncode == UNAVAILABLE
    assert "vfio-user" in done.stderr


def test_unknown_option_is_a_usage_error(edu_server: ServerProcess) -> None:
    done = pyvfio("info", f"{edu_server.uri}?timout=1")
    assert done.returncode == USAGE
    assert "timout" in done.stderr


def test_unknown_verb_is_a_usage_error() -> None:
    assert pyvfio("frobnicate").returncode == USAGE


def test_busy_server_is_a_time_out(edu_server: ServerProcess) -> None:
    import pyvfio as package  # noqa: PLC0415 - the command has taken the name in this module

    with package.open(edu_server.uri):
        done = pyvfio("info", f"{edu_server.uri}?timeout=0.3")
    assert done.returncode == TIMEOUT
    assert "Traceback" not in done.stderr


def test_unknown_model_lists_the_known_ones(tmp_path: Path) -> None:
    done = pyvfio("serve", "nothing", "--socket", str(tmp_path / "x.sock"))
    assert done.returncode == UNAVAILABLE
    assert "edu, testdev" in done.stderr


def test_output_may_be_cut_short_by_its_reader(edu_server: ServerProcess) -> None:
    command = f"{sys.executable} -m pyvfio info {edu_server.uri} | head -n 1"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stderr == ""
