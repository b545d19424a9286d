# SPDX-License-Identifier: BSD-3-Clause
"""The emulated machine: QEMU's command line, with one table of the PCI devices under test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MEMORY_MIB = 1024
DISK_BYTES = 64 << 20
DISKS = ("nvme0", "nvme1")

# Nehalem is x86-64-v2, which numpy's wheels need; more only slows emulation down. The same goes for
# a second CPU, and for mitigations of a CPU that is not there. A panic (-1) resets at once.
# no_timer_check: on a busy host QEMU's timer is late, and the kernel would panic on finding it so.
MACHINE = "-accel tcg -M q35 -cpu Nehalem -smp 1 -nodefaults -no-user-config -display none"
KERNEL_LINE = (
    "console=ttyS0 quiet loglevel=3 panic=-1 intel_iommu=on mitigations=off nokaslr audit=0"
    " nowatchdog random.trust_cpu=on tsc=reliable no_timer_check"
)

# The second serial port for a shell; Ctrl-C goes to the guest.
TERMINAL = ("-chardev", "stdio,id=tty,signal=off", "-serial", "chardev:tty")

# PCIe root ports run at 5 GT/s: with QEMU 7.2's default of 16 the kernel waits in vain for the link
# after a hot reset.
PORT = "pcie-root-port,x-speed=5"
DEVICES = (
    # one function each in a group of its own
    "edu,addr=0x4",
    "nvme,drive=nvme0,serial=NV1,addr=0x5",
    "e1000e,netdev=net0,addr=0x6",
    "pci-testdev,addr=0x7",
    "ivshmem-plain,memdev=shm0,addr=0x8",
    # 01:00.0, behind a root port: can be reset through its port
    f"{PORT},id=port1,chassis=1,slot=1,addr=0x10",
    "nvme,drive=nvme1,serial=NV2,bus=port1",
    # 02:00.0 and 02:00.1, two functions that share a group
    f"{PORT},id=port2,chassis=2,slot=2,addr=0x11",
    "edu,bus=port2,addr=0.0,multifunction=on",
    "edu,bus=port2,addr=0.1",
    # 03:01.0 and 03:02.0, which share a group with the bridge to conventional PCI
    "pcie-pci-bridge,id=bridge,addr=0x12",
    "edu,bus=bridge,addr=1",
    "pci-testdev,bus=bridge,addr=2",
)


@dataclass(frozen=True)
class Boot:
    """What differs from one start of the machine to the next."""

    kernel: Path
    initrd: Path
    output: Path
    interactive: bool = False


@dataclass(frozen=True)
class Machine:
    """What stays: QEMU's command, and its options for the devices under test."""

    qemu: Sequence[str]
    hardware: Sequence[str]


def own_machine(qemu: str, disks: Sequence[Path]) -> Machine:
    """The machine with :data:`DEVICES`; ``disks`` are a raw image for each of :data:`DISKS`."""
    devices = [word for device in DEVICES for word in ("-device", device)]
    return Machine([qemu], [*_backends(disks), *devices])


def command_line(machine: Machine, boot: Boot) -> list[str]:
    """QEMU's command line."""
    return [
        *(*machine.qemu, *MACHINE.split(), "-m", str(MEMORY_MIB), "-no-reboot"),
        *("-kernel", str(boot.kernel), "-initrd", str(boot.initrd)),
        *("-append", f"{KERNEL_LINE} terminal={'ttyS1' if boot.interactive else ''}"),
        *("-chardev", f"file,id=log,path={_escaped(boot.output / 'serial.log')}"),
        *("-serial", "chardev:log"),
        *(TERMINAL if boot.interactive else ()),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
        *("-device", "intel-iommu,intremap=on,caching-mode=on"),  # before all PCI devices
        *_share("host", Path("/"), "addr=0x2", "readonly=on"),
        *_share("out", boot.output, "addr=0x3"),
        *machine.hardware,
    ]


def _share(tag: str, folder: Path, address: str, *options: str) -> list[str]:
    """A folder of the host that the guest can mount by its tag."""
    words = ["local", f"id={tag}", f"path={_escaped(folder)}", "security_model=none"]
    device = f"virtio-9p-pci,fsdev={tag},mount_tag={tag},{address}"
    return ["-fsdev", ",".join([*words, "multidevs=remap", *options]), "-device", device]


def _backends(disks: Sequence[Path]) -> list[str]:
    words = ["-netdev", "hubport,id=net0,hubid=0"]
    words += ["-object", "memory-backend-ram,id=shm0,size=1M,share=on"]
    for name, image in zip(DISKS, disks, strict=True):
        words += ["-drive", f"if=none,id={name},file={image},format=raw,cache=unsafe"]
    return words


def _escaped(path: Path) -> str:
    """A path as the value of a QEMU option, in which a comma is doubled."""
    return str(path).replace(",", ",,")
