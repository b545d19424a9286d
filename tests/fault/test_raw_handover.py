# SPDX-License-Identifier: BSD-3-Clause
"""A device is handed over between two that are made by hand: in which order, and who has it after.

The rules are those of :mod:`pyvfio.pci.migrate`: at most one runs, and where anything fails the
source goes on before anything else is done.
"""

from __future__ import annotations

import errno
import signal
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyvfio
from pyvfio.errors import (
    ConnectionLost,
    DMAError,
    MigrationError,
    StateError,
    UnsupportedError,
    VFIOError,
    VFIOTimeout,
)
from pyvfio.memory import SharedMemory
from pyvfio.migration_transfer import MAX_ROUNDS, SMALL, Transfer, worth_a_pass
from pyvfio.pci.migrate import load_state, migrate, save_state
from pyvfio.pci.saved_config import SavedConfig
from pyvfio.uapi.vfio import DeviceState, DMAMapFlags
from tests.fault import raw
from tests.fault.raw import Message, RawServer
from tests.fault.raw_migration import (
    DATA_SIZE,
    ERROR,
    GET,
    HAS_STOP_COPY,
    PRE_COPY,
    RESUMING,
    RUNNING,
    SET,
    STATE,
    STOP,
    STOP_COPY,
    MigratingDevice,
    feature_reply,
)

TIMEOUT = 0.3
RESET = -1
PAGE = 4096
SOURCE, DESTINATION = "source", "destination"


class Interrupted(Exception):
    """Raised by a test in the midst of something."""


class Side(MigratingDevice):
    """One of two devices.

    :param steps: (name, state or RESET) of all that both were told to do, in order.
    """

    def __init__(self, server: RawServer, name: str, steps: list[tuple[str, int]]) -> None:
        super().__init__(server)
        self.name = name
        self.steps = steps

    def _go(self, message: Message, state: int) -> None:
        self.steps.append((self.name, state))
        super()._go(message, state)

    def reset(self, message: Message) -> None:
        self.steps.append((self.name, RESET))
        super().reset(message)

    def at(self, wanted: int, action: Callable[[Message], None]) -> None:
        """Do something else when it is told to go to a state."""

        def handler(message: Message) -> None:
            flags = message.words("II")[1]
            if flags != SET | STATE or message.words("IIII")[2] != wanted:
                self.feature(message)
                return
            self.steps.append((self.name, wanted))
            action(message)

        self.server.handlers[raw.DEVICE_FEATURE] = handler

    def hang_up_at(self, wanted: int) -> None:
        """Close the connection when it is told to go to a state."""
        self.at(wanted, lambda _: self.server.hang_up())


class Endless(deque[bytes]):
    """Data without an end."""

    def popleft(self) -> bytes:
        return b"more"

    def __bool__(self) -> bool:
        return True


class Pair:
    """Two devices, opened, and what they were told to do."""

    def __init__(self, servers: list[RawServer]) -> None:
        self.steps: list[tuple[str, int]] = []
        self.here, self.there = (
            Side(server, name, self.steps)
            for server, name in zip(servers, (SOURCE, DESTINATION), strict=True)
        )
        self.here.precopy.extend((b"most of it", b""))
        self.here.rest.extend((b", and ", b"the rest"))
        self.source, self.destination = (
            pyvfio.open(server.uri, timeout=TIMEOUT) for server in servers
        )

    def migrate(self, **options: bool) -> Transfer:
        """Migrate, and have the destination run unless told otherwise."""
        return migrate(self.source, self.destination, **{"resume": True, **options})  # type: ignore[arg-type]

    @property
    def states(self) -> tuple[int, int]:
        """What both are in."""
        return self.here.state, self.there.state


@pytest.fixture
def pair(socket_folder: Path) -> Iterator[Pair]:
    with (
        RawServer(socket_folder / "raw-1.sock") as one,
        RawServer(socket_folder / "raw-2.sock") as other,
    ):
        pair = Pair([one, other])
        with pair.source, pair.destination:
            yield pair


ALL_STEPS = [
    (DESTINATION, RESUMING),
    (SOURCE, PRE_COPY),
    (SOURCE, STOP_COPY),
    (DESTINATION, STOP),
    (SOURCE, STOP),
    (DESTINATION, RUNNING),
]


