# SPDX-License-Identifier: BSD-3-Clause
"""Whether writes to a device are posted: sent without waiting for an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pyvfio.native import mmio, window


class Posting:
    """Whether the regions of one device post their writes: until one of them is mapped.

    A store to mapped memory does not wait for messages that are under way, so it would overtake
    them (QEMU's vfio-user client: no posting with a region that can be mapped).

    :param flush: waits until what was posted is done.
    :param default: whether memory BARs post where nobody says otherwise.
    :ivar is_over: the same as :attr:`over`, for C.
    """

    def __init__(self, flush: Callable[[], None], default: bool = False) -> None:
        self.default = default
        self.is_over = window.flag()
        self._flush = flush
        self._flushed = False
        self._lock = threading.RLock()

    @property
    def over(self) -> bool:
        """Whether nothing is posted any more."""
        return bool(self.is_over[0])

    def end(self) -> None:
        """A region is mapped: post no more, and wait for what was posted.

        :raises VFIOError: it is not known to be done; to be called again.
        """
        with self._lock:  # nobody stores to memory while another still waits
            self.is_over[0] = True
            mmio.full_barrier()  # who posts in C counts that first, and then looks here
            if not self._flushed:
                self._flush()
                self._flushed = True
