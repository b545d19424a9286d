# SPDX-License-Identifier: BSD-3-Clause
"""What can go wrong with a guest, apart from a command in it that fails."""

from __future__ import annotations


class GuestError(Exception):
    """The guest did not hand out the status of its command."""

    exit_status = 125

    def __init__(self, message: str, console: str = "") -> None:
        super().__init__(message)
        self.console = console
        """What the command had written until then."""


class GuestUnavailable(GuestError):
    """This machine cannot boot the guest: something is not installed or cannot be fetched."""

    exit_status = 126


class GuestLost(GuestError):
    """The guest ended before its command did: it panicked, was reset, or QEMU died."""

    exit_status = 125


class GuestHung(GuestError):
    """The guest was still running at its time limit, and was killed."""

    exit_status = 124
