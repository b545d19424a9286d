# SPDX-License-Identifier: BSD-3-Clause
"""Runs in the guest: the conformance suite on the kernel backend, then the tests of this folder."""

from __future__ import annotations

import os
import sys

import pytest

from tests.conftest import DEVICES, EDU_URI
from tests.guest.suite.conftest import E1000E, EDU, NVME, bound

os.environ[EDU_URI] = f"vfio:{bound(EDU)}"
os.environ[DEVICES] = ",".join(f"vfio:{bound(ids)}" for ids in (EDU, NVME, E1000E))
sys.exit(
    pytest.main(
        ["-q", "-p", "no:cacheprovider", "tests/conformance", "tests/guest/suite", *sys.argv[1:]]
    )
)
