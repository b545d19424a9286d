# SPDX-License-Identifier: BSD-3-Clause
"""The conformance suite by vfio-pci.

Down from a test of it: pyvfio's kernel backend, the guest's vfio-pci and IOMMU driver, QEMU's
emulated IOMMU, its vfio-user client, the server.
"""

from __future__ import annotations

import os
import sys

import pytest

from tests.conftest import DEVICES, EDU_URI
from tests.guest import inside
from tests.peers.guest import EDU, TESTDEV


def bound_uri(ids: str) -> str:
    """The URI of the device with these ids, bound to vfio-pci."""
    (address,) = inside.find(ids)
    inside.bind(address)
    return f"vfio:{address}"


if __name__ == "__main__":
    os.environ[EDU_URI] = bound_uri(EDU)
    os.environ[DEVICES] = f"{os.environ[EDU_URI]},{bound_uri(TESTDEV)}"
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/conformance", *sys.argv[1:]]))
