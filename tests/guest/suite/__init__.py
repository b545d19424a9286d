# SPDX-License-Identifier: BSD-3-Clause
"""Tests of the kernel backend that need the guest's devices; they run in the guest."""
