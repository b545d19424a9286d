# SPDX-License-Identifier: BSD-3-Clause
"""What a quirk may do, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyvfio.closing import Closing
from pyvfio.emulator.bars import GuestBAR
from pyvfio.emulator.config import EmulatedConfig
from pyvfio.emulator.memory import MMIORegion


@dataclass(frozen=True, slots=True)
class QuirkTarget:
    """The function that a quirk is for, with its capabilities set up.

    :ivar config: configuration space; quirks go by the ids that the guest sees.
    :ivar msix_table: the MSI-X table that the guest sees; None without MSI-X.
    """

    config: EmulatedConfig
    bars: Mapping[int, GuestBAR]
    msix_table: MMIORegion | None

    @property
    def name(self) -> str:
        """How messages call the function."""
        return self.config.name


class Quirk(Closing):
    """Something to be done for some devices; each step does nothing unless overridden.

    :param target: the function.
    """

    def __init__(self, target: QuirkTarget) -> None:
        self.target = target

    def set_up_config(self) -> None:
        """Configuration space is set up, interrupts are not yet."""

    def set_up_bars(self) -> None:
        """Configuration space is done with; regions may be put into BARs."""

    def reset(self) -> None:
        """The device was reset."""

    def close(self) -> None:
        """Undo everything.  May be repeated, and comes after a failure in any step."""