# What is done


def test_a_device_is_handed_over_by_one_change_of_state(pair: Pair) -> None:
    done = pair.migrate()
    assert pair.steps == ALL_STEPS
    assert bytes(pair.there.loaded) == b"most of it, and the rest"
    assert (done.rounds, done.stopped_bytes, done.total) == ([10], 14, 24)
    assert done.downtime is not None
    assert done.seconds >= done.downtime > 0


def test_without_resume_the_last_step_is_left_to_the_caller(pair: Pair) -> None:
    assert pair.migrate(resume=False).downtime is None
    assert pair.steps == ALL_STEPS[:-1]
    assert pair.states == (STOP, STOP)
    pair.destination.migration.run()
    assert pair.states == (STOP, RUNNING)


@pytest.mark.parametrize("flags", [HAS_STOP_COPY, None])
def test_without_precopy_the_source_is_stopped_at_once(flags: int | None, pair: Pair) -> None:
    if flags is not None:
        pair.here.flags = flags
    done = pair.migrate() if flags is not None else pair.migrate(precopy=False)
    assert (SOURCE, PRE_COPY) not in pair.steps
    assert (done.rounds, bytes(pair.there.loaded)) == ([], b", and the rest")


def test_precopy_that_was_asked_for_must_be_there(pair: Pair) -> None:
    pair.here.flags = HAS_STOP_COPY
    with pytest.raises(UnsupportedError):
        pair.migrate(precopy=True)
    assert pair.here.state == RUNNING
    assert not pair.here.states


def test_a_stopped_source_is_copied_as_it_is(pair: Pair) -> None:
    pair.here.state = pair.there.state = STOP
    assert pair.migrate(precopy=True).downtime is None
    assert pair.steps == [s for s in ALL_STEPS if s != (SOURCE, PRE_COPY)]


def test_the_command_register_goes_along(pair: Pair) -> None:
    pair.source.bus_master = True
    pair.migrate()
    assert pair.destination.bus_master


def test_a_source_that_cannot_be_read_when_it_is_stopped_has_been_read_before(pair: Pair) -> None:
    """The command register as it was at the end of pre-copy, not at its begin."""

    def set_master(transfer: Transfer) -> None:
        if not transfer.stopped:
            pair.source.bus_master = True

    def refuse_when_stopped(message: Message) -> None:
        if pair.here.state == STOP_COPY:
            pair.here.server.peer.send(raw.refusal(message, errno.EINVAL))
        else:
            pair.here.server.serve(message)

    pair.here.server.handlers[raw.REGION_READ] = refuse_when_stopped
    migrate(pair.source, pair.destination, resume=True, progress=set_master)
    assert pair.destination.bus_master


def test_progress_is_told_as_it_goes(pair: Pair) -> None:
    seen = []

    def note(transfer: Transfer) -> None:
        seen.append((transfer.total, transfer.stopped, transfer.remaining()))

    migrate(pair.source, pair.destination, progress=note)
    assert seen == [(10, False, None), (16, True, None), (24, True, None)]


# Memory


def test_memory_is_mapped_for_the_destination_at_the_same_addresses(pair: Pair) -> None:
    with SharedMemory(2 * PAGE) as memory, pair.source.dma.alloc(PAGE) as buffer:
        pair.source.dma.map(memory, iova=0x100000, offset=PAGE, flags=DMAMapFlags.READ)
        pyvfio.share_memory(pair.source, pair.destination)
        assert pair.destination.dma.mappings == pair.source.dma.mappings
        assert buffer.iova in {entry.iova for entry in pair.destination.dma.mappings}
        pyvfio.share_memory(pair.source, pair.destination)
        assert len(pair.destination.dma.mappings) == 2
        pair.destination.dma.unmap_all()
        pair.source.dma.unmap(0x100000, PAGE)


