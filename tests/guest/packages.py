# SPDX-License-Identifier: BSD-3-Clause
"""Debian packages: found, downloaded and unpacked with the machine's own apt."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.guest.errors import GuestUnavailable

QEMU = "qemu-system-x86_64"
QEMU_PACKAGE = "qemu-system-x86"
BUSYBOX_PACKAGE = "busybox-static"
KERNEL_PREFIX = "linux-image-6.1.0-"
KERNEL_PATTERN = re.compile(rf"{re.escape(KERNEL_PREFIX)}(\d+)-amd64")
LOCK_SECONDS = 120


def say(message: str) -> None:
    """Tell the user what takes time or changes the machine."""
    sys.stderr.write(f"guest: {message}\n")
    sys.stderr.flush()


def qemu() -> str:
    """The path of QEMU, installed now if it is missing and this is root.

    :raises GuestUnavailable: it is missing and cannot be installed.
    """
    found = shutil.which(QEMU)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"installing {QEMU_PACKAGE} ...")
        _apt_get("update", "-qq")
        _apt_get("install", "-qq", "-y", "--no-install-recommends", QEMU_PACKAGE)
        found = shutil.which(QEMU)
    if found is None:
        raise GuestUnavailable(
            f"{QEMU} is not installed; on Debian 12, as root: apt-get install {QEMU_PACKAGE}"
        )
    return found


def unpack_kernel_and_busybox(folder: Path) -> None:
    """Download the newest kernel of Debian 12 and busybox, and unpack both below ``folder``.

    Needs no root, unless apt has no list of packages yet or an outdated one.

    :raises GuestUnavailable: apt does not offer them or cannot fetch them.
    """
    try:
        packages = _download(folder)
    except GuestUnavailable:
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise
        say("updating apt's list of packages ...")
        _apt_get("update", "-qq")
        packages = _download(folder)
    for package in packages:
        _call(["dpkg-deb", "-x", str(package), str(folder)])
        package.unlink()


def _download(folder: Path) -> list[Path]:
    names = [_newest_kernel(), BUSYBOX_PACKAGE]
    say(f"downloading {' and '.join(names)} ...")
    _apt_get("download", "-q", *names, cwd=folder)
    return sorted(folder.glob("*.deb"))


def _newest_kernel() -> str:
    known = _call(["apt-cache", "pkgnames", KERNEL_PREFIX]).split()
    offered = [match for match in map(KERNEL_PATTERN.fullmatch, known) if match]
    if not offered:
        raise GuestUnavailable(
            f"apt offers no {KERNEL_PREFIX}*-amd64: the guest needs the package sources of"
            " Debian 12 (on it, as root: apt-get update)"
        )
    return max(offered, key=lambda match: int(match[1]))[0]


def _apt_get(verb: str, *words: str, cwd: Path | None = None) -> None:
    _call(["apt-get", "-o", f"DPkg::Lock::Timeout={LOCK_SECONDS}", verb, *words], cwd)


def _call(command: Sequence[str], cwd: Path | None = None) -> str:
    """Run a command to its end; what it writes is shown only if it fails."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError as error:
        raise GuestUnavailable(f"{command[0]} is missing: the guest needs Debian 12") from error
    except subprocess.CalledProcessError as error:
        raise GuestUnavailable(f"{' '.join(command)}: {error.stderr.strip()}") from error
    return done.stdout
