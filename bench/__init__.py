# SPDX-License-Identifier: BSD-3-Clause
"""What pyvfio costs, each figure beside its baseline; see docs/performance.md."""
