# SPDX-License-Identifier: BSD-3-Clause
"""The PCI layer: written once, above the operation vectors, for every backend."""
