# SPDX-License-Identifier: BSD-3-Clause
"""Descriptors of every kind, to be sent where some belong and where none do."""

from __future__ import annotations

import os
import random
import select
import socket
from collections.abc import Sequence
from typing import Self

FILE_SIZE = 64 << 12
"""Bytes of the files that can be mapped."""


class Descriptors:
    """A stock of open descriptors; they stay its own, whatever is sent of them."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        ends = socket.socketpair()
        deaf = socket.socketpair()
        deaf[1].close()
        self._sockets = (*ends, deaf[0])
        self._poll = select.epoll()
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self._full = os.eventfd(0)  # blocks who signals it
        os.eventfd_write(self._full, (1 << 64) - 2)
        self.file = os.memfd_create("fuzz")
        self._tiny = os.memfd_create("fuzz-tiny")
        os.ftruncate(self.file, FILE_SIZE)
        os.ftruncate(self._tiny, 100)
        self._folder = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        self._null = os.open(os.devnull, os.O_RDWR)
        self._read_only = os.open(f"/proc/self/fd/{self.file}", os.O_RDONLY)
        self._plain: tuple[int, ...] = (
            *(self._reading, self._writing, self.event, self._full, self.file, self._tiny),
            *(self._folder, self._null, self._read_only),
        )
        self.all = (*self._plain, *(end.fileno() for end in self._sockets), self._poll.fileno())

    def any(self, rng: random.Random) -> Sequence[int]:
        """Some, of any kind; mostly one."""
        count = rng.choice((1, 1, 1, 2, 3, 17, 64))
        if rng.random() < 0.02:
            count = 253
        return [rng.choice(self.all) for _ in range(count)]

    def events(self, count: int) -> Sequence[int]:
        """Eventfds, as many as one message can carry at most."""
        return [self.event] * min(count, 253)

    def truncate(self, rng: random.Random) -> None:
        """Take the memory of the file away, or give it back."""
        os.ftruncate(self.file, rng.choice((0, FILE_SIZE, FILE_SIZE, 1 << 12)))

    def close(self) -> None:
        """Close all of them."""
        for fd in self._plain:
            os.close(fd)
        for end in self._sockets:
            end.close()
        self._poll.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
