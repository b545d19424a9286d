# SPDX-License-Identifier: BSD-3-Clause
"""The gate that the device's DMA goes through: shut while the device is stopped for migration."""

from __future__ import annotations

import errno
import threading

from pyvfio.errors import DMAError
from pyvfio.native.dma import DirectDMA


class DMAGate:
    """Keeps account of the DMA under way, and holds back what comes while the device is stopped.

    :param direct: the DMA that does not come this way while the gate is open.
    :ivar is_open: the device is running.
    """

    def __init__(self, direct: DirectDMA) -> None:
        self._direct = direct
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self.is_open = True
        self._under_way = 0
        self._renewals = 0
        self._over = False

    def enter(self, address: int, waits: bool) -> None:
        """A DMA begins, up to :meth:`leave`; waits where the gate is shut.

        :param waits: False for the thread that serves the client, which would open the gate.
        :raises DMAError: EBUSY; it is shut, and this thread cannot wait.  ECANCELED; the device was
            reset or loaded meanwhile, or the server ends.
        """
        with self._lock:
            if not self.is_open:
                self._wait_until_open(address, waits)
            self._under_way += 1

    def leave(self) -> None:
        """It is over."""
        with self._lock:
            self._under_way -= 1
            if not self.is_open:
                self._changed.notify_all()

    def _wait_until_open(self, address: int, waits: bool) -> None:
        if not waits:
            raise _refused(address, errno.EBUSY, "the device is stopped")
        renewals = self._renewals
        self._changed.wait_for(lambda: self.is_open or self._renewals != renewals or self._over)
        if self._renewals != renewals or self._over:
            reason = "the device was reset or loaded while it was stopped"
            raise _refused(address, errno.ECANCELED, reason)

    def shut(self) -> None:
        """DMA that comes from now on waits."""
        with self._changed:
            self.is_open = False
            self._direct.stop(True)

    def drain(self) -> None:
        """Wait for the DMA that is under way; whoever reaches for memory may take locks."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way)

    def open(self) -> None:
        """Let through what has waited."""
        with self._changed:
            self.is_open = True
            self._changed.notify_all()
            self._direct.stop(False)

    def drop_waiting(self) -> None:
        """The device is reset, or was loaded: what has waited is of before."""
        with self._changed:
            self._renewals += 1
            self._changed.notify_all()

    def close(self) -> None:
        """The server ends: nobody waits any more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()


def _refused(address: int, number: int, reason: str) -> DMAError:
    return DMAError(reason, iova=address, op=f"DMA at {address:#x}", errno=number)