def test_memory_of_the_destination_in_the_way_is_told(pair: Pair) -> None:
    with SharedMemory(PAGE) as memory, SharedMemory(PAGE) as other:
        pair.source.dma.map(memory, iova=0x100000)
        pair.destination.dma.map(other, iova=0x100000)
        with pytest.raises(DMAError, match="overlaps"):
            pyvfio.share_memory(pair.source, pair.destination)
        assert [entry.memory for entry in pair.destination.dma.mappings] == [other]
        for dev in (pair.source, pair.destination):
            dev.dma.unmap_all()


# Before anything is touched


def refused(pair: Pair, kind: type[Exception], match: str) -> None:
    """A migration is refused, and neither is told to do anything."""
    with pytest.raises(kind, match=match):
        pair.migrate()
    assert pair.steps == []


def test_devices_that_are_not_alike_are_refused(pair: Pair) -> None:
    pair.there.server.memory[raw.CONFIG][0x2E] ^= 1
    refused(pair, StateError, "subsystem")


@pytest.mark.parametrize("name", [SOURCE, DESTINATION])
def test_a_device_that_cannot_migrate_is_refused(name: str, pair: Pair) -> None:
    side, dev = {
        SOURCE: (pair.here, pair.source),
        DESTINATION: (pair.there, pair.destination),
    }[name]
    side.flags = 0
    with pytest.raises(UnsupportedError) as caught:
        pair.migrate()
    assert caught.value.uri == dev.uri
    assert pair.steps == []


def test_a_stopped_source_whose_destination_runs_may_have_been_moved(pair: Pair) -> None:
    pair.here.state = STOP
    refused(pair, MigrationError, "may have the device already")


@pytest.mark.parametrize("state", [ERROR, RESUMING, STOP_COPY])
def test_a_source_in_the_midst_of_something_is_refused(state: int, pair: Pair) -> None:
    pair.here.state = state
    refused(pair, MigrationError, f"the source is in {DeviceState(state).name}")


def test_a_device_does_not_migrate_to_itself(pair: Pair) -> None:
    with pytest.raises(ValueError, match="to itself"):
        migrate(pair.source, pair.source)


@pytest.mark.parametrize(
    "options",
    [
        {"precopy_seconds": -1.0},
        {"precopy_seconds": float("nan")},
        {"piece": 0},
        {"max_size": -1},
    ],
)
def test_times_and_sizes_that_are_none_are_refused(options: dict[str, Any], pair: Pair) -> None:
    with pytest.raises(ValueError, match=r"pre-copy for|at most -1 bytes"):
        migrate(pair.source, pair.destination, **options)
    assert pair.steps == []


# What an earlier migration has left


@pytest.mark.parametrize("state", [ERROR, RESUMING])
def test_a_load_without_an_end_is_cleared_away_while_the_source_runs(
    state: int, pair: Pair
) -> None:
    """The reset brings it to RUNNING: with a stopped source that would look like a hand-over."""
    pair.here.state, pair.there.state = STOP, state
    pair.migrate()
    assert pair.steps == [(SOURCE, RUNNING), (DESTINATION, RESET), *ALL_STEPS]


def test_a_stopped_source_that_cannot_go_on_before_is_not_reset(pair: Pair) -> None:
    """It is whole, and nobody else has it."""
    pair.here.state, pair.there.state = STOP, ERROR
    pair.here.refusals.update({RUNNING: (errno.EIO, ERROR), STOP: (errno.EIO, None)})
    with pytest.raises(MigrationError):
        pair.migrate()
    assert pair.steps == [(SOURCE, RUNNING), (SOURCE, STOP)]


def test_a_copy_that_nobody_ran_is_made_again(pair: Pair) -> None:
    pair.migrate(resume=False)
    pair.here.rest.append(b"again")
    pair.steps.clear()
    pair.migrate()
    assert pair.steps[:2] == [(DESTINATION, RESUMING), (SOURCE, STOP_COPY)]
    assert pair.states == (STOP, RUNNING)


# What fails


