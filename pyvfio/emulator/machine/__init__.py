# SPDX-License-Identifier: BSD-3-Clause
"""A small PC-like machine whose processor is the Unicorn engine (``pip install pyvfio[unicorn]``).

One 32-bit x86 processor, RAM from address 0, a PCI Express host bridge with both ways to reach
configuration space, and an interrupt controller.  Everything runs in the thread that calls
:meth:`~pyvfio.emulator.machine.machine.Machine.run`.
"""

from pyvfio.emulator.machine.machine import Machine, Pluggable
from pyvfio.emulator.machine.result import Outcome, Result

__all__ = ["Machine", "Outcome", "Pluggable", "Result"]
