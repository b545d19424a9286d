# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's files: the ELF image inside a bzImage, and modules with what they depend on.

QEMU can boot the ELF image itself, which spares the guest the unpacking: several seconds when every
instruction is emulated.
"""

from __future__ import annotations

import lzma
import re
import struct
from collections.abc import Iterable
from pathlib import Path

# Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"
SETUP_SECTS = 0x1F1
HEADER_MAGIC = 0x202
PAYLOAD_OFFSET = 0x248
SECTOR = 512
ELF_MAGIC = b"\x7fELF"

DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def vmlinux(image: bytes) -> bytes:
    """The ELF kernel in a bzImage whose payload is compressed with xz, as Debian's is.

    :raises ValueError: it is no bzImage, or it is compressed in another way.
    """
    if image[HEADER_MAGIC : HEADER_MAGIC + 4] != b"HdrS":
        raise ValueError("not a bzImage: its header has no magic number")
    offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
    start = ((image[SETUP_SECTS] or 4) + 1) * SECTOR + offset
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    try:
        # four bytes with the unpacked size follow the stream; they are left over
        kernel = unpacker.decompress(image[start : start + length])
    except lzma.LZMAError as error:
        raise ValueError(f"the kernel's payload cannot be unpacked: {error}") from error
    if not unpacker.eof or not kernel.startswith(ELF_MAGIC):
        raise ValueError("the kernel's payload is cut off or no ELF image")
    return kernel


def modules_in_order(names: Iterable[str], folder: Path) -> list[Path]:
    """The files of modules below ``folder``, each after those it depends on.

    :raises ValueError: a module is not there.
    """
    files = {_module_name(path): path for path in folder.rglob("*.ko")}
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in ordered:
            return
        if name not in files:
            raise ValueError(f"the kernel package has no module {name}")
        for other in _dependencies(files[name]):
            add(other)
        ordered[name] = files[name]

    for name in names:
        add(name)
    return list(ordered.values())


def _dependencies(module: Path) -> list[str]:
    found = DEPENDS.search(module.read_bytes())
    words = found[1].decode().split(",") if found else []
    return [word.replace("-", "_") for word in words if word]


def _module_name(path: Path) -> str:
    return path.stem.replace("-", "_")
