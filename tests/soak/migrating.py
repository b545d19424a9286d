# SPDX-License-Identifier: BSD-3-Clause
"""``pyvfio migrate`` that waits for a line: ``python -m tests.soak.migrating SRC DST ...``.

What takes longer than a migration, the start of the interpreter, is behind it then.
"""

from __future__ import annotations

import sys

from pyvfio.cli.main import main

if __name__ == "__main__":
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    sys.exit(main(["migrate", *sys.argv[1:]]))
