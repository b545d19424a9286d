# SPDX-License-Identifier: BSD-3-Clause
"""Known oddities of devices, and what is done about them.

A device may have ways to its own configuration space, or to its MSI-X table, that lead past what
the emulator shows its guest.  A quirk closes one: it is a :class:`Quirk`, and an entry in
:data:`KNOWN` that says for which ids.
"""

from pyvfio.emulator.quirks.known import KNOWN, KnownQuirk, Quirks
from pyvfio.emulator.quirks.quirk import Quirk, QuirkTarget

__all__ = ["KNOWN", "KnownQuirk", "Quirk", "QuirkTarget", "Quirks"]
