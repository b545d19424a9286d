# SPDX-License-Identifier: BSD-3-Clause
"""What a function waits for: eventfds and timers behind one descriptor."""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest

from pyvfio import eventfd
from pyvfio.emulator.events import EventFD, Events, Timer
from tests.support import in_threads


@pytest.fixture
def events() -> Iterator[Events]:
    with Events() as found:
        yield found


def readable(events: Events) -> bool:
    return bool(select.select([events.fileno()], [], [], 0)[0])


def test_a_signal_calls_the_handler_once_however_often_it_came(events: Events) -> None:
    calls: list[str] = []
    with events.eventfd(lambda: calls.append("a")) as event:
        eventfd.signal(event.fd)
        eventfd.signal(event.fd)
        assert readable(events)
        assert events.dispatch() == 1
        assert not readable(events)
        assert events.dispatch() == 0
    assert calls == ["a"]


def test_each_eventfd_has_its_own_handler(events: Events) -> None:
    calls: list[str] = []
    with (
        events.eventfd(lambda: calls.append("a")) as one,
        events.eventfd(lambda: calls.append("b")),
    ):
        eventfd.signal(one.fd)
        events.dispatch()
    assert calls == ["a"]


def test_signals_of_an_eventfd_that_is_not_watched_stay_in_it(events: Events) -> None:
    calls: list[str] = []
    with events.eventfd(lambda: calls.append("a")) as event:
        event.watch(False)
        eventfd.signal(event.fd)
        assert not events.dispatch()
        event.watch(True)
        assert events.dispatch() == 1
    assert calls == ["a"]


def test_a_handler_may_close_another_that_was_signalled_as_well(events: Events) -> None:
    both: list[EventFD] = []

    def close_both() -> None:
        for event in both:
            event.close()

    both += [events.eventfd(close_both), events.eventfd(close_both)]
    for event in both:
        eventfd.signal(event.fd)
    assert events.dispatch() == 1
    assert [event.fd for event in both] == [-1, -1]


def test_dispatch_waits_for_the_first_signal(events: Events) -> None:
    calls: list[str] = []
    with events.eventfd(lambda: calls.append("a")) as event:
        (thread,) = in_threads([lambda: eventfd.signal(event.fd)])
        assert events.dispatch(10) == 1
        thread.join()
    assert calls == ["a"]


def test_timers_are_called_in_the_order_of_their_time(events: Events) -> None:
    calls: list[str] = []
    events.call_after(0.002, lambda: calls.append("late"))
    events.call_after(0.001, lambda: calls.append("early"))
    while events.timeout is not None:
        events.dispatch(None)
    assert calls == ["early", "late"]


def test_a_timer_that_was_cancelled_is_not_called_and_not_waited_for(events: Events) -> None:
    calls: list[str] = []
    timer = events.call_after(0, lambda: calls.append("a"))
    timer.cancel()
    timer.cancel()
    assert events.timeout is None
    assert events.dispatch() == 0
    assert calls == []


def test_a_handler_may_cancel_a_timer_that_is_due(events: Events) -> None:
    calls: list[str] = []
    timers: list[Timer] = []

    def cancel() -> None:
        timers[0].cancel()

    events.call_after(0, cancel)
    timers.append(events.call_after(0, lambda: calls.append("a")))
    events.dispatch(0.001)
    assert calls == []


def test_a_timer_is_not_called_before_its_time(events: Events) -> None:
    events.call_after(1000, lambda: pytest.fail("too early"))
    assert events.dispatch() == 0
    assert events.timeout is not None
    assert 900 < events.timeout <= 1000


@pytest.mark.parametrize("timeout", [-0.001, -1000, float("-inf")])
def test_a_time_that_is_over_is_not_waited_for(events: Events, timeout: float) -> None:
    assert events.dispatch(timeout) == 0


def test_closing_closes_the_eventfds_that_are_left() -> None:
    events = Events()
    event = events.eventfd(lambda: None)
    events.close()
    events.close()
    assert event.fd < 0
    event.close()
