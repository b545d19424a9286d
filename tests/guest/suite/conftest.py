# SPDX-License-Identifier: BSD-3-Clause
"""The guest's devices, bound to vfio-pci."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

import pyvfio
from pyvfio.pci.device import PCIDevice
from tests.guest import inside

if os.environ.get("PYVFIO_GUEST") != "1":
    collect_ignore_glob = ["test_*.py"]  # they run in the guest, started by ../test_suite.py

EDU, NVME, E1000E = "1234:11e8", "1b36:0010", "8086:10d3"


def in_a_child(job: Callable[[], bool]) -> bool:
    """Whether a forked process, which may give up its rights, finds that ``job`` is right."""
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if job() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def bound(ids: str, position: int = 0) -> str:
    """The address of a device of the guest, bound to vfio-pci."""
    address = inside.find(ids)[position]
    inside.bind(address)
    return address


@pytest.fixture
def edu() -> Iterator[PCIDevice]:
    """The edu device that is alone in its group."""
    with pyvfio.open(f"vfio:{bound(EDU)}") as dev:
        yield dev


@pytest.fixture
def nvme() -> Iterator[PCIDevice]:
    """The NVMe controller that is alone in its group."""
    with pyvfio.open(f"vfio:{bound(NVME)}") as dev:
        yield dev


@pytest.fixture
def e1000e() -> Iterator[PCIDevice]:
    """The network adapter: memory and I/O BARs, MSI-X."""
    with pyvfio.open(f"vfio:{bound(E1000E)}") as dev:
        yield dev
