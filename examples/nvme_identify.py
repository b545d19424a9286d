# SPDX-License-Identifier: BSD-3-Clause
"""Say what an NVMe controller is: ``python examples/nvme_identify.py vfio:0000:03:00.0``."""

from __future__ import annotations

import sys

import pyvfio
from pyvfio.drivers.nvme import NVMeDriver


def main(uri: str) -> None:
    """Identify the controller, which has to be bound to vfio-pci: its disks are not in use."""
    with pyvfio.open(uri) as dev, NVMeDriver(dev) as driver:
        about = driver.controller
        print(f"{about.model}, serial {about.serial}, firmware {about.firmware}")
        version = ".".join(map(str, about.version))
        print(f"NVMe {version}, at most {about.max_transfer} bytes a command")
        for namespace in driver.namespaces.values():
            size = namespace.blocks * namespace.block_size
            print(f"namespace {namespace.nsid}: {size >> 20} MiB, blocks of {namespace.block_size}")


if __name__ == "__main__":
    main(sys.argv[1])
