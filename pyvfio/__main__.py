# SPDX-License-Identifier: BSD-3-Clause
"""``python -m pyvfio`` is the ``pyvfio`` command."""

from __future__ import annotations

import sys

from pyvfio.cli.main import main

sys.exit(main())
