# SPDX-License-Identifier: BSD-3-Clause
"""The ``pyvfio`` command: one module per verb."""
