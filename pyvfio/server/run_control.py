# SPDX-License-Identifier: BSD-3-Clause
"""Stops a hosted model, and has it run again.

A stopped device neither changes nor interrupts nor reaches for memory.  Its registers, and writes
to its memory, are refused with EBUSY; configuration space, MSI-X table, SET_IRQS and DMA maps are
served as ever, since clients set those up around a migration (``linux/vfio.h``, the arc RUNNING_P2P
to STOP).  DMA of the model's threads waits, interrupts are held, kicks stay in their eventfds.
"""

from __future__ import annotations

import errno
import threading
from typing import Protocol

from pyvfio.native.dma import DirectDMA
from pyvfio.server.dma_gate import DMAGate
from pyvfio.server.interrupts import Interrupts
from pyvfio.server.model import DeviceModel


class Kicks(Protocol):
    """The eventfds by which a client writes registers."""

    def pause(self) -> None:
        """Deliver what was kicked so far, and nothing more."""

    def resume(self) -> None:
        """Deliver again."""


class RunControl:
    """Whether a device runs.

    :param lock: the function's own.
    :param direct: what of its DMA is done in C.
    :ivar gate: what its DMA goes through.
    """

    def __init__(
        self,
        model: DeviceModel,
        *,
        lock: threading.RLock,
        interrupts: Interrupts,
        direct: DirectDMA,
    ) -> None:
        self.gate = DMAGate(direct)
        self._model = model
        self._lock = lock
        self._interrupts = interrupts
        self._kicks: Kicks | None = None

    @property
    def runs(self) -> bool:
        """Whether the device runs."""
        return self.gate.is_open

    def check(self) -> None:
        """Called with the model's lock before a register is accessed.

        :raises OSError: EBUSY; the device is stopped.
        """
        if not self.runs:
            raise OSError(errno.EBUSY, "the device is stopped")

    def attach(self, kicks: Kicks | None) -> None:
        """The client that there is now may kick."""
        self._kicks = kicks
        if kicks is not None and not self.runs:
            kicks.pause()

    def stop(self) -> None:
        """Stop; raises what the model fails with: it may have stopped then, or not."""
        self._pause_kicks()
        with self._model.lock:
            self._model.stopped()
            self._hold()
        # Without a lock: a thread of the model's may need it to come to the end of its DMA.
        self.gate.drain()

    def halt(self) -> None:
        """Stop without asking the model, which has failed."""
        self._pause_kicks()
        with self._model.lock:
            self._hold()

    def _pause_kicks(self) -> None:
        if self._kicks is not None:
            self._kicks.pause()

    def _hold(self) -> None:
        with self._lock:
            self.gate.shut()
            self._interrupts.hold()

    def start(self) -> None:
        """Have it run; raises what the model fails with: it is stopped still."""
        with self._model.lock:
            self._model.started()
            with self._lock:
                self._interrupts.release()
            self.gate.open()
        if self._kicks is not None:
            self._kicks.resume()

    def reset(self) -> None:
        """The device was reset, and runs; raises as :meth:`start` does."""
        self.gate.drop_waiting()
        if not self.runs:
            self.start()
