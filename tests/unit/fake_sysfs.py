# SPDX-License-Identifier: BSD-3-Clause
"""A host made of plain files: PCI devices, drivers, IOMMU groups, disks, network interfaces.

Laid out as the kernel lays out ``/sys``, ``/proc`` and ``/dev``, links included.  What plain files
cannot do is what the kernel does when an attribute is written; :meth:`FakeHost.write` stands in for
it and knows three of them: ``driver_override`` keeps the text, ``unbind`` removes the links between
a driver and a device, and ``drivers_probe`` makes them where a driver matches, or says that all is
well where it refuses.  Writes are counted, and one or all from one on can be made to fail.
"""

from __future__ import annotations

import argparse
import errno
import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pyvfio.backends.ioctl.binding import Host


def run_verb(module: Any, host: Host, *words: str) -> int:
    """Parse and run a verb as the command does, but on ``host``."""
    parser = argparse.ArgumentParser(prog="pyvfio")
    parser.add_argument("-v", "--verbose", action="count", default=0)
    module.add_parser(parser.add_subparsers(dest="verb"))
    args = parser.parse_args(words)
    args.host = host
    status: int = args.run(args)
    return status


Snapshot = dict[str, str]


class FakeHost:
    """A host below a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "sys"
        self.proc = folder / "proc"
        self.dev = folder / "dev"
        self.host = Host(
            root=self.root,
            proc=self.proc,
            dev=self.dev,
            modules=folder / "lib/modules",
            state=folder / "run/pyvfio/bound",
            write=self.write,
        )
        self.writes: list[str] = []
        self.fail: Collection[int] = ()
        """Numbers of the writes, counted from 0, that fail."""
        self.error = errno.EIO
        self.refusing: set[str] = set()
        """Drivers whose probe fails, which the writer is not told."""
        self.native: dict[str, str] = {}
        """Device -> the driver that takes it where there is no override."""
        self.put(self.root / "bus/pci/drivers_probe", "")
        self.put(self.proc / "self/mountinfo", "22 1 0:21 / /proc rw - proc proc rw\n")
        self.put(self.proc / "swaps", "Filename\tType\tSize\tUsed\tPriority\n")
        for name in ("bus/pci/devices", "class/block", "class/net", "class/iommu"):
            (self.root / name).mkdir(parents=True)
        for name in ("pcieport", "vfio-pci", "nvme", "e1000e"):
            self.add_driver(name)

    @staticmethod
    def put(path: Path, text: str) -> None:
        """A file, with the folders above it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @staticmethod
    def link(path: Path, target: Path) -> None:
        """A relative link, as all in sysfs are."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(target, path.parent))

    def folder_of(self, bdf: str) -> Path:
        """Where a device's attributes are."""
        return self.root / "devices/pci0000:00" / bdf

    def add_driver(self, name: str) -> None:
        """A driver that is loaded."""
        self.put(self.root / "bus/pci/drivers" / name / "unbind", "")

    def add_device(
        self,
        bdf: str,
        *,
        ids: tuple[int, int] = (0x8086, 0x10D3),
        class_code: int = 0x02_0000,
        driver: str | None = None,
        group: int | None = None,
        override: str | None = None,
        **attributes: Any,
    ) -> Path:
        """A device; ``attributes`` are further files of it."""
        folder = self.folder_of(bdf)
        texts = {
            "vendor": f"{ids[0]:#06x}",
            "device": f"{ids[1]:#06x}",
            "class": f"{class_code:#08x}",
            "revision": "0x01",
            "subsystem_vendor": "0x1af4",
            "subsystem_device": "0x1100",
            "numa_node": "-1",
            "driver_override": override or "(null)",
            **attributes,
        }
        for name, text in texts.items():
            self.put(folder / name, f"{text}\n")
        self.link(self.root / "bus/pci/devices" / bdf, folder)
        if group is not None:
            members = self.root / f"kernel/iommu_groups/{group}"
            self.link(members / "devices" / bdf, folder)
            self.link(folder / "iommu_group", members)
        if driver is not None:
            self.native[bdf] = driver
            self._attach(bdf, driver)
        return folder

    def add_disk(self, bdf: str, name: str, partitions: Collection[str] = ()) -> Path:
        """A disk below a device."""
        return self.add_block(self.folder_of(bdf) / "nvme/nvme0" / name, partitions)

    def add_block(self, folder: Path, partitions: Collection[str] = ()) -> Path:
        """A block device anywhere, with its partitions; numbered in the order of adding."""
        for each in (folder, *(folder / name for name in partitions)):
            number = len(list((self.root / "class/block").iterdir()))
            self.put(each / "dev", f"259:{number}\n")
            (each / "holders").mkdir()
            self.link(self.root / "class/block" / each.name, each)
        return folder

    def add_interface(self, bdf: str, name: str, *, up: bool) -> None:
        """A network interface of a device."""
        folder = self.folder_of(bdf) / "net" / name
        self.put(folder / "flags", "0x1003\n" if up else "0x1002\n")
        self.link(self.root / "class/net" / name, folder)

    def mount(self, source: str, where: str, number: str = "0:99") -> None:
        """Something is mounted; the number may be one that no block device has, as with btrfs."""
        with (self.proc / "self/mountinfo").open("a") as file:
            file.write(f"30 22 {number} / {where} rw shared:1 - ext4 {source} rw\n")

    def unplug(self, bdf: str) -> None:
        """Take a device's link away; what hangs below may still be there."""
        (self.root / "bus/pci/devices" / bdf).unlink()

    def driver(self, bdf: str) -> str | None:
        """What a device is bound to."""
        link = self.folder_of(bdf) / "driver"
        return link.resolve().name if link.is_symlink() else None

    def override(self, bdf: str) -> str:
        """What ``driver_override`` reads as."""
        return (self.folder_of(bdf) / "driver_override").read_text().strip()

    def snapshot(self) -> Snapshot:
        """All files and links, and what is in them."""
        found = {}
        for parent, folders, files in os.walk(self.folder):
            for name in (*folders, *files):
                path = Path(parent, name)
                mode = path.lstat().st_mode
                if stat.S_ISLNK(mode):
                    found[str(path)] = f"-> {os.readlink(path)}"
                elif stat.S_ISREG(mode):
                    found[str(path)] = f"{mode:o} {path.read_text()}"
        return found

    def write(self, path: Path, text: str) -> None:
        """What the kernel does when an attribute is written."""
        number = len(self.writes)
        self.writes.append(f"{text.strip()} > {path.relative_to(self.root)}")
        if number in self.fail:
            raise OSError(self.error, os.strerror(self.error))
        assert text.endswith("\n")
        assert path.exists()
        word = text.strip()
        if path.name == "driver_override":
            path.write_text(f"{word or '(null)'}\n")
        elif path.name == "unbind":
            self._detach(word, path.parent.name)
        elif path.name == "drivers_probe":
            self._probe(word)
        else:
            raise AssertionError(f"nobody should write {path}")

    def _probe(self, bdf: str) -> None:
        override = self.override(bdf)
        wanted = self.native.get(bdf) if override == "(null)" else override
        if self.driver(bdf) is None and wanted is not None and wanted not in self.refusing:
            assert (self.root / "bus/pci/drivers" / wanted).is_dir()
            self._attach(bdf, wanted)

    def _attach(self, bdf: str, driver: str) -> None:
        folder = self.folder_of(bdf)
        self.link(folder / "driver", self.root / "bus/pci/drivers" / driver)
        self.link(self.root / "bus/pci/drivers" / driver / bdf, folder)
        if "vfio" in driver and (folder / "iommu_group").is_symlink():
            self.put(self.dev / "vfio" / (folder / "iommu_group").resolve().name, "")

    def _detach(self, bdf: str, driver: str) -> None:
        if self.driver(bdf) != driver:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        folder = self.folder_of(bdf)
        (folder / "driver").unlink()
        (self.root / "bus/pci/drivers" / driver / bdf).unlink()
        group = (folder / "iommu_group").resolve()
        if "vfio" in driver and group.name.isdecimal():
            others = {self.driver(name) for name in os.listdir(group / "devices")}
            if driver not in others:
                (self.dev / "vfio" / group.name).unlink()