@pytest.mark.parametrize(
    ("name", "state", "left_in"),
    [
        (DESTINATION, RESUMING, None),
        (SOURCE, PRE_COPY, None),
        (SOURCE, STOP_COPY, None),
        (SOURCE, STOP_COPY, STOP),
        (DESTINATION, STOP, None),
        (DESTINATION, STOP, ERROR),
        (DESTINATION, RUNNING, None),
        (DESTINATION, RUNNING, ERROR),
    ],
)
def test_where_a_step_is_refused_the_source_goes_on(
    name: str, state: int, left_in: int | None, pair: Pair
) -> None:
    side = pair.here if name == SOURCE else pair.there
    side.refusals[state] = errno.EIO, left_in
    with pytest.raises(MigrationError):
        pair.migrate()
    assert pair.here.state == RUNNING
    if (DESTINATION, RESET) in pair.steps and (SOURCE, STOP_COPY) in pair.steps:
        back = max(at for at, step in enumerate(pair.steps) if step == (SOURCE, RUNNING))
        assert back < pair.steps.index((DESTINATION, RESET))
    assert pair.steps[-1] != (DESTINATION, RUNNING)


def test_where_the_destination_refuses_to_run_the_error_says_who_runs(pair: Pair) -> None:
    pair.there.refusals[RUNNING] = errno.EIO, None
    with pytest.raises(MigrationError, match="is in STOP") as caught:
        pair.migrate()
    assert caught.value.__notes__ == [f"{pair.source.uri} runs on"]
    assert pair.states == (RUNNING, STOP)


def test_a_stopped_source_stays_so_where_the_copy_fails(pair: Pair) -> None:
    """And the destination is not reset: beside it, RUNNING would look like a hand-over."""
    pair.here.state = pair.there.state = STOP
    pair.there.refusals[STOP] = errno.EINVAL, ERROR
    with pytest.raises(MigrationError) as caught:
        pair.migrate()
    assert "was stopped before" in caught.value.__notes__[0]
    assert pair.states == (STOP, ERROR)


def test_a_stopped_source_stays_so_where_the_destination_has_it_as_well(pair: Pair) -> None:
    pair.here.state = pair.there.state = STOP
    pair.there.refusals[RUNNING] = errno.EIO, None
    with pytest.raises(MigrationError) as caught:
        pair.migrate()
    assert "as it was before" in caught.value.__notes__[0]
    assert pair.states == (STOP, STOP)


def test_a_source_that_cannot_go_on_is_told_of(pair: Pair) -> None:
    pair.there.refusals[RUNNING] = errno.EIO, None
    pair.here.refusals[RUNNING] = errno.ENXIO, None
    with pytest.raises(MigrationError) as caught:
        pair.migrate()
    assert "ENXIO" in caught.value.__notes__[0]


def test_registers_that_are_not_taken_have_the_source_go_on(pair: Pair) -> None:
    pair.source.bus_master = True
    pair.there.server.handlers[raw.REGION_WRITE] = lambda message: pair.there.server.peer.send(
        raw.answer(message, message.payload[:16])
    )
    with pytest.raises(MigrationError, match="command register"):
        pair.migrate()
    assert pair.steps[-2:] == [(SOURCE, RUNNING), (DESTINATION, RESET)]


def test_whatever_is_raised_in_the_midst_has_the_source_go_on_first(pair: Pair) -> None:
    def stop(transfer: Transfer) -> None:
        if transfer.stopped:
            raise Interrupted

    with pytest.raises(Interrupted):
        migrate(pair.source, pair.destination, resume=True, progress=stop)
    assert pair.steps[-2:] == [(SOURCE, RUNNING), (DESTINATION, RESET)]


# Signals


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGUSR1 raises :class:`Interrupted`, as SIGINT does KeyboardInterrupt."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    yield
    signal.signal(signal.SIGUSR1, before)


def interrupt_at(side: Side, wanted: int) -> None:
    """Send a signal when it has gone to a state, once, before it answers."""

    def action(message: Message) -> None:
        side.server.handlers[raw.DEVICE_FEATURE] = side.feature
        side.state = wanted
        time.sleep(0.05)  # the client waits for the answer by now
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        time.sleep(0.05)
        side.server.peer.send(raw.answer(message, message.payload))

    side.at(wanted, action)


