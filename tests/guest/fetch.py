# SPDX-License-Identifier: BSD-3-Clause
"""The cache folder: a kernel, its modules and busybox, fetched once and complete or not there."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.guest import packages
from tests.guest.errors import GuestUnavailable
from tests.guest.kernel import modules_in_order, vmlinux

CACHE = "PYVFIO_GUEST_CACHE"
"""The environment variable that overrides the cache folder."""

GENERATION = "bookworm-1"
"""The folder in the cache; counted up when its contents change, so that no old one is used."""

MODULES = (
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "vfio_iommu_type1",
    "vfio_pci",
    "uio_pci_generic",  # a driver that makes a group not viable
)
"""Modules of the guest; no driver of a device under test, so that nothing has to be unbound."""


@dataclass(frozen=True)
class Files:
    """What a guest is made of."""

    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinux"

    @property
    def busybox(self) -> Path:
        return self.folder / "busybox"

    @property
    def modules(self) -> list[Path]:
        """In the order in which they can be loaded."""
        return sorted((self.folder / "modules").iterdir())

    @property
    def version(self) -> str:
        """The kernel's release."""
        return (self.folder / "version").read_text().strip()


def cache() -> Path:
    """The cache folder, which need not exist."""
    chosen = os.environ.get(CACHE)
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyvfio-guest"


def fetch() -> Files:
    """The files of the guest, from the cache or else from the machine's package sources.

    :raises GuestUnavailable: they are not in the cache and cannot be fetched.
    """
    complete = cache() / GENERATION
    if os.path.isdir(complete):
        return Files(complete)
    with _alone(complete.parent):
        if not os.path.isdir(complete):
            _make(complete)
    return Files(complete)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time fetches; others wait, then find the folder complete."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise GuestUnavailable(f"the cache cannot be written (see {CACHE}): {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(complete: Path) -> None:
    """Fill a temporary folder and give it its name at the end, so a name means a complete one."""
    for cut_off in complete.parent.glob("partial-*"):
        shutil.rmtree(cut_off)
    with tempfile.TemporaryDirectory(dir=complete.parent, prefix="partial-") as name:
        tree, made = Path(name, "tree"), Path(name, "made")
        tree.mkdir()
        tree.chmod(0o755)  # apt may download as another user
        made.mkdir()
        packages.unpack_kernel_and_busybox(tree)
        try:
            _pick(tree, made)
        except (OSError, ValueError) as error:
            raise GuestUnavailable(f"unpacking the packages: {error}") from error
        made.rename(complete)


def _pick(tree: Path, made: Path) -> None:
    """Take what the guest needs out of the unpacked packages."""
    [image] = (tree / "boot").glob("vmlinuz-*")
    release = image.name.removeprefix("vmlinuz-")
    (made / "vmlinux").write_bytes(vmlinux(image.read_bytes()))
    (made / "version").write_text(f"{release}\n")
    shutil.copy(tree / "bin" / "busybox", made / "busybox")
    (made / "modules").mkdir()
    found = modules_in_order(MODULES, tree / "lib" / "modules" / release)
    for place, module in enumerate(found):
        shutil.copy(module, made / "modules" / f"{place:02}-{module.name}")
