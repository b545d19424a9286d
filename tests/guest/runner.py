# SPDX-License-Identifier: BSD-3-Clause
"""Run a command in the guest: start QEMU, watch its time, and tell how it ended."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.guest import packages
from tests.guest.errors import GuestHung, GuestLost
from tests.guest.fetch import fetch
from tests.guest.initramfs import command_script, initramfs
from tests.guest.machine import DISK_BYTES, DISKS, Boot, Machine, command_line, own_machine

OUTPUT = "/run/out"
"""The output folder as the guest sees it."""

OUTPUT_FILES = ("console.txt", "dmesg.txt", "exitcode", "serial.log", "qemu.log")

DEFAULTS = {
    "HOME": "/root",
    "TERM": "dumb",
    "PYTHONDONTWRITEBYTECODE": "1",  # what the guest writes to the host's files is gone with it
    "PYTHONUNBUFFERED": "1",  # the console is a file, and shown as it grows
    "PYVFIO_GUEST": "1",
}
"""Environment of a command, with the caller's PATH."""

POLL_SECONDS = 0.1
LAST_LINES = 20
STATUS_BASE = 0x20
STATUS_IN_FILE = 90
"""A status from here on does not fit into QEMU's exit status; the file ``exitcode`` has it."""

# The kernel kills QEMU when the runner dies. The shell sees to the runner that died before that.
ORPHAN_GUARD = ("setpriv", "--pdeathsig", "KILL", "sh", "-c", '[ $PPID = "$0" ] && exec "$@"')


@dataclass(frozen=True)
class Result:
    """A command that ran to its end."""

    returncode: int
    console: str
    """What the command wrote to standard output and standard error."""
    output: Path
    """The output folder: :data:`OUTPUT_FILES` and what the command wrote to :data:`OUTPUT`."""


def run(
    command: Sequence[str],
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    output: Path | None = None,
    echo: BinaryIO | None = None,
    machine: Machine | None = None,
) -> Result:
    """Run ``command`` as root in a freshly booted guest, in the current folder.

    The guest has the host's files at their places; what it changes outside of its :data:`OUTPUT` is
    gone with it.

    :param timeout: limit in seconds, from the start of QEMU.
    :param environment: added to :data:`DEFAULTS`.
    :param output: the output folder, by default a new one, which the caller then has to remove.
    :param echo: gets the console's bytes as they come.
    :param machine: another than the one with the devices of :mod:`tests.guest.machine`.
    :raises GuestUnavailable: the guest cannot be booted on this machine.
    :raises GuestLost: the guest ended before the command.
    :raises GuestHung: the guest was still running after ``timeout``.
    """
    chosen = DEFAULTS | {"PATH": os.environ.get("PATH", os.defpath)} | dict(environment or {})
    script = command_script(command, Path.cwd(), chosen)
    folder = _output_folder(output)
    console = Console(folder / "console.txt", echo)
    try:
        status = _boot(script, folder, timeout, console, machine)
    except (GuestLost, GuestHung) as error:
        error.console = console.text()
        raise
    return Result(status, console.text(), folder)


def shell(*, timeout: float, output: Path | None = None) -> int:
    """An interactive shell in the guest on this process's standard input and output.

    :returns: the status of the shell; raises what :func:`run` does.
    """
    program = next(name for name in ("/bin/bash", "/bin/sh") if os.access(name, os.X_OK))
    environment = DEFAULTS | {"PATH": os.environ.get("PATH", os.defpath)}
    environment["TERM"] = os.environ.get("TERM", "dumb")
    script = command_script([program, "-i"], Path.cwd(), environment)
    return _boot(script, _output_folder(output), timeout, None)


class Console:
    """The file that the command writes to, passed on as it grows."""

    def __init__(self, path: Path, echo: BinaryIO | None) -> None:
        self.path = path
        self.path.touch()
        self._echo = echo
        self._shown = 0

    def update(self) -> None:
        if self._echo is None:
            return
        with self.path.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
        self._shown += len(new)
        self._echo.write(new)
        self._echo.flush()

    def text(self) -> str:
        return self.path.read_text(errors="replace")


