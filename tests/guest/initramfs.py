# SPDX-License-Identifier: BSD-3-Clause
"""The guest's first file system: busybox, modules, the init script and the command to run.

The format is "newc" (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel):
entries of a 110-byte ASCII header, a name and data, each padded to 4 bytes.
"""

from __future__ import annotations

import shlex
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from tests.guest.fetch import Files

INIT = Path(__file__).with_name("init.sh")
COMMAND = "command"
"""The file with the command, which init.sh knows by this name."""

FILE = stat.S_IFREG | 0o644
PROGRAM = stat.S_IFREG | 0o755
FOLDER = stat.S_IFDIR | 0o755
TRAILER = "TRAILER!!!"


def initramfs(files: Files, script: str) -> bytes:
    """An archive whose init runs ``script`` by the shell of the host's file system."""
    entries = {
        "bin/busybox": (PROGRAM, files.busybox.read_bytes()),
        "init": (PROGRAM, INIT.read_bytes()),
        COMMAND: (FILE, script.encode()),
    }
    for module in files.modules:
        entries[f"modules/{module.name}"] = (FILE, module.read_bytes())
    return archive(entries)


def archive(entries: Mapping[str, tuple[int, bytes]]) -> bytes:
    """A newc archive of files, given as mode and data, with the folders they are in."""
    folders = {str(parent): None for name in entries for parent in PurePosixPath(name).parents}
    del folders["."]
    parts = [_entry(folder, FOLDER, b"") for folder in sorted(folders)]
    parts += [_entry(name, mode, data) for name, (mode, data) in entries.items()]
    parts.append(_entry(TRAILER, 0, b""))
    return b"".join(parts)


def command_script(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> str:
    """A shell script that becomes ``command`` in ``folder``."""
    lines = [f"cd {shlex.quote(str(folder))} || exit 126"]
    for name, value in (environment or {}).items():
        lines.append(f"export {name}={shlex.quote(value)}")
    lines.append(f"exec {shlex.join(command)}")
    return "\n".join(lines) + "\n"


def _entry(name: str, mode: int, data: bytes) -> bytes:
    path = name.encode() + b"\0"
    # ino, mode, uid, gid, nlink, mtime, filesize, dev (2), rdev (2), namesize, check
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + path) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