@pytest.mark.usefixtures("interrupts")
def test_a_destination_that_runs_when_a_signal_comes_keeps_the_device(pair: Pair) -> None:
    interrupt_at(pair.there, RUNNING)
    with pytest.raises(Interrupted) as caught:
        pair.migrate()
    assert pair.states == (STOP, RUNNING)
    assert f"{pair.destination.uri} runs, " in caught.value.__notes__[0]


@pytest.mark.usefixtures("interrupts")
def test_a_second_signal_does_not_cost_the_source_its_state(pair: Pair) -> None:
    def stop(transfer: Transfer) -> None:
        if transfer.stopped:
            interrupt_at(pair.here, RUNNING)
            raise Interrupted

    with pytest.raises(Interrupted):
        migrate(pair.source, pair.destination, resume=True, progress=stop)
    assert (pair.here.state, pair.here.resets) == (RUNNING, 0)


@pytest.mark.usefixtures("interrupts")
def test_a_signal_while_a_device_that_is_kept_running_stops_has_it_go_on(pair: Pair) -> None:
    interrupt_at(pair.here, STOP)
    with pytest.raises(Interrupted):
        saved(pair, keep_running=True)
    assert pair.here.state == RUNNING


@pytest.mark.usefixtures("interrupts")
def test_a_signal_behind_a_state_that_is_safe_leaves_the_device_stopped(pair: Pair) -> None:
    interrupt_at(pair.here, STOP)
    with pytest.raises(Interrupted) as caught:
        saved(pair, keep_running=False)
    assert "left stopped" in caught.value.__notes__[0]
    assert pair.here.state == STOP


def test_a_device_that_is_kept_running_goes_on_where_its_stop_is_not_answered(pair: Pair) -> None:
    pair.here.at(STOP, lambda _: None)
    with pytest.raises(VFIOTimeout):
        saved(pair, keep_running=True)
    assert pair.here.state == RUNNING


# Who dies


def test_a_source_that_is_lost_while_it_is_copied_has_the_destination_left_as_it_is(
    pair: Pair,
) -> None:
    """Its server may live, and have it in STOP: a destination in RUNNING would have the device."""
    pair.here.hang_up_at(STOP_COPY)
    with pytest.raises(ConnectionLost) as caught:
        pair.migrate()
    assert caught.value.uri == pair.source.uri
    assert "unfinished load" in caught.value.__notes__[-1]
    assert pair.there.state == RESUMING
    assert pair.there.resets == 0


def test_a_source_that_cannot_go_on_has_the_destination_left_as_it_is(pair: Pair) -> None:
    pair.here.state = pair.there.state = STOP
    pair.here.refusals[STOP_COPY] = pair.here.refusals[RUNNING] = errno.EIO, ERROR
    pair.here.refusals[STOP] = errno.EIO, None
    pair.here.server.handlers[raw.RESET] = lambda message: pair.here.server.peer.send(
        raw.refusal(message, errno.EIO)
    )
    with pytest.raises(MigrationError):
        pair.migrate()
    assert (pair.there.state, pair.there.resets) == (RESUMING, 0)


def test_a_source_that_dies_behind_the_copy_does_no_harm(pair: Pair) -> None:
    pair.here.hang_up_at(STOP)
    done = pair.migrate()
    assert isinstance(done.source_failure, ConnectionLost)
    assert pair.there.state == RUNNING
    assert (DESTINATION, RESET) not in pair.steps


@pytest.mark.parametrize("left_in", [STOP_COPY, ERROR])
def test_a_source_that_does_not_come_to_rest_does_not_run_either(left_in: int, pair: Pair) -> None:
    """It is neither put back nor reset: the destination has it all by then."""
    pair.here.refusals[STOP] = errno.EIO, left_in
    done = pair.migrate()
    assert isinstance(done.source_failure, MigrationError)
    assert done.source_failure.state == left_in
    assert pair.states == (left_in, RUNNING)
    assert (SOURCE, RUNNING) not in pair.steps


@pytest.mark.parametrize("state", [RESUMING, STOP])
def test_a_destination_that_dies_before_it_runs_has_the_source_go_on(
    state: int, pair: Pair
) -> None:
    pair.there.hang_up_at(state)
    with pytest.raises(ConnectionLost):
        pair.migrate()
    assert pair.here.state == RUNNING