def status(returncode: int, folder: Path) -> int:
    """The command's status, from QEMU's; see ``leave`` in init.sh.

    :raises GuestLost: QEMU did not end by the guest's isa-debug-exit device.
    """
    value = (returncode >> 1) - STATUS_BASE
    if returncode < 0 or not returncode & 1 or not 0 <= value <= STATUS_IN_FILE:
        raise GuestLost(f"the guest died, QEMU ended with {returncode}\n{_last_words(folder)}")
    return value if value < STATUS_IN_FILE else int((folder / "exitcode").read_text())


def _boot(
    script: str,
    folder: Path,
    timeout: float,
    console: Console | None,
    machine: Machine | None = None,
) -> int:
    """Boot a guest and wait for its end; without a console it is interactive."""
    files = fetch()
    with ExitStack() as stack:
        initrd = stack.enter_context(_memory_file("initrd", initramfs(files, script)))
        disks: list[int] = []
        if machine is None:
            disks = [stack.enter_context(_memory_file(name, size=DISK_BYTES)) for name in DISKS]
            machine = own_machine(packages.qemu(), [_path(fd) for fd in disks])
        boot = Boot(files.kernel, _path(initrd), folder, interactive=console is None)
        log = stack.enter_context((folder / "qemu.log").open("wb"))
        process = subprocess.Popen(
            [*ORPHAN_GUARD, str(os.getpid()), *command_line(machine, boot)],
            stdin=subprocess.DEVNULL if console else None,
            stdout=log if console else None,
            stderr=log,
            pass_fds=(initrd, *disks),
        )
        try:
            returncode = _wait(process, time.monotonic() + timeout, console)
        finally:
            process.kill()
            process.wait()
    if returncode is None:
        raise GuestHung(f"the guest was stopped after {timeout:g} s\n{_last_words(folder)}")
    return status(returncode, folder)


def _wait(process: subprocess.Popen[bytes], deadline: float, console: Console | None) -> int | None:
    """QEMU's exit status, or None at the deadline; its console is passed on meanwhile."""
    returncode = None
    while returncode is None and (left := deadline - time.monotonic()) > 0:
        with suppress(subprocess.TimeoutExpired):
            returncode = process.wait(min(POLL_SECONDS, left))
        if console:
            console.update()
    return returncode


@contextmanager
def _memory_file(name: str, data: bytes = b"", size: int = 0) -> Iterator[int]:
    """A file without a name on disk, so that none is left behind however this process ends."""
    with os.fdopen(os.memfd_create(f"pyvfio-guest-{name}"), "wb") as file:
        file.write(data)
        file.truncate(max(size, len(data)))
        file.flush()
        yield file.fileno()


def _path(fd: int) -> Path:
    """What QEMU can open an inherited descriptor by."""
    return Path(f"/proc/self/fd/{fd}")


def _output_folder(chosen: Path | None) -> Path:
    """The folder, without the files of an earlier run."""
    if chosen is None:
        return Path(tempfile.mkdtemp(prefix="pyvfio-guest-"))
    chosen.mkdir(parents=True, exist_ok=True)
    for name in OUTPUT_FILES:
        (chosen / name).unlink(missing_ok=True)
    return chosen.absolute()


def _last_words(folder: Path) -> str:
    """What QEMU and the kernel said from a panic on, or last."""
    logs = [folder / "qemu.log", folder / "serial.log"]
    said = [log.read_text(errors="replace").strip() for log in logs if log.exists()]
    lines = "\n".join(said).splitlines()
    panic = next((place for place, line in enumerate(lines) if "Kernel panic" in line), None)
    start = max(0, len(lines) - LAST_LINES) if panic is None else panic
    return "\n".join(lines[start : start + LAST_LINES])
