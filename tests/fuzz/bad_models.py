# SPDX-License-Identifier: BSD-3-Clause
"""Models that are bad in one way each, all of which must be found."""

from __future__ import annotations

import os
import threading

from pyvfio.models.testdev import TestDevice


class Dies(TestDevice):
    """Takes the server with it."""

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        os._exit(3)


class Raises(TestDevice):
    """Fails where it should not."""

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        raise KeyError(offset)


class Leaks(TestDevice):
    """Opens what nobody closes."""

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        os.eventfd(0)


class Hangs(TestDevice):
    """Waits for what never comes."""

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        threading.Event().wait()
