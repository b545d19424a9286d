# SPDX-License-Identifier: BSD-3-Clause
"""A guest under QEMU with the kernel's VFIO driver and emulated PCI devices, to run tests in.

``python -m tests.guest run -- COMMAND...`` boots it; :func:`tests.guest.runner.run` does so from a
test. :mod:`tests.guest.inside` is for the code that runs in the guest.
"""
