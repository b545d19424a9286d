# SPDX-License-Identifier: BSD-3-Clause
"""A device that has nothing to say of errors, or of being wanted back, is used all the same."""

from __future__ import annotations

import errno

import pytest

from pyvfio.emulator.events import Events
from pyvfio.emulator.notifiers import Notifiers
from pyvfio.errors import IRQError
from pyvfio.uapi.vfio import PCIIRQ, IRQSetFlags
from tests.emulated import SOON, RecordingHost
from tests.support import open_fds
from tests.unit.declared import DeclaredIO, declared


class Function:
    """Who asks the host."""

    name = "guest's"


def test_a_device_that_cannot_tell_is_not_asked() -> None:
    io, events = DeclaredIO(), Events()
    io.counts = dict.fromkeys(PCIIRQ, 0)
    with events, Notifiers(declared(io).base, RecordingHost(), events, Function()) as notifiers:
        notifiers.set_up()
    assert io.calls == []


def test_one_that_refuses_is_used_without_it(caplog: pytest.LogCaptureFixture) -> None:
    io, events, host = DeclaredIO(), Events(), RecordingHost()
    io.errors = [IRQError("no", errno=errno.ENOTTY)]
    with events, Notifiers(declared(io).base, host, events, Function()) as notifiers:
        before = len(open_fds())
        notifiers.set_up()
        assert len(open_fds()) == before + 1
        io.fire(PCIIRQ.REQ)
        assert events.dispatch(SOON) == 1
    assert host.told == ["release of guest's"]
    assert [line.partition(":")[0] for line in caplog.messages] == ["guest's"]
    assert "does without ERR" in caplog.text


def test_in_the_end_the_eventfds_are_taken_away_first() -> None:
    io, events = DeclaredIO(), Events()
    with events:
        notifiers = Notifiers(declared(io).base, RecordingHost(), events, Function())
        notifiers.set_up()
        notifiers.close()
        notifiers.close()
    trigger = IRQSetFlags.TRIGGER
    assert io.calls[2:] == [(PCIIRQ.REQ, trigger, 0, 1, True), (PCIIRQ.ERR, trigger, 0, 1, True)]
    assert set(io.eventfds.values()) == {-1}
