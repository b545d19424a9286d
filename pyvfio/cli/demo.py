# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio demo``: the edu driver step by step, against a model in another process."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyvfio
from pyvfio.cli import emulator_demo
from pyvfio.cli.describe import as_text, describe
from pyvfio.cli.edu_steps import STEP_NAMES, Step, run_steps
from pyvfio.cli.uris import add_uri
from pyvfio.errors import BackendUnavailable

START_SECONDS = 30.0
GUEST_SECONDS = 180.0
"""How long the guest may take, boot included."""


def add_parser(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "demo",
        help="drive an edu device, step by step",
        description="Drive an edu device step by step and show what was seen. Without a URI, a"
        " model is served by another process for the time of the demo.",
    )
    add_uri(parser, optional=True)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--emulator",
        action="store_true",
        help="in an emulated PC: guest firmware, run by the Unicorn engine, finds the device on its"
        " PCI bus and drives it",
    )
    where.add_argument(
        "--guest",
        action="store_true",
        help="from a checkout: the same steps beside each other, on the real kernel's VFIO in a"
        " QEMU guest, and on a served model",
    )
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="tables, or JSON lines"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; 1 where a step saw something else than it should."""
    if args.guest:
        return _compare()
    drive = emulator_demo.drive if args.emulator else _drive
    if args.uri is not None:
        return drive(args.uri, args.output)
    with _served("edu") as uri:
        if args.output == "text":
            print(f"$ pyvfio serve edu --socket {uri.partition(':')[2]} &")
        return drive(uri, args.output)


@contextlib.contextmanager
def _served(model: str) -> Iterator[str]:
    """A model in another process; yields its URI."""
    with tempfile.TemporaryDirectory(prefix="pyvfio-") as folder:
        path = os.path.join(folder, f"{model}.sock")
        command = [sys.executable, "-m", "pyvfio", "serve", model, "--socket", path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout is not None
                ready, _, _ = select.select([server.stdout], [], [], START_SECONDS)
                if not ready or not server.stdout.readline():
                    raise BackendUnavailable("the server did not start", op="serve", uri=model)
                yield f"vfio-user:{path}"
            finally:
                server.terminate()


def _drive(uri: str, output: str) -> int:
    with pyvfio.open(uri) as dev:
        if output == "json":
            return _drive_as_json(dev)
        print(f"pyvfio.open({uri!r})\n")
        print(as_text(describe(dev)))
        print("Driver")
        steps = []
        for step in run_steps(dev):
            steps.append(step)
            spent = f"{step.milliseconds:8.1f} ms"
            print(f"  {step.name:<26} {step.value:<52} {step.verdict:<6} {spent}", flush=True)
    return _verdict(steps)


def _drive_as_json(dev: pyvfio.PCIDevice) -> int:
    steps = []
    for step in run_steps(dev):
        steps.append(step)
        print(json.dumps(step._asdict()), flush=True)
    return 0 if all(step.ok for step in steps) else 1


def _verdict(steps: Sequence[Step]) -> int:
    failed = [step.name for step in steps if not step.ok]
    if failed:
        print(f"\nFAILED: {', '.join(failed)}")
        return 1
    print("\nEverything is as it should be.")
    return 0


# Beside each other


def _compare() -> int:
    print("Booting a guest with an IOMMU and QEMU's edu device ...", flush=True)
    kernel = _run_in_guest()
    with _served("edu") as uri:
        command = [sys.executable, "-m", "pyvfio", "demo", "-o", "json", uri]
        user = _steps(command, "the served model")
    heads = ("kernel VFIO, QEMU's edu in the guest", "vfio-user, pyvfio's edu in a process")
    width = max(len(step.value) for step in (*kernel, *user)) + 20
    print(f"\n  {'':<26} {heads[0]:<{width}} {heads[1]}")
    for left, right in zip(kernel, user, strict=True):
        print(f"  {left.name:<26} {_cell(left):<{width}} {_cell(right)}")
    return _verdict([*kernel, *user])


def _cell(step: Step) -> str:
    return f"{step.verdict} {step.milliseconds:7.1f} ms  {step.value}"


def _steps(command: Sequence[str], where: str, folder: Path | None = None) -> list[Step]:
    """The steps that a demo with JSON output did, all of them."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=folder, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    steps = [Step(**json.loads(line)) for line in lines]
    if [step.name for step in steps] != list(STEP_NAMES):
        raise BackendUnavailable(
            f"{where} ended after {len(steps)} of {len(STEP_NAMES)} steps,"
            f" with status {done.returncode}",
            op="demo --guest",
        )
    return steps


def _run_in_guest() -> list[Step]:
    """The steps on the kernel's VFIO, in a guest, which a checkout knows how to boot."""
    root = Path(pyvfio.__file__).parent.parent
    command = [sys.executable, "-m", "tests.guest", "run", "--timeout", f"{GUEST_SECONDS:.0f}"]
    command += ["--", sys.executable, "-m", "tests.guest.demo"]
    if not (root / "tests/guest/demo.py").exists():
        raise BackendUnavailable(
            "the guest is part of the source tree, not of the installed package",
            op="demo --guest",
            hint="run it in a checkout",
        )
    return _steps(command, "the guest", root)
