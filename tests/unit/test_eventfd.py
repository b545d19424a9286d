# SPDX-License-Identifier: BSD-3-Clause
"""Eventfds that the other end has as well, and may fill or make blocking at any moment."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pyvfio import eventfd
from pyvfio.native._native import lib

FULL = (1 << 64) - 2


@pytest.fixture(params=[0, os.EFD_NONBLOCK], ids=["blocking", "non-blocking"])
def fd(request: pytest.FixtureRequest) -> Iterator[int]:
    """An eventfd in either mode."""
    found = os.eventfd(0, request.param)
    yield found
    os.close(found)


def test_each_signal_counts(fd: int) -> None:
    for _ in range(200):
        eventfd.signal(fd)
    assert os.eventfd_read(fd) == 200


def test_signal_of_a_full_eventfd_does_not_block_and_leaves_it_signalled(fd: int) -> None:
    os.eventfd_write(fd, FULL)
    eventfd.signal(fd)
    eventfd.signal(fd)
    assert eventfd.take(fd) >= FULL


def test_an_eventfd_that_is_filled_behind_the_look_at_it_does_not_block(fd: int) -> None:
    os.eventfd_write(fd, FULL)
    assert lib.pyvfio_signal(fd) == 0  # it does not look at all


def test_an_eventfd_works_on_after_it_was_full(fd: int) -> None:
    os.eventfd_write(fd, FULL)
    eventfd.signal(fd)
    eventfd.take(fd)
    eventfd.signal(fd)
    assert os.eventfd_read(fd) == 1


def test_what_is_no_eventfd_is_not_signalled() -> None:
    reading, writing = os.pipe()
    assert lib.pyvfio_signal(writing) == -errno.EINVAL
    os.close(reading)
    os.close(writing)


def test_signals_reach_an_eventfd_from_a_fork(fd: int) -> None:
    eventfd.signal(fd)
    child = os.fork()
    if not child:
        os._exit(lib.pyvfio_signal(fd))
    assert os.waitpid(child, 0)[1] == 0
    assert os.eventfd_read(fd) == 2


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EAGAIN])
def test_without_asynchronous_io_an_eventfd_is_written(
    number: int, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventfd, "lib", SimpleNamespace(pyvfio_signal=lambda _: -number))
    eventfd.signal(fd)
    assert os.eventfd_read(fd) == 1
    os.eventfd_write(fd, FULL)
    eventfd.signal(fd)
    assert os.eventfd_read(fd) == FULL


def test_take_gives_the_count_once(fd: int) -> None:
    os.eventfd_write(fd, 7)
    assert [eventfd.take(fd), eventfd.take(fd)] == [7, 0]


def test_take_gives_the_steps_of_a_semaphore_one_by_one() -> None:
    fd = os.eventfd(2, os.EFD_SEMAPHORE)
    assert [eventfd.take(fd), eventfd.take(fd), eventfd.take(fd)] == [1, 1, 0]
    os.close(fd)