def test_a_destination_that_dies_as_it_is_run_may_run(pair: Pair) -> None:
    """The connection is lost, and not a word of the server."""
    pair.there.hang_up_at(RUNNING)
    with pytest.raises(ConnectionLost) as caught:
        pair.migrate()
    assert "is not known" in caught.value.__notes__[0]
    assert pair.here.state == STOP


def test_a_destination_that_does_not_answer_may_run_yet(pair: Pair) -> None:
    def be_silent(_: Message) -> None:
        pair.there.server.handlers[raw.DEVICE_FEATURE] = lambda _: None

    pair.there.at(RUNNING, be_silent)
    with pytest.raises(VFIOTimeout) as caught:
        pair.migrate()
    assert "is not known" in caught.value.__notes__[0]
    assert pair.here.state == STOP


def test_a_destination_that_runs_after_all_keeps_the_device(pair: Pair) -> None:
    """It refused, and is there all the same."""
    pair.there.refusals[RUNNING] = errno.EIO, RUNNING

    def no_way_back(message: Message) -> None:
        pair.there.refusals[STOP] = errno.EIO, None
        super(Side, pair.there)._go(message, RUNNING)

    pair.there.at(RUNNING, no_way_back)
    with pytest.raises(MigrationError) as caught:
        pair.migrate()
    assert "runs, " in caught.value.__notes__[0]
    assert pair.states == (STOP, RUNNING)


# When pre-copy ends


@pytest.mark.parametrize(
    ("rounds", "another"),
    [
        ([], True),
        ([SMALL], False),
        ([SMALL + 1], True),
        ([100 * SMALL, 75 * SMALL], True),
        ([100 * SMALL, 76 * SMALL], False),
        ([10 * SMALL, 0], False),
        ([SMALL << (MAX_ROUNDS - n) for n in range(MAX_ROUNDS - 1)], True),
        ([SMALL << (MAX_ROUNDS - n) for n in range(MAX_ROUNDS)], False),
    ],
)
def test_a_pass_is_worth_it_while_the_rest_shrinks(rounds: list[int], another: bool) -> None:
    assert worth_a_pass(rounds) is another


def test_a_device_that_always_has_more_is_stopped_after_a_time(pair: Pair) -> None:
    pair.here.precopy = Endless()
    done = migrate(pair.source, pair.destination, resume=True, precopy_seconds=0.05)
    assert len(done.rounds) == 1
    assert pair.states == (STOP, RUNNING)


def test_a_stopped_source_whose_data_never_end_goes_on(pair: Pair) -> None:
    pair.here.rest = Endless()
    with pytest.raises(MigrationError, match="more than 1000 bytes") as caught:
        migrate(pair.source, pair.destination, resume=True, max_size=1000)
    assert (caught.value.errno, caught.value.uri) == (errno.EFBIG, pair.source.uri)
    assert len(pair.there.loaded) <= 1000
    assert pair.steps[-2:] == [(SOURCE, RUNNING), (DESTINATION, RESET)]


def test_what_is_sent_again_in_precopy_counts(pair: Pair) -> None:
    pair.here.precopy = Endless()
    with pytest.raises(MigrationError, match="more than 1000 bytes"):
        migrate(pair.source, pair.destination, max_size=1000)
    assert pair.here.state == RUNNING
    assert (SOURCE, STOP_COPY) not in pair.steps


def test_a_state_may_be_as_large_as_is_allowed(pair: Pair) -> None:
    assert migrate(pair.source, pair.destination, resume=True, max_size=24).total == 24


def test_a_saved_device_whose_data_never_end_goes_on(pair: Pair) -> None:
    pair.here.rest = Endless()
    transfer = Transfer(pair.source.migration, max_size=1000)
    got = bytearray()
    with pytest.raises(MigrationError, match="more than 1000 bytes"):
        save_state(pair.source, transfer, got.extend, lambda _: pytest.fail("it is not whole"))
    assert len(got) <= 1000
    assert pair.here.state == RUNNING


# What is left


def tell_size(side: Side, sizes: list[int]) -> None:
    """Have a device tell sizes, one after the other."""

    def handler(message: Message) -> None:
        if message.words("II")[1] == GET | DATA_SIZE:
            side.server.peer.send(feature_reply(message, struct.pack("<Q", sizes.pop(0))))
        else:
            side.feature(message)

    side.server.handlers[raw.DEVICE_FEATURE] = handler


def what_is_left(pair: Pair, precopy: bool) -> list[int | None]:
    """Behind each piece of a migration."""
    left: list[int | None] = []
    migrate(
        pair.source,
        pair.destination,
        precopy=precopy,
        progress=lambda transfer: left.append(transfer.remaining()),
    )
    return left


@pytest.mark.parametrize("precopy", [False, True])
def test_what_is_left_of_a_stopped_device_shrinks_as_it_is_read(precopy: bool, pair: Pair) -> None:
    """Though it tells the whole each time; pre-copy asks each time."""
    sizes = [30, 20, 9999] if precopy else [20, 9999]
    tell_size(pair.here, sizes)
    assert what_is_left(pair, precopy) == ([30, 14, 6] if precopy else [14, 6])


def test_a_device_that_has_more_than_it_told_has_nothing_left(pair: Pair) -> None:
    tell_size(pair.here, [10])
    assert what_is_left(pair, precopy=False) == [4, 0]


# Save and load


@pytest.mark.parametrize("keep_running", [False, True])
def test_a_device_goes_on_where_its_state_cannot_be_kept(keep_running: bool, pair: Pair) -> None:
    def keep(_: SavedConfig) -> None:
        raise Interrupted

    transfer = Transfer(pair.source.migration)
    with pytest.raises(Interrupted):
        save_state(pair.source, transfer, lambda _: None, keep, keep_running=keep_running)
    assert pair.here.state == RUNNING


def saved(pair: Pair, keep_running: bool) -> list[int]:
    """The states in which a device was when its state was safe, and after that."""
    states = []
    save_state(
        pair.source,
        Transfer(pair.source.migration),
        lambda _: None,
        lambda _: states.append(pair.here.state),
        keep_running=keep_running,
    )
    return [*states, pair.here.state]


def test_a_saved_device_is_stopped_when_its_state_is_safe(pair: Pair) -> None:
    assert saved(pair, keep_running=False) == [STOP_COPY, STOP]


def test_a_device_that_is_kept_running_goes_on_when_its_state_was_read(pair: Pair) -> None:
    assert saved(pair, keep_running=True) == [RUNNING, RUNNING]


def test_a_stopped_device_is_not_run_by_a_save(pair: Pair) -> None:
    pair.here.state = STOP
    assert saved(pair, keep_running=True) == [STOP_COPY, STOP]


def load(pair: Pair, pieces: Callable[[], Iterator[bytes]], *, resume: bool) -> None:
    config = SavedConfig.of(pair.source.config)
    load_state(pair.destination, pieces(), lambda: config, resume=resume)


@pytest.mark.parametrize("resume", [False, True])
def test_a_loaded_device_runs_if_it_shall(resume: bool, pair: Pair) -> None:
    load(pair, lambda: iter((b"a", b"b")), resume=resume)
    assert pair.there.state == (RUNNING if resume else STOP)
    assert pair.there.loaded == b"ab"


def test_a_device_that_had_failed_is_reset_before_it_is_loaded(pair: Pair) -> None:
    pair.there.state = ERROR
    load(pair, lambda: iter((b"a",)), resume=False)
    assert pair.steps == [(DESTINATION, RESET), (DESTINATION, RESUMING), (DESTINATION, STOP)]


def test_a_file_that_turns_out_bad_leaves_a_new_device(pair: Pair) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"a"
        raise StateError("it has changed meanwhile")

    with pytest.raises(StateError):
        load(pair, pieces, resume=True)
    assert pair.steps == [(DESTINATION, RESUMING), (DESTINATION, RESET)]


def test_a_loaded_device_that_does_not_run_keeps_its_state(pair: Pair) -> None:
    pair.there.refusals[RUNNING] = errno.EIO, None
    with pytest.raises(VFIOError, match="is in STOP"):
        load(pair, lambda: iter((b"a",)), resume=True)
    assert pair.there.resets == 0
